"""What requests cost on RunPod Serverless: the table of docs/costs.md, and the same for numbers of yours.

python -m builder.costs [--price 0.00031] [--requests 300] [--seconds 4] [--concurrency 8] [--start 15] [--idle 5]

Prices are inputs with a date (builder/prices.json). Seconds are assumptions until they are measured: a worker's log has
them. A worker is paid for from the moment it starts to its end: its start, its requests, its idle time.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PRICES = Path(__file__).with_name("prices.json")
HOUR_S = 3600


@dataclass(frozen=True)
class Load:
    """An hour of evenly spaced requests. requests: in the hour. seconds: of one request. concurrency: requests that a
    worker answers at once, each as fast as alone. start, idle: seconds of a start and of the idle timeout."""

    requests: float
    seconds: float = 4.0
    concurrency: float = 8
    start: float = 15.0
    idle: float = 5.0

    @property
    def gap(self) -> float:
        """Seconds from a request to the next."""
        return HOUR_S / self.requests

    @property
    def stays_up(self) -> bool:
        """Whether the next request comes before a worker has been idle for too long."""
        return self.gap <= self.seconds + self.idle

    @property
    def paid_seconds(self) -> float:
        """Of all workers in the hour."""
        if self.stays_up:
            return HOUR_S * max(1.0, self.requests * self.seconds / HOUR_S / self.concurrency)
        return self.requests * (self.start + self.seconds + self.idle)


def prices() -> dict[str, Any]:
    """The dated prices."""
    read: dict[str, Any] = json.loads(PRICES.read_text(encoding="utf-8"))
    return read


def dollars(load: Load, price: float) -> str:
    """Of the hour."""
    return f"${load.paid_seconds * price:,.2f}"


EXAMPLES = (
    ("one request an hour", Load(1)),
    ("one request every minute", Load(60)),
    ("one every minute, idle timeout 60 s", Load(60, idle=60)),
    ("one every 5 seconds", Load(720)),
    ("five a second", Load(18_000)),
    ("five a second, one at a time per worker", Load(18_000, concurrency=1)),
)
SHOWN = ("24 GB (L4, A5000, 3090)", "24 GB PRO (4090)", "48 GB PRO (L40, L40S, 6000 Ada)", "80 GB PRO (H100)")


def table() -> str:
    """The examples on some GPUs, as Markdown."""
    known = prices()["dollars_per_second"]
    rows = [f"| an hour of | paid seconds | {' | '.join(SHOWN)} |", f"|---|---|{'---|' * len(SHOWN)}"]
    for name, load in EXAMPLES:
        cells = [dollars(load, known[gpu]) for gpu in SHOWN]
        rows.append(f"| {name} | {load.paid_seconds:,.0f} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def price_table() -> str:
    """The prices, per second and per hour, as Markdown."""
    rows = ["| GPU | per second | per hour |", "|---|---|---|"]
    rows += [
        f"| {gpu} | ${price:.5f} | ${price * HOUR_S:.2f} |" for gpu, price in prices()["dollars_per_second"].items()
    ]
    return "\n".join(rows) + "\n"


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, help="dollars per second of a GPU; without it the tables are printed")
    parser.add_argument("--requests", type=_positive, default=300, help="in an hour")
    parser.add_argument("--seconds", type=_positive, help="of one request")
    parser.add_argument("--concurrency", type=_positive, help="requests that a worker answers at once")
    parser.add_argument("--start", type=float, help="seconds of a start")
    parser.add_argument("--idle", type=float, help="seconds of the idle timeout")
    options = parser.parse_args()
    if options.price is None:
        print(price_table())
        print(table(), end="")
        return
    given = {name: value for name, value in vars(options).items() if name != "price" and value is not None}
    load = replace(Load(options.requests), **given)
    cost = load.paid_seconds * options.price
    print(f"{load.paid_seconds:,.0f} paid seconds an hour, ${cost:,.2f}; ${cost / load.requests * 1000:,.2f} per 1,000")


if __name__ == "__main__":
    main()
