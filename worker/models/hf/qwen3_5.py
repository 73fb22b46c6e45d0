"""Qwen3.5, and later models of its type: run by transformers' forward, as this worker has no code of its own for their
recurrent layers."""

from worker.checkpoint.family import timed_spans
from worker.checkpoint.family_rules import QWEN3_5_SAMPLING, QWEN3_VL_PIXELS
from worker.models.family import ModelFamily

QWEN3_5 = ModelFamily(
    video_text=timed_spans,
    is_video_timed=True,
    coordinates="thousandths",
    pixel_rules=QWEN3_VL_PIXELS,
    card_sampling=QWEN3_5_SAMPLING,
)
