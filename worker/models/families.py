"""The families that are served, by the `model_type` of a checkpoint's config.json.

To add one, write its file and give it a row here. A type without a row never inherits another family's rules: the
library's `generate` serves it, or the start ends.
"""

from worker.models.family import ModelFamily
from worker.models.hf.qwen3_5 import QWEN3_5
from worker.models.native.qwen2_5_vl import QWEN2_5_VL
from worker.models.native.qwen2_vl import QWEN2_VL
from worker.models.native.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE

FAMILIES: dict[str, ModelFamily] = {
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL_MOE,
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen2_vl": QWEN2_VL,
}
