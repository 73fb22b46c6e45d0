"""Small files whose tables announce far more than they hold, or whose streams are larger than their containers say.

`python -m tests.media.index_attacks` prints what a demuxer takes for each, with its index counted before and without.
"""

import io
import multiprocessing
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import av
from PIL import Image

from benchmarks.decode_memory import growth
from builder.scheduling import same_scheduling
from tests.fakes import encoded
from tests.media.films import film
from worker.core.errors import MediaError
from worker.core.settings import Settings
from worker.media import packets, video
from worker.media.sniff import sniff

MANY = 80_000_000


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


@cache
def _plain() -> bytes:
    return film(4)


def _sounding(form: str, codec: str, seconds: int, rate: int, samples: int) -> bytes:
    """A film of a frame a second, and as many pieces of silence."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        video: Any = container.add_stream("libx264", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = container.add_stream(codec, rate=rate, layout="mono")
        for second in range(seconds):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
            silence = av.AudioFrame(format=sound.codec_context.format.name, layout="mono", samples=samples)
            silence.sample_rate, silence.pts = rate, second * samples
            silence.planes[0].update(bytes(silence.planes[0].buffer_size))
            container.mux(sound.encode(silence))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return out.getvalue()


@cache
def with_sound() -> bytes:
    return _sounding("mp4", "aac", 4, 8000, 1024)


@cache
def with_long_sound() -> bytes:
    """A film whose sound has one table entry a sample, 1.44 million of them, which is right."""
    return _sounding("mov", "pcm_s16le", 30, 48_000, 48_000)


@cache
def fragmented() -> bytes:
    out = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with same_scheduling(), av.open(out, "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    return out.getvalue()


def table(data: bytes, kind: bytes, at: int, *values: int, last: bool = False) -> bytes:
    """The file with these numbers in a table, `at` bytes behind the box's head."""
    place = (data.rindex(kind) if last else data.index(kind)) + 4 + at
    return data[:place] + struct.pack(f">{len(values)}I", *values) + data[place + 4 * len(values) :]


def with_boxes(data: bytes, *extra: bytes, into: tuple[bytes, ...]) -> bytes:
    """The file with boxes at the end of the one that `into` leads to; the sizes of all around them grow."""
    grown = b"".join(extra)
    begin, end, heads = 0, len(data), []
    for kind in into:
        at = begin
        while data[at + 4 : at + 8] != kind:
            at += int.from_bytes(data[at : at + 4], "big")
        heads.append(at)
        begin, end = at + 8, at + int.from_bytes(data[at : at + 4], "big")
    whole = bytearray(data[:end] + grown + data[end:])
    for at in heads:
        size = int.from_bytes(whole[at : at + 4], "big") + len(grown)
        whole[at : at + 4] = size.to_bytes(4, "big")
    return bytes(whole)


SIZES = box(b"stsz", struct.pack(">III", 0, 1, MANY))
STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def _several_tracks() -> bytes:
    """Ten sounds of eight million samples each, where one may have so many."""
    data = with_sound()
    at = data.rindex(b"trak") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    track = bytearray(data[at : at + size])
    place = track.index(b"stsz") + 8
    track[place : place + 8] = struct.pack(">II", 1, 400_000)
    return with_boxes(data, *[bytes(track)] * 20, into=(b"moov",))


def _edits() -> bytes:
    """Ten thousand edits, each of the whole film."""
    edit = struct.pack(">IIHH", 400, 0, 1, 0)
    return with_boxes(
        film(60), box(b"edts", box(b"elst", struct.pack(">II", 0, 10_000) + edit * 10_000)), into=STBL[:2]
    )


def _compressed_index() -> bytes:
    body = zlib.compress(bytes(100 * 2**20), 9)
    index = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 2**31 - 1) + body)
    return box(b"ftyp", b"qt  " + bytes(4) + b"qt  ") + box(b"moov", box(b"cmov", index))


MP4: dict[str, tuple[Callable[[], bytes], str]] = {
    "80 million samples of one size": (lambda: table(_plain(), b"stsz", 4, 1, MANY), "MEDIA_TOO_LARGE"),
    "80 million samples of a sound": (lambda: table(with_sound(), b"stsz", 4, 1, MANY, last=True), "MEDIA_TOO_LARGE"),
    "20 tracks of 400,000 samples": (_several_tracks, "MEDIA_TOO_LARGE"),
    "80 million times": (lambda: table(_plain(), b"stts", 8, MANY), "MEDIA_TOO_LARGE"),
    "80 million offsets of times": (
        lambda: with_boxes(_plain(), box(b"ctts", struct.pack(">IIII", 0, 1, MANY, 1)), into=STBL),
        "MEDIA_TOO_LARGE",
    ),
    "80 million samples in a fragment": (lambda: table(fragmented(), b"trun", 0, 0, MANY), "MEDIA_TOO_LARGE"),
    "samples in an unexpected place": (
        lambda: with_boxes(_plain(), box(b"udta", SIZES), into=(b"moov", b"trak")), "MEDIA_TOO_LARGE",
    ),
    "samples beside the description": (lambda: with_boxes(_plain(), SIZES, into=(*STBL, b"stsd")), "MEDIA_TOO_LARGE"),
    "samples in free space": (
        lambda: _plain() + box(b"free", box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", SIZES)))))),
        "MEDIA_TOO_LARGE",
    ),
    "10,000 edits": (_edits, "MEDIA_TOO_LARGE"),
    "an index that inflates": (_compressed_index, "MEDIA_UNSUPPORTED_TYPE"),
}  # fmt: skip


def element(identity: int, body: bytes, *, size_of: int = 8) -> bytes:
    head = identity.to_bytes((identity.bit_length() + 7) // 8, "big")
    return head + (len(body) | 1 << 7 * size_of).to_bytes(size_of, "big") + body


@cache
def _matroska() -> bytes:
    return film(8, form="matroska", codec="libx264", size=(64, 48))


def _grown(into: int, extra: bytes) -> bytes:
    """The film with elements at the end of one of the segment's, as a new one of unknown length would not do."""
    data = _matroska()
    segment = data.index(bytes.fromhex("18538067"))
    name = into.to_bytes(4, "big")
    place = data.index(name, data.index(name, segment) + 4)  # the first is where the seek head names it
    size_at = place + 4
    length = 9 - data[size_at].bit_length()
    size = int.from_bytes(data[size_at : size_at + length], "big") & ((1 << 7 * length) - 1)
    body = data[size_at + length : size_at + length + size] + extra
    whole = data[:place] + element(into, body) + data[size_at + length + size :]
    head = segment + 4
    return whole[:head] + b"\x01" + b"\xff" * 7 + whole[head + 8 :]  # the segment goes on to the end of the file


def _inflating_blocks(kind: int = 1) -> bytes:
    """A video whose 40 blocks of nine kilobytes each inflate to nine megabytes."""
    packed = zlib.compress(bytes(9_000_000), 9)
    encodings = element(0x6D80, element(0x6240, element(0x5034, element(0x4254, b"\0", size_of=1))))
    entry = (
        element(0xD7, b"\1", size_of=1) + element(0x73C5, b"\1", size_of=1) + element(0x83, bytes([kind]), size_of=1)
    )
    entry += element(0x86, b"V_MPEG4/ISO/ASP" if kind == 1 else b"A_PCM/INT/LIT")
    entry += element(0xE0, element(0xB0, b"\x40", size_of=1) + element(0xBA, b"\x30", size_of=1)) if kind == 1 else b""
    tracks = element(0x1654AE6B, element(0xAE, entry + encodings))
    blocks = b"".join(element(0xA3, b"\x81" + struct.pack(">hB", index * 100, 0x80) + packed) for index in range(40))
    head = element(0x1A45DFA3, element(0x4282, b"matroska"))
    return head + element(0x18538067, tracks + element(0x1F43B675, element(0xE7, b"\0", size_of=1) + blocks))


def _hidden_tags() -> bytes:
    """Tags in the middle of a block, to which the seek head points."""
    tags = element(0x1254C367, element(0x7373, b"", size_of=1) * 600_000)
    head = element(0x1A45DFA3, element(0x4282, b"matroska"))

    def index(at: int) -> bytes:
        named = element(0x53AB, bytes.fromhex("1254C367")) + element(0x53AC, at.to_bytes(4, "big"))
        return element(0x114D9B74, element(0x4DBB, named))

    before = len(index(0)) + 12 + 9  # the index itself, and the heads of the cluster and the block
    cluster = element(0x1F43B675, element(0xA3, tags))
    return head + element(0x18538067, index(before) + cluster)


MATROSKA: dict[str, tuple[Callable[[], bytes], str]] = {
    "100,000 tracks in 200 KB": (lambda: _grown(0x1654AE6B, b"\xae\x80" * 100_000), "MEDIA_TOO_LARGE"),
    "a million points to seek to": (lambda: _grown(0x1C53BB6B, b"\xbb\x80" * 1_000_000), "MEDIA_TOO_LARGE"),
    "a million tags": (lambda: _grown(0x1254C367, b"\x73\x73\x80" * 1_000_000), "MEDIA_TOO_LARGE"),
    "tags in the middle of a block": (_hidden_tags, "MEDIA_TOO_LARGE"),
    "blocks that inflate": (_inflating_blocks, "MEDIA_UNSUPPORTED_TYPE"),
    "sound that inflates": (lambda: _inflating_blocks(2), "MEDIA_VIDEO_NO_FRAMES | MEDIA_CORRUPT"),
}


def _avi(*indexes: bytes) -> bytes:
    data = film(4, codec="mpeg4", form="avi", size=(64, 48))
    whole = bytearray(data + b"".join(indexes))
    whole[4:8] = struct.pack("<I", len(whole) - 8)
    return bytes(whole)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body


def _indexes_of_one_index() -> bytes:
    """A thousand times the same index of a thousand entries."""
    entries = struct.pack("<HBBI4sQI", 2, 0, 1, 1000, b"00dc", 0, 0) + struct.pack("<II", 8, 8) * 1000
    index = _chunk(b"ix00", entries)
    at = len(_avi())
    named = struct.pack("<QII", at, len(index), 1000) * 1000
    return _avi(index, _chunk(b"indx", struct.pack("<HBBI4sIII", 4, 0, 0, 1000, b"00dc", 0, 0, 0) + named))


AVI: dict[str, tuple[Callable[[], bytes], str]] = {
    "a million entries": (lambda: _avi(_chunk(b"idx1", bytes(16_000_000))), "MEDIA_TOO_LARGE"),
    "one index a thousand times": (_indexes_of_one_index, "MEDIA_TOO_LARGE"),
}  # fmt: skip


def small_avif_of(side: int) -> bytes:
    """An AVIF that says 64x64 everywhere but in its stream."""
    data = bytearray(encoded(Image.new("RGB", (side, side)), "AVIF", speed=10))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", 64, 64)
    return bytes(data)


def _weigh(form: str, name: str, is_counted: bool, told: "multiprocessing.Queue[Any]") -> None:
    make, _ = FORMS[form][name]
    data = make()
    if not is_counted:
        packets.refuse_large_index = lambda *_: None  # type: ignore[attr-defined]
    found = sniff(data).video
    assert found is not None
    codes: list[str] = []

    def read() -> None:
        try:
            video.read_packets(data, found, Settings())
            codes.append("seen")
        except MediaError as error:
            codes.append(error.code)

    began = time.monotonic()
    taken = growth(read)
    told.put((len(data), codes[0], time.monotonic() - began, taken / 2**20))


FORMS = {"MP4": MP4, "Matroska": MATROSKA, "AVI": AVI}


def main() -> None:
    """Print what the demuxer takes for each, with the indexes counted before and without: the control."""
    print("| file | bytes | counted | s | MiB | not counted | s | MiB |\n|---|---|---|---|---|---|---|---|")
    for form, files in FORMS.items():
        for name in files:
            cells, size = "", 0
            for is_counted in (True, False):
                told: multiprocessing.Queue[Any] = multiprocessing.Queue()
                process = multiprocessing.Process(target=_weigh, args=(form, name, is_counted, told))
                process.start()
                size, code, seconds, mib = told.get(timeout=120)
                process.join()
                cells += f" {code} | {seconds:.2f} | {mib:.0f} |"
            print(f"| {form}: {name} | {size} |{cells}", flush=True)


if __name__ == "__main__":
    main()
