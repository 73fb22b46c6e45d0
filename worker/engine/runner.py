"""The two forwards of a served model: prefill one request, decode all live rows. Knows no sampling and no threads.

This is transformers' own forward; it asks the model for nothing that depends on an earlier call.
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, DynamicCache

from worker.engine.cache import SlotCache
from worker.engine.loading import LoadedModel
from worker.engine.pixels import Patches, normalised
from worker.engine.prompt import Prompt, grids


class Runner:
    """Runs one model on its device."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.num_layers = int(model.module.config.get_text_config().num_hidden_layers)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt) -> tuple[torch.Tensor, Cache]:
        """(vocabulary,) logits after the prompt's last token, and the keys and values of all its tokens."""
        device = self._model.device
        cache = DynamicCache(config=self._model.module.config.get_text_config())
        output = self._model.module(
            input_ids=torch.tensor([prompt.ids], device=device),
            position_ids=prompt.positions[:, None].to(device),
            pixel_values=self._pixels(prompt.images),
            image_grid_thw=self._grids(prompt.images),
            pixel_values_videos=self._pixels(prompt.videos),
            video_grid_thw=self._grids(prompt.videos),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1], cache

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int], cache: SlotCache) -> torch.Tensor:
        """(rows, vocabulary) logits after feeding each live row its newest token at its position."""
        device = self._model.device
        mask = cache.begin_step(self._model.dtype)
        output = self._model.module(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            position_ids=torch.tensor(positions, device=device)[None, :, None].expand(3, -1, -1),
            attention_mask=mask,
            past_key_values=cache.model_view,
            use_cache=True,
        )
        cache.end_step()
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _pixels(self, patches: Sequence[Patches]) -> torch.Tensor | None:
        if not patches:
            return None
        return normalised(patches, self._model.pixels, self._model.device, self._model.dtype)

    def _grids(self, patches: Sequence[Patches]) -> torch.Tensor | None:
        found = grids(patches)
        return None if found is None else found.to(self._model.device)
