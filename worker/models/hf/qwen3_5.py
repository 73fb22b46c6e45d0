"""Qwen3.5: run by transformers' forward, whose recurrent layers this worker has no code of its own for."""

from worker.checkpoint.family import timed_spans
from worker.models.family import ModelFamily

QWEN3_5 = ModelFamily(video_text=timed_spans, is_video_timed=True, coordinates="thousandths")
