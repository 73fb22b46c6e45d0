"""Our own model code as the engine's runner."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.safe_json import JsonObject
from worker.models.kv_cache import KVCache
from worker.models.kv_widths import token_bytes
from worker.models.native.code import NativeCode
from worker.models.native.graphs import Recorder, StepGraphs
from worker.models.native.layers import NativePrefillCache, Tensors
from worker.models.native.shapes import read
from worker.models.native.text import Attend, TextModel
from worker.models.pixel_values import pixel_values
from worker.models.runner import Features, placed
from worker.prompt.types import MediaItem, Prompt


class NativeRunner:
    """Runs the model of a config with a checkpoint's tensors. See `models.runner.Runner`. `record` is how decode steps
    are recorded; None leaves them eager. Raises ModelError where the tensors are not that model's."""

    def __init__(
        self,
        code: NativeCode,
        config: JsonObject,
        tensors: dict[str, Tensor],
        preprocessor: PreprocessorConfig,
        device: torch.device,
        record: Recorder | None = None,
    ) -> None:
        shape, vision = read(config, code.layout)
        left = Tensors(tensors)
        tensors.clear()
        self._shape, self._preprocessor, self._device = shape, preprocessor, device
        with torch.inference_mode():
            self.text = TextModel(left, shape, device)
            self.tower = code.tower(left, vision, device)
        left.close()
        self._dtype = self.text.embedding.dtype
        self._scale = shape.head_dim**-0.5
        self.graphs = StepGraphs(self._step, device, record) if record is not None else None

    @property
    def bytes_per_token(self) -> int:
        shape = self._shape
        return token_bytes(shape.layers, shape.kv_heads, shape.head_dim, self._dtype.itemsize)

    def prefill_cache(self) -> NativePrefillCache:
        return NativePrefillCache(self._shape.layers)

    def kv_cache(self) -> KVCache:
        keeps = self.graphs is not None  # a graph is as good as the memory that it was recorded with
        return KVCache(self._shape.layers, self.bytes_per_token, self._device, self._dtype, keeps_pools=keeps)

    @torch.inference_mode()
    def features(self, items: Sequence[MediaItem]) -> list[Features]:
        patches = [item.patches for item in items]
        pixels = pixel_values(patches, self._preprocessor, self._device, self._dtype)
        embeds, deep = self.tower(pixels, [item.patches.grid for item in items])
        counts = [item.patches.num_tokens(self._preprocessor.merge) for item in items]
        each = [torch.split(layer, counts) for layer in (embeds, *deep)]
        # Memory of their own: one may be kept when the others are not.
        return [
            Features(embeds.clone(), tuple(layer.clone() for layer in deep))
            for embeds, *deep in zip(*each, strict=True)
        ]

    @torch.inference_mode()
    def prefill(
        self, prompt: Prompt, tokens: list[int], chunk: slice, seen: Mapping[int, Features], cache: NativePrefillCache
    ) -> Tensor:
        ids = torch.tensor([*prompt.ids, *tokens][chunk], device=self._device)
        hidden = self.text.embed(ids)
        spots: Tensor | None = None
        deep: list[Tensor] = []
        if (found := placed(prompt, chunk, seen, self._device)) is not None:
            spots, features, deep = found
            hidden[spots] = features
        positions = prompt.positions_with(len(tokens))[:, chunk].to(self._device)
        turned = self.text.rotary(positions)
        hidden = self.text.forward(hidden, turned, self._attend_after(cache, len(ids)), spots, deep)
        return self.text.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def prefill_together(self, prompts: Sequence[Prompt]) -> tuple[Tensor, list[NativePrefillCache]]:
        ids = torch.tensor([token for prompt in prompts for token in prompt.ids], device=self._device)
        positions = torch.cat([prompt.positions for prompt in prompts], 1).to(self._device)
        lengths = [len(prompt.ids) for prompt in prompts]
        caches = [self.prefill_cache() for _ in prompts]
        attends = [self._attend_after(cache, length) for cache, length in zip(caches, lengths, strict=True)]

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            parts = (torch.split(part, lengths) for part in (query, keys, values))
            return torch.cat([attend_one(layer, *qkv) for attend_one, *qkv in zip(attends, *parts, strict=True)])

        hidden = self.text.forward(self.text.embed(ids), self.text.rotary(positions), attend)
        last = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        return self.text.logits(hidden[last]), caches

    def _attend_after(self, cache: NativePrefillCache, count: int) -> Attend:
        """Attention of `count` tokens to those in the cache and to each other, each to none after it."""
        past = cache.length
        mask = None
        if past and count > 1:
            mask = torch.ones(count, past + count, dtype=torch.bool, device=self._device).tril(past)

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            all_keys, all_values = cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
            if mask is not None and self._device.type == "cuda":
                # With a mask no kernel takes groups: torch would write down all scores, 2 GiB for 1,024 x 32,768.
                groups = query.shape[1] // keys.shape[1]
                all_keys, all_values = (x.repeat_interleave(groups, 1) for x in (all_keys, all_values))
            mixed = functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None],
                all_keys,
                all_values,
                attn_mask=mask,
                is_causal=not past and count > 1,
                scale=self._scale,
                enable_gqa=all_keys.shape[1] != query.shape[1],
            )
            return mixed[0].transpose(0, 1).flatten(1)

        return attend

    @property
    def takes_several(self) -> bool:
        """Not where steps are recorded: what is recorded feeds each row one token."""
        return self.graphs is None

    @torch.inference_mode()
    def decode(
        self, tokens: list[int], positions: list[int], slots: KVCache, before: Sequence[Sequence[int]] = ()
    ) -> Tensor:
        if any(before):
            return self._step_of_several(tokens, positions, slots, before)
        if self.graphs is not None and (logits := self.graphs.logits(tokens, positions, slots)) is not None:
            return logits
        return self._step(torch.tensor([tokens, positions, slots.lengths], device=self._device), slots)

    def _step(self, fed: Tensor, slots: KVCache, is_whole: bool = False) -> Tensor:
        """(rows, vocabulary) from each row's token, position and length, (3, rows). Nothing in it waits for the device
        or depends on a number that is there."""
        ids, positions, columns = fed
        slots.lay_out(columns, is_whole=is_whole)
        return self._decoded(ids, positions, slots, len(ids))

    def _step_of_several(
        self, tokens: list[int], positions: list[int], slots: KVCache, before: Sequence[Sequence[int]]
    ) -> Tensor:
        """(rows, vocabulary) where some rows are fed other tokens before their newest one."""
        slots.lay_out_after([len(part) for part in before])
        earlier = [
            position
            for newest, part in zip(positions, before, strict=True)
            for position in range(newest - len(part), newest)
        ]
        fed = [*tokens, *chain.from_iterable(before)], [*positions, *earlier]
        ids, places = torch.tensor(fed, device=self._device)
        return self._decoded(ids, places, slots, len(tokens))

    def _decoded(self, ids: Tensor, positions: Tensor, slots: KVCache, rows: int) -> Tensor:
        """(rows, vocabulary) of a step that is laid out, from (tokens,) ids and positions: the newest token of each
        row, and behind all of these what the rows are fed before them, row by row. No padding, and the head sees the
        newest only."""
        hidden = self.text.embed(ids)
        turned = self.text.rotary(positions.expand(3, -1))

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            slots.write(layer, keys[:rows].unsqueeze(2), values[:rows].unsqueeze(2))
            if rows == len(query):
                return slots.attend(layer, query.unsqueeze(2), self._scale).flatten(1)
            slots.write_before(layer, keys[rows:], values[rows:])
            newest = slots.attend(layer, query[:rows].unsqueeze(2), self._scale)
            earlier = slots.attend_before(layer, query[rows:], self._scale)
            return torch.cat([newest.flatten(1), earlier.flatten(1)])

        return self.text.logits(self.text.forward(hidden, turned, attend)[:rows])
