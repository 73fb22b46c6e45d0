"""A checkpoint's rules for pixels, read from its preprocessor files. Knows no torch."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker.checkpoint.locate import read_json
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessorConfig:
    """How pictures become patches. Limits are in pixels: height x width, for a video times its frames, or of each of
    its frames where `is_video_per_frame`."""

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
    is_video_per_frame: bool = False

    @property
    def factor(self) -> int:
        """Sides in pixels are multiples of this; a token covers factor x factor pixels."""
        return self.patch * self.merge


def read_preprocessor(
    folder: Path, family_rules: PreprocessorConfig | None = None, vision: JsonObject | None = None
) -> PreprocessorConfig:
    """The rules of the checkpoint in this folder, from the files for each kind or, as newer ones have it, from one.

    family_rules: they say what the limits of a video count, and are those of a folder without any of the files, with
    the sizes of patches that its config's `vision` says. Raises ModelError.
    """
    both = read_json(folder / "processor_config.json")
    image = both.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = both.get("video_processor") or read_json(folder / "video_preprocessor_config.json")
    if not image and family_rules is None:
        raise ModelError(f"preprocessor_config.json is missing from {folder}: copy the base model's")
    if not image:
        log.warning("%s has no preprocessor_config.json: pictures are resized by the family's rules", folder)
    try:
        usual = None if family_rules is None else _sized(family_rules, vision or {})
        return _rules(image, video or image, usual)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the preprocessor files in {folder} have no {error}: download them again") from None


def _sized(rules: PreprocessorConfig, vision: JsonObject) -> PreprocessorConfig:
    return replace(
        rules,
        patch=number(vision.get("patch_size", rules.patch)),
        merge=number(vision.get("spatial_merge_size", rules.merge)),
        temporal=number(vision.get("temporal_patch_size", rules.temporal)),
    )


def number(value: Any) -> int:
    """Of a side; of several, which are alike, one. Raises ModelError."""
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ModelError(
            f"{value!r} in the config or preprocessor files must be one number: height and width must be equal"
        )
    return side


def _rules(image: JsonObject, video: JsonObject, usual: PreprocessorConfig | None) -> PreprocessorConfig:
    """`usual`: what counts where the files do not say it."""

    def filled(value: Any, name: str, otherwise: str) -> Any:
        if value is None and usual is None:
            raise KeyError(name)
        return getattr(usual, otherwise) if value is None else value

    def said(name: str, otherwise: str) -> Any:
        return filled(image.get(name), name, otherwise)

    def edge(config: JsonObject, edge: str, pixels: str, otherwise: str) -> int:
        """`min_pixels` and `max_pixels` take precedence over `size`, as in the library; in `size` itself they are a
        third form."""
        size = config.get("size")
        size = size if isinstance(size, dict) else {}
        limits = (config.get(pixels), size.get(edge), size.get(pixels))
        return int(filled(next((limit for limit in limits if limit is not None), None), pixels, otherwise))

    return PreprocessorConfig(
        patch=number(said("patch_size", "patch")),
        merge=number(said("merge_size", "merge")),
        temporal=number(said("temporal_patch_size", "temporal")),
        mean=tuple(said("image_mean", "mean")),
        std=tuple(said("image_std", "std")),
        image_min_pixels=edge(image, "shortest_edge", "min_pixels", "image_min_pixels"),
        image_max_pixels=edge(image, "longest_edge", "max_pixels", "image_max_pixels"),
        video_min_pixels=edge(video, "shortest_edge", "min_pixels", "video_min_pixels"),
        video_max_pixels=edge(video, "longest_edge", "max_pixels", "video_max_pixels"),
        video_fps=video.get("fps") or 2.0,
        caps_frames=video.get("cap_pixels_per_frame", True),
        frame_max_tokens=video.get("max_video_tokens", 768),
        is_video_per_frame=usual is not None and usual.is_video_per_frame,
    )
