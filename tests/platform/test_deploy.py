"""What docs/deploy.md and the hub's files promise: each example is run, each setting exists, each test is answered."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.platform.stand_in import KEY, Platform
from tests.platform.workers import ROOT
from worker.core import settings
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy
from worker.service import Service

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BASE = "https://api.runpod.ai/v2"


def example(name: str) -> str:
    match = re.search(rf"<!-- begin example {name} -->\n```\w+\n(.*?)```\n<!-- end", DEPLOY, re.DOTALL)
    assert match, name
    return match[1]


def said(platform: Platform, folder: Path, *command: str) -> str:
    """What an example prints, in a folder with a photo, at the stand-in's address."""
    shutil.copy(ROOT / "docs" / "pictures" / "test_input.jpg", folder / "photo.jpg")
    variables = {"RUNPOD_API_KEY": KEY, "ENDPOINT_ID": "ep", "RUNPOD_ENDPOINT_BASE_URL": platform.address}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(platform: Platform, tmp_path: Path) -> None:
    answer = json.loads(said(platform, tmp_path, "sh", "-c", example("curl").replace(BASE, platform.address)))
    assert answer["status"] == "COMPLETED"
    assert answer["output"][0]["text"].startswith("I am a tiny vision model")


@pytest.mark.parametrize("name", ["python", "stream", "openai"])
def test_python(platform: Platform, tmp_path: Path, name: str) -> None:
    code = example(name).replace(BASE, platform.address)
    assert "orange circle" in said(platform, tmp_path, sys.executable, "-W", "ignore", "-c", code)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript(platform: Platform, tmp_path: Path) -> None:
    modules = ROOT / "tests" / "platform" / "js" / "node_modules"
    if not (modules / "runpod-sdk").is_dir():
        pytest.skip("the platform's client is not installed: npm ci in tests/platform/js")
    (tmp_path / "node_modules").symlink_to(modules)
    address = f'{{ baseUrl: "{platform.address}" }}'
    code = example("javascript").replace("process.env.RUNPOD_API_KEY)", f"process.env.RUNPOD_API_KEY, {address})")
    (tmp_path / "example.mjs").write_text(code, encoding="utf-8")
    assert "orange circle" in said(platform, tmp_path, "node", "example.mjs")


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Option(_Form):
    label: str
    value: str


class _Input(_Form):
    type: Literal["string", "number", "boolean", "huggingface"]
    name: str
    description: str
    default: Any
    required: bool = False
    advanced: bool = False
    options: list[_Option] = []
    min: float | None = None
    max: float | None = None
    trueValue: str | None = None  # noqa: N815
    falseValue: str | None = None  # noqa: N815


class _Variable(_Form):
    key: str
    input: _Input | None = None
    value: str | None = None


class _Preset(_Form):
    name: str
    defaults: dict[str, str | int]


class _HubConfig(_Form):
    runsOn: Literal["GPU", "CPU"]  # noqa: N815
    containerDiskInGb: int = Field(gt=0, le=80)  # noqa: N815
    gpuCount: int = Field(gt=0)  # noqa: N815
    gpuIds: str = Field(pattern=r"^-?[\w ]+(,-?[\w ]+)*$")  # noqa: N815
    allowedCudaVersions: list[str] = Field(min_length=1)  # noqa: N815
    presets: list[_Preset]
    env: list[_Variable]


class _Hub(_Form):
    title: str
    description: str
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    config: _HubConfig


class _Test(_Form):
    name: str
    input: dict[str, Any]
    timeout: int = Field(ge=1000)


class _TestsConfig(_Form):
    gpuTypeId: str  # noqa: N815
    gpuCount: int = Field(gt=0)  # noqa: N815
    env: list[_Variable]
    allowedCudaVersions: list[str] = Field(min_length=1)  # noqa: N815


class _Tests(_Form):
    tests: list[_Test] = Field(min_length=1)
    config: _TestsConfig


HUB = _Hub.model_validate_json((ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"))
TESTS = _Tests.model_validate_json((ROOT / ".runpod" / "tests.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("variable", HUB.config.env, ids=lambda variable: variable.key)
def test_each_variable_of_the_hub_is_a_setting_that_takes_its_values(variable: _Variable) -> None:
    asked = variable.input
    assert asked is not None
    values = [option.value for option in asked.options] + [asked.trueValue, asked.falseValue, asked.min, asked.max]
    values += [] if asked.trueValue else [asked.default]
    assert variable.key.lower() in Settings.model_fields
    for value in values:
        if value is not None:
            settings.load({variable.key: f"{value:g}" if isinstance(value, float) else str(value)})


@pytest.mark.parametrize("preset", HUB.config.presets, ids=lambda preset: preset.name)
def test_each_preset_is_of_variables_that_the_hub_asks_for(preset: _Preset) -> None:
    assert preset.defaults.keys() <= {variable.key for variable in HUB.config.env}
    settings.load({key: str(value) for key, value in preset.defaults.items()})


def test_the_presets_are_the_models_that_users_deploy() -> None:
    named = {str(preset.defaults["MODEL_ID"]).rpartition("/")[2] for preset in HUB.config.presets}
    sizes = {"Qwen3-VL-2B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3-VL-8B-Instruct", "Qwen2.5-VL-7B-Instruct"}
    assert named == sizes


@pytest.mark.parametrize("case", TESTS.tests, ids=lambda case: case.name)
def test_each_of_the_hubs_tests_is_answered_from_a_picture(engine: Any, tiny: Any, case: _Test) -> None:
    limits = Settings(device="cpu")

    async def answer() -> Any:
        service = Service(
            engine, Opener(limits, Fetcher(limits), SmartResizePolicy(tiny.spec.preprocessor, limits)), limits
        )
        [reply] = [output async for output in service.answer(case.input, case.name)]
        return reply

    reply = asyncio.run(answer())
    assert "error" not in reply
    used = reply["usage"]
    assert used.get("image_tokens", 1) + used.get("video_tokens", 0) > 0


def test_the_hubs_tests_run_with_settings_that_exist() -> None:
    read = settings.load({variable.key: variable.value or "" for variable in TESTS.config.env})
    assert read.model_id == "tiny-qwen3-vl"  # nothing is downloaded within the first test's seconds
    assert TESTS.tests[0].timeout == 300_000
    assert {variable.key.lower() for variable in TESTS.config.env} <= Settings.model_fields.keys()


def test_the_listing_has_a_page_and_the_icon_that_is_drawn() -> None:
    from builder import icon

    for file in icon.FILES:
        assert file.read_text(encoding="utf-8") == icon.drawing()
    page = (ROOT / ".runpod" / "README.md").read_text(encoding="utf-8")
    assert "https://api.runpod.ai/v2/$ENDPOINT_ID/runsync" in page
