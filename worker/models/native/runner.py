"""Our own model code as the engine's runner."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.safe_json import JsonObject
from worker.models.kv_cache import KVCache
from worker.models.kv_widths import KVLayout, token_bytes
from worker.models.native.code import NativeCode
from worker.models.native.graphs import Recorder
from worker.models.native.layers import Tensors
from worker.models.native.packing import WeightPacking, linears
from worker.models.native.shapes import read
from worker.models.native.stepping import ArenaSteps, PooledSteps, Stepping
from worker.models.native.text import TextModel
from worker.models.pixel_values import pixel_values
from worker.models.runner import Features, Newest, PrefillChunk
from worker.models.varlen import Varlen
from worker.prompt.patches import Patches
from worker.prompt.types import MediaItem

PATCHES_A_PASS = 16_384  # through the vision tower; one frame may have more


class NativeRunner:
    """Runs the model of a config with a checkpoint's tensors. See `models.runner.Runner`. kernel, tower_kernel:
    attention by lengths of the text model and of the vision tower, where the device has it. record: how decode steps
    are recorded, with `kernel` only; None leaves them eager. give_back: told of memory that is needed no more once
    weights are packed; None leaves them as they are. Raises ModelError where the tensors are not that model's."""

    def __init__(
        self,
        code: NativeCode,
        config: JsonObject,
        tensors: dict[str, Tensor] | Tensors,
        preprocessor: PreprocessorConfig,
        device: torch.device,
        *,
        kernel: Varlen | None = None,
        tower_kernel: Varlen | None = None,
        record: Recorder | None = None,
        give_back: Callable[[Tensor], None] | None = None,
    ) -> None:
        shape, vision = read(config, code.layout)
        left = tensors if isinstance(tensors, Tensors) else Tensors(tensors)
        if isinstance(tensors, dict):
            tensors.clear()
        self._shape, self._preprocessor, self._device = shape, preprocessor, device
        with torch.inference_mode():
            self.text = TextModel(left, shape, device)
            self.tower = code.tower(left, vision, device)
        left.close()
        self._dtype, self._tower_kernel = self.text.dtype, tower_kernel
        self.steps: Stepping = (
            PooledSteps(self.text, device) if kernel is None else ArenaSteps(self.text, device, kernel, record)
        )
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

    @property
    def kv_layout(self) -> KVLayout:
        return self.steps.layout

    def kv_cache(self, max_bytes: int) -> KVCache:
        return self.steps.kv_cache(max_bytes)

    def tidy(self) -> bool:
        graphs = self.steps.graphs
        with torch.inference_mode():
            return graphs is not None and graphs.record_one()

    @torch.inference_mode()
    def features(self, items: Sequence[MediaItem]) -> list[Features]:
        """Frames see themselves alone, so a pass may end after any: its memory does not grow with what is shown."""
        counts = [item.patches.num_tokens(self._preprocessor.merge) for item in items]
        passes = [self._seen(group) for group in in_passes([item.patches for item in items], PATCHES_A_PASS)]
        whole = passes[0] if len(passes) == 1 else [torch.cat(parts) for parts in zip(*passes, strict=True)]
        each = [torch.split(layer, counts) for layer in whole]
        # Memory of their own: one may be kept when the others are not.
        return [
            Features(embeds.clone(), tuple(layer.clone() for layer in deep))
            for embeds, *deep in zip(*each, strict=True)
        ]

    def _seen(self, patches: Sequence[Patches]) -> list[Tensor]:
        pixels = pixel_values(patches, self._preprocessor, self._device, self._dtype)
        embeds, deep = self.tower(pixels, [each.grid for each in patches], self._tower_kernel)
        return [embeds, *deep]

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        return self.steps.prefill(chunks)

    takes_several = True

    @torch.inference_mode()
    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        slots: KVCache,
        before: Sequence[Sequence[int]] = (),
        newest: Newest | None = None,
        idle: Sequence[int] = (),
    ) -> Tensor:
        if self.packing is not None:
            self.packing.saw(len(tokens))
        return self.steps.decode(tokens, positions, slots, before, newest, idle)


def in_passes(patches: Sequence[Patches], most: int) -> Iterator[list[Patches]]:
    """Pictures and videos in groups of at most so many patches, videos cut between frames. One frame may be larger."""
    group: list[Patches] = []
    left = most
    for each in patches:
        start, (frames, *_) = 0, each.grid
        while start < frames:
            count = min(frames - start, max(0, left) // each.patches_a_frame)
            if not count and group:
                yield group
                group, left = [], most
                continue
            count = max(1, count)
            group.append(each.between(start, start + count))
            left -= count * each.patches_a_frame
            start += count
    if group:
        yield group
