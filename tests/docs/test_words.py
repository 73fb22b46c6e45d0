"""Documents and messages are in the words of the field: the project's earlier private ones are gone."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HISTORY = ("CHANGELOG.md", "docs/log.md", "benchmarks/results/", "tests/docs/test_words.py")
OLD = (
    *("goes before", "go before", "whose word goes first", "gone on with", "goes on with", "proved whole", "no whole"),
    *("what the vision tower said", "HTTP door", "platform's door", "dead door", "does not parse", "no such field"),
    *("sides out of bounds", "the likeliest word", "of them known", "first words after", "not taken by"),
    *("Longest conversation", "Tokens of a picture", "can hurt only itself", "Most tokens", "broken or cut off"),
    *("in their light", "is no file", "beside torch's linking", "five services'", "keys and values are kept"),
)


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [name for name in names if Path(name).suffix in (".md", ".py", ".sh", ".json", ".html", ".yml", "")]
    return [ROOT / name for name in texts if not name.startswith(HISTORY)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_no_document_message_or_module_has_the_old_words() -> None:
    words = re.compile("|".join(map(re.escape, OLD)), re.IGNORECASE)
    found = []
    for path in tracked():
        if path.is_file():
            text = " ".join(path.read_text(encoding="utf-8", errors="replace").replace("_", " ").split())
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in words.finditer(text)]
    assert not found
