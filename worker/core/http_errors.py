"""Every way in which the HTTP server refuses a request before a dialect reads it. A branch of the tree in errors.py.

HttpRefusal
├── HttpMalformed            not HTTP/1.1, or not in one way alone
├── HeadTooLarge        431  headers that are too long or too many
├── HeadTimeout         408  headers that came too slowly
├── TooManyConnections  503  all connections are busy
├── ServerStopping      503  the server was told to stop before the request was whole
├── MethodNotAllowed    405  the route takes another method
├── ExpectationFailed   417  `Expect` is not `100-continue`
├── KeyInvalid          401  the server has a key and this is not it
├── TooManyWrongKeys    429  this address has sent too many of them
├── HostForbidden       403  a name that the server is not known by
├── OriginForbidden     403  a page of another origin, and no key
├── ContentTypeUnsupported 415 not the route's `Content-Type`
├── BodyTooLarge        413  more bytes or values than the server takes
├── BodyTimeout         408  the body came too slowly
└── RateLimited         429  the key has used its tokens of the minute
"""

from typing import Any

from worker.core.errors import InputError


class HttpRefusal(InputError):
    """The HTTP server does not take the request. wait_s: seconds after which another try may succeed, where known."""

    def __init__(self, *, wait_s: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.wait_s = wait_s


class HttpMalformed(HttpRefusal):
    """Not valid HTTP/1.0 or 1.1, or its framing is ambiguous."""

    code = "HTTP_MALFORMED"
    text = "not valid HTTP/1.0 or 1.1, or its framing is ambiguous"
    remedy = "Use an HTTP/1.1 client; check proxies that rewrite requests."


class HeadTooLarge(HttpRefusal):
    """The request line and headers exceed 64 KiB or 128 fields."""

    code = "HEAD_TOO_LARGE"
    status = 431
    text = "the request's headers are too large"
    remedy = "Send fewer or shorter headers and cookies."


class HeadTimeout(HttpRefusal):
    """The request headers were not received in time."""

    code = "HEAD_TIMEOUT"
    status = 408
    retryable = True
    text = "the request's headers came too slowly"
    remedy = "Retry; limit: `HEAD_TIMEOUT_S`."


class TooManyConnections(HttpRefusal):
    """All connections of the HTTP server are busy."""

    code = "TOO_MANY_CONNECTIONS"
    status = 503
    retryable = True
    text = "too many connections"
    remedy = "Retry, reuse connections, or raise `MAX_CONNECTIONS`."


class ServerStopping(HttpRefusal):
    """The server is shutting down, and the request was not complete yet."""

    code = "SERVER_STOPPING"
    status = 503
    retryable = True
    text = "the server is shutting down"
    remedy = "Retry; another worker will serve the request."


class MethodNotAllowed(HttpRefusal):
    """The route exists for another method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405
    text = "this route does not accept the method"
    remedy = "Use the method in the header `Allow`."


class ExpectationFailed(HttpRefusal):
    """`Expect` is something other than `100-continue`."""

    code = "EXPECTATION_FAILED"
    status = 417
    text = "the header Expect can only be 100-continue"
    remedy = "Leave the header out."


class KeyInvalid(HttpRefusal):
    """The HTTP server requires a key, and the request's is missing or wrong."""

    code = "KEY_INVALID"
    status = 401
    text = "the API key is missing or wrong"
    remedy = "Send `Authorization: Bearer <key>`, one of `API_KEY` or `API_KEY_FILE`."


class TooManyWrongKeys(HttpRefusal):
    """This address has failed to authenticate too often in the last minute."""

    code = "TOO_MANY_WRONG_KEYS"
    status = 429
    retryable = True
    text = "too many wrong keys from this address"
    remedy = "Wait for `Retry-After`, then send a valid key; limit: `MAX_WRONG_KEYS`."


class HostForbidden(HttpRefusal):
    """`Host` is not one of the server's names."""

    code = "HOST_FORBIDDEN"
    status = 403
    text = "unknown Host"
    remedy = "Operators: add the name to `ALLOWED_HOSTS`, or set `API_KEY`."


class OriginForbidden(HttpRefusal):
    """The server has no API key, and the request comes from a page of another origin."""

    code = "ORIGIN_FORBIDDEN"
    status = 403
    text = "pages of other origins may not use a server without a key"
    remedy = "Operators: add the origin to `CORS_ORIGINS`, or set `API_KEY`."


class ContentTypeUnsupported(HttpRefusal):
    """The body's `Content-Type` is not one that the route accepts."""

    code = "CONTENT_TYPE_UNSUPPORTED"
    status = 415
    text = "unsupported Content-Type"
    remedy = "Send JSON as `application/json`, files as `multipart/form-data`."


class BodyTooLarge(HttpRefusal):
    """The body exceeds the size limit, or its JSON has too many values."""

    code = "BODY_TOO_LARGE"
    status = 413
    text = "the body is too large"
    remedy = "Send media as URLs, or raise `MAX_JSON_BYTES` or `MAX_BODY_BYTES`."


class BodyTimeout(HttpRefusal):
    """The body came too slowly."""

    code = "BODY_TIMEOUT"
    status = 408
    text = "the body came too slowly"
    remedy = "Use a faster connection, or send media as URLs; limits: `BODY_TIMEOUT_S`, `BODY_WHOLE_S`."


class RateLimited(HttpRefusal):
    """This key has used up its tokens per minute."""

    code = "RATE_LIMITED"
    status = 429
    retryable = True
    text = "this key has used up its tokens per minute"
    remedy = "Retry after `Retry-After`; limit: `TOKENS_PER_MINUTE`."
