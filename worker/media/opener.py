"""All media of a request at once: references to pictures and clips, under the limits of the whole request.

Whatever fails or is cancelled, nothing stays behind: there are no temporary files, and the memory of pictures
being decoded is counted over all requests.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from worker.core.contract import Done, Frames, Kind, Media
from worker.core.errors import MediaDecodeTimeout, MediaTooManyItems
from worker.core.media_protocol import SizePolicy
from worker.core.opened import Clip, Opened, Picture
from worker.core.outcome import Outcome, Outputs
from worker.core.settings import Settings
from worker.media import annotate
from worker.media.allowance import Allowance
from worker.media.budget import Share
from worker.media.decoders import DECODERS, DecodeContext, Decoder, named, together
from worker.media.picture import RGB_BYTES
from worker.media.sources import Fetches, Sources
from worker.media.workers import Workers

KEPT_PIXELS = 16_000_000  # of a picture that is to be drawn on or cut out of


@dataclass(frozen=True)
class Room:
    """See `core.media_protocol.MediaRoom`."""

    share: Share

    def settle(self, opened: Sequence[Opened]) -> None:
        pictures = [one.rgb for one in opened if isinstance(one, Picture)]
        frames = [frame for one in opened if isinstance(one, Clip) for frame in one.frames]
        self.share.shrink(sum(rgb.nbytes for rgb in (*pictures, *frames)))


class Opener:
    """Opens media for any number of requests at once; see `core.media_protocol.MediaOpener`. Close it when done."""

    def __init__(
        self,
        settings: Settings,
        fetcher: Fetches,
        size_policy: SizePolicy,
        table: Mapping[Kind, Decoder] = DECODERS,
        *,
        keeps_files: bool = False,
    ) -> None:
        self._settings, self._size_policy, self._table = settings, size_policy, table
        self._keeps_files = keeps_files
        self.workers = Workers(settings)
        self.sources = Sources(settings, fetcher, self.workers)

    def close(self) -> None:
        self.workers.close()

    @asynccontextmanager
    async def room(self, items: Sequence[Media], more_images: int = 0) -> AsyncIterator[Room]:
        """The memory for what they become, for as long as any of it is alive. See `core.media_protocol.MediaOpener`."""
        kinds: list[Kind] = [item.kind for item in items] + ["image"] * more_images
        most = sum(self._size_policy.max_pixels(kind) for kind in kinds)
        more_of_each = max(0, self._kept_pixels(items) - self._size_policy.max_pixels("image"))
        most += more_of_each * sum(item.keeps_size for item in items)
        async with self.workers.pixels.held(most * RGB_BYTES, items) as share:
            yield Room(share)

    async def open(self, items: Sequence[Media]) -> tuple[tuple[Opened, ...], ...]:
        """For each reference what it became, in order. Raises MediaError with the item's place."""
        self._check_counts(items)
        left = self._allowance()
        context = DecodeContext(
            self._settings,
            self.sources,
            self.workers,
            self._size_policy,
            left,
            keeps_files=self._keeps_files,
            kept_pixels=self._kept_pixels(items),
        )
        return tuple(await together([self._open(context, item) for item in items]))

    async def drawn(self, media: Sequence[Opened], outputs: Outputs, done: Done, max_bytes: int) -> tuple[Outcome, ...]:
        """See `core.media_protocol.MediaOpener`."""
        pixels = sum(opened.rgb.nbytes for opened in media if isinstance(opened, Picture))
        work = (annotate.drawn, media, done.media, outputs, done.outcomes, max_bytes)
        try:
            return await self.workers.run(2 * pixels, *work, owner=done)
        except MediaDecodeTimeout:
            raise MediaDecodeTimeout(detail="drawing: ask for fewer pictures, or for a smaller max_side") from None

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]:
        """The files of pictures, in the order of `items`, not yet opened. Raises MediaError with the item's place."""
        self._check_counts(items)
        left = self._allowance()
        return tuple(await together([self._read(item, left) for item in items]))

    async def _open(self, context: DecodeContext, item: Media) -> tuple[Opened, ...]:
        with named(item.where):
            return await self._table[item.kind](context, item)

    async def _read(self, item: Media, left: Allowance) -> bytes:
        assert not isinstance(item.source, Frames)
        with named(item.where):
            return await self.sources.read(item.source, "image", left)

    def _kept_pixels(self, items: Sequence[Media]) -> int:
        """Of each picture that keeps its size."""
        own = self._settings.max_image_pixels
        return min(KEPT_PIXELS, own, self.workers.pixels.largest // RGB_BYTES // max(1, len(items)))

    def _allowance(self) -> Allowance:
        return Allowance(self._settings.max_job_bytes, self._settings.max_job_pixels, self._size_policy.max_tokens)

    def _check_counts(self, items: Sequence[Media]) -> None:
        for kind, limit in (("image", self._settings.max_images), ("video", self._settings.max_videos)):
            found = [item for item in items if item.kind == kind]
            if len(found) > limit:
                raise MediaTooManyItems(
                    where=found[limit].where, detail=f"{len(found)} {kind}s, limit {limit} (MAX_{kind.upper()}S)"
                )
