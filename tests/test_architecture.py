"""What keeps the architecture as docs/architecture.md draws it: layers, one home for each dependency, no circles."""

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

LAYERS = (
    ("worker.core",),
    ("worker.media", "worker.history", "worker.checkpoint", "worker.dialects", "worker.metrics"),
    ("worker.prompt",),
    ("worker.models",),
    ("worker.engine",),
    ("worker.service", "worker.platform"),
    ("worker.startup",),
    ("worker.server", "handler", "builder"),
    ("benchmarks",),
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
NOT_YET = {"worker.prompt.builder"}  # needs a loaded model for what its files say
HOMES = {
    "torch": ("worker.checkpoint.weights", "worker.prompt", "worker.models", "worker.engine", "builder", "benchmarks"),
    "transformers": ("worker.models.hf", "builder", "benchmarks"),
    "jinja2": ("worker.checkpoint.chat_template", "worker.models.hf"),
    "tokenizers": ("worker.checkpoint.tokenizer", "worker.models.hf", "builder", "benchmarks"),
    "huggingface_hub": ("worker.checkpoint.locate", "builder"),
    "safetensors": ("builder", "benchmarks"),
    "PIL": ("worker.media", "worker.models.hf", "builder", "benchmarks"),
    "av": ("worker.media", "builder", "benchmarks"),
    "aiohttp": ("worker.media.fetch", "worker.platform.sdk"),
    "fastapi": ("worker.server",),
    "starlette": ("worker.server",),
    "uvicorn": ("worker.server",),
    "runpod": ("handler", "worker.platform.sdk"),
    "prometheus_client": ("worker.metrics",),
    "redis": ("worker.history",),
    "sqlite3": ("worker.history",),
}


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


def package_of(module: str) -> str | None:
    """The package of a layer that a module belongs to."""
    return next((package for package in LAYER_OF if module == package or module.startswith(package + ".")), None)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_from_lower_layers_and_from_its_own_package(path: Path) -> None:
    """Imports inside functions count."""
    if name_of(path) in {"worker", *NOT_YET}:
        return
    package = package_of(name_of(path))
    assert package is not None, f"{name_of(path)} has no layer: draw it in docs/architecture.md first"
    for _, imported in imports(path):
        other = package_of(imported)
        if other is not None and other != package:
            assert LAYER_OF[other] < LAYER_OF[package], f"{name_of(path)} must not import {imported}"


def test_the_root_of_the_package_holds_the_service_and_the_metrics_alone() -> None:
    assert {path.name for path in (ROOT / "worker").glob("*.py")} == {"__init__.py", "service.py", "metrics.py"}


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
    assert not reads or name_of(path) == "worker.core.settings"


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
    assert name_of(path) == "worker.core.errors" or len(docstring.splitlines()) <= 10


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_class_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            assert ast.get_docstring(node) or "Body" in bases, f"{name_of(path)}.{node.name}"
