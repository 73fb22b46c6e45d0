"""How the real checkpoints of Qwen3-VL make patches of pictures, for measurements and pictures without a checkpoint."""

from worker.checkpoint.preprocessor import PreprocessorConfig

QWEN3_VL = PreprocessorConfig(
    patch=16,
    merge=2,
    temporal=2,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    image_min_pixels=65_536,
    image_max_pixels=16_777_216,
    video_min_pixels=4_096,
    video_max_pixels=25_165_824,
    video_fps=2.0,
    caps_frames=True,
    frame_max_tokens=768,
)
