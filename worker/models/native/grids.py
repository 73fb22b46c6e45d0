"""Where the patches of pictures and videos lie: rows and columns, segments, windows, places between learned positions.

Patches come in blocks of merge x merge, block after block; a grid is (t, h, w) in patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def patch_positions(grids: Sequence[Grid], merge: int) -> Tensor:
    """(patches, 2): row and column of each patch in its frame."""
    return torch.cat([_frame(h, w, merge).repeat(t, 1) for t, h, w in grids])


def _frame(h: int, w: int, merge: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    blocks = (h // merge, merge, w // merge, merge)
    return torch.stack([axis.reshape(blocks).transpose(1, 2).flatten() for axis in (rows, columns)], -1)


def frames(grids: Sequence[Grid]) -> list[int]:
    """Patches of each frame: what sees each other in full attention."""
    return [h * w for t, h, w in grids for _ in range(t)]


def interpolation(grids: Sequence[Grid], merge: int, side: int) -> tuple[Tensor, Tensor]:
    """(patches, 4): which four of side x side learned positions a patch lies between, and the share of each."""
    at = patch_positions(grids, merge).float()
    sizes = torch.cat([torch.tensor([[h, w]]).repeat(t * h * w, 1) for t, h, w in grids])
    source = at * (side - 1) / (sizes - 1).clamp(min=1)
    low = source.floor()
    taps = torch.stack([low, low + 1], -1).long().clamp(0, side - 1)
    share = torch.stack([1 - (source - low), source - low], -1)
    index = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    return index.flatten(1), (share[:, 0, :, None] * share[:, 1, None, :]).flatten(1)


def windows(grids: Sequence[Grid], merge: int, side: int) -> tuple[Tensor, list[int]]:
    """(tokens,): merged tokens in the order of the windows of side x side tokens that they lie in, frame by frame; and
    how many patches each window has."""
    order, lengths, first = [], [], 0
    for t, h, w in grids:
        h, w = h // merge, w // merge
        index = torch.arange(h * w).view(h, w)
        frame = [index[y : y + side, x : x + side].flatten() for y in range(0, h, side) for x in range(0, w, side)]
        for _ in range(t):
            order += [window + first for window in frame]
            lengths += [len(window) * merge**2 for window in frame]
            first += h * w
    return torch.cat(order), lengths
