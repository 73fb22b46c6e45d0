"""Jobs of RunPod's worker-vllm, and OpenAI bodies put straight into a job's `input`.

{"messages" or "prompt", "sampling_params": {…}, "apply_chat_template", "stream"}  ->  the object of OpenAI's API, with
`tokens` in its choices and `input` and `output` in its usage, as older versions of worker-vllm answered.

Source: worker-vllm's README and handler at 2.25, and at 2.23 for the older fields.
"""

from worker.core.contract import Answer, ChatRequest, Meta, StreamEvent
from worker.core.errors import InputInvalid, WorkerError
from worker.core.names import shown_name
from worker.core.safe_json import JsonObject
from worker.dialects.base import Chunk, Dialect, Writer, answers_only
from worker.dialects.completions import (
    CompletionBody,
    CompletionWriter,
    completion,
    parse_completion,
    with_chat_logprobs,
)
from worker.dialects.native import NativeBody
from worker.dialects.openai_chat import OpenAIBody, parse_chat
from worker.dialects.openai_fields import NOT_BUILT, is_same
from worker.dialects.openai_reply import FAULTS, ChunkWriter, shape
from worker.dialects.validation import unknown_field

_PARAMS, _TEMPLATE = "sampling_params", "apply_chat_template"
# How chunks are sent and answers written is the worker's own: these change nothing.
_BATCHES = ("max_batch_size", "min_batch_size", "batch_size_growth_factor", "use_openai_format")
_IGNORED = (
    *_BATCHES,
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity", "prediction"),
    *("request_id", "priority", "add_special_tokens", "detokenize", "guided_decoding_backend", "output_kind"),
)
_OPENAI = frozenset({*OpenAIBody.model_fields, *CompletionBody.model_fields, *NOT_BUILT})
_KNOWN = _OPENAI | {_PARAMS, _TEMPLATE, *_IGNORED}
# What the worker's own form does not have. Beside a prompt only worker-vllm's own fields count: there it matters most
# whether the chat template is applied.
_MARKS = _KNOWN - NativeBody.model_fields.keys()
_PROMPT_MARKS = frozenset({_PARAMS, _TEMPLATE, *_BATCHES})
_NATIVE = ("system", "image", "images", "video", "videos")


def claims(job_input: JsonObject) -> bool:
    """Whether this is no input in the worker's own form: it has fields of worker-vllm or of OpenAI's API alone."""
    marks = _PROMPT_MARKS if job_input.get("messages") is None else _MARKS
    return not marks.isdisjoint(job_input) and not any(name in job_input for name in _NATIVE)


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    given = _merged(body)
    is_chat = given.get("messages") is not None or bool(body.get(_TEMPLATE))
    if is_chat and given.get("messages") is None:
        asked = {"role": "user", "content": given.pop("prompt", None)}
        given = {**given, "messages": [asked]}
    elif is_chat and given.pop("prompt", None) is not None:
        raise InputInvalid(where="prompt", detail="cannot be combined with messages: put it into a message")
    try:
        # Older versions had one form of logprobs for both.
        request = parse_chat(with_chat_logprobs(given)) if is_chat else parse_completion(given)
    except WorkerError as error:
        raise _placed(error, body) from None
    return request.model_copy(update={"echo": {"is_chat": is_chat}})


def _merged(body: JsonObject) -> JsonObject:
    """The body of OpenAI's API that the job stands for. Raises InputInvalid."""
    for name in body.keys() - _KNOWN:
        raise unknown_field(name, _KNOWN)
    template = body.get(_TEMPLATE)
    if not isinstance(template, bool | None):
        raise InputInvalid(where=_TEMPLATE, detail="must be true or false")
    if template is False and body.get("messages") is not None:
        raise InputInvalid(where=_TEMPLATE, detail="false goes with prompt: messages are always put into the template")
    params = body.get(_PARAMS)
    if not isinstance(params, dict | None):
        raise InputInvalid(where=_PARAMS, detail="must be an object")
    beside = {name: value for name, value in body.items() if name not in (_PARAMS, _TEMPLATE)}
    for name, value in (params or {}).items():
        if name not in _KNOWN - {_PARAMS, _TEMPLATE}:
            raise unknown_field(name, _KNOWN, f"{_PARAMS}.{shown_name(name)}")
        if name in beside and not is_same(beside[name], value):
            raise InputInvalid(where=f"{_PARAMS}.{name}", detail=f"contradicts {name} beside it: write it once")
    return {**beside, **(params or {})}


def _placed(error: WorkerError, body: JsonObject) -> WorkerError:
    """The error at its place in the job, not in the body that the job stands for."""
    first = (error.where or "").partition(".")[0].partition("[")[0]
    if first in (body.get(_PARAMS) or {}) and first not in body:
        return error.at(f"{_PARAMS}.{error.where}")
    if first == "messages" and "messages" not in body:
        return error.at("prompt")
    return error


def _shape(answer: Answer) -> JsonObject:
    shown = shape(answer) if answer.meta.echo["is_chat"] else completion(answer)
    for choice, said in zip(shown["choices"], answer.choices, strict=True):
        choice["tokens"] = [said.text]
    usage = {**shown["usage"], "input": answer.usage.prompt_tokens, "output": answer.usage.completion_tokens}
    return {**shown, "usage": usage}


class JobWriter:
    """Server-sent events, as the current worker-vllm yields them; a job that fails has an error of its own, too."""

    def __init__(self, meta: Meta) -> None:
        self._inner: Writer = ChunkWriter(meta) if meta.echo["is_chat"] else CompletionWriter(meta)

    def feed(self, event: StreamEvent) -> list[Chunk]:
        return self._inner.feed(event)

    def flush(self) -> list[Chunk]:
        return self._inner.flush()

    def fail(self, error: WorkerError) -> list[Chunk]:
        return _refuse(error, True)


def _refuse(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """What ends a job that failed: the event that clients of a stream wait for, and the job's own error."""
    return [*(FAULTS.refuse(error, True) if is_stream else []), {"error": error.as_json()}]


DIALECT = Dialect(
    name="vllm_job",
    about="Jobs of RunPod's worker-vllm, and OpenAI bodies as a job's input",
    claims=claims,
    parse=_parse,
    reply=answers_only(_shape),
    writer=JobWriter,
    refuse=_refuse,
    body=OpenAIBody,
)
