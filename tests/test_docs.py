"""What the documents say is what is there."""

import json
import re
from pathlib import Path

import pytest

from builder import architecture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CASES = sorted((ROOT / "tests" / "cases").glob("*/*.json"))


def part(text: str, name: str) -> str:
    match = re.search(f"<!-- begin {re.escape(name)} -->(.*?)<!-- end {re.escape(name)} -->", text, re.DOTALL)
    assert match, name
    return match[1]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_examples_of_the_api_are_the_cases_of_the_tests(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    shown = part(API, f"{path.parent.name}/{path.stem}")
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", shown, re.DOTALL)]
    texts = re.findall(r"```\n(.*?)\n```", shown, re.DOTALL)
    assert case["about"] in shown
    assert blocks[0] == {"input": case["input"]}
    assert blocks[1:] == [output for output in case["outputs"] if isinstance(output, dict)]
    for output in case["outputs"]:
        if isinstance(output, str):
            assert output.rstrip() in shown, texts


def test_every_module_is_listed_with_what_it_says_of_itself() -> None:
    listed = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert part(listed, "modules").strip() == architecture.modules().strip()


def test_the_verbs_in_the_readme_are_in_the_makefile() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(verbs) <= 8
    for verb in re.findall(r"`make ([a-z]+)`", README):
        assert verb in verbs


def test_every_document_is_reached_from_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in README, page.name


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_is_imported_is_required_and_what_is_required_is_imported() -> None:
    required = {
        re.split(r"[=<>]", line)[0].strip()
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "-"))
    }
    sources = [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    imported = set(re.findall(r"^(?:from|import) ([a-z_0-9]+)", code, re.MULTILINE | re.IGNORECASE))
    names = {"PIL": "pillow", "dotenv": "python-dotenv", "prometheus_client": "prometheus-client"}
    theirs = {names.get(name, name) for name in imported} & (required | set(names.values()))
    # what transformers puts weights on a device with, Starlette reads forms with, the history imports when used, and
    # aiohttp looks names up with
    assert theirs | {"accelerate", "python-multipart", "redis", "aiodns"} == required
