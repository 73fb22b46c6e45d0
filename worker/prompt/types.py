"""A prompt as the model takes it: token ids, positions, and the pictures and videos in it."""

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from worker.core.contract import Kind, MediaInfo
from worker.prompt.patches import Patches

BLOCK = 16  # tokens; two prompts share whole blocks of them
_HASH_BYTES = 16


@dataclass(frozen=True, eq=False)
class MediaItem:
    """A picture or video of a prompt. key: the same for the same content seen in the same way, in the same scope."""

    kind: Kind
    patches: Patches
    key: bytes


@dataclass(frozen=True, eq=False)
class Prompt:
    """All that the model needs to prefill a request.

    ids: the tokens. positions: (3, tokens) M-RoPE positions. delta: what the position of a later token
    differs by from its index. items: pictures and videos in the order of the prompt. item_of, offset_of: (tokens,)
    each token's item and its place in that item's features, -1 for text. fingerprint: (tokens,) int64; prompts that
    begin with the same fingerprints begin with the same keys and values. media: what the items look like. scope: only
    prompts of the same one may share anything. opens_thought: the answer begins within a thought. is_raw: no template
    made it, so that nothing in the answer is told apart. preprocess_s: seconds that the patches of each item took.
    """

    ids: tuple[int, ...]
    positions: torch.Tensor
    delta: int
    items: tuple[MediaItem, ...]
    item_of: torch.Tensor
    offset_of: torch.Tensor
    fingerprint: torch.Tensor
    media: tuple[MediaInfo, ...] = ()
    scope: bytes = b""
    opens_thought: bool = False
    is_raw: bool = False
    preprocess_s: tuple[float, ...] = ()

    @cached_property
    def block_hashes(self) -> tuple[bytes, ...]:
        """Of each whole block of `BLOCK` tokens: the same in two prompts of one scope that are the same up to the end
        of that block."""
        tokens = self.fingerprint.numpy().tobytes()
        size = BLOCK * self.fingerprint.element_size()
        hashes, last = [], self.scope
        for end in range(size, len(tokens) + 1, size):
            last = hashlib.blake2b(tokens[end - size : end], key=last, digest_size=_HASH_BYTES).digest()
            hashes.append(last)
        return tuple(hashes)

    def shared_blocks(self, other: "Prompt") -> int:
        """With how many of the same blocks both begin."""
        ours, theirs = self.block_hashes, other.block_hashes
        most = min(len(ours), len(theirs))
        return bisect_left(range(most), 1, key=lambda block: ours[block] != theirs[block])

    @cached_property
    def distinct_ids(self) -> torch.Tensor:
        """(tokens,) each token once, in the order of their numbers."""
        return torch.from_numpy(np.unique(np.asarray(self.ids, dtype=np.int64)))

    @property
    def images(self) -> tuple[Patches, ...]:
        return tuple(item.patches for item in self.items if item.kind == "image")

    @property
    def videos(self) -> tuple[Patches, ...]:
        return tuple(item.patches for item in self.items if item.kind == "video")

    @cached_property
    def image_tokens(self) -> int:
        return sum(item.tokens for item in self.media if item.kind == "image")

    @cached_property
    def video_tokens(self) -> int:
        return sum(item.tokens for item in self.media if item.kind == "video")

    def positions_with(self, num_later: int) -> torch.Tensor:
        """(3, tokens + num_later) positions of the prompt and of the tokens that follow it."""
        if not num_later:
            return self.positions
        first = len(self.ids) + self.delta
        return torch.cat([self.positions, torch.arange(first, first + num_later).expand(3, -1)], dim=1)
