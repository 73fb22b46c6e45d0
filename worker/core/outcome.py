"""What an answer carries beside its text: objects in the caller's pixels, a typed result, confidence, pictures; and
what a request asks of that."""

from typing import Literal

from pydantic import Field

from worker.core.safe_json import Json, JsonObject
from worker.core.tasks import TASKS, TaskCall
from worker.core.value import Value

Box = tuple[float, float, float, float]
Point = tuple[float, float]
PictureFormat = Literal["jpeg", "png", "webp"]
# Why an object has no usable place: it does not say in which of several pictures it is; its numbers are none; it is
# outside of the picture; it has no area.
Problem = Literal["image_unknown", "not_numbers", "outside", "empty"]


class Drawing(Value):
    """Pictures that a reply brings back. max_side: pixels of the longer side, None: the source's."""

    format: PictureFormat = "jpeg"
    max_side: int | None = None


class Outputs(Value):
    """What a reply is to carry beside the text. annotate: the pictures with their boxes; crops: each object cut out.
    confidence: of the fields of an answer in a JSON schema."""

    objects: bool = False
    annotate: Drawing | None = None
    crops: Drawing | None = None
    task: TaskCall | None = None
    confidence: bool = True

    @property
    def reads_objects(self) -> bool:
        return self.objects or self.draws or (self.task is not None and TASKS[self.task.name].reads_objects)

    @property
    def draws(self) -> bool:
        return self.annotate is not None or self.crops is not None


NO_OUTPUTS = Outputs.model_construct()


class DetectedObject(Value):
    """Something that an answer gives the place of. image: which of the request's pictures and videos, from 0, None
    where the answer does not say it. box: [left, top, right, bottom], point: [x, y], in pixels of the upright source;
    `…_norm`: the same as parts of its sides, 0 to 1; `…_stored`: in pixels of the stored frame, where EXIF turns it.
    relative: the numbers as the model wrote them, where they are no place. time: seconds of a video; frame_time: of the
    nearest frame that the model saw. attributes: the other fields of the object."""

    label: str | None
    image: int | None
    box: Box | None = None
    point: Point | None = None
    box_norm: Box | None = None
    point_norm: Point | None = None
    box_stored: Box | None = None
    point_stored: Point | None = None
    relative: tuple[float, ...] = ()
    time: float | None = None
    frame_time: float | None = None
    is_clipped: bool = False
    problem: Problem | None = None
    attributes: JsonObject = {}

    @property
    def is_valid(self) -> bool:
        return self.problem is None


class DrawnPicture(Value):
    """A picture that the reply brings back. image: of the request; object: of the answer's objects, for a crop; time:
    of a video's frame, in seconds. data: the file."""

    image: int
    format: PictureFormat
    width: int
    height: int
    object: int | None = None
    time: float | None = None
    data: bytes = Field(repr=False)


class Outcome(Value):
    """Of one answer. objects: None where they were not asked for; num_broken: objects that could not be read; is_whole:
    the list was not cut off. drawing_problem: why there are no pictures, a code and a sentence. result: of the task;
    result_problem: a code where the text has no such form. confidence: probability of each field's value by its path,
    uncalibrated; None where the answer has no schema."""

    objects: tuple[DetectedObject, ...] | None = None
    num_broken: int = 0
    is_whole: bool = True
    annotated: tuple[DrawnPicture, ...] = ()
    crops: tuple[DrawnPicture, ...] = ()
    drawing_problem: tuple[str, str] | None = None
    result: Json = None
    result_problem: str | None = None
    confidence: dict[str, float] | None = None
