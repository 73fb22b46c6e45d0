"""Tensors straight from the files: the same as the library's, whichever way, and broken files are named."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tests.models import checkpoints
from worker.checkpoint import load_plan, memory, weights
from worker.checkpoint.chat_template import ChatTemplate
from worker.checkpoint.weights import WeightReader, copied, headers, mapped
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.models.hf.runner import module_of
from worker.models.loading import load

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(300, 70, generator=generator).to(torch.bfloat16),
        "b": torch.randn(5, generator=generator),
        "c": torch.arange(12).reshape(3, 4),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
    }
    save_file(tensors, str(tmp_path / "model.safetensors"))
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("read", [mapped, copied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_read_what_the_library_reads(
    file: Path, read: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BUFFER_BYTES", 1000)  # several fillings for one tensor
    expected = load_file(file)
    read_it = read(list(headers(file)), CPU, dtype)
    found = read_it[1] if isinstance(read_it, tuple) else read_it
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_without_numbers_has_no_pages_to_wait_for(file: Path, dtype: torch.dtype) -> None:
    reader = WeightReader(file.parent, CPU, dtype).start()
    reader.finish()
    assert reader.tensors()["empty"].shape == (0, 3)


def test_what_need_not_be_converted_is_the_mapped_file(file: Path) -> None:
    _, found = mapped(list(headers(file)), CPU, torch.bfloat16)
    at = found["a"].data_ptr()
    ours = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span in ours]
    assert any(first <= at < last for first, last in spans)


def test_embeddings_are_not_converted_and_pages_given_back_are_read_again(tmp_path: Path) -> None:
    table, other = torch.randn(300, 64).bfloat16(), torch.randn(100, 64).bfloat16()
    file = tmp_path / "model.safetensors"
    save_file({"model.embed_tokens.weight": table, "other": other}, file)
    reader = WeightReader(tmp_path, CPU, torch.float32).start()
    found = reader.tensors()
    reader.finish()
    assert found["other"].dtype == torch.float32
    assert torch.equal(found["model.embed_tokens.weight"], table)
    resident = _resident(file)
    reader.give_back(found["model.embed_tokens.weight"])
    reader.give_back(found["other"])  # memory of its own: nothing happens
    assert _resident(file) < max(resident, 1)
    assert torch.equal(found["model.embed_tokens.weight"], table)


def _resident(file: Path) -> int:
    """KiB of a mapped file that the process holds."""
    parts = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) for part in parts)


def _cut(data: bytes) -> bytes:
    return data[:-3]


def _longer(data: bytes) -> bytes:
    return data + b"\0"


def _no_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**40) + data[8:]


def _half_header(data: bytes) -> bytes:
    return data[:20]


def _no_json(data: bytes) -> bytes:
    return data[:8] + b"\xff" + data[9:]


def _wrong_shape(data: bytes) -> bytes:
    return data.replace(b"[300,70]", b"[300,71]")


def _nothing(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("harm", [_cut, _longer, _no_header, _half_header, _no_json, _wrong_shape, _nothing])
def test_a_damaged_file_is_named_before_anything_is_read(file: Path, harm: Any) -> None:
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        WeightReader(file.parent, CPU, torch.float32).start().tensors()


@pytest.mark.parametrize("kind", [0, 1])
def test_files_pages_are_no_used_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    _, most, used, cached = memory.CGROUPS[kind]
    told = {most: "10000000", used: "7000000", "memory.stat": f"anon 1\n{cached[0]} 5000000\n{cached[1]} 1000000"}
    for name, text in told.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, most, used, cached),))
    assert memory.free_bytes(CPU) == 9_000_000
    (tmp_path / most).write_text("max\n")
    assert memory.free_bytes(CPU) > 9_000_000


def test_too_little_memory_is_told_with_numbers_before_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(ModelError, match=r"need 0\.0 GiB on cpu, but 0\.0 GiB are free\. Use a smaller model"):
        WeightReader(file.parent, CPU, torch.float32).start().tensors()


@pytest.mark.parametrize(
    ("free", "expected"), [([10**6], 1), ([10**6, 0], 1), ([60_000, 60_000], 2), ([20_000, 60_000, 60_000], 3)]
)
def test_what_no_gpu_holds_alone_is_spread_over_all(
    file: Path, monkeypatch: pytest.MonkeyPatch, free: list[int], expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(load_plan, "free_bytes", lambda device: free[device.index])
    assert load_plan.devices_for(file.parent, torch.float32) == expected


def test_what_all_gpus_do_not_hold_is_told_with_numbers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(load_plan, "free_bytes", lambda _: 1000)
    with pytest.raises(ModelError, match=r"2 GPUs have 0\.0 GiB free\. Use a smaller model"):
        load_plan.devices_for(file.parent, torch.float32)


def test_what_is_free_is_within_the_containers_limit() -> None:
    assert 0 < memory.free_bytes(CPU) < 2**50


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_the_model_is_the_one_that_the_library_loads(tmp_path: Path, family: str) -> None:
    folder = checkpoints.write(family, tmp_path / family)
    ours = module_of(load(Settings(model_path=folder, device="cpu", model_code="transformers")).runner).state_dict()
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tied_weights_are_one_tensor() -> None:
    module = module_of(load(Settings(device="cpu", model_code="transformers")).runner)
    assert module.lm_head.weight is module.get_input_embeddings().weight


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.write("qwen3_vl", tmp_path / "model")
    body = json.loads((folder / "config.json").read_text())
    body["text_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(
        ModelError, match=r"is not a qwen3_vl: the tensor model\.language_model\.layers\.4\S+ is missing"
    ):
        load(Settings(model_path=folder, device="cpu"))
    with pytest.raises(ModelError, match=r"is not a qwen3_vl: \d+ tensors are missing"):
        load(Settings(model_path=folder, device="cpu", model_code="transformers"))


@pytest.mark.parametrize(("part", "name"), [("text_config", "num_hidden_layers"), ("vision_config", "depth")])
def test_a_config_that_does_not_say_a_shape_is_refused_by_its_name(tmp_path: Path, part: str, name: str) -> None:
    folder = checkpoints.write("qwen3_vl", tmp_path / "model")
    body = json.loads((folder / "config.json").read_text())
    body[part].pop(name)
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match=f"has no '{name}'"):
        load(Settings(model_path=folder, device="cpu", model_code="native"))


def test_an_unknown_model_type_is_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoints.write("qwen3_vl", tmp_path / "model")
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**body, "model_type": "nothing_known"}))
    with pytest.raises(ModelError, match="the model type nothing_known is not supported"):
        load(Settings(model_path=folder, device="cpu"))


@pytest.mark.parametrize(
    ("own", "wanted", "told"),
    [
        ("gptq", "none", "gptq need a CUDA device"),
        ("awq", "none", "awq need a CUDA device"),
        ("fp8", "4bit", r"QUANTIZATION=4bit, but the checkpoint is quantized already \(fp8\)"),
    ],
)
def test_quantised_weights_are_refused_where_they_cannot_be(
    tmp_path: Path, own: str | None, wanted: str, told: str
) -> None:
    folder = checkpoints.write("qwen3_vl", tmp_path / "model")
    body = json.loads((folder / "config.json").read_text())
    if own:
        body["quantization_config"] = {"quant_method": own}
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match=told):
        load(Settings(model_path=folder, device="cpu", quantization=wanted))  # type: ignore[arg-type]


CONVERSATIONS = [
    [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "你好 <x>"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": [{"type": "text", "text": "Yes?"}]},
    ],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_template_writes_what_the_librarys_tokenizer_writes(conversation: list[dict[str, Any]]) -> None:
    library = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    expected = library.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(EMBEDDED_MODEL).render(conversation) == expected


def test_a_template_may_lie_in_the_tokenizers_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ eos_token }}", "eos_token": "E"}))
    assert ChatTemplate(tmp_path).render([]) == "E"


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        ChatTemplate(tmp_path)
