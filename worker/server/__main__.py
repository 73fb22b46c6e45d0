"""The HTTP server as a command.

python -m worker.server --host 127.0.0.1 --port 8000 --model-path /models/… --device auto
"""

import argparse
import contextlib
import ipaddress
import signal
import sys

from worker.core import logs
from worker.core import settings as worker_settings
from worker.core.errors import SettingError
from worker.core.settings import Settings
from worker.server.server import Server, server_of
from worker.startup.boot import leave
from worker.startup.build import Serving, start, why

TERMINATED = 128 + signal.SIGTERM


def refuse_open_server(settings: Settings) -> None:
    """Without a key the server listens on this machine alone, unless AUTH=off says otherwise. Raises SettingError."""
    if settings.keys or settings.api_key_file or settings.auth == "off":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(settings.host).is_loopback:
            return
    if settings.host != "localhost":
        raise SettingError(
            f"HOST={settings.host} is open to other machines and API_KEY is not set: set API_KEY, or AUTH=off to serve "
            "anybody who can reach it"
        )


def read_settings() -> Settings:
    """From the command line, the environment and `.env`. Raises SettingError."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.server",
        allow_abbrev=False,
        description="The HTTP server: OpenAI-compatible and other routes, and a page to try them.",
    )
    for name in ("host", "port", "model-path", "device"):
        variable = name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", help=f"takes precedence over the environment's {variable}")
    options = {name.upper(): value for name, value in vars(parser.parse_args()).items() if value is not None}
    settings = worker_settings.load_with_file(options)
    refuse_open_server(settings)
    isolates = "process" if settings.media_isolate == "auto" else settings.media_isolate
    return settings.model_copy(update={"media_isolate": isolates})


def main() -> None:
    """Serve until told to stop. Ends with status 1 and one line when it cannot start."""
    try:
        settings = read_settings()
    except SettingError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    logs.set_up(settings.log_level, as_json=settings.logs_json)
    worker_settings.warn_of_doubtful()
    worker_settings.stay_offline(settings)
    served: list[Serving] = []
    server: Server | None = None

    def load() -> Serving:
        served.append(start(settings))
        return served[-1]

    def leave_early(*_: object) -> None:
        """What uvicorn raises again when it has stopped is no failure; before it began there is nothing to end."""
        if server is None or not server.started:
            leave(TERMINATED, at_once=True)

    signal.signal(signal.SIGTERM, leave_early)

    try:
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn when it has stopped
            server = server_of(settings, load)
            server.run()
    except (SettingError, OSError) as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    if server is not None and server.failure is not None:
        sys.exit(f"worker-qwen-vl cannot start: {why(server.failure)}")
    states = [serving.engine.state for serving in served]
    if any(state in ("dead", "stuck") for state in states):
        leave(1, at_once="stuck" in states)


if __name__ == "__main__":
    main()
