"""Keys and values of the sequences being decoded: one row each, live rows first, as wide as the longest needs.

Rows are kept together: a sequence that leaves is replaced by the last one, so that a step computes live rows only.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

WIDTH_STEP = 256


class SlotLayer(CacheLayerMixin):
    """One layer's rows. keys, values: (rows, kv_heads, width, head_dim). `cache` says where a step writes."""

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("rows are made by SlotCache.join")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values, (live rows, kv_heads, 1, head_dim); give all that the step attends to."""
        assert self.keys is not None and self.values is not None
        rows, columns = self._owner.writes
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        live, width = self._owner.num_live, self._owner.step_width
        return self.keys[:live, :, :width], self.values[:live, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.step_width, 0

    def get_seq_length(self) -> int:
        return self._owner.step_width - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache:
    """Rows for up to `num_slots` sequences; memory grows by doubling and is let go when the last sequence leaves."""

    def __init__(self, num_layers: int, num_slots: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.num_live = 0
        self.lengths: list[int] = []
        self.step_width = 0
        self.writes: tuple[torch.Tensor, torch.Tensor]
        self._device = device
        self._layers = [SlotLayer(self) for _ in range(num_layers)]
        self.model_view = Cache(layers=list(self._layers))

    @property
    def num_bytes(self) -> int:
        """Memory that the rows hold."""
        return sum(
            t.numel() * t.element_size() for layer in self._layers for t in (layer.keys, layer.values) if t is not None
        )

    def join(self, prefilled: Cache, length: int) -> None:
        """Copy the keys and values of a prefilled request, `length` tokens, into a new last row."""
        assert self.num_live < self.num_slots
        for layer, filled in zip(self._layers, prefilled.layers, strict=True):
            assert filled.keys is not None and filled.values is not None
            layer.keys = self._room(layer.keys, filled.keys, self.num_live + 1, length)
            layer.values = self._room(layer.values, filled.values, self.num_live + 1, length)
            layer.keys[self.num_live, :, :length] = filled.keys[0]
            layer.values[self.num_live, :, :length] = filled.values[0]
        self.lengths.append(length)
        self.num_live += 1

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last, length = self.num_live - 1, self.lengths[-1]
        if row != last:
            for layer in self._layers:
                assert layer.keys is not None and layer.values is not None
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        self.num_live = last
        if last == 0:
            self.clear()

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self.num_live, self.lengths = 0, []
        for layer in self._layers:
            layer.keys = layer.values = None

    def begin_step(self, dtype: torch.dtype) -> torch.Tensor:
        """Make room for one more token in each live row; the step's additive mask, (rows, 1, 1, width)."""
        self.step_width = max(self.lengths) + 1
        for layer in self._layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys = self._room(layer.keys, layer.keys, self.num_live, self.step_width)
            layer.values = self._room(layer.values, layer.values, self.num_live, self.step_width)
        columns = torch.tensor(self.lengths, device=self._device)
        self.writes = (torch.arange(self.num_live, device=self._device), columns)
        hidden = torch.arange(self.step_width, device=self._device)[None] > columns[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]

    def end_step(self) -> None:
        """Each live row has one more token."""
        self.lengths = [length + 1 for length in self.lengths]

    def _room(self, rows: torch.Tensor | None, like: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
        """`rows`, or the same in more memory where they are too few or too narrow."""
        have_rows, have_width = (0, 0) if rows is None else (rows.shape[0], rows.shape[2])
        if rows is not None and num_rows <= have_rows and width <= have_width:
            return rows
        if num_rows > have_rows:
            have_rows = min(self.num_slots, max(4, 2 * have_rows, num_rows))
        if width > have_width:
            have_width = -(-max(width, have_width * 3 // 2) // WIDTH_STEP) * WIDTH_STEP
        grown = like.new_zeros(have_rows, like.shape[1], have_width, like.shape[3])
        if rows is not None:
            grown[: rows.shape[0], :, : rows.shape[2]] = rows
        return grown
