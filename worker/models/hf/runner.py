"""Transformers' own forward as the engine's runner. It asks the model for nothing that depends on an earlier call."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.models.hf.slots import slots_like
from worker.models.kv_cache import KVCache
from worker.models.kv_pools import KVPools
from worker.models.kv_widths import POOLS, token_bytes
from worker.models.pixel_values import pixel_values
from worker.models.runner import Features, Newest, PrefillChunk, Runner, placed
from worker.prompt.types import MediaItem


class HfRunner:
    """Runs one of the library's models, `module`, on its device. See `models.runner.Runner`."""

    def __init__(self, module: Any, preprocessor: PreprocessorConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.module = module
        self._preprocessor, self._device, self._dtype = preprocessor, device, dtype
        self._text = module.model.language_model
        self._config = module.config.get_text_config()

    def begin_tuning(self) -> None:
        """There is nothing to tune."""

    def close(self) -> None:
        """There is nothing to end."""

    def tidy(self) -> bool:
        return False

    kv_layout = POOLS

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all attention layers."""
        kinds = getattr(self._config, "layer_types", None) or ["full_attention"] * self._config.num_hidden_layers
        layers = sum(kind != "linear_attention" for kind in kinds)
        return token_bytes(layers, int(self._config.num_key_value_heads), self._head_dim, self._dtype.itemsize)

    @property
    def _head_dim(self) -> int:
        head_dim = getattr(self._config, "head_dim", None)
        return int(head_dim or self._config.hidden_size // self._config.num_attention_heads)

    def _prefill_cache(self, num_tokens: int = 0) -> DynamicCache:  # noqa: ARG002  # it grows by what it is given
        """What a prefill fills."""
        return DynamicCache(config=self._config)

    def kv_cache(self, max_bytes: int) -> KVPools:  # noqa: ARG002  # pools are made as they are needed
        """What decode reads and writes."""
        return slots_like(self._prefill_cache, self.bytes_per_token, self._device, self._dtype)

    def features(self, items: Sequence[MediaItem]) -> list[Features]:
        """Pictures and videos through the vision tower, one after the other."""
        return [self._features(item) for item in items]

    @torch.inference_mode()
    def _features(self, item: MediaItem) -> Features:
        device = self._device
        see = self.module.get_image_features if item.kind == "image" else self.module.get_video_features
        pixels = pixel_values([item.patches], self._preprocessor, device, self._dtype)
        seen = see(pixels, torch.tensor([item.patches.grid], device=device))
        deep = getattr(seen, "deepstack_features", None) or ()
        return Features(torch.cat(list(seen.pooler_output)), tuple(torch.cat(list(layer)) for layer in deep))

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Whole prompts without pictures in one forward, where padding does not double them; else one by one."""
        lengths = [chunk.length for chunk in chunks]
        are_plain = all(chunk.is_beginning and not chunk.prompt.items for chunk in chunks)
        if len(chunks) > 1 and are_plain and self._pads and max(lengths) * len(chunks) <= 2 * sum(lengths):
            return self._padded(chunks)
        return torch.stack([self._one(chunk) for chunk in chunks])

    @property
    def _pads(self) -> bool:
        """A recurrent layer would see the padding."""
        return "linear_attention" not in (getattr(self._config, "layer_types", None) or ())

    def _one(self, chunk: PrefillChunk) -> torch.Tensor:
        """(vocabulary,)."""
        device = self._device
        embeds = self.module.get_input_embeddings()(torch.tensor([chunk.ids], device=device))
        visual = self._place(embeds, chunk)
        hidden = self._text(
            inputs_embeds=embeds,
            position_ids=chunk.positions[:, None].to(device),
            past_key_values=chunk.cache,
            use_cache=True,
            **visual,
        ).last_hidden_state
        logits: torch.Tensor = self.module.lm_head(hidden[0, -1])
        return logits

    def _padded(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """(chunks, vocabulary) of whole prompts, padded on the right, where no token of theirs looks."""
        device = self._device
        lengths = [chunk.length for chunk in chunks]
        ids = torch.zeros(len(chunks), max(lengths), dtype=torch.long)
        positions = torch.zeros(3, *ids.shape, dtype=torch.long)
        for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            ids[row, :length] = torch.tensor(chunk.ids)
            positions[:, row, :length] = chunk.positions
        filled = self._prefill_cache()
        hidden = self._text(
            input_ids=ids.to(device), position_ids=positions.to(device), past_key_values=filled, use_cache=True
        ).last_hidden_state
        for row, chunk in enumerate(chunks):
            self._give_row(filled, row, chunk)
        last = hidden[torch.arange(len(chunks)), torch.tensor(lengths) - 1]
        logits: torch.Tensor = self.module.lm_head(last)
        return logits

    def _give_row(self, filled: DynamicCache, row: int, chunk: PrefillChunk) -> None:
        """The chunk's cache has one row of a filled one, without its padding, in memory of its own."""
        for index, layer in enumerate(filled.layers):
            assert layer.keys is not None and layer.values is not None
            keys, values = (part[row : row + 1, :, : chunk.length] for part in (layer.keys, layer.values))
            chunk.cache.update(keys, values, index)

    def _place(self, embeds: torch.Tensor, chunk: PrefillChunk) -> dict[str, object]:
        """Write features over the pads of a chunk's embeds; what the text model needs for deepstack."""
        found = placed([chunk], embeds.device)
        if found is None:
            return {}
        spots, features, deep = found
        embeds[0, spots] = features.to(embeds.device)
        if not deep:
            return {}
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        mask[0, spots] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": deep}

    takes_several = False  # transformers' caches have one length for all rows

    @torch.inference_mode()
    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        slots: KVCache,
        before: Sequence[Sequence[int]] = (),  # noqa: ARG002  # one token a step
        newest: Newest | None = None,  # noqa: ARG002  # none runs ahead of what is read
        idle: Sequence[int] = (),  # noqa: ARG002
    ) -> torch.Tensor:
        device = self._device
        assert isinstance(slots, KVPools)
        slots.begin_step()
        hidden = self._text(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            position_ids=torch.tensor(positions, device=device)[None, :, None].expand(3, -1, -1),
            attention_mask=torch.zeros(len(tokens), 1, 1, 1, dtype=self._dtype, device=device),
            past_key_values=slots.model_view,
            use_cache=True,
            slots=slots,
        ).last_hidden_state
        logits: torch.Tensor = self.module.lm_head(hidden[:, -1])
        return logits


def module_of(runner: Runner) -> Any:
    """The library's model behind a runner, for what only it has, as `generate`."""
    assert isinstance(runner, HfRunner), "MODEL_CODE must be transformers"
    return runner.module
