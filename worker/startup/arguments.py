"""The command line of `handler.py`, checked before anything slow is imported. The SDK reads it later, and would ignore
what it does not know."""

import argparse
import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence

EXAMPLE = '{"input": {"prompt": "What is in the picture?", "image": "https://…"}}'


def check(arguments: Sequence[str]) -> None:
    """Raises SystemExit: with status 0 after `--help`, else with what is wrong and what to write instead."""
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("runpod") is None:
        sys.exit("handler.py: the packages are not installed for this Python. Run `make run`, or use .venv/bin/python")
    if options.test_input is not None:
        _check_input(options.test_input)
    if options.rp_serve_api:
        _check_port(options.rp_api_host or "localhost", options.rp_api_port or 8000)


def _check_port(host: str, port: int) -> None:
    """Before the model is loaded."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"handler.py: port {port} of {host} is in use. Choose another with --rp_api_port")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python handler.py",
        allow_abbrev=False,
        description="On RunPod: serves jobs. Elsewhere: runs --test_input, or test_input.json, and exits. Settings "
        "are environment variables: docs/settings.md. The HTTP server is python -m worker.server.",
    )
    parser.add_argument("--test_input", metavar="JSON", help=f"answer this input, for example '{EXAMPLE}'")
    parser.add_argument("--rp_serve_api", action="store_true", help="serve the SDK's local test API: /run, /runsync, …")
    parser.add_argument("--rp_api_host", metavar="HOST", help="host of --rp_serve_api (default: localhost)")
    parser.add_argument("--rp_api_port", metavar="PORT", type=int, help="port of --rp_serve_api (default: 8000)")
    parser.add_argument(
        "--rp_api_concurrency", metavar="N", type=int, help="processes of --rp_serve_api (leave it at 1)"
    )
    parser.add_argument("--rp_log_level", metavar="LEVEL", help="log level of the SDK; RUNPOD_LOG_LEVEL is the same")
    parser.add_argument("--rp_debugger", action="store_true", help="the SDK's timings of each step")
    return parser


def _check_input(text: str) -> None:
    try:
        given = json.loads(text)
    except ValueError as error:
        if os.path.isfile(text):
            sys.exit(f'handler.py: --test_input takes JSON, not a file: --test_input "$(cat {text})"')
        sys.exit(f"handler.py: --test_input is not valid JSON ({error}). For example: --test_input '{EXAMPLE}'")
    if not isinstance(given, dict) or "input" not in given:
        sys.exit(
            'handler.py: --test_input must be a JSON object with the key "input". For example: '
            f"--test_input '{EXAMPLE}'"
        )
