"""Attention of many tokens: within segments, and behind those that a prompt's cache has already."""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.varlen import Lengths, Varlen

SPLITS_FROM = 64  # tokens of a chunk; one kernel with a mask is as fast for fewer


class Segments:
    """Tokens behind each other that see their own segment, and all of it. lengths: of the segments; kernel: attention
    by lengths, where the device has one."""

    def __init__(self, lengths: Sequence[int], device: torch.device, kernel: Varlen | None = None) -> None:
        self._lengths, self._kernel = lengths, kernel
        if kernel is not None:
            ends, longest = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)
            self._of_all = Lengths(ends, ends, None, longest, longest)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, dim), of three such."""
        if self._kernel is None:
            return self._by_runs(query, keys, values)
        return self._kernel(query, keys, values, self._of_all, scale=query.shape[-1] ** -0.5, is_causal=False)

    def _by_runs(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Segments of one length that follow each other are computed together."""
        mixed, at = [], 0
        for length, run in groupby(self._lengths):
            count = len(list(run))
            span = slice(at, at + count * length)
            q, k, v = (x[span].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (query, keys, values))
            mixed.append(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
            at += count * length
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def causal_mask(count: int, past: int, device: torch.device) -> Tensor | None:
    """(count, past + count): what each of a prompt's next tokens sees, for all layers; None where `causal_attention`
    needs none."""
    is_split = count >= SPLITS_FROM and device.type == "cpu"
    if not past or count == 1 or is_split:
        return None
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)


def causal_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """(heads, tokens, dim) of a prompt's next tokens, query (heads, tokens, dim): each sees itself and those before it,
    of keys and values (kv_heads, past + tokens, dim). mask: `causal_mask`'s."""
    count, past = query.shape[1], keys.shape[1] - query.shape[1]
    if past and count > 1 and mask is None:
        return _split(query, keys, values, scale)
    if mask is not None and query.device.type == "cuda":
        # With a mask no kernel takes groups: torch would write down all scores, 2 GiB for 1,024 x 32,768.
        keys, values = (_for_each_head(part, query) for part in (keys, values))
    mixed = functional.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=not past and count > 1,
        scale=scale,
        enable_gqa=len(keys) != len(query),
    )
    return mixed[0]


def _split(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """What is before the chunk, which all of it sees, and the chunk itself, each without a mask: weighed by the sums of
    their exponentials it is the same. The kernel computes in blocks and skips what causality hides, and the heads of a
    group are more rows of a query. 1.1 to 1.3 times as fast as with a mask (docs/log.md)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    past = keys.shape[1] - query.shape[1]
    grouped = query.reshape(1, len(keys), -1, query.shape[2])
    before, before_sum = flash(grouped, keys[None, :, :past], values[None, :, :past], 0.0, False, scale=scale)
    own = (_for_each_head(part[:, past:], query)[None] for part in (keys, values))
    within, within_sum = flash(query[None], *own, 0.0, True, scale=scale)
    share = torch.sigmoid(before_sum.reshape(within_sum.shape) - within_sum)[..., None].to(within.dtype)
    mixed: Tensor = torch.lerp(within, before.reshape(within.shape), share)
    return mixed[0]


def _for_each_head(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values of a group, once for each of its heads."""
    return part.repeat_interleave(len(query) // len(part), 0)
