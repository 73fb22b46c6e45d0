"""What a checkpoint's generation_config.json says about the choice of tokens, as far as it can be used."""

import logging
import math
from pathlib import Path

from worker.checkpoint.locate import read_json
from worker.core.safe_json import JsonObject

log = logging.getLogger(__name__)
# The least and the most of each.
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-2.0, 2.0),
}


def read_generation(folder: Path) -> JsonObject:
    """generation_config.json; sampling values that are null are left out, and such as mean nothing with a line in the
    log. Raises ModelError."""
    generation = read_json(folder / "generation_config.json")
    for name, (least, most) in _RANGES.items():
        value = generation.pop(name, None)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most or (name == "top_k" and value != int(value)):
            log.warning("generation_config.json in %s: %s %r is ignored", folder, name, value)
            continue
        generation[name] = max(0, int(value)) if name == "top_k" else float(value)
    return generation
