"""Sizes and habits of the code, counted: `python -m builder.code_counts [--before FOLDER]`.

With another checkout beside it, as of an earlier commit, both are shown. tests/test_architecture.py holds the limits.
"""

import argparse
import ast
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.architecture import ROOT, imports, name_of, sources, tree_of

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.match_case)


@dataclass(frozen=True)
class Sized:
    """Something with a size, and where it is."""

    name: str
    size: int


def files(root: Path) -> list[Sized]:
    """Lines of each file."""
    return [Sized(str(path.relative_to(root)), len(_lines(path))) for path in sources(root)]


def functions(root: Path, size: Callable[[Function], int]) -> list[Sized]:
    """Each function, by its lines or its complexity."""
    found = []
    for path in sources(root):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, Function):
                found.append(Sized(f"{path.relative_to(root)}:{node.name}", size(node)))
    return found


def classes(root: Path) -> list[Sized]:
    """Lines of each class."""
    found = []
    for path in sources(root):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                found.append(Sized(f"{path.relative_to(root)}:{node.name}", num_lines(node)))
    return found


def num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def complexity(function: Function) -> int:
    """McCabe's: ways through the function, those of inner functions not counted."""
    ways = 1
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        ways += isinstance(node, BRANCHES)
        if isinstance(node, ast.BoolOp):
            ways += len(node.values) - 1
        if isinstance(node, ast.comprehension):
            ways += 1 + len(node.ifs)
        waiting.extend(ast.iter_child_nodes(node))
    return ways


def num_any(root: Path) -> int:
    """Uses of `Any`."""
    return sum(
        isinstance(node, ast.Name) and node.id == "Any" for path in sources(root) for node in ast.walk(tree_of(path))
    )


def broad_handlers(root: Path) -> list[str]:
    """Files with handlers that catch everything, once for each."""
    return [
        str(path.relative_to(root))
        for path in sources(root)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kind = handler.type
    return kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))


def private_uses(root: Path) -> int:
    """Places in the tests that reach into private members of something else."""
    count = 0
    for path in sorted((root / "tests").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                count += not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    return count


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def arrows(root: Path) -> set[tuple[str, str]]:
    """Which package imports from which; a package is a folder, or a module beside folders."""
    known = {name_of(path, root) for path in sources(root)}
    found = set()
    for path in sources(root):
        package = _package(name_of(path, root))
        for imported in imports(path):
            if imported.name in known and (other := _package(imported.name)) != package:
                found.add((package, other))
    return found


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "worker" or len(parts) == 1 else ".".join(parts[:2])


def circles(root: Path) -> list[tuple[str, ...]]:
    """Modules that import each other, a tuple for each way around, whether on top or inside functions."""
    modules = {name_of(path, root): path for path in sources(root)}
    edges = {
        name: {found.name for found in imports(path) if found.name in modules and found.name != name}
        - {name.rpartition(".")[0]}  # a package's __init__ is run by importing any of its modules
        for name, path in modules.items()
    }
    return list(_ways_around(edges))


def _ways_around(edges: dict[str, set[str]]) -> Iterator[tuple[str, ...]]:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in trail:
            yield (*trail[trail.index(name) :], name)
        elif name not in done:
            for other in sorted(edges[name]):
                yield from visit(other, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        yield from visit(name, ())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _spread(found: list[Sized]) -> str:
    """Median, ninth decile and largest, and which that is."""
    sizes = [item.size for item in found]
    largest = max(found, key=lambda item: item.size)
    ninth = statistics.quantiles(sizes, n=10)[-1]
    return f"{statistics.median(sizes):.0f} / {ninth:.0f} / {largest.size} ({largest.name})"


def rows(root: Path) -> dict[str, str]:
    """What is counted, in words."""
    broad, complex_ones = broad_handlers(root), functions(root, complexity)
    return {
        "modules": str(len(sources(root))),
        "lines of a file: median / p90 / most": _spread(files(root)),
        "lines of a function: median / p90 / most": _spread(functions(root, num_lines)),
        "lines of a class: median / p90 / most": _spread(classes(root)),
        "functions of complexity above 10": f"{sum(item.size > 10 for item in complex_ones)}, {_spread(complex_ones)}",
        "uses of `Any`": str(num_any(root)),
        "handlers that catch everything": f"{len(broad)} in {len(set(broad))} files",
        "packages and arrows between them": f"{len({package for arrow in arrows(root) for package in arrow})}, "
        f"{len(arrows(root))}",
        "import circles, inside functions too": str(len(circles(root))),
        "private members used by tests": str(private_uses(root)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.code_counts", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout, shown beside this one")
    before = parser.parse_args().before
    columns = {**({"before": rows(before.resolve())} if before else {}), "now": rows(ROOT)}
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in columns["now"]:
        print(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")


if __name__ == "__main__":
    main()
