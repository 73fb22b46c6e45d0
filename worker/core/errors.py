"""Every way in which a request can fail. Knows nothing about HTTP frameworks, jobs or torch.

WorkerError
├── InputError                  400  the request is at fault
│   ├── InputNotObject               `input` is missing or is not an object
│   ├── HttpRefusal                  the HTTP server does not accept the request: the tree goes on in http_errors.py
│   ├── InputInvalid                 a field is unknown, missing, of the wrong type or out of range
│   ├── RouteUnknown            404  no such route
│   ├── ModelNotFound           404  another model is served
│   ├── GrammarTooComplex            a schema, a regular expression or a grammar costs too much
│   └── PromptTooLong                prompt + max_tokens exceeds the context length
├── MediaError                  400  an image or a video is at fault
│   ├── MediaUrlInvalid              not a URL that can be fetched
│   ├── MediaUrlForbidden            an address that may not be fetched
│   ├── MediaFetchFailed             it could not be fetched; 502 where another try may succeed
│   ├── MediaFetchTimeout       504  its server was too slow
│   ├── MediaTooLarge           413  more bytes, or more work, than allowed
│   ├── MediaBase64Invalid           not base64
│   ├── MediaUnsupportedType    415  not a supported format
│   ├── MediaCorrupt                 damaged or truncated
│   ├── MediaDimensions              too many pixels, too long a side, frames that differ
│   ├── MediaDecodeTimeout           decoding took too long
│   ├── MediaDecoderCrashed     500  a decoder crashed on it, twice
│   ├── MediaTooManyItems            more images, videos or frames than allowed
│   ├── MediaParamInvalid            options that contradict each other or the file
│   ├── MediaTokenBudget        413  images and videos would become too many tokens
│   ├── MediaVideoTooLong            more seconds or frames than allowed
│   └── MediaVideoNoFrames           no frames in the file or in the requested time range
├── ServerError                 500  the worker is at fault
│   ├── QueueFull               429  too many requests are waiting
│   ├── OutOfMemory             503  this request did not fit in memory
│   ├── ResultTooLarge          507  the answer is larger than the platform accepts
│   ├── DeadlineExceeded        504  the time limit passed before the answer began
│   ├── EngineStopped           503  the engine has stopped; the worker must be replaced
│   └── InternalError                a fault of our own; the log has the details
└── StartError                  503  the worker cannot start: for the operator, no request is there yet
    ├── SettingError                 an environment variable has an invalid value
    └── ModelError                   the checkpoint cannot be served

A message for a caller is made of the constant text of its class, the place in the request, and our own words and
numbers: never of the caller's data, a library's text or a path. What a StartError says to the operator may name paths:
it is the exception's own text and is never sent to a caller.
"""

import json
from functools import partial
from typing import Any, ClassVar, Self


class WorkerError(Exception):
    """A request that failed, with what its caller may know about it. reason: for the log alone, without content.

    text: what is wrong; remedy: what to do about it, for docs/errors.md. retryable_status: where the status is another
    while it may pass.
    """

    code: ClassVar[str]
    status: int
    retryable_status: ClassVar[int | None] = None
    text: ClassVar[str]
    remedy: ClassVar[str]
    retryable: ClassVar[bool] = False  # where it depends, the instance says

    def __init__(
        self,
        *,
        where: str | None = None,
        detail: str | None = None,
        retryable: bool | None = None,
        reason: str | None = None,
    ) -> None:
        self.where = where
        self.detail = detail
        self.is_retryable = self.retryable if retryable is None else retryable
        self.reason = reason
        if self.is_retryable and self.retryable_status is not None:
            self.status = self.retryable_status
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """It may be raised in a child process."""
        return partial(type(self), **self._fields()), ()

    def at(self, where: str) -> Self:
        """The same error with its place in the request."""
        return type(self)(**{**self._fields(), "where": where})

    def _fields(self) -> dict[str, Any]:
        return {"where": self.where, "detail": self.detail, "retryable": self.is_retryable, "reason": self.reason}

    @property
    def message(self) -> str:
        """One sentence for the caller: the place, what is wrong, the numbers."""
        return ": ".join(part for part in (self.where, self.text, self.detail) if part)

    def as_json(self) -> str:
        """The error as the platform's job API carries it: an object in a string."""
        fields = {"code": self.code, "message": self.message, "status": self.status, "retryable": self.is_retryable}
        return json.dumps(fields)


class InputError(WorkerError):
    """The request is at fault."""

    status = 400


class InputNotObject(InputError):
    """`input`, or the body of a request, is missing or is not a JSON object."""

    code = "INPUT_NOT_OBJECT"
    text = "must be a JSON object"
    remedy = 'Send an object: `{"input": {"prompt": "…"}}`.'


class InputInvalid(InputError):
    """A field is unknown, missing, of the wrong type or out of range."""

    code = "INPUT_INVALID"
    text = "invalid value"
    remedy = "Correct the field that the message names; [api.md](api.md) lists them all."

    @property
    def message(self) -> str:
        """The place and what is wrong with it; `text` where nothing more is known."""
        return ": ".join(part for part in (self.where, self.detail or self.text) if part)


class RouteUnknown(InputError):
    """There is no such route."""

    code = "ROUTE_UNKNOWN"
    status = 404
    text = "no such route"
    remedy = "Check the path: `GET /` lists the routes, and so does [formats.md](formats.md)."


class ModelNotFound(InputError):
    """The request names a model that is not the one served."""

    code = "MODEL_NOT_FOUND"
    status = 404
    text = "this model is not served here"
    remedy = "Use the model name given in the message, or omit `model`; operators set the name with `MODEL_NAME`."


class PromptTooLong(InputError):
    """The prompt, or prompt + max_tokens, exceeds the context length."""

    code = "PROMPT_TOO_LONG"
    text = "prompt and max_tokens exceed the context length"
    remedy = (
        "Shorten the prompt, lower `max_tokens`, use fewer or smaller images (`max_pixels`), or raise `MAX_MODEL_LEN`."
    )


class GrammarTooComplex(InputError):
    """A schema, a regular expression or a grammar takes more time or memory than one request may have."""

    code = "GRAMMAR_TOO_COMPLEX"
    text = "the schema, regular expression or grammar is too complex"
    remedy = "Use fewer optional fields, alternatives and repetitions, or several requests with a part of the schema."


class MediaError(WorkerError):
    """An image or a video is at fault."""

    status = 400


class MediaUrlInvalid(MediaError):
    """Not an http(s) URL, or one with parts that are refused."""

    code = "MEDIA_URL_INVALID"
    text = "not an http or https URL that can be fetched"
    remedy = "Use a plain `https://…` URL, a data URI or base64."


class MediaUrlForbidden(MediaError):
    """A private, local or otherwise reserved address, a port that is not fetched, or a domain that is not allowed."""

    code = "MEDIA_URL_FORBIDDEN"
    text = "this address may not be fetched"
    remedy = (
        "Use a public URL or base64; `MEDIA_ALLOWED_DOMAINS` and `ALLOWED_MEDIA_PATHS` say what the operator allows."
    )


class MediaFetchFailed(MediaError):
    """The URL could not be fetched. 400 where it never will be: a status such as 404 or 403, or no such host; 502 where
    another try may succeed: 5xx, 429, no connection, name servers that do not answer."""

    code = "MEDIA_FETCH_FAILED"
    status = 400
    retryable_status = 502
    text = "the URL could not be fetched"
    remedy = "Open the URL from another machine; signed URLs may have expired. Retry if `retryable` is true."


class MediaFetchTimeout(MediaError):
    """The URL's server was too slow."""

    code = "MEDIA_FETCH_TIMEOUT"
    status = 504
    retryable = True
    text = "fetching the URL took too long"
    remedy = "Retry, use a faster host, or send base64; limits: `IMAGE_TIMEOUT_S`, `VIDEO_TIMEOUT_S`."


class MediaTooLarge(MediaError):
    """The file is larger than allowed, or its structure is too expensive to parse or decode."""

    code = "MEDIA_TOO_LARGE"
    status = 413
    text = "file too large"
    remedy = "Send a smaller file, or raise the limit that the message names."


class MediaBase64Invalid(MediaError):
    """Neither a URL nor valid base64."""

    code = "MEDIA_BASE64_INVALID"
    text = "neither an http(s) URL nor valid base64"
    remedy = "Encode the file's bytes as standard base64, or as a data URI with `;base64,`."


class MediaUnsupportedType(MediaError):
    """The bytes are of a format that is not supported."""

    code = "MEDIA_UNSUPPORTED_TYPE"
    status = 415
    text = "unsupported format"
    remedy = "Convert images to JPEG, PNG or WebP, and videos to MP4 with H.264."


class MediaCorrupt(MediaError):
    """The bytes are damaged or truncated."""

    code = "MEDIA_CORRUPT"
    text = "the file is damaged or truncated"
    remedy = "Check that the whole file was sent; open and save it again."


class MediaDimensions(MediaError):
    """Too many pixels, too long a side, too narrow, or frames that differ in size."""

    code = "MEDIA_DIMENSIONS"
    text = "unsupported dimensions"
    remedy = "Resize before sending, or raise the limit that the message names."


class MediaDecodeTimeout(MediaError):
    """Decoding took too long."""

    code = "MEDIA_DECODE_TIMEOUT"
    text = "decoding took too long"
    remedy = "Send a smaller or shorter file; limits: `DECODE_TIMEOUT_S`, `VIDEO_DECODE_TIMEOUT_S`."


class MediaDecoderCrashed(MediaError):
    """A decoder crashed twice on this file, each time in a process of its own."""

    code = "MEDIA_DECODER_CRASHED"
    status = 500
    retryable = True
    text = "a decoder crashed on this file"
    remedy = "Convert the file to another format; please report it with the file."


class MediaTooManyItems(MediaError):
    """More images, videos or frames than allowed."""

    code = "MEDIA_TOO_MANY_ITEMS"
    text = "too many images, videos or frames"
    remedy = "Send fewer, or raise `MAX_IMAGES`, `MAX_VIDEOS` or `MAX_FRAMES`."


class MediaParamInvalid(MediaError):
    """Options of an image or video contradict each other or the file."""

    code = "MEDIA_PARAM_INVALID"
    text = "invalid media options"
    remedy = "Correct the option that the message names."


class MediaVideoTooLong(MediaError):
    """A video of more seconds or frames than allowed."""

    code = "MEDIA_VIDEO_TOO_LONG"
    status = 413
    text = "video too long"
    remedy = "Send a shorter video, or raise `MAX_VIDEO_S` or `MAX_VIDEO_PACKETS`."


class MediaTokenBudget(MediaError):
    """All images and videos of the request together become more tokens than it may have."""

    code = "MEDIA_TOKEN_BUDGET"
    status = 413
    text = "the images and videos exceed the request's token budget"
    remedy = "Send fewer, lower `max_pixels` or `nframes`, or raise `MAX_MEDIA_TOKENS` or `MAX_MODEL_LEN`."


class MediaVideoNoFrames(MediaError):
    """The file, or the requested time range, contains no video frames."""

    code = "MEDIA_VIDEO_NO_FRAMES"
    text = "the video has no frames to show"
    remedy = "Check the file, `video_start` and `video_end`."


class ServerError(WorkerError):
    """The worker is at fault."""

    status = 500


class QueueFull(ServerError):
    """Too many requests are waiting."""

    code = "QUEUE_FULL"
    status = 429
    retryable = True
    text = "too many requests at once"
    remedy = "Retry after `Retry-After`, or add workers; limits: `MAX_QUEUE`, `MAX_REQUESTS`."


class OutOfMemory(ServerError):
    """This request did not fit into the device's memory."""

    code = "OUT_OF_MEMORY"
    status = 503
    retryable = True
    text = "the request did not fit into the device's memory"
    remedy = "Retry, or use fewer and smaller images; operators: lower `MAX_NUM_SEQS`, raise `VISION_RESERVE_MIB`."


class ResultTooLarge(ServerError):
    """The answer is larger than the platform accepts."""

    code = "RESULT_TOO_LARGE"
    status = 507
    text = "the answer is too large to be delivered"
    remedy = "Lower `max_tokens`, `n` or `top_logprobs`."


class DeadlineExceeded(ServerError):
    """The request's time limit passed before the answer began."""

    code = "DEADLINE_EXCEEDED"
    status = 504
    retryable = True
    text = "the time limit passed before the answer began"
    remedy = "Retry, raise `max_seconds` or the endpoint's execution timeout, or add workers."


class EngineStopped(ServerError):
    """The engine has stopped and accepts no more work."""

    code = "ENGINE_STOPPED"
    status = 503
    retryable = True
    text = "the engine has stopped"
    remedy = "Retry: the platform replaces the worker. Operators: the worker's log says why."


class InternalError(ServerError):
    """Unexpected error in the worker."""

    code = "INTERNAL"
    retryable = True
    text = "internal error, the worker's log has the details"
    remedy = "Retry once; if it persists, report it with the traceback from the log."


class StartError(WorkerError):
    """The worker cannot start. `str()` says why, for the operator; `message` is what a caller may know."""

    status = 503
    retryable = True
    text = "the worker could not start; its log says why"

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.args = (reason,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class SettingError(StartError):
    """An environment variable has an invalid value; the reason names it."""

    code = "SETTING_INVALID"


class ModelError(StartError):
    """The checkpoint cannot be served."""

    code = "MODEL_UNUSABLE"
