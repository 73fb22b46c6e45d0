"""Whether a video file ends before its end, told by what it says of itself: the sizes of its boxes and elements, of the
file, of its last packet or tag."""

from worker.media import ebml, iso_boxes, riff
from worker.media.sniff import VideoFormat, transport_packets

_TS_SYNC = 0x47
_TS_BYTES = 188  # of a packet, without a time before it or check bytes behind
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLV_TAGS = (b"\x08", b"\x09", b"\x12")  # of sound, of pictures and of words: one that was cut off
_FLV_TAIL_BYTES = 64  # that somebody may have put behind the last tag
_FLV_TAG_BYTES = 11  # of a tag's head
_HEAD_BYTES = 2**16  # in which the head of a file is


def announced_end(data: bytes, form: VideoFormat) -> int:
    """Where the file ends by what it says of itself, in bytes; 0 where it does not say."""
    match form:
        case "mov,mp4,m4a,3gp,3g2,mj2":
            return iso_boxes.announced_end(data)
        case "matroska,webm":
            return ebml.announced_end(data)
        case "avi":
            return riff.announced_end(data)
        case "flv":
            return _end_of_flv(data)
        case "asf":
            return _end_of_asf(data)
        case "mpegts":
            return _end_of_transport_stream(data)
        case _:
            return 0


def _end_of_asf(data: bytes) -> int:
    """The properties of the file tell its size."""
    at = data.find(_ASF_PROPERTIES, 0, _HEAD_BYTES)
    return int.from_bytes(data[at + 40 : at + 48], "little") if at > 0 else 0


def _end_of_flv(data: bytes) -> int:
    """Behind each tag its length is told again."""
    ends = range(len(data), max(0, len(data) - _FLV_TAIL_BYTES), -1)
    last = next((end for end in ends if _is_flv_tag_end(data, end)), None)
    return 0 if last is not None and data[last : last + 1] not in _FLV_TAGS else len(data) + 1


def _is_flv_tag_end(data: bytes, end: int) -> bool:
    size = int.from_bytes(data[end - 4 : end], "big")
    begin = end - 4 - size
    return begin >= 0 and int.from_bytes(data[begin + 1 : begin + 4], "big") + _FLV_TAG_BYTES == size


def _end_of_transport_stream(data: bytes) -> int:
    """Its last packet is whole, or it was cut off."""
    found = transport_packets(data)
    if found is None:
        return 0
    first, size = found
    left = (len(data) - first) % size
    is_cut = left not in (0, _TS_BYTES % size) and data[-left] == _TS_SYNC
    return len(data) + 1 if is_cut else 0
