"""What the engine asks of a GPU, without one: models of true shapes on fake CUDA tensors, which have shapes, dtypes and
devices and no numbers.

An operation between two devices fails there, and so does one that must wait for a number. Operations are counted as
torch dispatches them: what only says how memory is seen is none; a kernel of torch's may be several on the device.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from builder.published import config, model
from worker.checkpoint.family_rules import QWEN2_VL_PIXELS, QWEN3_VL_PIXELS
from worker.core.safe_json import JsonObject
from worker.engine import logits_step
from worker.engine.logits_step import LogitsStep
from worker.engine.sampling import ResolvedSampling, Sampler
from worker.models import pixel_values as pixels_module
from worker.models.families import FAMILIES
from worker.models.kv_arena import KVArena
from worker.models.native.layers import Tensors
from worker.models.native.runner import PATCHES_A_PASS, NativeRunner
from worker.models.native.shapes import read
from worker.models.runner import Features, Newest, PrefillChunk
from worker.models.varlen import flash
from worker.prompt.patches import Patches
from worker.prompt.types import MediaItem, Prompt

CUDA = torch.device("cuda", 0)
NAMES = ("Qwen3-VL-2B-Instruct", "Qwen3-VL-8B-Instruct", "Qwen3-VL-30B-A3B-Instruct", "Qwen2.5-VL-7B-Instruct")
ATTENTION = "_flash_attention_forward"
MOST_A_LAYER = {"dense": 16, "with experts": 28}
VIEWS = {
    *("view", "reshape", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "as_strided", "alias"),
    *("split", "split_with_sizes", "narrow", "detach", "empty", "empty_like", "new_empty", "unflatten", "flatten"),
    *("_unsafe_view", "unbind", "permute", "lift_fresh", "_reshape_alias", "chunk", "view_as", "empty_strided"),
    *("device", "dim", "sym_size", "is_pinned"),
}


def indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """`tensor[index]` by operations: torch's own asks a device that is not there."""
    at = 0
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        place = parts.index(Ellipsis)
        missing = tensor.ndim - sum(part is not None for part in parts) + 1
        parts = (*parts[:place], *[slice(None)] * missing, *parts[place + 1 :])
    for part in parts:
        if part is None:
            tensor = tensor.unsqueeze(at)
        elif isinstance(part, torch.Tensor):
            tensor = tensor.index_select(at, part) if part.ndim == 1 else torch.ops.aten.index(tensor, [part])
        elif isinstance(part, slice):
            begin, end, step = part.indices(tensor.shape[at])
            tensor = torch.ops.aten.slice(tensor, at, begin, end, step)
        else:
            tensor = tensor.select(at, part)
            continue
        at += 1
    return tensor


def put(tensor: torch.Tensor, index: Any, value: Any) -> None:
    """`tensor[index] = value`."""
    if isinstance(index, torch.Tensor):
        tensor.index_put_((index,), value)
    else:
        torch.ops.aten.copy_(indexed(tensor, index), value)


def spots_of(
    chunks: list[PrefillChunk], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]] | None:
    """`placed`, which asks the host where a picture's tokens are: fake tensors do not say."""
    features = [features for chunk in chunks for features in chunk.seen.values()]
    if not features:
        return None
    spots = torch.empty(sum(len(each.embeds) for each in features), dtype=torch.long, device=device)
    deep = [torch.cat(level) for level in zip(*(each.deep for each in features), strict=True)]
    return spots, torch.cat([each.embeds for each in features]), deep


class WithoutDevice(TorchFunctionMode):
    """Does otherwise what torch asks a device about."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.Tensor.pin_memory:
            return arguments[0]
        if function is torch.Tensor.__getitem__ and arguments[0].device == CUDA:
            return indexed(*arguments)
        if function is torch.Tensor.__setitem__ and arguments[0].device == CUDA:
            return put(*arguments)
        if function is torch.Tensor.copy_ and arguments[0].device == CUDA:
            return torch.ops.aten.copy_(*arguments)
        return function(*arguments, **(options or {}))


class OnFakeDevice:
    """While inside, tensors are fake."""

    def __init__(self) -> None:
        self._modes = FakeTensorMode(allow_non_fake_inputs=True), WithoutDevice()
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> None:
        for mode in self._modes:
            self._inside.enter_context(mode)

    def __exit__(self, *_: object) -> None:
        self._inside.close()


class Operations(TorchDispatchMode):
    """Operations that compute something, and what is copied from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.num_read = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operation(*arguments, **(options or {}))
        name = operation._schema.name.partition("::")[2]
        tensors = [part for part in arguments if isinstance(part, torch.Tensor)]
        if name in ("_to_copy", "copy_") and tensors[-1].device == CUDA and result.device.type == "cpu":
            self.num_read += 1
        if name not in VIEWS and any(part.device == CUDA for part in (result, *tensors) if torch.is_tensor(part)):
            self.names.append(name)
        return result

    @property
    def layers(self) -> list[list[str]]:
        """Of each layer, from its attention to the next one's."""
        at = [index for index, name in enumerate(self.names) if name == ATTENTION]
        return [self.names[begin:end] for begin, end in pairwise(at)]


@dataclass
class Fake:
    runner: NativeRunner
    config: JsonObject
    is_sparse: bool


@pytest.fixture(scope="module")
def fake_mode() -> Iterator[OnFakeDevice]:
    with pytest.MonkeyPatch.context() as patched:
        # There are no streams beside the one of the thread.
        patched.setattr(pixels_module, "_copied", lambda pixels, device: pixels.to(device))
        patched.setattr("worker.models.native.stepping.placed", spots_of)
        # Whether tensors lie behind each other in a file is not known of fake ones.
        patched.setattr(
            Tensors,
            "joined",
            lambda left, prefix, names, suffix, rows, *rest: torch.cat(
                [left.take(f"{prefix}{name}{suffix}", count, *rest) for name, count in zip(names, rows, strict=True)]
            ),
        )
        yield OnFakeDevice()


@pytest.fixture(scope="module", params=NAMES)
def fake(request: pytest.FixtureRequest, fake_mode: OnFakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Fake:
    of = model(request.param)
    body, folder = config(of), Path(tmp_path_factory.mktemp("config"))
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    known = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        library = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(known)](known)
    shapes = {name: tuple(tensor.shape) for name, tensor in library.state_dict().items()}
    rules = QWEN2_VL_PIXELS if "2.5" in of.name else QWEN3_VL_PIXELS
    code = FAMILIES[of.kind].native
    assert code is not None
    if read(body, code.layout)[0].is_tied:
        shapes.pop("lm_head.weight")
    with fake_mode:
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device=CUDA) for name, shape in shapes.items()}
        runner = NativeRunner(code, body, tensors, rules, CUDA, kernel=flash, tower_kernel=flash)
    return Fake(runner, body, "A3B" in of.name)


def prompt(length: int, pictures: int = 0, tokens: int = 0) -> Prompt:
    """Text, with pictures of so many tokens in it."""
    item_of, offset_of = torch.full((length,), -1), torch.full((length,), -1)
    for index in range(pictures):
        at = slice(4 + index * (tokens + 3), 4 + index * (tokens + 3) + tokens)
        item_of[at], offset_of[at] = index, torch.arange(tokens)
    ids = tuple(range(100, 100 + length))
    return Prompt(ids, torch.arange(length).expand(3, -1), 0, (), item_of, offset_of, torch.arange(length))


def item(runner: NativeRunner, frames: int, height: int, width: int) -> MediaItem:
    patch = runner._preprocessor.patch
    copies = 1 if frames == 1 else runner._preprocessor.temporal
    pixels = torch.zeros(frames * height * width, 3 * copies * patch * patch, dtype=torch.uint8)
    return MediaItem("image" if frames == 1 else "video", Patches(pixels, (frames, height, width), copies), b"")


def running(fake: Fake, lengths: list[int]) -> KVArena:
    arena = fake.runner.kv_cache(2**36)
    assert isinstance(arena, KVArena)
    for length in lengths:
        arena.join(arena.prefill_cache(length, length + 300), length, length + 300)
    return arena


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_step_waits_for_nothing_and_a_layer_is_few_operations(fake: Fake, fake_mode: OnFakeDevice, rows: int) -> None:
    with fake_mode:
        lengths = [100 + 37 * row for row in range(rows)]
        arena = running(fake, lengths)
        with Operations() as seen:
            logits = fake.runner.decode([5] * rows, lengths, arena)
    assert (logits.device, logits.shape[0]) == (CUDA, rows)
    assert seen.num_read == 0
    layers = seen.layers
    assert len(layers) == fake.runner.text.shape.layers - 1
    most = MOST_A_LAYER["with experts" if fake.is_sparse else "dense"]
    assert max(map(len, layers)) <= most, " ".join(layers[0])
    outside = len(seen.names) - sum(map(len, layers))
    assert outside <= 2 * most + 10


def test_a_step_takes_its_tokens_from_the_device(fake: Fake, fake_mode: OnFakeDevice) -> None:
    """Three rows whose tokens nobody has read, one that has just joined, and one that has all it may have."""
    with fake_mode:
        arena = running(fake, [10, 20, 30, 40, 50])
        newest = Newest(torch.empty(4, dtype=torch.long, device=CUDA), [2, 0, 3, 0, 1])
        with Operations() as seen:
            logits = fake.runner.decode([-1, -1, -1, 7, -1], [10, 20, 30, 40, 50], arena, (), newest, [4])
    assert (logits.device, logits.shape[0], seen.num_read) == (CUDA, 5, 0)
    arena.end_step()
    assert arena.lengths == [11, 21, 31, 41, 50]


def test_prompts_chunks_and_rows_that_are_fed_several_tokens_wait_for_nothing(
    fake: Fake, fake_mode: OnFakeDevice
) -> None:
    """A whole prompt, a second chunk with a picture in it, and a step: one attention a layer each."""
    runner = fake.runner
    hidden, deep = runner.text.shape.hidden, 3 if "Qwen3" in str(fake.config["architectures"]) else 0
    with fake_mode:
        arena = running(fake, [])
        shown = Features(
            torch.empty(64, hidden, dtype=torch.bfloat16, device=CUDA),
            tuple(torch.empty(64, hidden, dtype=torch.bfloat16, device=CUDA) for _ in range(deep)),
        )
    plain, pictured = prompt(90), prompt(400, 1, 64)
    with fake_mode:
        caches = [arena.prefill_cache(len(each.ids), 900) for each in (plain, pictured)]
        runner.prefill([PrefillChunk(pictured, (), slice(0, 30), {}, caches[1])])
        chunks = [
            PrefillChunk(plain, (), slice(0, 90), {}, caches[0]),
            PrefillChunk(pictured, (), slice(30, 400), {0: shown}, caches[1]),
        ]
        with Operations() as seen:
            logits = runner.prefill(chunks)
        assert logits.shape[0] == 2
        assert seen.num_read == 0
        assert seen.names.count(ATTENTION) == runner.text.shape.layers
        for cache, length in zip(caches, (90, 400), strict=True):
            assert cache.length == length
            arena.join(cache, length, 900)
        with Operations() as seen:
            logits = runner.decode([5, 6], [90, 403], arena, [[], [7, 8, 9]])
        assert logits.shape[0] == 2
        assert seen.num_read == 0
        assert seen.names.count(ATTENTION) == runner.text.shape.layers
        arena.end_step()
        assert arena.lengths == [91, 404]


def test_pictures_and_windows_are_one_attention_a_layer_and_a_clip_goes_in_passes(
    fake: Fake, fake_mode: OnFakeDevice
) -> None:
    runner = fake.runner
    shown = [(1, 16, 24), (1, 64, 64), (4, 32, 32)]
    with fake_mode:
        with Operations() as seen:
            features = runner.features([item(runner, *grid) for grid in shown])
        assert [len(each.embeds) for each in features] == [t * h * w // 4 for t, h, w in shown]
        depth = seen.names.count(ATTENTION)
        assert depth in (24, 27, 32)
        assert seen.num_read == 0
        long = (40, 48, 48)  # 92,160 patches
        with Operations() as seen:
            (feature,) = runner.features([item(runner, *long)])
    assert len(feature.embeds) == 40 * 48 * 48 // 4
    assert seen.names.count(ATTENTION) == depth * -(-40 // (PATCHES_A_PASS // 48**2))


SAMPLING = {
    "greedy": ResolvedSampling(0.0),
    "the card's": ResolvedSampling(0.7, top_p=0.8, top_k=20, presence_penalty=1.5),
    "the checkpoint's": ResolvedSampling(0.1, top_k=1, repetition_penalty=1.05),
    "all tokens": ResolvedSampling(1.0, top_p=0.95, min_p=0.01),
    "everything": ResolvedSampling(1.0, 0.9, 40, 1, 0.02, 1.1, 0.5, 0.2, ((7, 1.0), (9, -1.0)), 3),
}


@pytest.mark.parametrize("rules", SAMPLING)
@pytest.mark.parametrize("rows", [1, 64])
def test_sampling_is_the_same_few_operations_for_any_number_of_rows_and_one_copy(
    fake_mode: OnFakeDevice, monkeypatch: pytest.MonkeyPatch, rules: str, rows: int
) -> None:
    """Log-probabilities of half of the rows among it."""
    vocabulary, reads = 151_936, []

    def downloading(numbers: torch.Tensor) -> Callable[[], npt.NDArray[np.float64]]:
        reads.append(numbers.shape)
        return lambda: np.ones(reads[-1])

    monkeypatch.setattr(logits_step, "downloading", downloading)
    samplers = [
        Sampler(SAMPLING[rules], torch.arange(40), (5,), num_logprobs=3 if index % 2 else None) for index in range(rows)
    ]
    step = LogitsStep()
    with fake_mode:
        logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16, device=CUDA)
        for _ in range(3):
            reads.clear()
            with Operations() as seen:
                found = step(logits, samplers)
            for sampler in samplers:
                sampler.accept(7)
    assert len(found) == rows
    assert len(reads) == 1
    assert seen.num_read == 0
    assert len(seen.names) <= 75, " ".join(seen.names)
