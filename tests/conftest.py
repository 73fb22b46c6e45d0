"""What many tests share: the embedded tiny model, loaded once, and an engine that serves it."""

from collections.abc import Iterator

import pytest

from worker.core.settings import Settings

EQUALITY: dict[tuple[str, str], str] = {}  # family, way -> answers equal to `generate`'s of all
DISTANCES: dict[tuple[str, str], float] = {}  # family, prompt -> largest difference of features and logits


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables of equal answers and of distances, where the tests that fill them have run."""
    if EQUALITY:
        terminalreporter.write_sep("-", "answers equal to greedy generate, token for token")
        for (family, way), share in EQUALITY.items():
            terminalreporter.write_line(f"{family:26} {way:20} {share}")
    if DISTANCES:
        terminalreporter.write_sep("-", "largest difference of features and logits, our model code and the library's")
        for (family, prompt), distance in DISTANCES.items():
            terminalreporter.write_line(f"{family:26} {prompt:26} {distance:.1e}")


@pytest.fixture(scope="session")
def tiny():  # type: ignore[no-untyped-def]
    """The embedded tiny model in float32 on the CPU."""
    import torch

    from worker.models.loading import load

    torch.set_num_threads(2)
    return load(Settings(device="cpu"))


@pytest.fixture(scope="session")
def library():  # type: ignore[no-untyped-def]
    """The same as transformers' model, for what only that has: `generate`."""
    from worker.models.loading import load

    return load(Settings(device="cpu", model_code="transformers"))


@pytest.fixture(scope="session")
def real() -> Iterator[str]:
    """The HTTP door as a process, with the tiny model behind it; its key is k1."""
    from tests.door import process

    with process(API_KEY="k1") as address:
        yield address


@pytest.fixture
def serve(tiny) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """Starts engines of a test's own settings, and closes them at its end, whatever happens."""
    from worker.engine.engine import Engine

    engines = []

    def start(settings: Settings) -> Engine:
        engines.append(Engine(tiny, settings))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(tiny) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """A started engine of its own for each test, closed at its end."""
    from worker.engine.engine import Engine

    engine = Engine(tiny, Settings(device="cpu", max_num_seqs=4, max_queue=64))
    engine.start()
    yield engine
    engine.close()
