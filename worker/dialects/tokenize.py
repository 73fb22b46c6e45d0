"""vLLM's `POST /tokenize`: the token ids of a prompt, or of messages with pictures and videos. The model is not run."""

from pydantic import ConfigDict, Field

from worker.core.contract import ChatRequest, Counted, Message, Text
from worker.core.errors import InputInvalid
from worker.core.safe_json import JsonObject
from worker.dialects.base import BoundedText, Dialect, ReplyBody, counts_only
from worker.dialects.openai_chat import OpenAIBody, parse_chat
from worker.dialects.openai_reply import FAULTS, OpenAIFault
from worker.dialects.validation import validated


class TokenizeBody(OpenAIBody):
    """A prompt as it is, or messages as in a chat completion."""

    model_config = ConfigDict(extra="ignore")

    messages: None = None  # type: ignore[assignment]
    prompt: BoundedText = Field(min_length=1, repr=False)
    add_special_tokens: bool | None = None  # these families put none before a prompt
    return_token_strs: bool | None = None


class TokenizeReply(ReplyBody):
    """The tokens of the prompt as the model would read it."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: None


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    if body.get("return_token_strs"):
        detail = "is not supported: decode the ids with the model's tokenizer"
        raise InputInvalid(where="return_token_strs", detail=detail)
    if body.get("messages") is not None:
        return parse_chat(body).model_copy(update={"counts_only": True, "stream": False})
    form = validated(TokenizeBody, body)
    message = Message(role="user", parts=(Text(text=form.prompt),))
    return ChatRequest(messages=(message,), is_raw=True, counts_only=True, model=form.model)


def _shape(counted: Counted) -> JsonObject:
    head = {"count": counted.prompt_tokens, "max_model_len": counted.max_model_len}
    return {**head, "tokens": list(counted.tokens), "token_strs": None}


DIALECT = Dialect(
    name="tokenize",
    about="vLLM's tokenize: the token ids of a prompt or of messages",
    route="/tokenize",
    parse=_parse,
    reply=counts_only(_shape),
    refuse=FAULTS.refuse,
    http_error=FAULTS.http_error,
    body=TokenizeBody,
    reply_model=TokenizeReply,
    fault=OpenAIFault,
    example={"prompt": "Who are you?"},
)
