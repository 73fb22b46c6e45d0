"""M-RoPE positions of a prompt: time, height and width of each token, as the families count them."""

from collections.abc import Sequence
from itertools import groupby

import torch

TEXT, IMAGE, VIDEO = 0, 1, 2


def positions(
    kinds: torch.Tensor,
    image_grids: Sequence[tuple[int, int, int]],
    video_grids: Sequence[tuple[int, int, int]],
    merge: int,
    video_intervals: Sequence[float] | None = None,
) -> tuple[torch.Tensor, int]:
    """(3, tokens) positions, and what the position of a later token differs by from its index.

    kinds: (tokens,) of TEXT, IMAGE and VIDEO. Grids are (t, h, w) in patches, before merging. Without
    `video_intervals` a video is one span for each temporal patch; with them one span, whose patches are so many
    positions apart (tokens per second x seconds).
    """
    timed = [(1, h, w) for t, h, w in video_grids for _ in range(t)] if video_intervals is None else video_grids
    spans = {IMAGE: iter([(*grid, 1.0) for grid in image_grids])}
    intervals = [1.0] * len(timed) if video_intervals is None else video_intervals
    spans[VIDEO] = iter([(*grid, interval) for grid, interval in zip(timed, intervals, strict=True)])
    parts, at = [], 0
    for kind, run in groupby(kinds.tolist()):
        if kind == TEXT:
            count = len(list(run))
            parts.append(torch.arange(at, at + count).expand(3, -1))
            at += count
            continue
        t, h, w, interval = next(spans[kind])
        h, w = h // merge, w // merge
        axes = (torch.arange(t) * interval).long(), torch.arange(h), torch.arange(w)
        parts.append(torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]) + at)
        at += max(h, w)
    whole = torch.cat(parts, dim=1)
    assert whole.shape[1] == len(kinds), "every pad belongs to a picture or video"
    return whole, int(whole.max()) + 1 - len(kinds)
