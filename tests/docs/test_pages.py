"""What the documents say is what is there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from builder import architecture, costs, dependencies
from builder.docs import PAGES
from worker.core import error_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CASES = sorted((ROOT / "tests" / "cases").glob("*/*.json"))


def part(text: str, name: str) -> str:
    match = re.search(f"<!-- begin {re.escape(name)} -->(.*?)<!-- end {re.escape(name)} -->", text, re.DOTALL)
    assert match, name
    return match[1]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_examples_of_the_api_are_the_cases_of_the_tests(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    page = ROOT / "docs" / PAGES.get(path.parent.name, "api.md")
    shown = part(page.read_text(encoding="utf-8"), f"{path.parent.name}/{path.stem}")
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
    assert len(verbs) <= 10
    for verb in re.findall(r"`make ([a-z]+)`", README):
        assert verb in verbs


def test_every_document_is_reached_from_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in README or page.name in ("index.md", "changelog.md"), page.name


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)[#)]", page.read_text(encoding="utf-8")):
            if not target.startswith("../../actions/"):  # GitHub's own pages of the repository
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_is_imported_is_required_and_what_is_required_is_imported() -> None:
    required = dependencies.required()
    sources = [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    imported = set(re.findall(r"^(?:from|import) ([a-z_0-9]+)", code, re.MULTILINE | re.IGNORECASE))
    names = {"PIL": "pillow", "dotenv": "python-dotenv", "prometheus_client": "prometheus-client"}
    theirs = {names.get(name, name) for name in imported} & (required | set(names.values()))
    # what transformers puts weights on a device with, Starlette reads forms with, aiohttp looks names up with, and what
    # is imported when it is used
    assert theirs | {"accelerate", "python-multipart", "aiodns", "redis", "pi-heif", "backports.zstd"} == required


def test_the_site_has_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in site, page.name


def test_the_costs_are_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert part(page, "prices").strip() == costs.price_table().strip()
    assert part(page, "costs").strip() == costs.table().strip()
    assert costs.prices()["date"] in page


def test_the_table_of_dependencies_has_each_of_them() -> None:
    page = part((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), "dependencies")
    shown = {line.split("|")[1].strip() for line in page.strip().splitlines()[2:]}
    assert shown == dependencies.required() | {name for name, *_ in dependencies.BESIDE}
    assert {item.package for item in dependencies.DEPENDENCIES} == dependencies.required()


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    metrics = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "worker").rglob("*.py"))
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in _metrics(target["expr"])}
    assert len(dashboard["panels"]) == 9
    for name in asked | set(_metrics((ROOT / "docs" / "operating.md").read_text(encoding="utf-8"))):
        plain = re.sub("^worker_|_total$|_bucket$|_$", "", name)
        assert plain in metrics or name.startswith("process_"), name


def _metrics(text: str) -> list[str]:
    return re.findall(r"\b(?:worker|process)_[a-z_]+", text)


def test_the_phases_of_a_start_are_those_that_are_documented() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "worker").rglob("*.py"))
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    phases = set(re.findall(r'timeline\.end\("([a-z_]+)"', code)) - {"before_load"}
    assert phases >= {"import_torch", "warmup", "first_token"}
    for phase in phases:
        assert f"`{phase}`" in page, phase


def test_the_example_of_the_costs_prints_what_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^python -m builder\.costs (--.*)$", page, re.MULTILINE)
    monkeypatch.setattr("sys.argv", ["costs", *command.split()])
    costs.main()
    assert f"```text\n{capsys.readouterr().out}```" in page


@pytest.mark.parametrize("number", ["0", "-1", "nan"])
def test_costs_of_nothing_are_refused(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["costs", "--price", "1", "--requests", number])
    with pytest.raises(SystemExit):
        costs.main()


def test_the_alerts_are_rules_about_codes_that_exist() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    [rules] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [group] = yaml.safe_load(rules)["groups"]
    codes = {error.code for error in error_table.request_errors()}
    assert len(group["rules"]) == 4
    for rule in group["rules"]:
        assert {"alert", "expr", "for", "annotations"} == rule.keys()
        named = [code for codes in re.findall(r'code=~?"([A-Z_|]+)"', rule["expr"]) for code in codes.split("|")]
        assert set(named) <= codes


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_files_for_github_can_be_read(path: Path) -> None:
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert {"name", "permissions", "jobs"} <= read.keys()
        for job in read["jobs"].values():
            assert job["timeout-minutes"] <= 60
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step)
                assert "@v" in step.get("uses", "@v")


def test_the_workflow_of_the_checks_runs_what_ci_runs() -> None:
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8")
    for command in ("make check", "make test"):
        assert f"run: {command}\n" in workflow
