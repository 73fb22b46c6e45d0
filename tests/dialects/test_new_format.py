"""A new API format is one file and one row: this one is defined here, and HTTP, the job API and OpenAPI follow.

It takes a form with a file, and numbers what it streams, errors too.
"""

import asyncio
import base64
import json
from typing import Any

import pytest
import requests
from PIL import Image
from pydantic import Field

from tests.fakes import FakeEngine, FakeOpener, encoded
from tests.server.servers import served
from worker.core.contract import ChatRequest, Counted, Done, Message, Meta, Piece, Reply, Start, StreamEvent, Text
from worker.core.errors import OutOfMemory, WorkerError
from worker.core.safe_json import JsonObject
from worker.core.settings import load
from worker.dialects.base import Body, Chunk, Dialect, HttpError, ReplyBody, Upload
from worker.dialects.media_fields import MediaForm, image
from worker.dialects.table import DIALECTS
from worker.dialects.validation import validated
from worker.service import Service

pytestmark = pytest.mark.network
ROUTE = "/v1/describe"
RED = encoded(Image.new("RGB", (8, 8), "red"))


class DescribeBody(Body):
    """A photo, and what to do with it."""

    photo: MediaForm
    words: str = "What is it?"
    live: str = "no"
    only_count: str = "no"


class DescribeForm(ReplyBody):
    """The same as a form."""

    photo: bytes = Field(json_schema_extra={"type": "string", "format": "binary"})
    words: str = "What is it?"


class DescribeReply(ReplyBody):
    """The description, or what it would cost."""

    description: str | None = None
    cost: int | None = None


class Numbered:
    """Numbers its events, and tells at the end how many letters there were."""

    def __init__(self, meta: Meta) -> None:
        self._model, self._number, self._letters = meta.model, 0, 0

    def _event(self, kind: str, data: Any) -> Chunk:
        self._number += 1
        return f"{self._number} {kind} {json.dumps(data)}\n"

    def feed(self, event: StreamEvent) -> list[Chunk]:
        match event:
            case Start():
                return [self._event("begins", self._model)]
            case Piece():
                self._letters += len(event.text)
                return [self._event("text", event.text)]
            case Done():
                return []

    def flush(self) -> list[Chunk]:
        return [self._event("letters", self._letters)]

    def fail(self, error: WorkerError) -> list[Chunk]:
        return [self._event("failed", error.code)]


def parse(body: JsonObject) -> ChatRequest:
    form = validated(DescribeBody, body)
    message = Message(role="user", parts=(image(form.photo, "photo"), Text(text=form.words)))
    return ChatRequest(messages=(message,), stream=form.live == "yes", counts_only=form.only_count == "yes")


def reply(outcome: Reply) -> JsonObject:
    if isinstance(outcome, Counted):
        return {"cost": outcome.prompt_tokens}
    return {"description": outcome.choices[0].text}  # type: ignore[union-attr]


TOY = Dialect(
    name="describe",
    about="A photo described",
    route=ROUTE,
    upload=Upload("photo"),
    parse=parse,
    reply=reply,
    writer=Numbered,
    http_error=lambda error, declared_type: HttpError(418, {"sorry": error.code, "sent": declared_type}),
    body=DescribeForm,
    reply_model=DescribeReply,
    stream_type="text/x-numbered",
)
TABLE = DIALECTS.with_dialect(TOY)
STREAM = ['1 begins "tiny-qwen3-vl"\n', '2 text "A "\n', '3 text "cat."\n', "4 letters 6\n"]


def by_job(engine: FakeEngine, **fields: str) -> list[Any]:
    settings = load({"STREAM_INTERVAL_MS": "0"})
    service = Service(engine, FakeOpener(), settings, dialects=TABLE)
    body = {"photo": base64.b64encode(RED).decode(), **fields}

    async def run() -> list[Any]:
        return [output async for output in service.answer({"route": ROUTE, "body": body}, "job-1")]

    return asyncio.run(run())


def post(address: str, photo: bytes = RED, **fields: str) -> requests.Response:
    return requests.post(f"{address}{ROUTE}", files={"photo": ("x", photo, "image/png")}, data=fields, timeout=10)


def test_over_http() -> None:
    with served(FakeEngine(), dialects=TABLE) as address:
        assert post(address).json() == {"description": "A cat."}
        streamed = post(address, live="yes")
        assert streamed.headers["content-type"].startswith("text/x-numbered")
        assert streamed.text.splitlines(keepends=True) == STREAM
        refused = post(address, colour="red")
        assert (refused.status_code, refused.json()) == (418, {"sorry": "INPUT_INVALID", "sent": "image/png"})
        assert requests.get(f"{address}/", timeout=10).json()["routes"][ROUTE] == "POST multipart/form-data"


def test_as_a_job() -> None:
    assert by_job(FakeEngine()) == [{"description": "A cat."}]
    assert by_job(FakeEngine(), live="yes") == STREAM
    assert by_job(FakeEngine(pieces=["A "], error=OutOfMemory()), live="yes") == [
        *STREAM[:2],
        '3 failed "OUT_OF_MEMORY"\n',
    ]
    [failed] = by_job(FakeEngine(), colour="red")
    assert json.loads(failed["error"])["code"] == "INPUT_INVALID"


def test_a_prompt_that_is_only_counted_runs_no_model() -> None:
    engine = FakeEngine()
    assert by_job(engine, only_count="yes") == [{"cost": 26}]
    assert engine.asked == []


def test_by_its_name() -> None:
    body = {"photo": base64.b64encode(RED).decode()}
    call = TABLE.choose({"dialect": "describe", **body})
    assert (call.dialect, call.body()) == (TOY, body)


def test_in_the_schema() -> None:
    with served(FakeEngine(), dialects=TABLE) as address:
        schema = requests.get(f"{address}/openapi.json", timeout=10).json()
    operation = schema["paths"][ROUTE]["post"]
    assert operation["requestBody"]["content"] == {
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/DescribeForm"}}
    }
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/x-numbered"}
    assert "DescribeReply" in schema["components"]["schemas"]
