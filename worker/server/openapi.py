"""What the HTTP door's routes take and give, in the words of OpenAPI."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from worker.core.errors import every_error
from worker.dialects import bot_group, bot_private, chat_vl, generate, openai_chat, openai_models, recognize

Schema = dict[str, Any]
FORM = "multipart/form-data"
KEYS: Schema = {
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}
_SOME_FILE: Schema = {"type": "string", "format": "binary"}


class Fault(BaseModel):
    """Why a request failed: a sentence for people, a code for programs."""

    detail: str
    code: str


class BotFault(Fault):
    """The same for the chat bot's clients."""

    status: Literal["error"]


class OpenAIFault(BaseModel):
    """The error object of the OpenAI API."""

    class Error(BaseModel):
        """What is wrong, and where."""

        message: str
        type: Literal["invalid_request_error", "server_error"]
        param: str | None
        code: str

    error: Error


class ChatVLForm(BaseModel):
    """Messages as JSON in a string; the file fills the block without a source."""

    model_config = ConfigDict(extra="forbid")

    messages: str = Field(examples=['[{"role": "user", "content": [{"type": "image"}]}]'])
    file: bytes | None = Field(None, json_schema_extra=_SOME_FILE)
    max_new_tokens: int = Field(chat_vl.MAX_TOKENS, ge=1)
    stream: bool = False


class RecognizeForm(BaseModel):
    """A picture and a question."""

    model_config = ConfigDict(extra="forbid")

    image: bytes = Field(json_schema_extra=_SOME_FILE)
    prompt: str = Field(examples=["What is in the picture?"])


class Used(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatVLReply(BaseModel):
    """The whole answer."""

    response: str
    usage: Used


class RecognizeReply(BaseModel):
    """The whole answer."""

    status: Literal["success"]
    result: str


class GenerateReply(BaseModel):
    """The whole answer."""

    response: str


class PrivateReply(BaseModel):
    """What the bot says."""

    status: Literal["success"]
    reply: str


class GroupReply(PrivateReply):
    """What the bot says in a group, and whether it says anything."""

    should_reply: bool


class OpenAIReply(BaseModel):
    """The API's chat completion, and `response` beside it."""

    class Choice(BaseModel):
        """One of the answers."""

        class Said(BaseModel):
            """The answer's words."""

            role: Literal["assistant"]
            content: str
            refusal: None

        index: int
        message: Said
        logprobs: dict[str, Any] | None
        finish_reason: Literal["stop", "length"]

    class Usage(Used):
        """Tokens, and those of pictures, of videos, and known before."""

        prompt_tokens_details: dict[str, int]

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    response: str


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All that is served: one model."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """How the worker is; what it serves is there when it serves."""

    status: Literal["healthy", "loading", "dead"]
    supported_formats: list[str]
    model_loaded: bool
    processor_loaded: bool
    model: str | None = None
    device: str | None = None
    torch_version: str | None = None
    cuda_available: bool | None = None
    gpu_memory: str | None = None


@dataclass(frozen=True)
class Route:
    """A route that answers questions. stream: the media type of its stream, where it has one."""

    about: str
    body: type[BaseModel]
    reply: type[BaseModel]
    fault: type[BaseModel] = Fault
    content: str = "application/json"
    stream: str | None = None
    example: dict[str, Any] | None = None


_PICTURE = "https://example.org/shapes.png"
_QUESTION = {"type": "text", "text": "What is in the picture?"}
_BOT = {"user_id": "77", "user_nickname": "Ann", "content": "Hello!", "images": [], "timestamp": 1700000000.5}
ROUTES: dict[str, Route] = {
    openai_chat.ROUTE: Route(
        about="OpenAI Chat Completions",
        body=openai_chat.OpenAIBody,
        reply=OpenAIReply,
        fault=OpenAIFault,
        stream="text/event-stream",
        example={
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": _PICTURE}}, _QUESTION]}
            ]
        },
    ),
    generate.ROUTE: Route(
        about="Qwen messages in, the text alone out",
        body=generate.GenerateBody,
        reply=GenerateReply,
        example={"messages": [{"role": "user", "content": [{"type": "image", "image": _PICTURE}, _QUESTION]}]},
    ),
    chat_vl.ROUTE: Route(
        about="Messages and one uploaded file",
        body=ChatVLForm,
        reply=ChatVLReply,
        content=FORM,
        stream="text/plain",
    ),
    recognize.ROUTE: Route(about="One picture, one question", body=RecognizeForm, reply=RecognizeReply, content=FORM),
    bot_group.ROUTE: Route(
        about="A message to a chat bot's group",
        body=bot_group.GroupBody,
        reply=GroupReply,
        fault=BotFault,
        example={"type": "group", "group_id": "5512", "group_name": "Shapes", "user_card": "Ann from art", **_BOT},
    ),
    bot_private.ROUTE: Route(
        about="A message to a chat bot",
        body=bot_private.PrivateBody,
        reply=PrivateReply,
        fault=BotFault,
        example={"type": "private", **_BOT},
    ),
}
_STATUSES = sorted({error.status for error in every_error()})
# By path: what comes back by status, with its media type.
_PLAIN: dict[str, dict[int, tuple[str, Schema] | None]] = {
    "/": {200: ("application/json", {"type": "object"})},
    "/ping": {200: None, 204: None, 503: None},
    "/metrics": {200: ("text/plain", {"type": "string"})},
}


def describe(schema: Schema, *, has_keys: bool) -> Schema:
    """FastAPI's own schema, with what FastAPI cannot know of these routes. Changes and returns it."""
    models = [model for route in ROUTES.values() for model in (route.body, route.reply, route.fault)]
    models += [ModelCard, ModelList, Health, Fault]
    _, found = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/components/schemas/{model}"
    )
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {}).update(found["$defs"])
    paths = schema["paths"]
    for path, route in ROUTES.items():
        paths[path]["post"] = _described(route)
    _answers(paths[openai_models.ROUTE]["get"], ModelList, OpenAIFault, _STATUSES)
    _answers(paths[openai_models.ROUTE + "/{name}"]["get"], ModelCard, OpenAIFault, _STATUSES)
    _answers(paths["/health"]["get"], Health, Health, [503])
    for path, replies in _PLAIN.items():
        paths[path]["get"]["responses"] = {
            str(status): {"description": _said(status), **({"content": {kind[0]: {"schema": kind[1]}}} if kind else {})}
            for status, kind in replies.items()
        }
    if has_keys:
        parts["securitySchemes"] = KEYS
        schema["security"] = [{name: []} for name in KEYS]
        for path in ("/", "/ping"):
            paths[path]["get"]["security"] = []
        for path in ("/metrics", "/health"):
            paths[path]["get"]["responses"]["401"] = _response(Fault, 401)
    return schema


def _described(route: Route) -> Schema:
    content: Schema = {"schema": _ref(route.body)}
    if route.example is not None:
        content["example"] = route.example
    operation: Schema = {
        "summary": route.about,
        "requestBody": {"required": True, "content": {route.content: content}},
    }
    _answers(operation, route.reply, route.fault, _STATUSES)
    if route.stream is not None:
        operation["responses"]["200"]["content"][route.stream] = {"schema": {"type": "string"}}
    return operation


def _answers(operation: Schema, reply: type[BaseModel], fault: type[BaseModel], statuses: list[int]) -> None:
    operation["responses"] = {"200": _response(reply, 200)} | {
        str(status): _response(fault, status) for status in statuses
    }


def _response(model: type[BaseModel], status: int) -> Schema:
    return {"description": _said(status), "content": {"application/json": {"schema": _ref(model)}}}


def _said(status: int) -> str:
    return "An answer" if status < 300 else ", ".join(sorted(e.text for e in every_error() if e.status == status))


def _ref(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
