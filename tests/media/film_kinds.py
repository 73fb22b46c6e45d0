"""Films as phones, editors, disks and broken downloads leave them, made on the spot: edit lists, display matrices,
damage, old containers. Frames show their own numbers (`films.py`)."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from builder.scheduling import same_scheduling
from tests.media.films import film, frame
from worker.media.iso_boxes import boxes

ONE = 65536
BT2020 = 9  # FFmpeg's number
# The matrices of the eight orientations, by EXIF's number: how x and y of a stored pixel become those shown.
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda rgb: rgb,
    2: np.fliplr,
    3: lambda rgb: np.rot90(rgb, 2),
    4: np.flipud,
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: np.rot90(rgb, -1),
    7: lambda rgb: np.rot90(rgb, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _path(data: bytes, *kinds: bytes) -> Any:
    level = list(boxes(data, 0, len(data)))
    for kind in kinds[:-1]:
        outer = next(found for found in level if found.kind == kind)
        level = list(boxes(data, outer.begin, outer.end))
    return next((found for found in level if found.kind == kinds[-1]), None)


def with_edits(data: bytes, edits: Sequence[tuple[int, int, float]]) -> bytes:
    """An MP4 whose `moov` is last, with another edit list: of each edit its duration in thousandths, its start in the
    media's units (-1: nothing is shown) and its speed."""
    body = struct.pack(">II", 0, len(edits))
    for duration, start, speed in edits:
        body += struct.pack(">IiI", duration, start, round(speed * ONE))
    edts = box(b"edts", box(b"elst", body))
    moov, trak = _path(data, b"moov"), _path(data, b"moov", b"trak")
    assert moov.end == len(data)
    inside = b"".join(
        data[each.begin - 8 : each.end] for each in boxes(data, trak.begin, trak.end) if each.kind != b"edts"
    )
    tkhd_end = int.from_bytes(inside[:4], "big")
    track = box(b"trak", inside[:tkhd_end] + edts + inside[tkhd_end:])
    return data[: moov.begin - 8] + box(b"moov", data[moov.begin : trak.begin - 8] + track + data[trak.end : moov.end])


def media_units(data: bytes) -> int:
    """Units of the media's time in a second."""
    mdhd = _path(data, b"moov", b"trak", b"mdia", b"mdhd")
    units: int = struct.unpack_from(">I", data, mdhd.begin + 12)[0]
    return units


def first_media_time(data: bytes) -> int:
    """Where the first frame is in the media's time: B-frames shift it."""
    elst = _path(data, b"moov", b"trak", b"edts", b"elst")
    start: int = struct.unpack_from(">i", data, elst.begin + 12)[0]
    return start


def with_matrix(data: bytes, orientation: int) -> bytes:
    """An MP4 that is to be shown in one of the eight orientations."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * ONE for value in MATRICES[orientation])
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    return data[:at] + matrix + data[at + 36 :]


def packets_of(data: bytes) -> list[tuple[int, int]]:
    """Where each packet of a film lies in its file: first byte and length."""
    container: Any
    with av.open(io.BytesIO(data), "r") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [(data.index(bytes(packet), packet.pos or 0), packet.size) for packet in packets]


def with_noise(data: bytes, number: int) -> bytes:
    """The film with one packet of noise."""
    at, size = packets_of(data)[number]
    noise = np.random.default_rng(number).integers(0, 256, size, np.uint8).tobytes()
    assert data[at : at + size] != noise
    return data[:at] + noise + data[at + size :]


def faststart(data: bytes) -> bytes:
    """An MP4 with its index before its frames, as for streaming."""
    moov, mdat = _path(data, b"moov"), _path(data, b"mdat")
    shift, index = moov.end - moov.begin + 8, bytearray(data[moov.begin - 8 : moov.end])
    table = index.index(b"stco") + 8
    for entry in range(struct.unpack_from(">I", index, table)[0]):
        at = table + 4 + 4 * entry
        struct.pack_into(">I", index, at, struct.unpack_from(">I", index, at)[0] + shift)
    return data[: mdat.begin - 8] + bytes(index) + data[mdat.begin - 8 : moov.begin - 8]


def remuxed(data: bytes, form: str, options: dict[str, str] | None = None) -> bytes:
    """The same packets in another container."""
    out = io.BytesIO()
    source: Any
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format=form, options=options or {}) as to:
        stream = source.streams.video[0]
        copy = to.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                to.mux(packet)
    return out.getvalue()


def of_two_sizes(codec: str, form: str, sizes: Sequence[tuple[int, int]], count: int = 45) -> bytes:
    """A film whose frames become larger or smaller, as in a recorded call: two coded parts, one stream."""
    parts = [film(count, codec=codec, form=form, size=size) for size in sizes]
    out = io.BytesIO()
    with av.open(out, "w", format=form) as to:
        copy: Any = None
        shift = number = 0
        for part in parts:
            source: Any
            with av.open(io.BytesIO(part)) as source:
                stream = source.streams.video[0]
                copy = copy or to.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = copy
                        to.mux(packet)
                        number += 1
                shift = round(number / 30 / stream.time_base)
    return out.getvalue()


def of_two_streams(
    main: tuple[str, tuple[int, int], bool], other: tuple[str, tuple[int, int], bool], form: str
) -> bytes:
    """A film with two video streams, each (codec, size, whether it is the default); the first shows its numbers, the
    second is red."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        streams: list[Any] = []
        for codec, size, is_default in (other, main):
            stream: Any = container.add_stream(codec, rate=30)
            stream.width, stream.height = size
            stream.pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
            stream.disposition = av.stream.Disposition.default if is_default else 0
            streams.append(stream)
        for number in range(60):
            red = np.full((other[1][1], other[1][0], 3), (255, 0, 0), np.uint8)
            for stream, rgb in zip(streams, (red, frame(number, *main[1])), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return out.getvalue()


def of_wide_pixels(shape: Fraction, codec: str = "libx264", form: str = "mp4") -> bytes:
    """A film of 160x96 whose pixels are `shape` times as wide as high."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def with_long_packets(data: bytes) -> bytes:
    """A transport stream with a time before each packet, as AVCHD cameras and Blu-ray disks write it."""
    packets = [data[at : at + 188] for at in range(0, len(data) - 187, 188)]
    return b"".join(struct.pack(">I", number * 100) + packet for number, packet in enumerate(packets))


def joined(first: bytes, second: bytes) -> bytes:
    """Two transport streams, one behind the other: the clock starts again."""
    return first + second


def with_counted_box(data: bytes, kind: bytes) -> bytes:
    """An MP4 behind another box, its table of chunks moved along."""
    extra, moved = box(kind, bytes(8)), bytearray(data)
    table = data.index(b"stco") + 8
    for entry in range(struct.unpack_from(">I", data, table)[0]):
        at = table + 4 + 4 * entry
        struct.pack_into(">I", moved, at, struct.unpack_from(">I", data, at)[0] + len(extra))
    return extra + bytes(moved)


def encoded(shown: Any, codec: str, options: dict[str, str], curve: int) -> bytes:
    """A film of ten frames, all of them `shown`, in BT.2020 with one of FFmpeg's transfer characteristics."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = shown.width, shown.height, shown.format.name
        for name, number in (("color_primaries", BT2020), ("color_trc", curve), ("colorspace", BT2020)):
            setattr(stream.codec_context, name, number)
        for number in range(10):
            shown.pts, shown.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return out.getvalue()


def with_hole(data: bytes, part: float) -> bytes:
    """A file of which a few hundred bytes were overwritten, so far along."""
    at = int(len(data) * part)
    return data[:at] + np.random.default_rng(1).integers(0, 256, 700, np.uint8).tobytes() + data[at + 700 :]
