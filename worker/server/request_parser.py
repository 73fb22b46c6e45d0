"""HTTP/1.1 requests from bytes, in bounds. llhttp, Node.js' parser, reads them (by httptools); how long a head may be,
how much framing a body may have, and which requests two readers might understand differently is judged here."""

import re
from dataclasses import dataclass
from typing import Protocol

import httptools

from worker.core.http_errors import ExpectationFailed, HeadTooLarge, HttpMalformed

HEAD_BYTES = 64 * 1024
NUM_HEADERS = 128
FRAMING_BYTES = 2 * HEAD_BYTES  # of a body in chunks, beyond as many as the body has

_FRAMING = (b"content-length", b"transfer-encoding")
_VERSIONS = ("1.0", "1.1")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")  # llhttp knows other protocols' too
_SCHEMES = (None, b"http", b"https")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-_~%!$&'()*+,;=]*)(?::\d*)?")


@dataclass(frozen=True)
class RequestHead:
    """A request without its body. version: `1.0` or `1.1`. Names of headers are in lower case."""

    method: str
    version: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    keeps_alive: bool
    expects_continue: bool


class RequestReader(Protocol):
    """Who hears what was parsed, while it is."""

    def head_came(self, head: RequestHead) -> None: ...

    def body_came(self, data: bytes) -> None: ...

    def body_ended(self) -> None: ...


class RequestParser:
    """One connection's parser. reads_head: whether a request's head is next; is_head_begun: whether its line has;
    num_body_left: bytes of a body whose length is known."""

    def __init__(self, reader: RequestReader) -> None:
        self.reads_head, self.is_head_begun, self.num_body_left = True, False, 0
        self._reader = reader
        self._llhttp = httptools.HttpRequestParser(self)
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._num_requests = self._num_head_bytes = self._num_framing_bytes = self._num_body_bytes = 0

    def feed(self, data: memoryview) -> None:
        """The next bytes. Raises HttpMalformed, HeadTooLarge, ExpectationFailed; after any of them nothing more can be
        read."""
        while data:
            part = data[: HEAD_BYTES - self._num_head_bytes] if self.reads_head else data
            num_read, num_requests, self._num_body_bytes = len(part), self._num_requests, 0
            try:
                self._llhttp.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                num_read = upgrade.args[0]
                self._stay()
            except httptools.HttpParserCallbackError as error:
                cause = error.__context__
                raise cause or error from None
            except httptools.HttpParserError:
                raise HttpMalformed() from None
            data = data[num_read:]
            self._count(num_read, has_next=self._num_requests != num_requests)

    def _stay(self) -> None:
        """Nothing is upgraded to. llhttp has left off behind the head of a request that asks for it, also where a body
        follows: another one reads on, and is told how the body is framed."""
        head = [b"POST / HTTP/1.1\r\nHost: x\r\n"]
        head += [b"%b: %b\r\n" % header for header in self._headers if header[0] in _FRAMING]
        self._llhttp = httptools.HttpRequestParser(self)
        self._llhttp.feed_data(b"".join((*head, b"\r\n")))

    def _count(self, num_bytes: int, *, has_next: bool) -> None:
        """has_next: whether a request has ended in this part; what there is of the next head is not told apart."""
        if self.reads_head:
            self._num_head_bytes = 0 if has_next else self._num_head_bytes + num_bytes
            if self._num_head_bytes >= HEAD_BYTES:
                raise HeadTooLarge(detail=f"limit {HEAD_BYTES} bytes")
        elif not has_next:
            beyond = self._num_framing_bytes + num_bytes - 2 * self._num_body_bytes
            self._num_framing_bytes = max(0, beyond)
            if self._num_framing_bytes > FRAMING_BYTES:
                raise HttpMalformed(detail="the chunks are too small")

    # What llhttp calls.

    def on_message_begin(self) -> None:
        if self.reads_head:
            self.is_head_begun = True
            self._url, self._headers = b"", []

    def on_url(self, url: bytes) -> None:
        if self.reads_head:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.reads_head:
            return  # a trailer, which nothing here asks for; or a head for the second time
        if len(self._headers) >= NUM_HEADERS:
            raise HeadTooLarge(detail=f"limit {NUM_HEADERS} headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self.reads_head:
            return
        head = self._head()
        self.reads_head = False
        self._num_head_bytes = self._num_framing_bytes = 0
        self.num_body_left = int(next(iter(self._values(b"content-length")), 0))
        self._reader.head_came(head)

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        self.num_body_left = max(0, self.num_body_left - len(body))
        self._reader.body_came(body)

    def on_message_complete(self) -> None:
        if self._llhttp.should_upgrade():
            return  # its body is still to come
        self.reads_head, self.is_head_begun, self.num_body_left = True, False, 0
        self._num_requests += 1
        self._reader.body_ended()

    def _head(self) -> RequestHead:
        """Raises HttpMalformed, ExpectationFailed."""
        version, method = self._llhttp.get_http_version(), self._llhttp.get_method().decode("ascii")
        if version not in _VERSIONS:
            raise HttpMalformed(detail="the version must be HTTP/1.0 or HTTP/1.1")
        if method not in _METHODS:
            raise HttpMalformed(detail=f"the method must be one of {', '.join(_METHODS)}")
        hosts = self._values(b"host")
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            raise HttpMalformed(detail="there must be one Host")
        codings = self._values(b"transfer-encoding")
        if codings and (version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]):
            raise HttpMalformed(detail="Transfer-Encoding may only be chunked, in HTTP/1.1")
        expected = self._values(b"expect")
        if any(value.lower() != b"100-continue" for value in expected):
            raise ExpectationFailed()
        path, query = self._target()
        return RequestHead(
            method=method,
            version=version,
            path=path,
            query=query,
            headers=self._headers,
            keeps_alive=version == "1.1" and self._llhttp.should_keep_alive(),
            expects_continue=bool(expected) and version == "1.1",
        )

    def _values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self._headers if known == name]

    def _target(self) -> tuple[bytes, bytes]:
        """Path and query of the request's target; where it names a host, that is the request's. Raises
        HttpMalformed."""
        if self._url == b"*":
            return b"*", b""
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            raise HttpMalformed(detail="the request target is invalid") from None
        if url.schema not in _SCHEMES:
            raise HttpMalformed(detail="the request target is invalid")
        if url.host is not None:
            host = b"[%b]" % url.host if b":" in url.host else url.host
            authority = host if url.port is None else b"%b:%d" % (host, url.port)
            self._headers[:] = [(b"host", authority), *(each for each in self._headers if each[0] != b"host")]
        return url.path or b"/", url.query or b""
