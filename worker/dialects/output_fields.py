"""What a body may ask for beside the text: objects, pictures with boxes, task presets, confidence."""

import json
from typing import Annotated

from pydantic import BeforeValidator, Field

from worker.core.contract import Media, Message, Text
from worker.core.errors import InputInvalid
from worker.core.json_schema import prepared
from worker.core.outcome import Drawing, Outputs, PictureFormat
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.core.tasks import TASKS, Language, Task, TaskCall, TaskName, prompt_of, schema_of
from worker.dialects.base import Body, Whole
from worker.dialects.constraint_fields import Schema, schema_constraint

MAX_LABELS = 256
ANNOTATED_SIDE = 2048  # of a picture that is to be looked at; what is cut out keeps its pixels
Label = Annotated[str, Field(min_length=1, max_length=200)]


class DrawingForm(Body):
    """Of pictures in the reply."""

    format: PictureFormat = "jpeg"
    max_side: Annotated[Whole, Field(ge=64, le=16_384)] | None = None

    def drawing(self, default_max_side: int | None = None) -> Drawing:
        return Drawing(format=self.format, max_side=self.max_side or default_max_side)


def _as_form(value: object) -> object:
    return {} if value is True else None if value is False else value


DrawingChoice = Annotated[DrawingForm | None, BeforeValidator(_as_form)]


class OutputFields(Body):
    """Beside a body's messages."""

    objects: bool | None = None
    annotate: DrawingChoice = None
    crops: DrawingChoice = None
    confidence: bool | None = None
    task: TaskName | None = None
    labels: Annotated[list[Label], Field(min_length=1, max_length=MAX_LABELS)] | None = Field(None, repr=False)
    fields: Schema | None = Field(None, repr=False)
    language: Language | None = None

    def outputs(self) -> Outputs:
        """Raises InputInvalid."""
        return Outputs(
            objects=self.objects or False,
            annotate=None if self.annotate is None else self.annotate.drawing(ANNOTATED_SIDE),
            crops=None if self.crops is None else self.crops.drawing(),
            task=self._task(),
            confidence=self.confidence is not False,
        )

    def _task(self) -> TaskCall | None:
        """Raises InputInvalid."""
        if self.task is None:
            for name in ("labels", "fields", "language"):
                if getattr(self, name) is not None:
                    raise InputInvalid(where=name, detail="belongs to a task: write task beside it, see GET /v1/tasks")
            return None
        task = TASKS[self.task]
        for name in ("labels", "fields"):
            if getattr(self, name) is not None and name not in task.takes:
                takers = ", ".join(other for other, each in TASKS.items() if name in each.takes)
                raise InputInvalid(where=name, detail=f"belongs to the task {takers}: {self.task} takes none")
        if "fields" in task.takes and not isinstance(self.fields, dict):
            raise InputInvalid(
                where="fields",
                detail=f"{self.task} needs the JSON schema of what to extract: "
                '{"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}',
            )
        return TaskCall(
            name=self.task,
            labels=tuple(self.labels or ()),
            fields=None if self.fields is None else _as_object(self.fields),
            language=self.language or "en",
        )


def _as_object(fields: JsonObject | bool) -> str:
    """Raises InputInvalid."""
    if isinstance(fields, dict) and fields.get("type") not in (None, "object"):
        raise InputInvalid(where="fields", detail='must be a schema of an object: {"type": "object", "properties": …}')
    schema = {"type": "object", "additionalProperties": False, **fields} if isinstance(fields, dict) else {}
    prepared(schema, "fields")
    return json.dumps(schema, ensure_ascii=False)


def task_constraint(outputs: Outputs, messages: tuple[Message, ...]) -> list[Constraint]:
    """That the answer has the form of its task, where it has one. A question in the caller's own words is answered
    freely, unless the caller says the fields. messages: before `asked_for`. Raises InputInvalid."""
    task = outputs.task
    if task is None or (task.fields is None and _has_words(messages[-1])):
        return []
    media = [part for message in messages for part in message.parts if isinstance(part, Media)]
    schema = schema_of(task, sum(item.kind == "image" for item in media))
    return [] if schema is None else [schema_constraint(schema, "task" if task.fields is None else "fields")]


def _has_words(message: Message) -> bool:
    return any(isinstance(part, Text) and part.text.strip() for part in message.parts)


def asked_for(messages: tuple[Message, ...], outputs: Outputs) -> tuple[Message, ...]:
    """The messages with the task's words, where the last of the user has none of its own, and with pictures kept at
    their size where they are drawn. Raises InputInvalid."""
    media = [part for message in messages for part in message.parts if isinstance(part, Media)]
    if outputs.task is not None:
        _check_media(TASKS[outputs.task.name], outputs.task.name, media)
        messages = _with_words(messages, prompt_of(outputs.task))
    if outputs.draws:
        messages = tuple(_at_own_size(message) for message in messages)
    return messages


def _check_media(task: Task, name: str, media: list[Media]) -> None:
    """Raises InputInvalid."""
    num_images = sum(item.kind == "image" for item in media)
    if num_images < task.min_images:
        raise InputInvalid(where="task", detail=f"{name} needs {task.min_images} pictures or more")
    if len(media) - num_images < task.min_videos:
        raise InputInvalid(where="task", detail=f"{name} needs a video")
    if not media:
        raise InputInvalid(where="task", detail=f"{name} needs a picture or video")


def _with_words(messages: tuple[Message, ...], words: str) -> tuple[Message, ...]:
    """Raises InputInvalid."""
    last = messages[-1]
    if last.role != "user":
        raise InputInvalid(where="task", detail="needs a last message with the role user")
    if _has_words(last):
        return messages
    parts = (*(part for part in last.parts if isinstance(part, Media)), Text(text=words))
    return (*messages[:-1], last.model_copy(update={"parts": parts}))


def _at_own_size(message: Message) -> Message:
    parts = tuple(
        part.model_copy(update={"keeps_size": True}) if isinstance(part, Media) and part.kind == "image" else part
        for part in message.parts
    )
    return message.model_copy(update={"parts": parts})
