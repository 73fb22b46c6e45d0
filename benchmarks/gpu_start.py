"""A process that loads a checkpoint and answers once, for `benchmarks.gpu`: seconds of each phase as JSON.

python -m benchmarks.gpu_start FOLDER cuda|cpu
"""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402  # what is imported is measured
import queue  # noqa: E402
import sys  # noqa: E402

from benchmarks.gpu_model import prompt  # noqa: E402
from worker.core.contract import Done, Event, Piece  # noqa: E402
from worker.core.errors import WorkerError  # noqa: E402
from worker.core.sampling import Sampling  # noqa: E402
from worker.core.settings import load as settings  # noqa: E402
from worker.engine.engine import continuous_engine  # noqa: E402
from worker.models.loading import load  # noqa: E402

IMPORTED = time.perf_counter()


def main() -> None:
    made = settings({"MODEL_PATH": sys.argv[1], "DEVICE": sys.argv[2], "DTYPE": "bfloat16", "LOG_LEVEL": "WARNING"})
    model = load(made)
    has_model = time.perf_counter()
    engine = continuous_engine(model, made)
    engine.start()
    said: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
    built = prompt(64, 1)
    has_engine = time.perf_counter()
    engine.submit(built, Sampling(max_tokens=2, temperature=0, ignore_eos=True, stop=()), said.put)
    first = 0.0
    while not isinstance(event := said.get(timeout=120), Done):
        if isinstance(event, WorkerError):
            raise event
        if isinstance(event, Piece) and not first:
            first = time.perf_counter()
    first = first or time.perf_counter()
    engine.close()
    moments = BEGAN, IMPORTED, has_model, has_engine, first
    names = ("imports", "model", "engine", "first token")
    print(json.dumps({name: end - begin for name, begin, end in zip(names, moments, moments[1:], strict=False)}))


if __name__ == "__main__":
    main()
