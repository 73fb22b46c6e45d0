"""What every comparison needs: torchvision made importable beside a CPU build of torch, and the table of what was
compared."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torchvision's own library of operators needs a CUDA build; importing it asks for these two by name.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _schema in _SCHEMAS:
    _OPERATORS.define(_schema)

TABLE: dict[tuple[str, str], list[float]] = {}  # what, of which family -> how far apart, for each comparison


def note(what: str, family: str, distance: float) -> None:
    """A comparison for the table: 0 is equal."""
    TABLE.setdefault((what, family), []).append(distance)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("-", "compared with the references")
    terminalreporter.write_line(f"{'what':44} {'family':12} {'compared':>8} {'equal':>6} {'farthest apart':>15}")
    for (what, family), seen in sorted(TABLE.items()):
        equal = sum(one == 0 for one in seen)
        terminalreporter.write_line(f"{what:44} {family:12} {len(seen):8} {equal:6} {max(seen):15.6g}")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
