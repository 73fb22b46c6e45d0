"""Parsers of JSON on the bodies that a server gets and on those that are made to hold it up, and ours with its bounds.

python -m benchmarks.json_bodies [--rounds 5] [--save]

All of them keep the interpreter's lock while they read: so long nothing else runs.
"""

import argparse
import base64
import json
import random
import time
from collections.abc import Callable
from importlib.metadata import version

import msgspec
import orjson
from pydantic_core import from_json

from benchmarks.report import environment, save
from worker.core.safe_json import TooManyValuesError, read_json

MIB = 2**20
PARSERS: dict[str, Callable[[bytes], object]] = {
    "json": json.loads,
    "orjson": orjson.loads,
    "msgspec": msgspec.json.decode,
    "pydantic_core": from_json,
    "ours": read_json,
}
PACKAGES = ("orjson", "msgspec", "pydantic_core")


def bodies() -> dict[str, bytes]:
    picture = base64.b64encode(random.Random(1).randbytes(20 * MIB))
    turns = [{"role": "user", "content": [{"type": "text", "text": f"turn {number}"}]} for number in range(500)]
    block = b'{"role":"user","content":[{}]},'
    return {
        "a picture of 20 MiB": b'{"prompt":"What is it?","image":"' + picture + b'"}',
        "500 turns": json.dumps({"messages": turns}).encode(),
        "15 MiB of wrong blocks": b'{"messages":[' + block * (15 * MIB // len(block)) + b"{}]}",
        "15 MiB of empty arrays": b"[" + b"[]," * (5 * MIB) + b"[]]",
        "30 MiB of escapes": b'{"a":"' + b"\\n" * (15 * MIB) + b'"}',
    }


def milliseconds(read: Callable[[bytes], object], body: bytes, rounds: int) -> str:
    """The shortest of some rounds; whether it was refused."""
    taken, note = [], ""
    for _ in range(rounds):
        began = time.perf_counter()
        try:
            value = read(body)
        except TooManyValuesError:
            value, note = None, " (refused)"
        taken.append(time.perf_counter() - began)
        del value
    return f"{min(taken) * 1000:.1f}{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    found = {
        name: {parser: milliseconds(read, body, arguments.rounds) for parser, read in PARSERS.items()}
        for name, body in bodies().items()
    }
    rows = [f"| ms | {' | '.join(PARSERS)} |", "|---" * (len(PARSERS) + 1) + "|"]
    rows += [f"| {name} | {' | '.join(taken.values())} |" for name, taken in found.items()]
    table = "\n".join(rows) + "\n"
    print(table)
    if arguments.save:
        facts = environment(f"python -m benchmarks.json_bodies --rounds {arguments.rounds}", milliseconds=found)
        facts["packages"] = {package: version(package) for package in PACKAGES}
        save("json-bodies", facts, table)


if __name__ == "__main__":
    main()
