"""`POST /v1/image/recognize`: one picture, one question."""

import re
from typing import Literal

from pydantic import ConfigDict, Field

from worker.core.contract import Answer, ChatRequest, Message, Text
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.dialects.base import Body, BoundedText, Dialect, HttpError, ReplyBody, Upload, answers_only, upload_error
from worker.dialects.media_fields import MediaForm, image
from worker.dialects.validation import validated

MAX_TOKENS = 1024

_PLAIN_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}", re.ASCII)


class RecognizeBody(Body):
    image: MediaForm
    prompt: BoundedText = Field(repr=False)


class RecognizeForm(ReplyBody):
    """A picture and a question."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    image: bytes = Field(json_schema_extra={"type": "string", "format": "binary"})
    prompt: str = Field(examples=["What is in the picture?"])


class RecognizeReply(ReplyBody):
    """The whole answer."""

    status: Literal["success"]
    result: str


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid."""
    form = validated(RecognizeBody, body)
    parts = (image(form.image, "image"), Text(text=form.prompt))
    return ChatRequest(messages=(Message(role="user", parts=parts),), sampling=Sampling(max_tokens=MAX_TOKENS))


def _shape(answer: Answer) -> JsonObject:
    return {"status": "success", "result": answer.choices[0].text}


def _error(error: WorkerError, declared_type: str | None) -> HttpError:
    """What was expected, and what the client said that it sent."""
    if error.code == "MEDIA_UNSUPPORTED_TYPE" and declared_type is not None:
        received = declared_type if _PLAIN_TYPE.fullmatch(declared_type) else "something else"
        error = type(error)(where=error.where, detail=f"expected an image, received {received}")
    return upload_error(error)


DIALECT = Dialect(
    name="recognize",
    about="One picture, one question",
    route="/v1/image/recognize",
    upload=Upload("image"),
    parse=_parse,
    reply=answers_only(_shape),
    http_error=_error,
    body=RecognizeForm,
    reply_model=RecognizeReply,
)
