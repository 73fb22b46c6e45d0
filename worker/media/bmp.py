"""BMP that Pillow does not read well: colors behind bit masks, of which it knows some, and run lengths, which it
decodes byte by byte in Python and FFmpeg a hundred times as fast."""

import struct

import av
import numpy as np

from worker.core.opened import RGB

_FILE_HEAD_BYTES, _INFO_HEAD_BYTES = 14, 40
_RUN_LENGTHS = (1, 2)
_BAND_ROWS = 64  # that are converted at a time
_MARGIN = 128  # that FFmpeg asks for beyond the sides
_BITFIELDS = (3, 6)  # without and with a mask for transparency
_WITH_ALPHA_BYTES = 56  # of a head that has that mask


def has_masks(data: bytes) -> bool:
    """Whether its head names masks."""
    if len(data) < _FILE_HEAD_BYTES + _INFO_HEAD_BYTES:
        return False
    head, bits, compression = struct.unpack_from("<I10xHI", data, _FILE_HEAD_BYTES)
    return head >= _INFO_HEAD_BYTES and compression in _BITFIELDS and bits in (16, 32)


def is_run_length_coded(data: bytes) -> bool:
    """Whether its head says so."""
    if len(data) < _FILE_HEAD_BYTES + _INFO_HEAD_BYTES:
        return False
    head, compression = struct.unpack_from("<I12xI", data, _FILE_HEAD_BYTES)
    return head >= _INFO_HEAD_BYTES and compression in _RUN_LENGTHS


def size(data: bytes) -> tuple[int, int]:
    """Width and height."""
    width, height = struct.unpack_from("<ii", data, _FILE_HEAD_BYTES + 4)
    return width, abs(height)


def decode(data: bytes) -> RGB:
    """(height, width, 3), on white where it is transparent. Raises ValueError, struct.error."""
    return _unpacked(data) if is_run_length_coded(data) else _unmasked(data)


def _unpacked(data: bytes) -> RGB:
    width, height = size(data)
    context = av.CodecContext.create("bmp", "r")
    context.options = {"max_pixels": str((width + _MARGIN) * (height + _MARGIN))}
    try:
        [frame] = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.FFmpegError:
        raise ValueError("its run lengths are damaged") from None
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _unmasked(data: bytes) -> RGB:
    head, width, height = struct.unpack_from("<Iii", data, _FILE_HEAD_BYTES)
    bits, compression = struct.unpack_from("<HI", data, _FILE_HEAD_BYTES + 14)
    masks = list(struct.unpack_from("<III", data, _FILE_HEAD_BYTES + _INFO_HEAD_BYTES))
    has_alpha = head >= _WITH_ALPHA_BYTES or compression == _BITFIELDS[1]
    masks += struct.unpack_from("<I", data, _FILE_HEAD_BYTES + _INFO_HEAD_BYTES + 12) if has_alpha else (0,)
    rows, word = abs(height), "<u2" if bits == 16 else "<u4"
    stride = -(-width * bits // 32) * 4
    begin = struct.unpack_from("<I", data, 10)[0]
    stored = np.frombuffer(data, np.uint8, stride * rows, begin).reshape(rows, stride)[:, : width * bits // 8]
    rgb = np.empty((rows, width, 3), np.uint8)
    upright = stored if height < 0 else stored[::-1]
    for top in range(0, rows, _BAND_ROWS):
        pixels = np.ascontiguousarray(upright[top : top + _BAND_ROWS]).view(word).astype(np.uint32)
        band = np.stack([_channel(pixels, mask) for mask in masks[:3]], axis=-1)
        if masks[3]:
            alpha = _channel(pixels, masks[3])[..., None]
            band = (band * alpha + 255 * (255 - alpha) + 127) // 255
        rgb[top : top + _BAND_ROWS] = band
    return rgb


def _channel(pixels: np.ndarray, mask: int) -> np.ndarray:
    """The masked bits of each pixel, stretched to 0 to 255. Raises ValueError for bits that do not touch."""
    if not mask:
        return np.zeros_like(pixels)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if most & (most + 1):
        raise ValueError("its mask has holes")
    values = (pixels & np.uint32(mask)) >> np.uint32(shift)
    if most > 255:
        return values >> np.uint32(most.bit_length() - 8)
    return (values * 255 + most // 2) // most
