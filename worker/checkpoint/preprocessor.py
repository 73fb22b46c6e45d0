"""A checkpoint's rules for pixels, read from its preprocessor files. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from worker.checkpoint.locate import read_json
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject


@dataclass(frozen=True)
class PreprocessorConfig:
    """How pictures become patches. Limits are in pixels: height x width, for a video times its frames."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_min_pixels: int
    image_max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    video_fps: float
    caps_frames: bool
    frame_max_tokens: int

    @property
    def factor(self) -> int:
        """Sides in pixels are multiples of this; a token covers factor x factor pixels."""
        return self.patch * self.merge


def read_preprocessor(folder: Path) -> PreprocessorConfig:
    """The rules of the checkpoint in this folder, from the files for each kind or, as newer ones have it, from one.
    Raises ModelError."""
    try:
        return _rules(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the preprocessor's files in {folder} do not say {error}: fetch them again") from None


def _rules(folder: Path) -> PreprocessorConfig:
    both = read_json(folder / "processor_config.json")
    image = read_json(folder / "preprocessor_config.json") or both["image_processor"]
    video = read_json(folder / "video_preprocessor_config.json") or both.get("video_processor") or image
    return PreprocessorConfig(
        patch=image["patch_size"],
        merge=image["merge_size"],
        temporal=image["temporal_patch_size"],
        mean=tuple(image["image_mean"]),
        std=tuple(image["image_std"]),
        image_min_pixels=_edge(image, "shortest_edge", "min_pixels"),
        image_max_pixels=_edge(image, "longest_edge", "max_pixels"),
        video_min_pixels=_edge(video, "shortest_edge", "min_pixels"),
        video_max_pixels=_edge(video, "longest_edge", "max_pixels"),
        video_fps=video.get("fps") or 2.0,
        caps_frames=video.get("cap_pixels_per_frame", True),
        frame_max_tokens=video.get("max_video_tokens", 768),
    )


def _edge(config: JsonObject, edge: str, old_name: str) -> int:
    size = config.get("size") or {}
    return int(size[edge] if edge in size else config[old_name])
