"""A checkpoint's config as the library reads it."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from worker.core.errors import ModelError

_REFUSED = (StrictDataclassError, OSError, ValueError, TypeError, KeyError, AttributeError)


def library_config(folder: Path) -> Any:
    """Raises ModelError where the library does not take it."""
    try:
        return AutoConfig.from_pretrained(folder)
    except _REFUSED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{folder / 'config.json'} is refused by transformers: {reason[:300]}") from None
