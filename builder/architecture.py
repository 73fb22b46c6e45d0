"""The code's structure, read from its sources: layers, imports between packages, the list of modules, a drawing.

`python -m builder.architecture` writes docs/modules.md and docs/pictures/architecture.svg.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "pictures" / "architecture.svg"
# Lowest first. A module imports only from lower layers and from its own package.
LAYERS = (
    ("worker.core",),
    ("worker.media", "worker.history", "worker.checkpoint", "worker.dialects", "worker.metrics", "worker.parsers"),
    ("worker.prompt",),
    ("worker.models",),
    ("worker.engine",),
    ("worker.service", "worker.platform"),
    ("worker.startup",),
    ("worker.server", "handler", "builder"),
    ("benchmarks",),
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}


@dataclass(frozen=True)
class Import:
    """What a module imports, as a dotted name. is_inner: inside a function."""

    name: str
    is_inner: bool


def sources(root: Path = ROOT) -> list[Path]:
    """All files of the program, in order."""
    folders = [root / folder for folder in ("worker", "builder", "benchmarks")]
    return sorted([root / "handler.py", *(path for folder in folders for path in folder.rglob("*.py"))])


def name_of(path: Path, root: Path = ROOT) -> str:
    """A file's dotted name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """All of a file's imports, those inside functions too."""
    return tuple(_imports(tree_of(path), is_inner=False))


def _imports(node: ast.AST, *, is_inner: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, is_inner) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        yield Import(node.module or "", is_inner)
        yield from (Import(f"{node.module}.{alias.name}", is_inner) for alias in node.names)
    is_inner = is_inner or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, is_inner=is_inner)


def package_of(module: str) -> str | None:
    """The package of a layer that a module belongs to."""
    return next((package for package in LAYER_OF if module == package or module.startswith(package + ".")), None)


def files_of(package: str) -> list[Path]:
    return [path for path in sources() if package_of(name_of(path)) == package]


def arrows() -> set[tuple[str, str]]:
    """Which package imports from which."""
    found = set()
    for path in sources():
        package = package_of(name_of(path))
        for imported in imports(path):
            target = package_of(imported.name)
            if package is not None and target is not None and target != package:
                found.add((package, target))
    return found


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges without those that a longer way implies."""

    def reaches(start: str, goal: str, without: tuple[str, str]) -> bool:
        nexts = [target for source, target in edges if source == start and (source, target) != without]
        return goal in nexts or any(reaches(target, goal, without) for target in nexts)

    return {edge for edge in edges if not reaches(*edge, without=edge)}


def about(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(tree_of(path)) or "").partition("\n\n")[0].split())


def modules() -> str:
    """Each package with its modules, lowest layer first, and what each says of itself."""
    lines = []
    for package in LAYER_OF:
        files = files_of(package)
        folder = ROOT / package.replace(".", "/")
        if not folder.is_dir():
            lines += [f"\n**{files[0].relative_to(ROOT)}** {about(files[0])}\n"]
            continue
        lines += [f"\n**{folder.relative_to(ROOT)}/** {about(folder / '__init__.py')}\n"]
        lines += [f"- `{path.relative_to(folder)}`: {about(path)}" for path in files if path != folder / "__init__.py"]
    return "\n".join(lines).lstrip("\n") + "\n"


WIDTH, BAND, BOX_HEIGHT, LEFT = 1195, 96, 56, 24


def drawing() -> str:
    """The layers as bands, lowest at the bottom, a box for each package, an arrow to each that it imports from."""
    height = BAND * len(LAYERS) + 40
    boxes = {package: _box(package) for package in LAYER_OF}
    body = [f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    for layer in range(len(LAYERS)):
        fill = "#f4f6f8" if layer % 2 else "#fafbfc"
        body.append(f'<rect x="0" y="{_top(layer)}" width="{WIDTH}" height="{BAND}" fill="{fill}"/>')
    body += [_arrow(boxes[source], boxes[target]) for source, target in sorted(reduced(arrows()))]
    body += [text for package, box in boxes.items() for text in _labelled(package, box)]
    legend = "An arrow leads to a package that is imported; those that a longer way implies are left out."
    body.append(f'<text x="{LEFT}" y="{height - 14}" font-size="12" fill="#57606a">{legend}</text>')
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8c959f"/></marker></defs>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, marker, *body, "</svg>\n"])


@dataclass(frozen=True)
class Box:
    """In the drawing's units."""

    x: float
    y: float
    width: float


def _top(layer: int) -> int:
    return BAND * (len(LAYERS) - 1 - layer)


BOX_WIDTH = 184
# The middle of each box, so that few arrows pass behind others: the model on the left, the request on the right.
MIDDLES = {
    "benchmarks": 110,
    "builder": 110,
    "worker.server": 640,
    "handler": 890,
    "worker.startup": 400,
    "worker.service": 640,
    "worker.platform": 890,
    "worker.engine": 110,
    "worker.models": 110,
    "worker.prompt": 110,
    "worker.checkpoint": 110,
    "worker.media": 305,
    "worker.history": 500,
    "worker.dialects": 695,
    "worker.parsers": 890,
    "worker.metrics": 1085,
    "worker.core": 500,
}


def _box(package: str) -> Box:
    y = _top(LAYER_OF[package]) + (BAND - BOX_HEIGHT) / 2
    return Box(MIDDLES[package] - BOX_WIDTH / 2, y, BOX_WIDTH)


def _arrow(source: Box, target: Box) -> str:
    """From the bottom of a box to the top of a lower one."""
    aside = max(-0.4, min(0.4, (target.x - source.x) / WIDTH)) * BOX_WIDTH
    if aside == 0 and target.y - source.y > 1.5 * BAND:
        aside = 0.46 * BOX_WIDTH  # past the boxes between
    x0, y0 = source.x + source.width / 2 + aside, source.y + BOX_HEIGHT
    x1, y1 = target.x + target.width / 2 - aside, target.y
    bend = (y1 - y0) / 2
    path = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="#8c959f" stroke-width="1.3" marker-end="url(#head)"/>'


def _labelled(package: str, box: Box) -> list[str]:
    """A box with the package's name and what it is about."""
    middle = box.x + box.width / 2
    outline = f'x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{BOX_HEIGHT}" rx="6"'
    return [
        f'<rect {outline} fill="#fff" stroke="#57606a"/>',
        _text(middle, box.y + 23, package.removeprefix("worker."), 15, "#1f2328", "bold"),
        _text(middle, box.y + 42, CAPTIONS[package], 12, "#57606a"),
    ]


def _text(x: float, y: float, text: str, size: int, fill: str, weight: str = "normal") -> str:
    style = f'text-anchor="middle" font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(text)}</text>'


CAPTIONS = {
    "worker.core": "contract, errors, settings",
    "worker.media": "references to pixels",
    "worker.history": "the bot's conversations",
    "worker.checkpoint": "a model's files and rules",
    "worker.dialects": "API formats",
    "worker.parsers": "thinking, calls of tools",
    "worker.metrics": "Prometheus",
    "worker.prompt": "ids, patches, positions",
    "worker.models": "model code, KV cache",
    "worker.engine": "schedule, decode, sample",
    "worker.service": "the path of a request",
    "worker.platform": "RunPod's SDK",
    "worker.startup": "to a warm model",
    "worker.server": "HTTP",
    "handler": "RunPod",
    "builder": "images, documents",
    "benchmarks": "what is measured",
}


def main() -> None:
    page = ROOT / "docs" / "modules.md"
    begin, end = "<!-- begin modules -->\n", "<!-- end modules -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(head + begin + modules() + end + rest.partition(end)[2], encoding="utf-8")
    DRAWING.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
