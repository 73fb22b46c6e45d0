"""What the groups of settings are made of: the base of a group, and the types of values."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from worker.core.setting_hints import Expected

__all__ = ["Count", "Device", "Group", "ModelId", "Positive", "Revision", "Seconds", "Token", "WebAddress"]

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Device = Annotated[
    str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Expected("auto, cpu, cuda, or one GPU as cuda:0")
]
ModelId = Annotated[
    str,
    StringConstraints(pattern=r"^(\w[\w.-]*/\w[\w.-]*|tiny-qwen3-vl)$"),
    Expected(
        "organization/name as on the Hugging Face Hub, for example Qwen/Qwen3-VL-8B-Instruct; MODEL_PATH is for folders"
    ),
]
Token = Annotated[
    str, BeforeValidator(str.strip), StringConstraints(pattern=r"^[!-~]+$"), Expected("one word without spaces")
]
WebAddress = Annotated[
    str, StringConstraints(pattern=r"^https?://[!-~]+$"), Expected("an address that begins with https://")
]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$"), Expected("a branch, a tag or a commit")]


class Group(BaseModel):
    """Settings that belong together, under one heading of the table."""

    # Only `Settings` is ever validated: no time is spent on building its groups.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    heading: ClassVar[str]
