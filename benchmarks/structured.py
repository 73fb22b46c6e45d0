"""What constrained decoding costs: compiling, masks, and steps beside the same steps without a constraint.

python -m benchmarks.structured [--rounds 3]

Compiling and masks with the families' own vocabulary of 151,936 tokens. Steps: 16 answers of a model of true shape with
random weights and that vocabulary, all of them constrained, beside the same answers unconstrained, in turn. Documents:
the same model's whole answers, with jump-forward decoding and token by token, in turn. Exit status 1 where a constraint
costs 5 % of a step or more.
"""

import argparse
import queue
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.report import environment, save
from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.core.contract import ChatRequest, Done, Event, Message, Text
from worker.core.errors import WorkerError
from worker.core.json_schema import prepared
from worker.core.sampling import Constraint, Sampling
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.engine.engine import Engine, continuous_engine
from worker.engine.grammar import GrammarCompiler, GrammarState
from worker.models.loading import load
from worker.models.runner import Runner

ROWS = 16
NUM_TOKENS = 48
LIMIT = 1.05


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _array(items: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def _invoice() -> dict[str, Any]:
    text, money = {"type": "string"}, {"type": "number", "minimum": 0}
    return _object(
        number={"type": "string", "pattern": "^[A-Z0-9-]{3,20}$"},
        date={"type": "string", "format": "date"},
        seller=text,
        buyer={"anyOf": [text, {"type": "null"}]},
        currency={"enum": ["EUR", "USD", "GBP", "CNY"]},
        lines={"type": "array", "items": _object(description=text, quantity={"type": "integer"}, price=money)},
        total=money,
    )


def _optional(count: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"field_{index}": {"type": "string"} for index in range(count)},
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "one string": {"type": "object", "properties": {"shape": {"type": "string"}}, "required": ["shape"]},
    "an invoice": _invoice(),
    "any JSON object": {"type": "object"},
    "100 optional fields": _optional(100),
    "400 optional fields": _optional(400),
    "1,000 choices": {"enum": [f"choice number {index}" for index in range(1000)]},
}
PATTERNS = {
    "a date": r"\d{4}-\d{2}-\d{2}",
    "ambiguous": "(?:a?){200}a{200}",
    "nested repetitions": "(((a{1,100}){1,100}){1,100})",
    "a long window": "(.*a.{40})",
}


# What is certain in an answer is the same whatever the weights: names, quotes, brackets. Its values have about the
# length that they have in real answers.
_WORD, _SIDE = {"type": "string", "minLength": 8, "maxLength": 24}, {"type": "integer", "minimum": 100, "maximum": 999}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "a shape and a color": _object(shape={"enum": ["circle", "square", "star"]}, color={"enum": ["red", "blue"]}),
    "five boxes": _array(_object(bbox_2d=_array(_SIDE, 4), label=_WORD), 5),
    "an invoice": _object(
        number={"type": "string", "pattern": "^[A-Z0-9-]{8,12}$"},
        date={"type": "string", "format": "date"},
        seller=_WORD,
        buyer=_WORD,
        currency={"enum": ["EUR", "USD", "GBP", "CNY"]},
        lines=_array(_object(description=_WORD, quantity=_SIDE, price=_SIDE), 3),
        total=_SIDE,
    ),
}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _masks(state: GrammarState, tokenizer: Tokenizer, rng: random.Random) -> list[float]:
    """Seconds of each mask of a random document."""
    seconds = []
    for _ in range(200):
        seconds.append(_seconds(state.prepare))
        allowed = np.unpackbits(state.mask.view(np.uint8), bitorder="little").nonzero()[0]
        plain = [token for token in rng.choices(allowed.tolist(), k=8) if token not in tokenizer.added]
        if not plain:
            break
        state.accept(plain[0])
        if state.is_complete:
            break
    return seconds


def _compile_figures(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    eos = tokenizer.id_of("<|im_end|>")
    assert eos is not None
    compilers: list[GrammarCompiler] = []
    figures["vocabulary_s"] = _seconds(lambda: compilers.append(GrammarCompiler(tokenizer, size, {eos})))
    forms = {name: Constraint(kind="json_schema", text=prepared(schema, "")) for name, schema in SCHEMAS.items()}
    forms |= {f"regex: {name}": Constraint(kind="regex", text=pattern) for name, pattern in PATTERNS.items()}
    rows = []
    for name, form in forms.items():
        began = time.perf_counter()
        row: dict[str, Any] = {"form": name}
        try:
            grammar = compilers[0].compile(form)
            row["compile_ms"] = 1000 * (time.perf_counter() - began)
            masks = [
                second for seed in range(ROWS) for second in _masks(grammar.begin(), tokenizer, random.Random(seed))
            ]
            row |= {"mask_us": 1e6 * statistics.median(masks), "worst_mask_ms": 1000 * max(masks)}
        except WorkerError as error:
            row["refused"] = error.code
        rows.append(row)
    return {**figures, "forms": rows}


def _answers(engine: Engine, constraint: Constraint | None) -> float:
    """Seconds for each step of ROWS answers of NUM_TOKENS tokens, prefill left out."""
    sampling = Sampling(temperature=1.0, seed=1, n=ROWS, max_tokens=NUM_TOKENS, constraint=constraint, ignore_eos=True)
    return _asked(engine, sampling).step_s()


def _asked(engine: Engine, sampling: Sampling) -> "_Ended":
    constraint, message = sampling.constraint, Message(role="user", parts=(Text(text="Describe it."),))
    request = ChatRequest(messages=(message,), sampling=sampling)
    done = _Ended()
    engine.submit(
        engine.builder.build(request, ()),
        sampling,
        done,
        grammar=engine.constraints.compiled(constraint, request.tools),
    )
    return done


class _Ended:
    """Hears the events of a request, and when they come."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._events: queue.SimpleQueue[tuple[float, Event | WorkerError]] = queue.SimpleQueue()

    def __call__(self, event: Event | WorkerError) -> None:
        self._events.put((time.perf_counter(), event))

    def step_s(self) -> float:
        """From the first token to the end, for each step of ROWS answers. Raises WorkerError."""
        first, end, tokens = self.times()
        return (end - first) / (tokens / ROWS - 1)

    def times(self) -> tuple[float, float, int]:
        """When the first token came and the last, and how many there are of all answers. Raises WorkerError."""
        first = 0.0
        while True:
            at, event = self._events.get()
            if isinstance(event, WorkerError):
                raise event
            first = first or at
            if isinstance(event, Done):
                return first, at, event.usage.completion_tokens


def _engine(folder: Path, *, jumps: bool = True) -> Engine:
    settings = Settings(device="cpu", model_path=folder, max_num_seqs=ROWS)
    model = load(settings)
    if not jumps:
        model = replace(model, runner=_OneByOne(model.runner))
    return continuous_engine(model, settings)


class _OneByOne:
    """A runner whose rows are fed one token in a step."""

    takes_several = False

    def __init__(self, inner: Runner) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _document_figures(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds of whole answers from the prompt on, with jump-forward decoding and without, in turn; one answer at a
    time and ROWS at once."""
    engines = {"token by token": _engine(folder, jumps=False), "jump-forward": _engine(folder)}
    for engine in engines.values():
        engine.start()
    rows = []
    try:
        for name, schema in DOCUMENTS.items():
            constraint = Constraint(kind="json_schema", text=prepared(schema, ""))
            for num_answers in (1, ROWS):
                sampling = Sampling(temperature=1.0, seed=1, n=num_answers, max_tokens=400, constraint=constraint)
                found: dict[str, list[float]] = {way: [] for way in engines}
                counts: dict[str, int] = {}
                for _ in range(rounds):
                    for way, engine in engines.items():
                        asked = _asked(engine, sampling)
                        _, end, counts[way] = asked.times()
                        found[way].append(end - asked.began)
                spent = {way: statistics.median(seconds) for way, seconds in found.items()}
                rows.append({"document": name, "answers": num_answers, "tokens": counts, **spent, "all": found})
    finally:
        for engine in engines.values():
            engine.close()
    return rows


def _step_figures(folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step with a form and without, in turn. All answers have as many steps: none jumps."""
    engine = _engine(folder, jumps=False)
    engine.start()
    endless = {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}, "minItems": 500}
    form = Constraint(kind="json_schema", text=prepared(endless, ""))
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    try:
        _answers(engine, form)  # what the first of all does once
        for _ in range(rounds):
            seconds["without"].append(_answers(engine, None))
            seconds["with"].append(_answers(engine, form))
    finally:
        engine.close()
    steps = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    return {**steps, "ratio": steps["with"] / steps["without"], "all": seconds}


def _table(figures: dict[str, Any]) -> str:
    """As Markdown."""
    compiling, steps = figures["compiling"], figures["steps"]
    rows = [
        f"Reading the vocabulary of 151,936 tokens for the first constraint: {compiling['vocabulary_s']:.2f} s, once.",
        "",
        "| constraint | compile, ms | mask, µs | worst mask, ms |",
        "|---|---|---|---|",
    ]
    for row in compiling["forms"]:
        if "mask_us" in row:
            rows.append(
                f"| {row['form']} | {row['compile_ms']:.1f} | {row['mask_us']:.0f} | {row['worst_mask_ms']:.1f} |"
            )
        else:
            rows.append(f"| {row['form']} | {row['refused']} | | |")
    rows += [
        "",
        f"| {ROWS} answers at once | unconstrained step, ms | constrained step, ms | ratio |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {step['without']:.1f} | {step['with']:.1f} | {step['ratio']:.3f} |" for name, step in steps.items()
    ]
    rows += [
        "",
        "| document | answers at once | tokens of all | token by token, s | jump-forward, s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["documents"]:
        before, after = row["token by token"], row["jump-forward"]
        tokens = " and ".join(map(str, dict.fromkeys(row["tokens"].values())))
        rows.append(
            f"| {row['document']} | {row['answers']} | {tokens} | {before:.2f} | {after:.2f} | {after / before:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement of steps")
    parser.add_argument("--layers", type=int, default=8, help="of the model with random weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        models.write_real_size(folder, options.layers)
        figures: dict[str, Any] = {"compiling": _compile_figures(read_tokenizer(folder), 151_936)}
        figures["steps"] = {
            f"{options.layers} layers of 1,024, 151,936 tokens": _step_figures(folder, options.rounds),
            "the demonstration model, 1,024 tokens": _step_figures(EMBEDDED_MODEL, options.rounds),
        }
        figures["documents"] = _document_figures(folder, options.rounds)
    table = _table(figures)
    print(table)
    save("structured-cpu", {**environment("python -m benchmarks.structured"), **figures}, table)
    first = next(iter(figures["steps"].values()))
    raise SystemExit(first["ratio"] >= LIMIT)


if __name__ == "__main__":
    main()
