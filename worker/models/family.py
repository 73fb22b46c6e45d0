"""A model family as this worker runs it: its prompt habits, and its own model code where there is some."""

from dataclasses import dataclass

from worker.checkpoint.family import Family
from worker.models.native.code import NativeCode


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Family):
    """native: None where transformers' forward runs the family."""

    native: NativeCode | None = None
