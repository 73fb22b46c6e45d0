"""Steps and tokens on a GPU in the true shapes of Qwen3-VL: eager and recorded, beside `generate` and the bandwidth.

python -m benchmarks.gpu --shape 2b|4b|8b [--save]

Random weights in bfloat16, made on the card; nothing is downloaded, and of requirements.txt it needs no more than
torch, transformers and pydantic. "bandwidth" is that of copying 4 GiB within the card; the share that a step has of it
counts every weight of the text model once, and the keys and values that it reads. `--trial` runs it all with a tiny
shape on whatever is there, a CPU too: its figures mean nothing.
"""

import argparse
import copy
import gc
import queue
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.report import environment, save
from worker.checkpoint.chat_template import ChatTemplate
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as RULES
from worker.checkpoint.spec import FamilySpec
from worker.checkpoint.tokenizer import read_tokenizer
from worker.core.contract import Done, Event
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.core.settings import EMBEDDED_MODEL
from worker.core.settings import load as settings
from worker.engine.engine import continuous_engine
from worker.models.loading import LoadedModel
from worker.models.native.graphs import EAGER_STEPS, CudaRecorder, StepGraphs
from worker.models.native.qwen3_vl import QWEN3_VL
from worker.models.native.runner import NativeRunner
from worker.models.runner import prefilled
from worker.prompt.patches import Patches
from worker.prompt.types import MediaItem, Prompt

# hidden, layers, heads, intermediate, tied; the tower's depth, hidden, intermediate, its deep layers
SHAPES: dict[str, tuple[Any, ...]] = {
    "2b": (2048, 28, 16, 6144, True, 24, 1024, 4096, (5, 11, 17)),
    "4b": (2560, 36, 32, 9728, True, 24, 1024, 4096, (5, 11, 17)),
    "8b": (4096, 36, 32, 12_288, False, 27, 1152, 4304, (8, 16, 24)),
    "trial": (128, 2, 4, 256, True, 2, 64, 128, (0,)),
}
ROWS = (1, 8, 32, 64)
CONTEXT, ANSWER, NUM_JOBS = 512, 128, 1000
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Card:
    """Where it runs. scale: of the amounts of work, below one for a trial."""

    device: torch.device
    scale: float

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def held(self) -> int:
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def amount(self, count: int) -> int:
        return max(2, round(count * self.scale))

    def seconds(self, work: Callable[[], object], times: int) -> float:
        """Of one `work`, the median of `times` after two for warming up."""
        took = []
        for index in range(times + 2):
            self.sync()
            begin = time.perf_counter()
            work()
            self.sync()
            took += [time.perf_counter() - begin] if index >= 2 else []
        return statistics.median(took)


def config(shape: str) -> JsonObject:
    hidden, layers, heads, intermediate, tied, depth, seen, tower, deep = SHAPES[shape]
    dim = 128 if shape != "trial" else 32
    sections = [24, 20, 20] if shape != "trial" else [6, 5, 5]
    return {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151_936,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": min(8, heads),
            "head_dim": dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262_144,
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": depth,
            "hidden_size": seen,
            "intermediate_size": tower,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(deep),
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def prompt(length: int, seed: int) -> Prompt:
    """Made-up words, no two prompts alike."""
    rng = random.Random(seed)
    ids = tuple(rng.randrange(100_000) for _ in range(length))
    nowhere = torch.full((length,), -1)
    fingerprint = torch.tensor(ids) + seed * 1_000_003
    return Prompt(ids, torch.arange(length).expand(3, -1), 0, (), nowhere, nowhere, fingerprint)


def bandwidth(card: Card) -> float:
    """Bytes a second read and written by a copy within the card."""
    source = torch.zeros(card.amount(4 * GIB // 8), dtype=torch.float64, device=card.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / card.seconds(lambda: target.copy_(source), 5)


def library(card: Card, body: JsonObject) -> tuple[dict[str, torch.Tensor], float]:
    """The model's tensors, and the tokens a second of `generate` for one request after the other."""
    read = AutoConfig.for_model(**body)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with card.device:
            module = AutoModelForImageTextToText.from_config(read, dtype=torch.bfloat16).eval()
    finally:
        torch.set_default_dtype(before)
    ids = torch.tensor([prompt(CONTEXT, 1).ids], device=card.device)
    tokens = card.amount(ANSWER)

    def generate() -> object:
        return module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.zeros_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )

    rate = tokens / card.seconds(generate, 2)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if body["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    return tensors, rate


@dataclass(frozen=True)
class StepTime:
    """Of a decode step of so many rows: milliseconds eager and recorded, recording's own seconds and bytes."""

    rows: int
    eager_ms: float
    recorded_ms: float | None
    capture_s: float
    capture_bytes: int
    bytes_read: int


def step_time(card: Card, eager: NativeRunner, recorded: NativeRunner | None, rows: int, weights: int) -> StepTime:
    """Rows of CONTEXT tokens each, all of one prompt: a step's time does not depend on what they say."""
    length = card.amount(CONTEXT)
    built = prompt(length, 3)
    cache, _ = prefilled(eager, built)
    tokens, positions = [5] * rows, [length] * rows
    took: list[float] = []
    capture_s, capture_bytes = 0.0, 0
    for runner in (eager, recorded):
        if runner is None:
            continue
        slots = runner.kv_cache()
        slots.expect([length + 100] * rows)
        for _ in range(rows):
            slots.join(cache, length, length + 100)
        if runner is recorded:
            for _ in range(EAGER_STEPS):
                runner.decode(tokens, positions, slots)
            held, begin = card.held(), time.perf_counter()
            runner.decode(tokens, positions, slots)
            card.sync()
            capture_s, capture_bytes = time.perf_counter() - begin, card.held() - held
        took.append(card.seconds(lambda r=runner, s=slots: r.decode(tokens, positions, s), card.amount(30)))  # type: ignore[misc]
    read = weights + rows * length * eager.bytes_per_token
    return StepTime(rows, took[0] * 1e3, took[1] * 1e3 if recorded else None, capture_s, capture_bytes, read)


def engine_rate(card: Card, model: LoadedModel, jobs: int, length: int, tokens: int) -> tuple[float, list[int]]:
    """Tokens a second of so many jobs at once through the whole engine; the memory held after each hundred."""
    served = continuous_engine(model, settings({"MAX_NUM_SEQS": "64", "MAX_QUEUE": "2000", "PREFIX_CACHE_MIB": "0"}))
    served.start()
    ends: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, stop=())
    prompts = [prompt(length, seed) for seed in range(jobs)]

    def emit(event: Event | WorkerError) -> None:
        if isinstance(event, Done | WorkerError):
            ends.put(event)

    held = []
    try:
        begin = time.perf_counter()
        for built in prompts:
            served.submit(built, sampling, emit)
        for index in range(jobs):
            end = ends.get(timeout=300)
            if isinstance(end, WorkerError):
                raise end
            if index % 100 == 99:
                held.append(card.held())
        return jobs * tokens / (time.perf_counter() - begin), held
    finally:
        served.close()


def loaded(card: Card, runner: NativeRunner) -> LoadedModel:
    return LoadedModel(
        spec=FamilySpec(
            name="random",
            family=QWEN3_VL,
            template=ChatTemplate(EMBEDDED_MODEL),
            tokenizer=read_tokenizer(EMBEDDED_MODEL),
            preprocessor=RULES,
            generation={},
            eos_ids=frozenset(),
            max_model_len=32_768,
            vocabulary_size=151_936,
            tokens_per_second=2.0,
        ),
        code="native",
        runner=runner,
        device=card.device,
        dtype=torch.bfloat16,
    )


def picture(card: Card) -> MediaItem:
    side = 64 if card.scale == 1 else 16
    pixels = torch.randint(0, 255, (side * side, 768), dtype=torch.uint8)
    return MediaItem("image", Patches(pixels, (1, side, side), 1), b"")


def measure(card: Card, shape: str) -> tuple[JsonObject, str]:
    begin = time.perf_counter()
    body, speed = config(shape), bandwidth(card)
    tensors, generate_rate = library(card, body)
    gc.collect()
    weights = sum(t.nbytes for name, t in tensors.items() if ".visual." not in name)
    if not body["tie_word_embeddings"]:
        weights -= next(t.nbytes for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
    assert QWEN3_VL.native is not None
    eager = NativeRunner(QWEN3_VL.native, body, tensors, RULES, card.device)
    recorded = None
    if card.device.type == "cuda":
        recorded = copy.copy(eager)  # the weights once
        recorded.graphs = StepGraphs(recorded._step, card.device, CudaRecorder(card.device))
    gc.collect()
    steps = [step_time(card, eager, recorded, rows, weights) for rows in ROWS]
    long = prompt(card.amount(1024), 2)

    def prefill() -> object:
        return prefilled(eager, long)

    seen = picture(card)
    prefill_s, vision_s = card.seconds(prefill, 5), card.seconds(lambda: eager.features([seen]), 5)
    model = loaded(card, recorded or eager)
    tokens = card.amount(ANSWER)
    engine_rate(card, model, 2, 64, 8)  # libraries choose their kernels
    rates = {jobs: engine_rate(card, model, jobs, card.amount(CONTEXT), tokens)[0] for jobs in ROWS}
    _, held = engine_rate(card, model, NUM_JOBS if card.scale == 1 else 100, 32, 8)
    facts = {
        "shape": shape,
        "bandwidth_gb_s": speed / 1e9,
        "weights_gb": weights / 1e9,
        "generate_tokens_s": generate_rate,
        "prefill_1024_ms": prefill_s * 1e3,
        "picture_of_1024_tokens_ms": vision_s * 1e3,
        "steps": [vars(step) for step in steps],
        "engine_tokens_s": rates,
        "held_mib_after_each_hundred_jobs": [each // MIB for each in held],
        "seconds": time.perf_counter() - begin,
    }
    return facts, table(facts, steps)


def table(facts: JsonObject, steps: list[StepTime]) -> str:
    lines = [
        f"Qwen3-VL {facts['shape']}, bfloat16, {facts['weights_gb']:.1f} GB of text weights; copying within the card "
        f"{facts['bandwidth_gb_s']:.0f} GB/s; one by one by `generate` {facts['generate_tokens_s']:.1f} tokens/s.",
        f"A prompt of 1,024 tokens: {facts['prefill_1024_ms']:.1f} ms; a picture of 1,024 tokens: "
        f"{facts['picture_of_1024_tokens_ms']:.1f} ms.",
        "",
        "| jobs | step eager, ms | recorded, ms | of bandwidth | recording, s | MiB | engine, tokens/s | x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        best = min(step.eager_ms, step.recorded_ms or step.eager_ms)
        share = step.bytes_read / (best / 1e3) / (facts["bandwidth_gb_s"] * 1e9)
        rate = facts["engine_tokens_s"][step.rows]
        shown = "" if step.recorded_ms is None else f"{step.recorded_ms:.2f}"
        lines.append(
            f"| {step.rows} | {step.eager_ms:.2f} | {shown} | {share:.0%} | {step.capture_s:.2f} | "
            f"{step.capture_bytes / MIB:.0f} | {rate:.0f} | {rate / facts['generate_tokens_s']:.1f} |"
        )
    held = facts["held_mib_after_each_hundred_jobs"]
    lines += ["", f"Memory held after each hundred jobs, MiB: {', '.join(map(str, held))}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("2b", "4b", "8b"), default="2b")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--trial", action="store_true", help="a tiny shape on whatever is there")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.trial:
        sys.exit("no GPU: torch sees no CUDA device. --trial runs it on the CPU, for its code")
    card = Card(torch.device("cuda" if has_gpu else "cpu"), 0.02 if options.trial else 1.0)
    shape = "trial" if options.trial else options.shape
    facts, shown = measure(card, shape)
    if options.save and has_gpu:
        gpu = torch.cuda.get_device_name(card.device)
        save(f"gpu-{shape}", {**environment(f"python -m benchmarks.gpu --shape {shape}", gpu=gpu), **facts}, shown)
    print(shown)


if __name__ == "__main__":
    main()
