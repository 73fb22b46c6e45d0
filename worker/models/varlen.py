"""Attention of sequences that lie behind each other, told where each begins and how long it is: one call for any number
of them, of any lengths, without a mask and without padding.

`flash` is torch's own kernel on CUDA (FlashAttention 2): it reads only the keys that there are, takes the heads of a
group as rows of one query, and splits long keys over the processors where there are few rows. `plain` is the same in
plain arithmetic. A kernel is compared with it on the device before it is used (`is_right`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SMALLEST_CAPABILITY = 8, 0  # of a GPU that FlashAttention 2 runs on
DTYPES = torch.bfloat16, torch.float16


@dataclass(frozen=True, eq=False)
class Lengths:
    """Of sequences that lie behind each other. ends: (sequences + 1,) int32, where the queries of each begin and end.
    starts: (sequences + 1,) int32, where its keys begin; used: (sequences,) int32, how many it has, None where each
    ends with the next one's start. max_query, max_keys: no sequence has more of either."""

    ends: Tensor
    starts: Tensor
    used: Tensor | None
    max_query: int
    max_keys: int


class Varlen(Protocol):
    """Attention by lengths."""

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, lengths: Lengths, *, scale: float, is_causal: bool
    ) -> Tensor:
        """(tokens, heads, dim) from query (tokens, heads, dim), keys and values (slots, kv_heads, dim). is_causal: the
        last query of a sequence sees all its keys, the one before it all but the last."""
        ...


def flash(query: Tensor, keys: Tensor, values: Tensor, lengths: Lengths, *, scale: float, is_causal: bool) -> Tensor:
    """See `Varlen`. CUDA, 16 bits, dim a multiple of 8."""
    where = lengths.ends, lengths.starts, lengths.max_query, lengths.max_keys
    mixed: Tensor = torch.ops.aten._flash_attention_forward(
        query, keys, values, *where, 0.0, is_causal, False, scale=scale, seqused_k=lengths.used
    )[0]
    return mixed


def plain(query: Tensor, keys: Tensor, values: Tensor, lengths: Lengths, *, scale: float, is_causal: bool) -> Tensor:
    """See `Varlen`. One sequence after the other, in float32."""
    limits, begins = lengths.ends.tolist(), lengths.starts.tolist()
    counts = [end - begin for begin, end in pairwise(begins)] if lengths.used is None else lengths.used.tolist()
    groups = query.shape[1] // keys.shape[1]
    mixed = torch.empty_like(query)
    for index, count in enumerate(counts):
        span, seen = slice(limits[index], limits[index + 1]), slice(begins[index], begins[index] + count)
        asked = query[span].float().transpose(0, 1)
        known, said = (part[seen].float().transpose(0, 1).repeat_interleave(groups, 0) for part in (keys, values))
        scores = asked @ known.transpose(1, 2) * scale
        if is_causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device).triu(
                count - scores.shape[1] + 1
            )
            scores.masked_fill_(hidden, -torch.inf)
        mixed[span] = (scores.softmax(-1) @ said).transpose(0, 1).to(query.dtype)
    return mixed


@dataclass(frozen=True)
class Mode:
    """A way in which a kernel is used: of each sequence, how many queries it has and how many keys."""

    name: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    is_causal: bool = True


TEXT_MODES = (
    Mode("a step of one long row", (1,), (3000,)),
    Mode("a step of rows of different lengths", (1,) * 9, (1, 64, 65, 700, 127, 128, 2049, 3, 256)),
    Mode("prompts together", (5, 130, 64, 1), (5, 130, 64, 1)),
    Mode("chunks behind what is known", (70, 1, 9), (371, 40, 500)),
)
TOWER_MODES = (Mode("segments", (64, 64, 16, 300), (64, 64, 16, 300), is_causal=False),)
TOLERANCE = 2e-2  # of numbers rounded to 8 bits, or of 1 where they are smaller


def is_right(
    kernel: Varlen, modes: Sequence[Mode], heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a kernel says what `plain` says, in each of the modes, on small random input on the device. One that is
    wrong or raises is not; the log says where. Raises torch.AcceleratorError where the device is lost."""
    random = torch.Generator().manual_seed(0)
    for mode in modes:
        gaps = [0 if mode.is_causal is False else 64 * (index % 3) for index in range(len(mode.keys))]
        begins = [0, *accumulate(count + gap for count, gap in zip(mode.keys, gaps, strict=True))]
        shapes = (sum(mode.queries), heads, dim), (begins[-1], kv_heads, dim), (begins[-1], kv_heads, dim)
        query, keys, values = (torch.randn(shape, generator=random).to(device, dtype) for shape in shapes)
        lists = [0, *accumulate(mode.queries)], begins, mode.keys
        ends, starts, used = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in lists)
        known = used if mode.is_causal else None
        lengths = Lengths(ends, starts, known, max(mode.queries), max(mode.keys))
        expected = plain(query, keys, values, lengths, scale=dim**-0.5, is_causal=mode.is_causal)
        try:
            said = kernel(query, keys, values, lengths, scale=dim**-0.5, is_causal=mode.is_causal)
            wanted = expected.float()
            distance = float(((said.float() - wanted).abs() / wanted.abs().clamp(min=1)).max())
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            log.warning("attention by lengths is not used, %s: %s", mode.name, str(error).partition("\n")[0])
            return False
        if not distance <= TOLERANCE:  # NaN is not either
            log.warning("attention by lengths is not used, %s: it is wrong by %.3g", mode.name, distance)
            return False
    return True


def without_cudnn(device: torch.device) -> None:
    """torch prefers cuDNN's attention on Hopper and Blackwell. It builds a plan for each new shape, 0.05 to 1 s, and
    here shapes are new all the time."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def kernel_for(device: torch.device, dtype: torch.dtype) -> Varlen | None:
    """The kernel of the device for a dtype; None where there is none."""
    if device.type != "cuda" or dtype not in DTYPES:
        return None
    return flash if torch.cuda.get_device_capability(device) >= SMALLEST_CAPABILITY else None
