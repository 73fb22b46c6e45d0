"""The walls of the house: floors, one home for each dependency, no circles, nothing imported inside functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [
        ROOT / "handler.py",
        *(ROOT / "worker").rglob("*.py"),
        *(ROOT / "builder").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
)

FLOORS = {
    "worker.errors": 1,
    "worker.logs": 1,
    "worker.timeline": 1,
    "worker.imports": 1,
    "worker.safe_json": 1,
    "worker.contract": 2,
    "worker.settings": 2,
    "worker.deadline": 2,
    "worker.dialects": 3,
    "worker.media": 3,
    "worker.engine": 3,
    "worker.metrics": 3,
    "worker.history": 3,
    "worker.serve": 4,
    "worker.job_api": 4,
    "worker.gate": 4,
    "worker.openapi": 4,
    "worker.boot": 4,
    "worker.start": 5,
    "worker.app": 6,
    "handler": 6,
    "builder": 6,
    "benchmarks": 7,
}
HOMES = {
    "torch": ("worker.engine", "builder", "benchmarks"),
    "transformers": ("worker.engine.library", "builder", "benchmarks"),
    "jinja2": ("worker.engine.template", "worker.engine.library"),
    "tokenizers": ("worker.engine", "builder", "benchmarks"),
    "huggingface_hub": ("worker.engine", "builder"),
    "safetensors": ("worker.engine", "builder"),
    "PIL": ("worker.media", "worker.engine.library", "builder", "benchmarks"),
    "av": ("worker.media", "builder", "benchmarks"),
    "aiohttp": ("worker.media", "worker.job_api"),
    "fastapi": ("worker.app",),
    "starlette": ("worker.app", "worker.gate"),
    "runpod": ("handler", "worker.job_api"),
    "prometheus_client": ("worker.metrics",),
    "redis": ("worker.history",),
    "sqlite3": ("worker.history",),
}
WITHOUT_TORCH = (
    "worker.media",
    "worker.dialects",
    "worker.serve",
    "worker.contract",
    "worker.settings",
    "worker.errors",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node, node.module or ""
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """The room that a module lies in, by the longest name that fits."""
    fitting = [room for room in FLOORS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_from_lower_floors_and_from_its_own_room(path: Path) -> None:
    room = room_of(name_of(path))
    if room is None:
        assert name_of(path) == "worker", f"{name_of(path)} has no floor: draw it in the house first"
        return
    for _, imported in imports(path):
        other = room_of(imported)
        if other is not None and other != room:
            assert FLOORS[other] < FLOORS[room], f"{name_of(path)} must not import {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_each_dependency_has_one_home(path: Path) -> None:
    for _, imported in imports(path):
        homes = HOMES.get(imported.split(".")[0])
        if homes is not None:
            assert name_of(path).startswith(homes), f"{name_of(path)} must not import {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_environment_is_read_in_settings_alone(path: Path) -> None:
    reads = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not reads or name_of(path) == "worker.settings"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    if path.name == "__main__.py":
        return  # a command line shows its help without loading torch
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inner, f"{name_of(path)}:{function.name}"


def test_no_import_goes_in_a_circle() -> None:
    modules = {name_of(path): path for path in SOURCES}
    edges = {
        name: {other for _, other in imports(path) if other in modules and other != name}
        - {name.rpartition(".")[0]}  # a package's __init__ is run by importing any of its modules
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, name_of(path)
    assert name_of(path) == "worker.errors" or len(docstring.splitlines()) <= 10


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_class_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            assert ast.get_docstring(node) or "Body" in bases, f"{name_of(path)}.{node.name}"
