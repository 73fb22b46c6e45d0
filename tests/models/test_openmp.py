"""One team of OpenMP's threads in the process, the engine's: seen in a child process whose torch has two threads."""

import os

import pytest

from tests.processes import printed

PRELUDE = """
import asyncio, os, threading
import torch
from tests.engine.requests import ask, picture
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.engine.warmup import WarmUp
from worker.models.loading import load
from worker.models.openmp import compute_alone, end_team

def compute():
    return torch.ones(2**20).add_(1).sum().item()

def native():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def on_thread(*work):
    thread = threading.Thread(target=lambda: [each() for each in work])
    thread.start()
    return thread
"""


def seen(script: str) -> list[str]:
    """What the script prints, word by word."""
    return printed(PRELUDE + script, variables=("OMP_NUM_THREADS=2", "MKL_NUM_THREADS=2")).split()


pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")


def test_a_team_ends_and_comes_again() -> None:
    counts = seen("""
before = native(); compute(); print(native() - before)
end_team(); print(native() - before)
print(compute()); print(native() - before)
""")
    assert counts == ["1", "0", str(2.0 * 2**20), "1"]


def test_a_thread_computes_alone() -> None:
    """Whether it has computed before or not; others compute as before."""
    counts = seen("""
before = native(); done = threading.Event(); may_end = threading.Event()
thread = on_thread(compute_alone, compute, done.set, may_end.wait)
done.wait(); print(native() - before)
compute(); print(native() - before)
may_end.set(); thread.join()
""")
    assert counts == ["0", "1"]


def test_the_engine_alone_has_a_team() -> None:
    """Behind a load, a warm-up, and prompts that were built: what they have computed with is gone."""
    counts = seen("""
chosen = Settings(device="cpu", dtype="float32")
model = load(chosen); compute()
model.spec.tokenizer.encode("its own threads " * 100); end_team(); before = native()
engine = continuous_engine(model, chosen)
engine.start()
WarmUp(engine).wait()

async def answered():
    one = ask("What?", picture(1, 640, 480), max_tokens=2)
    return [event async for event in engine.generate(one.request, one.media)]

asyncio.run(answered()); print(native() - before)
end_team(); print(native() - before)
engine.close()
""")
    assert counts == ["1", "1"]
