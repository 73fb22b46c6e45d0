"""Our own model code as the engine's runner."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.safe_json import JsonObject
from worker.models.kv_cache import KVCache
from worker.models.kv_widths import token_bytes
from worker.models.native.attention import causal_attention, causal_mask
from worker.models.native.code import NativeCode
from worker.models.native.graphs import Recorder, StepGraphs
from worker.models.native.layers import NativePrefillCache, Tensors
from worker.models.native.packing import WeightPacking, linears
from worker.models.native.shapes import read
from worker.models.native.text import Attend, TextModel
from worker.models.pixel_values import pixel_values
from worker.models.runner import Features, PrefillChunk, placed
from worker.prompt.types import MediaItem


class NativeRunner:
    """Runs the model of a config with a checkpoint's tensors. See `models.runner.Runner`. `record` is how decode steps
    are recorded; None leaves them eager. give_back: told of memory that is needed no more once weights are packed; None
    leaves them as they are. Raises ModelError where the tensors are not that model's."""

    def __init__(
        self,
        code: NativeCode,
        config: JsonObject,
        tensors: dict[str, Tensor],
        preprocessor: PreprocessorConfig,
        device: torch.device,
        record: Recorder | None = None,
        give_back: Callable[[Tensor], None] | None = None,
    ) -> None:
        shape, vision = read(config, code.layout)
        left = Tensors(tensors)
        tensors.clear()
        self._shape, self._preprocessor, self._device = shape, preprocessor, device
        with torch.inference_mode():
            self.text = TextModel(left, shape, device)
            self.tower = code.tower(left, vision, device)
        left.close()
        self._dtype = self.text.dtype
        self._scale = shape.head_dim**-0.5
        self.graphs = StepGraphs(self._step, device, record) if record is not None else None
        parts = [*linears(self.text), *linears(self.tower)]
        self.packing = None if give_back is None else WeightPacking(parts, give_back)

    def begin_tuning(self) -> None:
        if self.packing is not None:
            self.packing.begin()

    def close(self) -> None:
        if self.packing is not None:
            self.packing.close()

    @property
    def bytes_per_token(self) -> int:
        shape = self._shape
        return token_bytes(shape.layers, shape.kv_heads, shape.head_dim, self._dtype.itemsize)

    def prefill_cache(self, num_tokens: int) -> NativePrefillCache:
        return NativePrefillCache(self._shape.layers, num_tokens)

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
    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """The chunks lie behind each other, without padding: only attention knows to whom a token belongs."""
        ids = torch.tensor([token for chunk in chunks for token in chunk.ids], device=self._device)
        hidden = self.text.embed(ids)
        spots: Tensor | None = None
        deep: list[Tensor] = []
        if (found := placed(chunks, self._device)) is not None:
            spots, features, deep = found
            hidden[spots] = features
        positions = torch.cat([chunk.positions for chunk in chunks], 1).to(self._device)
        lengths = [chunk.length for chunk in chunks]
        attends = [self._attend_after(chunk.cache, chunk.length) for chunk in chunks]

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            parts = (torch.split(part, lengths) for part in (query, keys, values))
            return torch.cat([attend_one(layer, *qkv) for attend_one, *qkv in zip(attends, *parts, strict=True)])

        one = attends[0] if len(chunks) == 1 else attend
        hidden = self.text.forward(hidden, self.text.rotary(positions), one, spots, deep)
        last = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        return self.text.logits(hidden[last])

    def _attend_after(self, cache: NativePrefillCache, count: int) -> Attend:
        """Attention of a prompt's next tokens to those in the cache and to each other, each to none after it."""
        mask = causal_mask(count, cache.length, self._device)

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            all_keys, all_values = cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
            mixed = causal_attention(query.transpose(0, 1), all_keys[0], all_values[0], self._scale, mask)
            return mixed.transpose(0, 1).flatten(1)

        return attend

    @property
    def takes_several(self) -> bool:
        """Not where steps are recorded: what is recorded feeds each row one token."""
        return self.graphs is None

    @torch.inference_mode()
    def decode(
        self, tokens: list[int], positions: list[int], slots: KVCache, before: Sequence[Sequence[int]] = ()
    ) -> Tensor:
        if self.packing is not None:
            self.packing.saw(len(tokens))
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
