"""A start: phases that add up, imports in the order that waits least, and one line where it cannot be."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builder.hub import Hub
from tests.processes import printed
from worker.core.settings import EMBEDDED_MODEL
from worker.core.timeline import Timeline

ROOT = Path(__file__).parents[2]
ASKED = json.dumps({"input": {"prompt": "Hello", "max_tokens": 1}})


def test_phases_add_up_to_the_total() -> None:
    timeline = Timeline()
    timeline.end("first")
    timeline.end("second")
    timeline.ran_beside("reading", 1.5)
    report = timeline.report
    assert list(report) == ["first", "second", "total", "overlapped_reading"]
    assert report["first"] + report["second"] == pytest.approx(report["total"], abs=0.002)
    assert report["first"] > 0  # since the process began
    assert report["overlapped_reading"] == 1.5


@pytest.mark.parametrize("allowed", ["0", "1"])
def test_the_hubs_libraries_ask_nobody_unless_a_download_is_allowed(allowed: str) -> None:
    code = (
        f"import os; os.environ['ALLOW_DOWNLOAD'] = '{allowed}'\n"
        "from worker.startup import boot; boot.begin().loaded.close()\n"
        "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"
    )
    assert printed(code) == str(allowed == "0")


@pytest.mark.parametrize(("given", "found"), [("", "3000"), ("GOMP_SPINCOUNT=7", "7")])
def test_threads_spin_for_a_moment_unless_the_environment_says_otherwise(given: str, found: str) -> None:
    code = (
        "import ctypes; variable = ctypes.CDLL(None).getenv; variable.restype = ctypes.c_char_p\n"
        "from worker.startup import preload\n"
        "with preload.linking_torch(): pass\n"
        "print(variable(b'GOMP_SPINCOUNT').decode())"
    )
    assert printed(code, variables=tuple(given.split())) == found


def test_the_start_leaves_the_collector_on_and_its_own_objects_out_of_it() -> None:
    code = (
        "import gc, sys; from worker.startup import boot; began = boot.begin(lambda: __import__('runpod'));"
        "assert not gc.isenabled();"
        "assert 'runpod' in sys.modules and 'torch' in sys.modules and began.loaded is not None;"
        "began.loaded.wait(began.timeline); began.loaded.close(); boot.settle();"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    assert printed(code).split() == ["True", "True"]
    assert gc.isenabled()


def test_what_warms_up_is_gone_with_its_answer() -> None:
    code = (
        "import gc; from worker.startup import boot; began = boot.begin(); began.loaded.wait(began.timeline)\n"
        "gc.collect(); import threading\n"
        "from worker.engine.engine import Engine; from worker.models.native.runner import NativeRunner\n"
        "print(*[sum(isinstance(one, kind) for one in gc.get_objects()) for kind in (Engine, NativeRunner)])\n"
        "print([one.name for one in threading.enumerate() if one.name == 'engine']); began.loaded.close()"
    )
    assert printed(code).split() == ["1", "1", "['engine']"]


def test_what_the_sdk_does_not_use_in_a_worker_is_not_read_and_still_there() -> None:
    code = (
        "import sys; from worker.startup import boot, preload\n"
        "began = boot.begin(lambda: __import__('runpod')); began.loaded.close()\n"
        "print(*[name for name in (*preload.UNUSED, preload.PROBE) if name in sys.modules], 'none')\n"
        "from runpod.cli.groups.ssh import functions\n"
        "from runpod.serverless.utils import rp_debugger\n"
        "print(functions.paramiko.RSAKey.__module__, len(rp_debugger.PROCESSOR) > 0)\n"
        "import cpuinfo, paramiko\n"
        "print(cpuinfo.__spec__ is not None, paramiko.RSAKey is functions.paramiko.RSAKey)\n"
    )
    assert printed(code).split() == ["none", "paramiko.rsakey", "True", "True", "True"]


def test_the_sdk_is_told_the_name_that_it_would_find_itself() -> None:
    code = (
        "import cpuinfo; from worker.startup import preload; own = cpuinfo.get_cpu_info()['brand_raw']\n"
        "print(own == preload.processor())"
    )
    assert printed(code).split() == ["True"]


def started(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "handler.py", "--test_input", ASKED],
        cwd=ROOT,
        env={**os.environ, "BAKED_MODELS": str(tmp_path), "DEVICE": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_first_answer_tells_where_the_time_went(tmp_path: Path) -> None:
    done = started(tmp_path)
    output = done.stdout
    answer = json.loads(output[output.index("{\n") : output.index("\n}\n") + 2])
    phases = answer["cold_start"]
    steps = [took for name, took in phases.items() if name != "total" and not name.startswith("overlapped_")]
    assert sum(steps) == pytest.approx(phases["total"], abs=0.02)
    told = {"interpreter", "import_torch", "build_model", "warmup", "first_token", "rest_of_first_answer"}
    assert told <= phases.keys()
    assert "ready" in done.stderr


def test_with_lazy_load_the_model_comes_with_the_first_request(tmp_path: Path) -> None:
    done = started(tmp_path, LAZY_LOAD="1")
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout[done.stdout.index("{\n") : done.stdout.index("\n}\n") + 2])["cold_start"]
    order = list(phases)
    assert order.index("import_rest") < order.index("before_load") < order.index("build_model")


def test_a_lazy_model_that_cannot_be_loaded_fails_the_request_and_the_process(tmp_path: Path) -> None:
    done = started(tmp_path, LAZY_LOAD="1", MODEL_PATH="/no/such/folder")
    assert done.returncode == 1
    assert "ENGINE_STOPPED" in done.stdout
    assert "the model could not be loaded: MODEL_PATH: /no/such/folder does not exist" in done.stderr


BAD_DAYS = {
    "no such folder": ({"MODEL_PATH": "/no/such/folder"}, "/no/such/folder does not exist"),
    "no GPU where one was asked for": ({"DEVICE": "cuda"}, "no CUDA device. Set DEVICE=cpu"),
    "a model that is nowhere": ({"MODEL_ID": "Qwen/Nowhere"}, "Set ALLOW_DOWNLOAD=1 to download it at the start"),
    "an invalid setting": ({"MAX_IMAGES": "many"}, 'invalid value "many" for MAX_IMAGES'),
    "a hub that is not there": (
        {"MODEL_ID": "Qwen/Nowhere", "ALLOW_DOWNLOAD": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
        "could not be downloaded",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "told"), BAD_DAYS.values(), ids=BAD_DAYS.keys())
def test_a_start_that_cannot_be_ends_with_status_1_and_one_line(
    tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    done = started(tmp_path, **variables)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("worker-qwen-vl cannot start: ")
    assert told in last
    assert "Traceback" not in done.stderr


@pytest.mark.network
def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    with Hub(EMBEDDED_MODEL) as hub:
        where = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "HUB_CACHE": "/proc/cache"}
        done = started(tmp_path, MODEL_ID=hub.model, ALLOW_DOWNLOAD="1", **where)
    assert done.returncode == 1
    assert "HUB_CACHE must be a writable folder" in done.stderr.strip().splitlines()[-1]


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path in EMBEDDED_MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".safetensors" else None])
    done = started(tmp_path, MODEL_PATH=str(folder))
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr.strip().splitlines()[-1]


def test_a_read_only_file_system_is_no_hindrance(tmp_path: Path) -> None:
    """Nothing is written: not beside the code, not at home, not into the temporary folder."""
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"), "/proc/nothing")
    done = started(tmp_path, PYTHONDONTWRITEBYTECODE="1", **nowhere)
    assert done.returncode == 0, done.stderr[-2000:]
