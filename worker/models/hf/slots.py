"""The engine's slots as transformers' models want to see them: a cache of layers."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from worker.models.kv_pools import KVPools
from worker.models.kv_widths import rows_for


class SlotLayer(CacheLayerMixin):
    """An attention layer's side of a step: it only writes; reading is `KVPools.attend`."""

    def __init__(self, owner: "KVPools", index: int) -> None:
        super().__init__()
        self._owner, self._index = owner, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("rows are made by KVPools.join")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values, (rows, kv_heads, 1, head_dim)."""
        self._owner.write(self._index, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.longest

    def get_max_length(self) -> int:
        return -1


class SlotStates(LinearAttentionLayer):
    """A recurrent layer's convolution and recurrent states, one row for each row of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[torch.Tensor] = []

    def make_room(self, rows: int, filled: LinearAttentionLayer) -> None:
        if self.stores and self.stores[0].shape[0] >= rows:
            return
        fresh = [filled.conv_states[0], filled.recurrent_states[0]]
        grown = [state.new_zeros(rows_for(rows), *state.shape[1:]) for state in fresh]
        for new, old in zip(grown, self.stores, strict=False):
            new[: old.shape[0]] = old
        self.stores = grown

    def join(self, row: int, rows: int, filled: LinearAttentionLayer) -> None:
        for store, state in zip(self.stores, (filled.conv_states[0], filled.recurrent_states[0]), strict=True):
            for at in range(rows, row, -1):
                store[at] = store[at - 1]
            store[row] = state[0]
        self.conv_kernel_size[0] = filled.conv_kernel_size[0]

    def leave(self, row: int, gone: int, rows: int) -> None:
        for store in self.stores:
            store[row] = store[gone]
            for at in range(gone, rows - 1):
                store[at] = store[at + 1]

    def show(self, rows: int) -> None:
        """Let a step of this many rows see and change its states."""
        conv, recurrent = (store[:rows] for store in self.stores)
        self.conv_states[0], self.recurrent_states[0] = conv, recurrent
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.has_previous_state[0] = True

    def clear(self) -> None:
        self.stores = []
        self.conv_states[0] = self.recurrent_states[0] = None


def slots_like(
    empty: Callable[[int], Cache], bytes_per_token: int, device: torch.device, dtype: torch.dtype
) -> KVPools:
    """Slots for a model whose empty caches these are: they say which layers are of which kind."""
    like = empty(0)
    states = {index: SlotStates() for index, layer in enumerate(like.layers) if isinstance(layer, LinearAttentionLayer)}
    slots = KVPools(len(like.layers), bytes_per_token, device, dtype, empty, states)
    slots.model_view = Cache(layers=[states.get(index) or SlotLayer(slots, index) for index in range(len(like.layers))])
    return slots
