"""`POST /generate`: Qwen messages in, the text alone out."""

from pydantic import Field

from worker.core.contract import Answer, ChatRequest
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.dialects.base import MAX_MESSAGES, Body, Dialect, ReplyBody, answers_only
from worker.dialects.messages import PlainMessage, conversation, message
from worker.dialects.sampling_fields import MaxTokens, Temperature, TopP
from worker.dialects.validation import validated


class GenerateBody(Body):
    messages: list[PlainMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_tokens: MaxTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.9


class GenerateReply(ReplyBody):
    """The whole answer."""

    response: str


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid."""
    form = validated(GenerateBody, body)
    messages = (
        message(turn.role, turn.content, f"messages[{index}].content") for index, turn in enumerate(form.messages)
    )
    return ChatRequest(
        messages=conversation(messages),
        sampling=Sampling(max_tokens=form.max_tokens, temperature=form.temperature, top_p=form.top_p),
    )


def _shape(answer: Answer) -> JsonObject:
    return {"response": answer.choices[0].text}


_PICTURE = {"type": "image", "image": "https://example.org/shapes.png"}
_QUESTION = {"type": "text", "text": "What is in the picture?"}
DIALECT = Dialect(
    name="generate",
    about="Qwen messages in, the text alone out",
    route="/generate",
    parse=_parse,
    reply=answers_only(_shape),
    body=GenerateBody,
    reply_model=GenerateReply,
    example={"messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
)
