"""The HTTP server as a command.

python -m worker.server --host 127.0.0.1 --port 8000 --model-path /models/… --device auto
"""

import argparse
import contextlib
import ipaddress
import signal
import sys
from typing import TYPE_CHECKING

from worker.startup import boot

if TYPE_CHECKING:  # what is imported while the model loads
    from worker.core.settings import Settings
    from worker.server.server import Server

TERMINATED = 128 + signal.SIGTERM


def refuse_open_server(settings: "Settings") -> None:
    """Without a key the server listens on this machine alone, unless AUTH=off says otherwise. Raises SettingError."""
    if settings.keys or settings.api_key_file or settings.auth == "off":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(settings.host).is_loopback:
            return
    if settings.host != "localhost":
        from worker.core.errors import SettingError

        raise SettingError(
            f"HOST={settings.host} is open to other machines and API_KEY is not set: set API_KEY, or AUTH=off to serve "
            "anybody who can reach it"
        )


def read_settings() -> "Settings":
    """From the command line, the environment and `.env`. Raises SettingError."""
    options = _options()
    from worker.core import settings as worker_settings
    from worker.server import listening

    settings = worker_settings.load_with_file(options)
    refuse_open_server(settings)
    listening.check(settings.host, settings.port)
    isolates = "process" if settings.media_isolate == "auto" else settings.media_isolate
    return settings.model_copy(update={"media_isolate": isolates})


def _options() -> dict[str, str]:
    """Of the command line, by the names of the settings."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.server",
        allow_abbrev=False,
        description="The HTTP server: OpenAI-compatible and other routes, and a page to try them.",
    )
    for name in ("host", "port", "model-path", "device"):
        variable = name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", help=f"takes precedence over the environment's {variable}")
    return {name.upper(): value for name, value in vars(parser.parse_args()).items() if value is not None}


def _import_rest() -> None:
    """What the first question to the model does not need."""
    import worker.server.server  # noqa: F401


def main() -> None:
    """Serve until told to stop. Ends with status 1 and one line when it cannot start."""
    server: Server | None = None

    def leave_early(*_: object) -> None:
        """What uvicorn raises again when it has stopped is no failure; before it began there is nothing to end."""
        if server is None or not server.started:
            boot.leave(TERMINATED, at_once=True)

    signal.signal(signal.SIGTERM, leave_early)
    begun = boot.begin(_import_rest, read_settings)
    from worker.core.errors import SettingError
    from worker.server.server import server_of
    from worker.startup.build import Serving, start, why
    from worker.startup.engines import LoadedEngine

    served: list[Serving] = []
    assert begun.loaded is None or isinstance(begun.loaded, LoadedEngine)
    settings, loaded, timeline = begun.settings, begun.loaded, begun.timeline

    def load() -> Serving:
        served.append(start(settings, timeline=timeline, loaded=loaded))
        boot.settle()
        return served[-1]

    try:
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn when it has stopped
            server = server_of(settings, load)
            server.run()
    except (SettingError, OSError) as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    finally:
        if loaded is not None and not served:
            loaded.close()
    if server is not None and server.failure is not None:
        sys.exit(f"worker-qwen-vl cannot start: {why(server.failure)}")
    states = [serving.engine.state for serving in served]
    if any(state in ("dead", "stuck") for state in states):
        boot.leave(1, at_once="stuck" in states)


if __name__ == "__main__":
    main()
