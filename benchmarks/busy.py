"""Decode steps beside a busy Python thread: with the interpreter's own switch interval, and with the worker's.

python -m benchmarks.busy [--save]

One answer of the demonstration model, steps a second, torch on one thread: alone, beside a thread that builds a prompt
of about 2,000 tokens over and over, and beside one that only computes in Python. A step gives up the interpreter's lock
at each of torch's operations, and must wait for it as long as the other thread may keep it.
"""

import argparse
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable

import torch

from benchmarks.report import environment, save
from worker.core.contract import ChatRequest, Done, Event, Message, Text
from worker.core.errors import WorkerError
from worker.core.interpreter import SWITCH_S
from worker.core.sampling import Sampling
from worker.core.settings import load as settings
from worker.engine.engine import Engine, continuous_engine
from worker.models.loading import load
from worker.prompt.builder import PromptBuilder
from worker.prompt.types import Prompt

TOKENS, ROUNDS = 24, 3
PYTHONS_OWN_S = 0.005


def asked(text: str) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", parts=(Text(text=text),)),), sampling=Sampling())


def rate(engine: Engine, prompt: Prompt) -> float:
    """Steps a second of one answer."""
    ends: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
    begin = time.perf_counter()
    sampling = Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True, stop=())
    engine.submit(prompt, sampling, lambda event: ends.put(event) if isinstance(event, Done | WorkerError) else None)
    if isinstance(end := ends.get(timeout=300), WorkerError):
        raise end
    return TOKENS / (time.perf_counter() - begin)


def beside(work: Callable[[], object] | None, measure: Callable[[], float]) -> tuple[float, float]:
    """The median of some rounds while a thread does `work` over and over, and how often a second it did."""
    is_over, count = threading.Event(), [0]

    def busy() -> None:
        while work is not None and not is_over.is_set():
            work()
            count[0] += 1

    thread = threading.Thread(target=busy)
    thread.start()
    begin = time.perf_counter()
    try:
        found = statistics.median(measure() for _ in range(ROUNDS))
        return found, count[0] / (time.perf_counter() - begin)
    finally:
        is_over.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = settings({"DEVICE": "cpu", "DTYPE": "float32", "MODEL_ID": "tiny-qwen3-vl", "LOG_LEVEL": "WARNING"})
    model = load(made)
    engine = continuous_engine(model, made)
    engine.start()
    builder = PromptBuilder(model.spec, made)
    small, large = builder.build(asked("Hi"), []), asked("Tell me about the thing in the middle, and why. " * 160)
    works: dict[str, Callable[[], object] | None] = {
        "alone": None,
        "a thread that builds prompts": lambda: builder.build(large, []),
        "a thread that computes in Python": lambda: sum(number * number for number in range(2000)),
    }
    lines = [
        "| beside | switch interval, ms | steps/s | of alone | work of the thread, times/s |",
        "|---|---|---|---|---|",
    ]
    found: list[list[object]] = []
    try:
        rate(engine, small)
        alone = 0.0
        for name, work in works.items():
            for interval in (PYTHONS_OWN_S, SWITCH_S):
                sys.setswitchinterval(interval)
                steps, times = beside(work, lambda: rate(engine, small))
                alone = alone or steps
                found.append([name, interval * 1e3, steps, steps / alone, times])
                lines.append(f"| {name} | {interval * 1e3:g} | {steps:.1f} | {steps / alone:.0%} | {times:.0f} |")
    finally:
        engine.close()
    shown = "\n".join(lines)
    print(shown)
    if options.save:
        save("busy-cpu", environment("python -m benchmarks.busy", rows=found), shown)


if __name__ == "__main__":
    main()
