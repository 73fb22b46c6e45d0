"""Every way in which a request can fail. Knows nothing about HTTP frameworks, jobs or torch.

WorkerError
├── InputError                  400  the body is at fault
│   ├── InputNotObject               `input` is missing or is not an object
│   ├── HttpRefusal                  the HTTP server does not take the request: the classes are in http_errors.py
│   │   ├── HttpMalformed            not HTTP/1.1, or not in one way alone
│   │   ├── HeadTooLarge        431  headers that are too long or too many
│   │   ├── HeadTimeout         408  headers that came too slowly
│   │   ├── TooManyConnections  503  all connections have requests on them
│   │   ├── ServerStopping      503  the server was told to stop before the request was whole
│   │   ├── MethodNotAllowed    405  the route takes another method
│   │   ├── ExpectationFailed   417  `Expect` is not `100-continue`
│   │   ├── KeyInvalid          401  the server has a key and this is not it
│   │   ├── TooManyWrongKeys    429  this address has sent too many of them
│   │   ├── HostForbidden       403  a name that the server is not known by
│   │   ├── OriginForbidden     403  a page of another origin, and no key
│   │   ├── ContentTypeUnsupported 415 not the route's `Content-Type`
│   │   ├── BodyTooLarge        413  more bytes or values than the server takes
│   │   ├── BodyTimeout         408  the body came too slowly
│   │   └── RateLimited         429  the key has used its tokens of the minute
│   ├── InputInvalid                 a field is unknown, missing, of the wrong type or out of range
│   ├── RouteUnknown            404  no such route
│   ├── ModelNotFound           404  another model is served
│   └── PromptTooLong                prompt + max_tokens is more than the model holds
├── MediaError                  400  a picture or a video is at fault
│   ├── MediaUrlInvalid              not an address that can be fetched
│   ├── MediaUrlForbidden            an address that must not be fetched
│   ├── MediaFetchFailed        502  the other side did not give it
│   ├── MediaFetchTimeout       504  the other side was too slow
│   ├── MediaTooLarge           413  more bytes, or more work, than allowed
│   ├── MediaBase64Invalid           not base64
│   ├── MediaUnsupportedType    415  not a format that is read
│   ├── MediaCorrupt                 broken or cut off
│   ├── MediaDimensions              too many pixels, too long a side, frames that differ
│   ├── MediaDecodeTimeout           decoding took too long
│   ├── MediaDecoderCrashed     500  a decoder crashed over it, twice
│   ├── MediaTooManyItems            more pictures, videos or frames than allowed
│   ├── MediaParamInvalid            controls that contradict each other or the file
│   ├── MediaTokenBudget        413  pictures and videos would become too many tokens
│   ├── MediaVideoTooLong            more seconds or frames than allowed
│   └── MediaVideoNoFrames           nothing to see in the file or in the part that was asked for
├── ServerError                 500  the worker is at fault
│   ├── QueueFull               429  too many requests are waiting
│   ├── OutOfMemory             503  this request did not fit in memory
│   ├── ResultTooLarge          507  the answer is larger than the platform takes
│   ├── DeadlineExceeded        504  the time was over before the answer began
│   ├── EngineStopped           503  the engine has ended; the worker must be replaced
│   └── InternalError                a fault of our own; the log has the details
└── StartError                  503  the worker cannot start: for the operator, no request is there yet
    ├── SettingError                 an environment variable has a value that is not valid
    └── ModelError                   the checkpoint cannot be served

A message for a caller is made of the constant text of its class, the place in the request, and our own words and
numbers: never of the caller's data, a library's text or a path. What a StartError says to the operator may name paths:
it is the exception's own text and is never sent to a caller.
"""

import json
from functools import partial
from typing import Any, ClassVar, Self


class WorkerError(Exception):
    """A request that failed, with what its caller may know about it. reason: for the log alone, without content."""

    code: ClassVar[str]
    status: ClassVar[int]
    text: ClassVar[str]
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
        place = f"{self.where}: " if self.where else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{place}{self.text}{detail}"

    def as_json(self) -> str:
        """The error as the platform's job API carries it: an object in a string."""
        fields = {"code": self.code, "message": self.message, "status": self.status, "retryable": self.is_retryable}
        return json.dumps(fields)


class InputError(WorkerError):
    """The body is at fault."""

    status = 400


class InputNotObject(InputError):
    """`input` is missing, null, a string, a list."""

    code = "INPUT_NOT_OBJECT"
    text = "the input must be a JSON object"


class InputInvalid(InputError):
    """A field is unknown, missing, of the wrong type or out of range."""

    code = "INPUT_INVALID"
    text = "not valid"


class RouteUnknown(InputError):
    """A route that this worker does not have."""

    code = "ROUTE_UNKNOWN"
    status = 404
    text = "no such route"


class ModelNotFound(InputError):
    """The request names a model that is not the one served."""

    code = "MODEL_NOT_FOUND"
    status = 404
    text = "this model is not served here"


class PromptTooLong(InputError):
    """The prompt, or prompt + max_tokens, can never fit."""

    code = "PROMPT_TOO_LONG"
    text = "prompt and max_tokens do not fit into the context"


class MediaError(WorkerError):
    """A picture or a video is at fault."""

    status = 400


class MediaUrlInvalid(MediaError):
    """Not an http(s) address, or one with parts that are refused."""

    code = "MEDIA_URL_INVALID"
    text = "not an http or https address that can be fetched"


class MediaUrlForbidden(MediaError):
    """A private, local or otherwise reserved address, or a domain that is not allowed."""

    code = "MEDIA_URL_FORBIDDEN"
    text = "this address must not be fetched"


class MediaFetchFailed(MediaError):
    """The other side gave no file; worth another try after 5xx, 429, no DNS answer or no connection."""

    code = "MEDIA_FETCH_FAILED"
    status = 502
    text = "the address did not give a file"


class MediaFetchTimeout(MediaError):
    """The other side was too slow."""

    code = "MEDIA_FETCH_TIMEOUT"
    status = 504
    text = "fetching took too long"
    retryable = True


class MediaTooLarge(MediaError):
    """More bytes than allowed, or a file made to cost more than its pixels."""

    code = "MEDIA_TOO_LARGE"
    status = 413
    text = "too large"


class MediaBase64Invalid(MediaError):
    """Neither an address nor base64."""

    code = "MEDIA_BASE64_INVALID"
    text = "neither an http(s) address nor valid base64"


class MediaUnsupportedType(MediaError):
    """The bytes are of a format that is not read here."""

    code = "MEDIA_UNSUPPORTED_TYPE"
    status = 415
    text = "not of a supported format"


class MediaCorrupt(MediaError):
    """The bytes are broken or cut off."""

    code = "MEDIA_CORRUPT"
    text = "broken or cut off"


class MediaDimensions(MediaError):
    """Too many pixels, too long a side, too slim, or frames that differ in size."""

    code = "MEDIA_DIMENSIONS"
    text = "sides out of bounds"


class MediaDecodeTimeout(MediaError):
    """Decoding took too long."""

    code = "MEDIA_DECODE_TIMEOUT"
    text = "decoding took too long"


class MediaDecoderCrashed(MediaError):
    """A decoder crashed over it, and did so again in another process."""

    code = "MEDIA_DECODER_CRASHED"
    status = 500
    text = "a decoder crashed"
    retryable = True


class MediaTooManyItems(MediaError):
    """More pictures, videos or frames than allowed."""

    code = "MEDIA_TOO_MANY_ITEMS"
    text = "too many pictures, videos or frames"


class MediaParamInvalid(MediaError):
    """Controls of a picture or video that contradict each other or the file."""

    code = "MEDIA_PARAM_INVALID"
    text = "the controls do not fit"


class MediaVideoTooLong(MediaError):
    """A video of more seconds or frames than allowed."""

    code = "MEDIA_VIDEO_TOO_LONG"
    status = 413
    text = "the video is too long"


class MediaTokenBudget(MediaError):
    """All pictures and videos of the request would become more tokens than it may have."""

    code = "MEDIA_TOKEN_BUDGET"
    status = 413
    text = "the pictures and videos are too many tokens"


class MediaVideoNoFrames(MediaError):
    """There is nothing to see in the file, or in the part that was asked for."""

    code = "MEDIA_VIDEO_NO_FRAMES"
    text = "the video has no frames"


class ServerError(WorkerError):
    """The worker is at fault."""

    status = 500


class QueueFull(ServerError):
    """Too many requests are waiting."""

    code = "QUEUE_FULL"
    status = 429
    text = "too many requests are waiting"
    retryable = True


class OutOfMemory(ServerError):
    """This request did not fit in the device's memory."""

    code = "OUT_OF_MEMORY"
    status = 503
    text = "the request did not fit into the device's memory"
    retryable = True


class ResultTooLarge(ServerError):
    """The answer is larger than the platform takes: ask for less, `max_tokens` or `n`."""

    code = "RESULT_TOO_LARGE"
    status = 507
    text = "the answer is too large to be delivered"


class DeadlineExceeded(ServerError):
    """The request's time was over before the first word of its answer."""

    code = "DEADLINE_EXCEEDED"
    status = 504
    text = "the time was over before the answer began"
    retryable = True


class EngineStopped(ServerError):
    """The engine has ended and takes no more work."""

    code = "ENGINE_STOPPED"
    status = 503
    text = "the engine has ended"
    retryable = True


class InternalError(ServerError):
    """A fault of our own."""

    code = "INTERNAL"
    text = "the worker failed; its log has the details"
    retryable = True


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
    """An environment variable has a value that is not valid; the reason names it."""

    code = "SETTING_INVALID"


class ModelError(StartError):
    """The checkpoint cannot be served."""

    code = "MODEL_UNUSABLE"
