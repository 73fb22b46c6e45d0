"""Every way in which the HTTP server refuses a request before a dialect reads it. A branch of the tree in errors.py."""

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


class HeadTooLarge(HttpRefusal):
    """The request line and headers exceed 64 KiB or 128 fields."""

    code = "HEAD_TOO_LARGE"
    status = 431
    text = "the request's headers are too large"


class HeadTimeout(HttpRefusal):
    """The request line and headers came too slowly."""

    code = "HEAD_TIMEOUT"
    status = 408
    text = "the request's headers came too slowly"
    retryable = True


class TooManyConnections(HttpRefusal):
    """All connections of the HTTP server have requests on them."""

    code = "TOO_MANY_CONNECTIONS"
    status = 503
    text = "too many connections"
    retryable = True


class ServerStopping(HttpRefusal):
    """The server is shutting down, and the request had not come whole."""

    code = "SERVER_STOPPING"
    status = 503
    text = "the server is shutting down"
    retryable = True


class MethodNotAllowed(HttpRefusal):
    """The route is there, for another method: see `Allow`."""

    code = "METHOD_NOT_ALLOWED"
    status = 405
    text = "this route does not take the method"


class ExpectationFailed(HttpRefusal):
    """`Expect` asks for something else than `100-continue`."""

    code = "EXPECTATION_FAILED"
    status = 417
    text = "the header Expect can be 100-continue alone"


class KeyInvalid(HttpRefusal):
    """The HTTP server has a key, and the request's is missing or another."""

    code = "KEY_INVALID"
    status = 401
    text = "the key is missing or wrong"


class TooManyWrongKeys(HttpRefusal):
    """This address has failed to authenticate too often in the last minute."""

    code = "TOO_MANY_WRONG_KEYS"
    status = 429
    text = "too many wrong keys came from this address"
    retryable = True


class HostForbidden(HttpRefusal):
    """`Host` is not one of the server's names. Add it to ALLOWED_HOSTS."""

    code = "HOST_FORBIDDEN"
    status = 403
    text = "unknown Host"


class OriginForbidden(HttpRefusal):
    """Without a key: a page of another origin asks. Add the origin to CORS_ORIGINS, or set a key."""

    code = "ORIGIN_FORBIDDEN"
    status = 403
    text = "pages of other origins may not use a server without a key"


class ContentTypeUnsupported(HttpRefusal):
    """The body's `Content-Type` is not the route's."""

    code = "CONTENT_TYPE_UNSUPPORTED"
    status = 415
    text = "the Content-Type is not the one that this route takes"


class BodyTooLarge(HttpRefusal):
    """More bytes than the HTTP server takes, or more values than any request has."""

    code = "BODY_TOO_LARGE"
    status = 413
    text = "the body is too large"


class BodyTimeout(HttpRefusal):
    """The body came too slowly to the HTTP server."""

    code = "BODY_TIMEOUT"
    status = 408
    text = "the body came too slowly"


class RateLimited(HttpRefusal):
    """This key has exceeded its token quota."""

    code = "RATE_LIMITED"
    status = 429
    text = "this key has exceeded its token quota"
    retryable = True
