"""The parts of `benchmarks.gpu`: each measures one thing and says it as a table."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_bench import MIB, Bench, table
from benchmarks.gpu_engine import engine, generate, start, tiny_tokens
from benchmarks.gpu_model import VOCABULARY, Drawn, drawn, prompt, shown
from worker.core.safe_json import JsonObject
from worker.engine.logits_step import LogitsStep
from worker.engine.sampling import ResolvedSampling, Sampler
from worker.models.kv_arena import KVArena
from worker.models.native.graphs import fed_numbers
from worker.models.runner import prefilled
from worker.models.varlen import TEXT_MODES, TOWER_MODES, Lengths, is_right, plain

ROWS = (1, 8, 32, 64)
CONTEXTS = (1024, 8192)


def choices(bench: Bench) -> JsonObject:
    """What a new width of keys costs: torch's attention with a mask, with cuDNN and without, and attention by lengths.
    The first call at each of ten widths, and the second."""
    rows: list[list[object]] = []
    dtype = torch.bfloat16

    def masked(width: int) -> object:
        query = torch.zeros(8, 8, 4, 128, device=bench.device, dtype=dtype)
        keys = torch.zeros(8, 8, width, 128, device=bench.device, dtype=dtype)
        mask = torch.zeros(8, 1, 1, width, device=bench.device, dtype=dtype)
        return functional.scaled_dot_product_attention(query, keys, keys, attn_mask=mask)

    def by_lengths(width: int) -> object:
        query = torch.zeros(8, 32, 128, device=bench.device, dtype=dtype)
        keys = torch.zeros(8 * width, 8, 128, device=bench.device, dtype=dtype)
        ends = torch.arange(9, dtype=torch.int32, device=bench.device)
        used = torch.full((8,), width, dtype=torch.int32, device=bench.device)
        lengths = Lengths(ends, ends * width, used, 1, width)
        return bench.kernel(query, keys, keys, lengths, scale=0.1, is_causal=True)

    ways: list[tuple[str, Callable[[int], object], bool]] = [
        ("with a mask, cuDNN allowed", masked, True),
        ("with a mask, without cuDNN", masked, False),
        ("by lengths", by_lengths, False),
    ]
    for name, work, has_cudnn in ways:
        torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
        try:
            took = []
            for width in range(1001, 1011):
                for _ in range(2):
                    bench.sync()
                    begin = time.perf_counter()
                    work(width)
                    bench.sync()
                    took.append((time.perf_counter() - begin) * 1e3)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)
        rows.append([name, statistics.median(took[::2]), max(took[::2]), statistics.median(took[1::2])])
    return {"rows": rows, "shown": table("attention | first call, ms | the longest | second call, ms", rows)}


def right(bench: Bench) -> JsonObject:
    """The kernel in each mode; a random model of two layers beside the same on the CPU in float32; recorded steps
    beside eager ones; greedy tokens of the demonstration model beside those of the CPU."""
    rows: list[list[object]] = []
    of_text, dtype = ((16, 8, 128), (32, 8, 128), (28, 4, 128)), torch.bfloat16
    for heads in of_text:
        for mode in TEXT_MODES:
            rows.append([f"{heads}, {mode.name}", is_right(bench.kernel, (mode,), *heads, dtype, bench.device)])
    for dim in (64, 72, 80):
        rows.append([f"tower, {dim}", is_right(bench.kernel, TOWER_MODES, 16, 16, dim, dtype, bench.device)])
    rows.append(["logits of two layers, CPU in float32: largest difference / largest logit", _against_cpu(bench)])
    rows.append(["recorded and eager logits: the same", _recorded_is_eager(bench)])
    rows.append(["demonstration model: tokens as on the CPU", tiny_tokens(bench)])
    return {"rows": rows, "shown": table("what | right", rows)}


def _logits(model: Drawn) -> list[torch.Tensor]:
    """Of a prompt in two chunks, of two decoded tokens, and the features of a picture."""
    runner, built = model.runner, prompt(300, 1)
    slots = runner.kv_cache(2**30)
    cache, first = prefilled(runner, built, slots)
    slots.join(cache, 300, 400)
    said = [first]
    for index, token in enumerate((5, 9)):
        said.append(runner.decode([token], [300 + index], slots)[0].clone())
        slots.end_step()
    (seen,) = runner.features([shown(1, 16, 24)])
    return [each.float().to("cpu") for each in (*said, seen.embeds)]


def _against_cpu(bench: Bench) -> float:
    shape = "two layers" if bench.shape != "trial" else "trial"
    here = drawn(shape, bench.device, kernel=bench.kernel)
    there = drawn(shape, torch.device("cpu"), torch.float32, kernel=plain, like=here.tensors)
    pairs = zip(_logits(here), _logits(there), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def _rows_of(bench: Bench, rows: int, length: int, more: int = 200) -> KVArena:
    """A cache in which so many rows have so many tokens, whatever these say."""
    shape = bench.model.runner.text.shape
    per_token = bench.model.runner.bytes_per_token
    arena = bench.model.runner.kv_cache((rows * (length + more + 600) + 64) * per_token)
    assert isinstance(arena, KVArena)
    arena.store.normal_(0, 0.5) if rows * length * per_token < 2**34 else arena.store[:1].normal_(0, 0.5)
    assert shape.layers == len(arena.store)
    for _ in range(rows):
        arena.join(arena.prefill_cache(length, length + more), length, length + more)
    return arena


def _tidied(bench: Bench, rows: int, length: int) -> bool:
    """Record the step of so many rows; whether it is there."""
    graphs = bench.model.runner.steps.graphs
    if graphs is None:
        return False
    key = graphs._key(rows, length + 1)
    graphs._wanted = [key]
    bench.model.runner.tidy()
    return key in graphs._graphs


def _recorded_is_eager(bench: Bench) -> object:
    arena = _rows_of(bench, 3, 100)
    numbers = [5, 6, 7], [100, 100, 100]
    eager = bench.model.runner.decode(*numbers, arena).clone()
    if not _tidied(bench, 3, 100):
        return "not recorded here"
    said = bench.model.runner.decode(*numbers, arena)
    return f"{float((said.float() - eager.float()).abs().max()):.3g} apart"


def steps(bench: Bench) -> JsonObject:
    """A decode step, eager and recorded, beside the time in which the card copies as many bytes as it must read."""
    rate = bench.facts["bandwidth"]["bytes_per_s"] if "bandwidth" in bench.facts else 4e12
    model, rows_of_table = bench.model, list[list[object]]()
    kernels: list[list[object]] = []
    for context in CONTEXTS:
        for rows in ROWS:
            length = bench.amount(context)
            try:
                arena = _rows_of(bench, rows, length)
            except torch.OutOfMemoryError:
                rows_of_table.append([rows, context, "no room", "", "", "", ""])
                continue
            tokens, positions = [5] * rows, [length] * rows
            step = partial(model.runner.decode, tokens, positions, arena)
            eager, host = bench.ms(step), bench.host_ms(step)
            has_graph = _tidied(bench, rows, length)
            recorded = bench.ms(step) if has_graph else float("nan")
            read = model.text_bytes + rows * length * model.runner.bytes_per_token
            floor = read / rate * 1e3
            rows_of_table.append([rows, context, eager, host, recorded, floor, recorded / floor])
            if bench.is_gpu and (rows, context) in ((1, 1024), (64, 1024), (1, 8192)):
                kernels += [[rows, context, *each] for each in _kernels(step)]
            arena.clear()
    shown_steps = table("rows | context | eager, ms | host, ms | recorded, ms | floor, ms | x", rows_of_table)
    shown_kernels = table("rows | context | kernel | times a step | µs a step", kernels)
    return {"steps": rows_of_table, "kernels": kernels, "shown": f"{shown_steps}\n\n{shown_kernels}"}


def _kernels(step: Callable[[], object], most: int = 12) -> list[list[object]]:
    """What the device does in a step, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)
    return [[event.key[:60].replace("|", "/"), event.count / 5, event.device_time_total / 5] for event in events[:most]]


KINDS = {
    "greedy": ResolvedSampling(0.0),
    "top_k 20, top_p 0.8": ResolvedSampling(0.7, top_p=0.8, top_k=20),
    "the same, presence 1.5": ResolvedSampling(0.7, top_p=0.8, top_k=20, presence_penalty=1.5),
    "the same, repetition 1.05": ResolvedSampling(0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
    "top_p 0.95 of all tokens": ResolvedSampling(1.0, top_p=0.95),
    "everything": ResolvedSampling(1.0, 0.9, 40, 1, 0.02, 1.1, 0.5, 0.2, ((7, 1.0), (9, -1.0)), 3),
}


def sampling(bench: Bench) -> JsonObject:
    """From logits to tokens of 64 rows that have said 400 tokens each: the whole step, and the host's part of it."""
    vocabulary = VOCABULARY if bench.scale == 1 else 2000
    rows: list[list[object]] = []
    for name, rules in KINDS.items():
        logits = torch.randn(64, vocabulary, device=bench.device, dtype=torch.bfloat16) * 3
        samplers = [Sampler(rules, torch.arange(40), (5,), index) for index in range(64)]
        for sampler in samplers:
            for token in range(400):
                sampler.accept(token)
        step = LogitsStep()

        def work() -> object:
            said = step(logits, samplers)  # noqa: B023
            for sampler in samplers:  # noqa: B023
                sampler.accept(3)
            return said

        whole = bench.ms(work)
        device_ms = _device_ms(bench, lambda: step(logits, samplers))  # noqa: B023
        rows.append([name, whole, device_ms, whole - device_ms])
    return {"rows": rows, "shown": table("sampling of 64 rows | whole, ms | device, ms | host, ms", rows)}


def _device_ms(bench: Bench, work: Callable[[], object]) -> float:
    """What the kernels alone take."""
    if not bench.is_gpu:
        return 0.0
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(5):
            work()
        torch.cuda.synchronize()
    return float(sum(event.device_time_total for event in seen.key_averages())) / 5e3


def prefill(bench: Bench) -> JsonObject:
    """A prompt of text, whole, and in chunks of 1,024 tokens."""
    runner, rows = bench.model.runner, list[list[object]]()
    parameters = bench.model.text_bytes / 2
    for length in (1024, 4096, 32_768):
        built = prompt(bench.amount(length), 2)
        count = len(built.ids)
        slots = runner.kv_cache((count + 1000) * runner.bytes_per_token)
        whole = partial(prefilled, runner, built, slots)
        took = bench.ms(whole, 3, 1)
        rows.append([count, took, 2 * parameters * count / took / 1e9, bench.peak(whole) / MIB])
    return {"rows": rows, "shown": table("tokens | ms | TFLOP/s of products | peak, MiB", rows)}


def tower(bench: Bench) -> JsonObject:
    """Pictures and films through the vision tower, with what they take of memory at most."""
    runner, rows = bench.model.runner, list[list[object]]()
    side = 64 if bench.scale == 1 else 8
    eight = [shown(1, side - 4 * index if bench.scale == 1 else side, side, index) for index in range(8)]
    kinds = {
        "a picture of 1,024 tokens": [shown(1, side, side)],
        "eight of them": [shown(1, side, side, index) for index in range(8)],
        "eight of other sizes": eight,
        "a film of 16,384 tokens": [shown(64 if bench.scale == 1 else 4, side // 2, side, 3)],
    }
    for name, items in kinds.items():
        work = partial(runner.features, items)
        rows.append([name, bench.ms(work, 3, 1), bench.peak(work) / MIB])
    return {"rows": rows, "shown": table("what | ms | peak, MiB", rows)}


def capture(bench: Bench) -> JsonObject:
    """Recording steps, one after the other: seconds and bytes of each; and the arena's own memory."""
    graphs, rows = bench.model.runner.steps.graphs, list[list[object]]()
    begin = time.perf_counter()
    arena = bench.model.runner.kv_cache(bench.amount(32) * 2**30 if bench.is_gpu else 2**24)
    bench.sync()
    assert isinstance(arena, KVArena)
    rows.append(["the arena", time.perf_counter() - begin, arena.store.nbytes / MIB])
    if graphs is None:
        return {"rows": rows, "shown": table("what | s | MiB", rows) + "\n\nnothing is recorded here"}
    for count in (1, 2, 4, 8, 64):
        graphs._wanted = [graphs._key(count, 1000)]
        held, begin = bench.held(), time.perf_counter()
        bench.model.runner.tidy()
        bench.sync()
        rows.append([f"a step of {count} rows", time.perf_counter() - begin, (bench.held() - held) / MIB])
    fed = fed_numbers([], 64)
    return {"rows": rows, "numbers": fed.numel(), "shown": table("what | s | MiB", rows)}


PARTS: dict[str, Callable[[Bench], JsonObject]] = {
    "choices": choices,
    "right": right,
    "steps": steps,
    "sampling": sampling,
    "prefill": prefill,
    "tower": tower,
    "capture": capture,
    "engine": engine,
    "start": start,
    "generate": generate,
}
