"""What many tests share: the embedded tiny model, loaded once, engines that serve it, and marks by path."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from worker.core.settings import Settings

if TYPE_CHECKING:
    from tests.engine.serving import Serve
    from worker.engine.engine import Engine
    from worker.models.loading import LoadedModel

ROOT = Path(__file__).parents[1]
os.environ["ENV_FILE"] = ""  # no test reads the .env of whoever runs it
# For torch, before it is imported: products of the models of tests are too small for several threads to win much, and
# `make test` runs several tests at once. Children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What `make quick` leaves out. A test may carry these marks itself, too.
MARKS = {
    "browser": ("tests/server/test_playground.py", "tests/server/test_browsers.py"),
    "process": (
        *("tests/platform/test_deploy.py", "tests/platform/test_outcomes.py", "tests/platform/test_soak.py"),
        *("tests/media/test_attacks.py", "tests/media/test_isolate.py", "tests/startup/test_boot.py"),
        *("tests/media/test_film_kinds.py", "tests/media/test_picture_kinds.py"),
        *("tests/server/test_app.py", "tests/server/test_clients.py", "tests/test_handler.py"),
        *("tests/server/test_strangers.py", "tests/server/test_http1.py"),
        *("tests/builder/test_download.py", "tests/prompt/test_without_weights.py", "tests/docs/test_quickstart.py"),
    ),
    "slow": (
        *("tests/builder/test_tiny_model.py", "tests/checkpoint/test_quantised.py", "tests/checkpoint/test_spread.py"),
        *("tests/engine/test_engine.py", "tests/engine/test_equality.py", "tests/media/test_properties.py"),
        *("tests/models/test_families.py", "tests/models/test_graphs.py", "tests/models/test_hf_generate.py"),
        *("tests/models/test_native.py", "tests/models/test_new_family.py", "tests/server/test_openapi.py"),
        *("tests/models/test_published.py", "tests/models/test_capacity.py", "tests/models/test_packing.py"),
        *("tests/checkpoint/test_published_files.py", "tests/checkpoint/test_published_weights.py"),
        *("tests/engine/test_sampling.py", "tests/media/test_video.py", "tests/media/test_opener.py"),
        *(
            "tests/models/test_gpu_benchmark.py",
            "tests/models/test_kv_pools.py",
            "tests/checkpoint/test_tokenizer.py",
            "tests/checkpoint/test_weights.py",
        ),
        *("tests/prompt/test_patches.py", "tests/prompt/test_sizes.py", "tests/dialects/test_fuzz.py"),
    ),
}
SCHEDULING = os.sched_getscheduler(0), os.sched_getparam(0)
EQUALITY: dict[tuple[str, str], str] = {}  # family, way -> answers equal to `generate`'s of all
DISTANCES: dict[tuple[str, str], float] = {}  # family, prompt -> largest difference of features and logits


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what carries one of the marks of MARKS")
    parser.addoption(
        "--all-models", action="store_true", help="try and bake every checkpoint in tests/models/test_published.py"
    )
    parser.addoption("--fuzz-cases", default=2000, help="bodies of jobs that tests/dialects/test_fuzz.py tries")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A quick run does not import what it leaves out, either."""
    path = str(collection_path.relative_to(ROOT)) if collection_path.is_relative_to(ROOT) else ""
    is_marked = any(path in paths for paths in MARKS.values())
    return True if config.getoption("--quick") and is_marked else None


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Marks by path; in a quick run, nothing that carries one."""
    for item in items:
        path = str(item.path.relative_to(ROOT))
        for mark, paths in MARKS.items():
            if path in paths:
                item.add_marker(mark)
    if config.getoption("--quick"):
        items[:] = [item for item in items if not any(item.get_closest_marker(mark) for mark in MARKS)]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """No test may leave the main thread on another scheduling policy: what it starts later would inherit it."""
    policy, parameters = SCHEDULING
    if os.sched_getscheduler(0) != policy:
        os.sched_setscheduler(0, policy, parameters)
        pytest.fail(f"{item.name} changed the scheduling policy of the main thread")


def pytest_collection_finish() -> None:
    """What was imported is not looked through again by each full collection, half a second of work."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes of tests, each hands what it filled to the one that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tables"] = [list(EQUALITY.items()), list(DISTANCES.items())]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    if error is None:
        equality, distances = node.workeroutput["tables"]
        EQUALITY.update(equality)
        DISTANCES.update(distances)


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
def tiny() -> "LoadedModel":
    """The embedded tiny model in float32 on the CPU."""
    from worker.models.loading import load

    return load(Settings(device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def library() -> "LoadedModel":
    """The same as transformers' model, for what only that has: `generate`."""
    from worker.models.loading import load

    return load(Settings(device="cpu", model_code="transformers", dtype="float32"))


@pytest.fixture(scope="session")
def real() -> Iterator[str]:
    """The HTTP server as a process, with the tiny model behind it; its key is k1."""
    from tests.server.servers import process

    with process(API_KEY="k1") as address:
        yield address


@pytest.fixture
def serve(tiny: "LoadedModel") -> Iterator["Serve"]:
    """Starts engines of a test's own settings, and closes them at its end, whatever happens."""
    from tests.engine.serving import Serve

    starting = Serve(tiny)
    yield starting
    starting.close()


@pytest.fixture
def engine(serve: "Serve") -> "Engine":
    """A started engine of its own for each test, closed at its end."""
    return serve(Settings(device="cpu", max_num_seqs=4, max_queue=64))
