"""The HTTP server: uvicorn's life and signals around our own connections, which are taken one at a time."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from worker.core.errors import SettingError
from worker.core.settings import Settings, listed
from worker.dialects.table import DIALECTS, DialectTable
from worker.server.app import admission_of, create
from worker.server.connections import Connections, Limits, room_for_connections
from worker.server.http1 import HttpConnection
from worker.server.listening import listening_at
from worker.startup.build import Serving

log = logging.getLogger(__name__)
GONE = (errno.ECONNABORTED, errno.ECONNRESET)  # the client has left before it was taken
PAUSE_S = 0.1


class Server(uvicorn.Server):
    """Serves an application until told to stop. `on_refusal` hears the code of what a connection refuses."""

    def __init__(
        self, app: ASGIApp, settings: Settings, connections: Connections, on_refusal: Callable[[str], None]
    ) -> None:
        proxies = _networks(settings.trusted_proxies)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=HttpConnection,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_graceful_shutdown=math.ceil(settings.drain_s),
        )
        super().__init__(config)
        self._connections, self._limits = connections, Limits.of(settings)
        self._on_refusal = on_refusal
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the application, then listen: at the host and port of the settings, or at what is given."""
        self._listening = sockets or listening_at(self.config.host, self.config.port)
        await super().startup(sockets=[])
        for listening in self._listening:
            listening.setblocking(False)
            log.info("listening on %s, port %d", *listening.getsockname()[:2])
            task = asyncio.create_task(self._accept(listening))
            task.add_done_callback(self._stop_where_failed)
            self._accepting.append(task)

    def fail(self, failure: BaseException) -> None:
        """Stop, since the model cannot be loaded: whoever watches the process replaces it."""
        self.failure, self.should_exit = failure, True

    def _stop_where_failed(self, accepting: asyncio.Task[None]) -> None:
        if not accepting.cancelled() and (error := accepting.exception()) is not None:
            log.error("connections are taken no more", exc_info=error)
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Take no more, and let what is being answered end."""
        log.info("shutting down: running requests get %d s", self.config.timeout_graceful_shutdown or 0)
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        await super().shutdown()

    async def _accept(self, listening: socket.socket) -> None:
        """One connection at a time: whoever must make room has closed before the next is taken."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in GONE:
                    log.warning("no connection can be taken: %s", error.strerror)
                    await asyncio.sleep(PAUSE_S)
                continue
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.connect_accepted_socket(self._connection, connection)

    def _connection(self) -> HttpConnection:
        return HttpConnection(
            self.config.loaded_app, self._connections, self._limits, self.server_state, self._on_refusal
        )


def server_of(settings: Settings, load: Callable[[], Serving], dialects: DialectTable = DIALECTS) -> Server:
    """The worker's HTTP server. `load` gives what serves; it is called on a thread of its own. Raises SettingError."""
    num_connections = room_for_connections(settings.max_connections)
    admission = admission_of(settings, num_connections)
    connections = Connections(num_connections)
    admission.metrics.gauge("http_connections", "Connections that are open", lambda: len(connections))
    app = create(settings, load, admission, dialects, on_failure=lambda failure: server.fail(failure))
    server = Server(app, settings, connections, admission.metrics.refused)
    return server


def _networks(text: str) -> list[str]:
    """Comma-separated addresses and networks. Raises SettingError."""
    found = listed(text)
    for address in found:
        try:
            ipaddress.ip_network(address)
        except ValueError:
            raise SettingError(
                f'invalid value "{address}" in TRUSTED_PROXIES: it must be an IP address or network'
            ) from None
    return list(found)
