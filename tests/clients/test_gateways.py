"""Programs that stand between a person and the worker: litellm's proxy, and the backend of Open WebUI."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clients.test_clients import CIRCLE, I_AM, ROOT
from tests.server.servers import process

LITELLM = ROOT / ".venv-clients-openai2" / "bin" / "litellm"
OPEN_WEBUI = ROOT / ".venv-open-webui" / "bin" / "open-webui"
MODEL = "tiny-qwen3-vl"
START_S = 120
CONFIG = """
model_list:
  - model_name: small
    litellm_params: {model: openai/tiny-qwen3-vl, api_base: ADDRESS/v1, api_key: k1}
  - model_name: large
    litellm_params: {model: openai/tiny-qwen3-vl, api_base: ADDRESS/v1, api_key: k1, mock_response: from the larger one}
router_settings: {context_window_fallbacks: [{small: [large]}], num_retries: 0}
"""


@contextmanager
def running(command: list[str], settings: Mapping[str, str], path: str) -> Iterator[str]:
    """The address of a program that listens on the port that is put into its command, when it answers at a path."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [part.replace("PORT", str(port)) for part in command]
    program = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + START_S
        while program.poll() is None and time.monotonic() < until:
            try:
                if requests.get(address + path, timeout=2).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(0.2)
        else:
            pytest.fail(f"{command[0]} does not answer")
        yield address
    finally:
        program.terminate()
        program.wait(20)


def asked(*content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}], "temperature": 0, **more}


SHOWN = ({"type": "text", "text": "What is in the picture?"}, {"type": "image_url", "image_url": {"url": CIRCLE}})


def streamed(answer: requests.Response) -> str:
    """The words of a stream of chunks."""
    lines = [line.removeprefix(b"data: ") for line in answer.content.splitlines() if line.startswith(b"data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


def test_litellms_proxy_answers_and_falls_back_where_a_prompt_is_too_long(tmp_path: Path) -> None:
    with process(API_KEY="k1") as address:
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.replace("ADDRESS", address), encoding="utf-8")
        command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", "PORT"]
        with running(command, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}, "/health/liveliness") as proxy:
            route = f"{proxy}/v1/chat/completions"
            told = requests.post(route, json=asked(*SHOWN, model="small"), timeout=60).json()
            assert told["choices"][0]["message"]["content"] == "A red circle at the center."
            told = requests.post(route, json=asked(*SHOWN, model="small", stream=True), timeout=60)
            assert streamed(told) == "A red circle at the center."
            long = asked({"type": "text", "text": "word " * 5000}, model="small")
            told = requests.post(route, json=long, timeout=60).json()
            assert told["choices"][0]["message"]["content"] == "from the larger one"
            body = {"model": "small", "input": "Who are you?", "temperature": 0}
            told = requests.post(f"{proxy}/v1/responses", json=body, timeout=60).json()
            assert told["output"][-1]["content"][0]["text"] == I_AM


@pytest.mark.skipif(not OPEN_WEBUI.exists(), reason="make clients WITH_OPEN_WEBUI=1 installs it")
def test_open_webuis_backend_answers_about_a_picture(tmp_path: Path) -> None:
    with process(API_KEY="k1") as address:
        settings = {
            "OPENAI_API_BASE_URLS": f"{address}/v1",
            "OPENAI_API_KEYS": "k1",
            "WEBUI_AUTH": "False",
            "WEBUI_SECRET_KEY": "x",
            "ENABLE_OLLAMA_API": "False",
            "RAG_EMBEDDING_ENGINE": "openai",
            "OFFLINE_MODE": "True",
            "HF_HUB_OFFLINE": "1",
            "ANONYMIZED_TELEMETRY": "False",
            "DATA_DIR": str(tmp_path),
        }
        with running([str(OPEN_WEBUI), "serve", "--host", "127.0.0.1", "--port", "PORT"], settings, "/health") as webui:
            person = {"email": "admin@localhost", "password": "admin"}
            token = requests.post(f"{webui}/api/v1/auths/signin", json=person, timeout=30).json()["token"]
            headers = {"authorization": f"Bearer {token}"}
            models = requests.get(f"{webui}/api/models", headers=headers, timeout=30).json()["data"]
            assert [model["id"] for model in models] == [MODEL]
            route = f"{webui}/api/chat/completions"
            told = requests.post(route, json=asked(*SHOWN, model=MODEL), headers=headers, timeout=60).json()
            assert told["choices"][0]["message"]["content"] == "A red circle at the center."
            told = requests.post(route, json=asked(*SHOWN, model=MODEL, stream=True), headers=headers, timeout=60)
            assert streamed(told) == "A red circle at the center."
