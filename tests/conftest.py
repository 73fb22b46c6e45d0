"""What many tests share: the embedded tiny model, loaded once, and an engine that serves it."""

from collections.abc import Iterator

import pytest

from worker.settings import Settings


@pytest.fixture(scope="session")
def tiny():  # type: ignore[no-untyped-def]
    """The embedded tiny model in float32 on the CPU."""
    import torch

    from worker.engine.loading import load

    torch.set_num_threads(2)
    return load(Settings(device="cpu"))


@pytest.fixture
def engine(tiny) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """A started engine of its own for each test, closed at its end."""
    from worker.engine.engine import Engine

    engine = Engine(tiny, Settings(device="cpu", max_num_seqs=4, max_queue=64))
    engine.start()
    yield engine
    engine.close()
