"""What a body may ask for beside the text: objects, pictures with boxes, task presets, confidence."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from worker.core.contract import Media, Message, Text
from worker.core.errors import InputInvalid
from worker.core.json_schema import prepared
from worker.core.outcome import Drawing, Outputs, PictureFormat
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.core.tasks import TASKS, Language, MediaCounts, Task, TaskCall, TaskName, prompt_of, schema_of
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


_ELSEWHERE = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}  # may name further fields


def _as_object(fields: JsonObject | bool) -> str:
    """Raises InputInvalid."""
    if isinstance(fields, dict) and fields.get("type") not in (None, "object"):
        raise InputInvalid(where="fields", detail='must be a schema of an object: {"type": "object", "properties": …}')
    schema = {"type": "object", **fields} if isinstance(fields, dict) else {}
    if "properties" in schema and not _ELSEWHERE & schema.keys():
        schema = {"additionalProperties": False, **schema}
    prepared(schema, "fields")
    return json.dumps(schema, ensure_ascii=False)


@dataclass(frozen=True)
class Asked:
    """What a request asks beside the text. messages: with the task's words, where the last of the user has none of its
    own, and with pictures kept at their size where they are drawn. forms: of the answer, by its task. A question in the
    caller's own words is answered freely, unless the caller says the fields."""

    outputs: Outputs
    messages: tuple[Message, ...]
    forms: tuple[Constraint, ...] = ()


def asked(form: OutputFields, messages: tuple[Message, ...]) -> Asked:
    """Raises InputInvalid."""
    outputs = form.outputs()
    media = [part for message in messages for part in message.parts if isinstance(part, Media)]
    num_images = sum(item.kind == "image" for item in media)
    counts = MediaCounts(num_images, len(media) - num_images)
    if not media and outputs.reads_objects and outputs.task is None:
        name = next(name for name in ("objects", "annotate", "crops") if getattr(form, name))
        raise InputInvalid(where=name, detail="needs a picture or video")
    forms: tuple[Constraint, ...] = ()
    if outputs.task is not None:
        _check_media(TASKS[outputs.task.name], outputs.task.name, counts)
        forms = tuple(_task_forms(outputs.task, messages[-1], counts))
        messages = _with_words(messages, prompt_of(outputs.task, counts))
    if outputs.draws:
        messages = tuple(_at_own_size(message) for message in messages)
    return Asked(outputs, messages, forms)


def _task_forms(task: TaskCall, last: Message, counts: MediaCounts) -> Iterator[Constraint]:
    schema = schema_of(task, counts)
    if schema is not None and (task.fields is not None or not _has_words(last)):
        yield schema_constraint(schema, "task" if task.fields is None else "fields")


def _has_words(message: Message) -> bool:
    return any(isinstance(part, Text) and part.text.strip() for part in message.parts)


def _check_media(task: Task, name: str, counts: MediaCounts) -> None:
    """Raises InputInvalid."""
    if counts.images < task.min_images:
        raise InputInvalid(where="task", detail=f"{name} needs {task.min_images} pictures or more")
    if counts.videos < task.min_videos:
        raise InputInvalid(where="task", detail=f"{name} needs a video")
    if not counts.images and not counts.videos:
        raise InputInvalid(where="task", detail=f"{name} needs a picture or video")
    if task.reads_objects and counts.images and counts.videos:
        raise InputInvalid(where="task", detail=f"{name} takes pictures or videos, not both: send two requests")


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
