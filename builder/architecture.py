"""The code's structure, read from its sources: the list of modules in docs/modules.md."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("worker/core", "worker/media", "worker/history", "worker/checkpoint", "worker/dialects", "worker/metrics.py"),
    *("worker/prompt", "worker/models", "worker/engine", "worker/service.py", "worker/platform", "worker/startup"),
    *("worker/server", "handler.py", "builder", "benchmarks"),
)


def modules() -> str:
    """Each package with its modules, and the first paragraph of each one's docstring."""
    lines = []
    for package in PACKAGES:
        path = ROOT / package
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            name, sentence = str(file.relative_to(ROOT)), " ".join(about.partition("\n\n")[0].split())
            if file.name == "__init__.py":
                lines += [f"\n**{file.parent.relative_to(ROOT)}/** {sentence}\n"]
            elif len(files) == 1:
                lines += [f"\n**{name}** {sentence}\n"]
            else:
                lines += [f"- `{file.relative_to(path)}`: {sentence}"]
    return "\n".join(lines).lstrip("\n") + "\n"
