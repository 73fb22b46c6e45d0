"""Where the server listens, found out before anything slow is imported."""

import errno
import os
import socket

from worker.core.errors import SettingError

BACKLOG = 2048


def check(host: str, port: int) -> None:
    """Raises SettingError where nothing can listen there."""
    for listening in listening_at(host, port):
        listening.close()


def listening_at(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host; with any free port, for its first alone. Raises SettingError."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        slots = list(dict.fromkeys((family, address[:2]) for family, *_, address in found))
        taken = slots if port else slots[:1]
        return [socket.create_server(address, family=family, backlog=BACKLOG) for family, address in taken]
    except UnicodeError:
        raise SettingError(f"HOST={host} is not a valid name") from None
    except OSError as error:
        raise SettingError(_why_not_listening(host, port, error)) from None


def _why_not_listening(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"HOST={host} is not an address of this machine"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {port} of {host} is in use: choose another with --port or PORT, or stop the process that has it"
            )
        case errno.EACCES:
            return f"port {port} may not be opened by this user: choose one from 1024 on with --port or PORT"
    return f"{host}, port {port}: {os.strerror(error.errno) if error.errno else error}"
