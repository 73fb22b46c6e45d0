"""The text model's attention: the library's own for prompts, one of ours for a step of rows kept in slots.

The library repeats each key for every query head of its group before it attends; here the heads of a group
are one block of queries, and nothing is copied. Rows are attended to in groups of like length.
"""

import sys
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "slots_over_"


class Attends(Protocol):
    """What a step's keys and values must be able to do."""

    def attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor: ...


def register(inner: str) -> str:
    """The name of an attention that is `inner` unless a step's `slots` come with the call."""
    name = PREFIX + inner
    library = ALL_ATTENTION_FUNCTIONS.get_interface(inner, _eager)

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        slots: Attends | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        if slots is not None:
            return slots.attend(module.layer_idx, query, scaling), None
        attended: tuple[torch.Tensor, Any] = library(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    return name


def _eager(module: Any, *arguments: Any, **options: Any) -> Any:
    """The plain attention that each of the library's models brings along."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *arguments, **options)
