"""Which video codecs are decoded, and what the others are called where they are refused."""

from collections.abc import Sequence

# FFmpeg's names of decoders. All of these are fuzzed by OSS-Fuzz, and none reads anything but its packets.
DECODERS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video"}
    | {"mjpeg", "h263", "flv", "vp6", "vp6f", "theora", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2", "msmpeg4"}
)
SUPPORTED = "H.264, HEVC, VP8, VP9, AV1, MPEG-1, -2 and -4, Motion JPEG, H.263, Sorenson, VP6, Theora and WMV"
_NAMES = {
    "prores": "ProRes", "dnxhd": "DNxHD", "cfhd": "CineForm", "dvvideo": "DV", "rawvideo": "uncompressed video",
    "jpeg2000": "JPEG 2000", "png": "PNG", "gif": "GIF", "qtrle": "QuickTime Animation", "rpza": "Apple Video",
    "svq1": "Sorenson Video 1", "svq3": "Sorenson Video 3", "cinepak": "Cinepak", "indeo3": "Indeo 3",
    "indeo5": "Indeo 5", "msvideo1": "Microsoft Video 1", "msrle": "Microsoft RLE", "huffyuv": "HuffYUV",
    "ffvhuff": "FFVHuff", "ffv1": "FFV1", "utvideo": "Ut Video", "vvc": "H.266", "rv30": "RealVideo 8",
    "rv40": "RealVideo 9", "vp7": "VP7", "flashsv": "Flash Screen Video", "flashsv2": "Flash Screen Video 2",
    "wmv3image": "Windows Media slides", "vc1image": "Windows Media slides", "hap": "Hap", "apv": "APV",
    "mss1": "Windows Media Screen", "mss2": "Windows Media Screen", "mts2": "Windows Media Screen",
    "tscc": "TechSmith Screen Capture", "camtasia": "TechSmith Screen Capture", "v210": "uncompressed video",
}  # fmt: skip


def unsupported_codec(decoders: Sequence[str]) -> str:
    """What a caller is told of a file of which no stream can be decoded; `decoders`: FFmpeg's names for them."""
    named = next((_NAMES[name] for name in decoders if name in _NAMES), None)
    return f"{'its codec' if named is None else named} is not decoded, {SUPPORTED} are: re-encode it as H.264"
