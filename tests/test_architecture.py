"""What keeps the architecture as docs/architecture.md draws it: layers, homes of dependencies, no circles, sizes."""

import ast
from collections.abc import Callable
from pathlib import Path

from builder import architecture, code_counts
from builder.architecture import LAYER_OF, ROOT, imports, name_of, package_of, tree_of

SOURCES = architecture.sources()
HOMES = {
    "torch": (
        *(
            "worker.checkpoint.weights",
            "worker.checkpoint.cpu",
            "worker.checkpoint.load_plan",
            "worker.checkpoint.memory",
        ),
        *("worker.prompt", "worker.models", "worker.engine", "worker.startup.boot", "builder", "benchmarks"),
    ),
    "transformers": ("worker.models.hf", "builder", "benchmarks"),
    "jinja2": ("worker.checkpoint.chat_template", "worker.models.hf", "worker.startup.boot"),
    "tokenizers": ("worker.checkpoint.tokenizer", "worker.models.hf", "worker.startup.boot", "builder", "benchmarks"),
    "huggingface_hub": ("worker.checkpoint.locate", "worker.models.hf.config", "builder"),
    "safetensors": ("builder", "benchmarks"),
    "PIL": ("worker.media", "worker.models.hf", "builder", "benchmarks"),
    "av": ("worker.media", "builder", "benchmarks"),
    "aiohttp": ("worker.media.fetch", "worker.platform.sdk"),
    "_pi_heif": ("worker.media.heif",),
    "brotli": ("worker.media.content_encoding",),
    "llguidance": ("worker.engine.grammar", "benchmarks"),
    "backports": ("worker.media.content_encoding",),
    "fastapi": ("worker.server",),
    "starlette": ("worker.server",),
    "uvicorn": ("worker.server", "benchmarks"),
    "runpod": ("handler", "worker.platform.sdk"),
    "prometheus_client": ("worker.metrics",),
    "redis": ("worker.history.redis",),
    "sqlite3": ("worker.history.sqlite",),
}
# Where a start needs an import to wait until it is wanted.
MAY_IMPORT_LATE = {
    "handler",
    "worker.checkpoint.locate",
    "worker.engine.constraints",
    "worker.history.history",
    "worker.media.color",
    "worker.media.still",
    "worker.models.loading",
    "worker.startup.boot",
    "worker.startup.engines",
}
# Where everything may be caught, and why: the border of a request, of a thread's or a child's work, of the engine's
# turn, and a library that raises `Exception` itself. Decoding needs none: what it raises is its request's.
MAY_CATCH_ALL = {
    "worker/service.py": 2,
    "worker/core/threads.py": 1,
    "worker/media/decode_server.py": 1,
    "worker/engine/recovery.py": 2,
    "worker/checkpoint/tokenizer.py": 1,
}
WITHOUT_TORCH = ("worker.core", "worker.media", "worker.history", "worker.dialects", "worker.service", "worker.metrics")


def each(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """One test for all files: a thousand small ones took four seconds."""

    def over_all(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            for path in paths:
                check(path)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return over_all


@each(SOURCES)
def test_a_module_imports_only_from_lower_layers_and_from_its_own_package(path: Path) -> None:
    """Imports inside functions count."""
    if name_of(path) == "worker":
        return
    package = package_of(name_of(path))
    assert package is not None, f"{name_of(path)} has no layer: give it one in builder/architecture.py"
    for imported in imports(path):
        other = package_of(imported.name)
        if other is not None and other != package:
            assert LAYER_OF[other] < LAYER_OF[package], f"{name_of(path)} must not import {imported.name}"


def test_the_root_of_the_package_holds_the_service_and_the_metrics_alone() -> None:
    assert {path.name for path in (ROOT / "worker").glob("*.py")} == {"__init__.py", "service.py", "metrics.py"}


@each(SOURCES)
def test_each_dependency_has_one_home(path: Path) -> None:
    for imported in imports(path):
        homes = HOMES.get(imported.name.split(".")[0])
        if homes is not None:
            assert name_of(path).startswith(homes), f"{name_of(path)} must not import {imported.name}"


@each([path for path in SOURCES if name_of(path).startswith(WITHOUT_TORCH)])
def test_what_needs_no_torch_imports_none(path: Path) -> None:
    assert not [imported.name for imported in imports(path) if imported.name.split(".")[0] == "torch"], name_of(path)


@each(SOURCES)
def test_the_environment_is_read_in_settings_alone(path: Path) -> None:
    reads = [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not reads or name_of(path) == "worker.core.settings", name_of(path)


@each(SOURCES)
def test_an_import_inside_a_function_is_named_and_stands_where_a_start_needs_it(path: Path) -> None:
    if path.name == "__main__.py":
        return  # a command line shows its help without loading torch
    late = [imported.name for imported in imports(path) if imported.is_inner]
    assert not late or name_of(path) in MAY_IMPORT_LATE, f"{name_of(path)}: {late}"
    if name_of(path).startswith("worker"):
        called = [node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)]
        is_named = "import_module" not in called
        assert is_named or name_of(path) == "worker.startup.preload", "an import by a string cannot be checked"


def test_no_import_goes_in_a_circle() -> None:
    assert code_counts.circles(ROOT) == []


def test_everything_is_caught_at_the_borders_alone() -> None:
    found = [file for file in code_counts.broad_handlers(ROOT) if not file.startswith("builder")]
    assert {file: found.count(file) for file in found} == MAY_CATCH_ALL


@each(SOURCES)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path))
    assert docstring, name_of(path)
    assert name_of(path) in ("worker.core.errors", "worker.core.http_errors") or len(docstring.splitlines()) <= 12


@each(SOURCES)
def test_every_class_says_what_it_is(path: Path) -> None:
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            assert ast.get_docstring(node) or "Body" in bases, f"{name_of(path)}.{node.name}"


def test_files_functions_and_classes_stay_small() -> None:
    assert [one for one in code_counts.files(ROOT) if one.size > 400] == []
    assert [one for one in code_counts.functions(ROOT, code_counts.num_lines) if one.size > 80] == []
    assert [one for one in code_counts.classes(ROOT) if one.size > 250] == []


def test_the_drawing_is_of_this_code() -> None:
    drawn = architecture.DRAWING.read_text(encoding="utf-8")
    assert drawn == architecture.drawing(), "python -m builder.architecture"
