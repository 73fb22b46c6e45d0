"""Answers in a form, by the tiny model: valid whatever else is asked, and no concern of the answers beside them."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.requests import Shown, ask, picture
from tests.engine.runners import FailingOnce, Feeding
from tests.engine.serving import Serve
from worker.core.contract import Done, Piece
from worker.core.errors import GrammarTooComplex, InputInvalid
from worker.core.sampling import Constraint
from worker.core.settings import Settings
from worker.core.tools import Tool, Tools
from worker.engine.engine import Engine
from worker.models.loading import LoadedModel

THING = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "star", "cross", "ring", "triangle"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["shape", "count"],
    "additionalProperties": False,
}
FREE = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def schema(value: object) -> Constraint:
    return Constraint(kind="json_schema", text=json.dumps(value))


def asked(constraint: Constraint | None, **sampling: object) -> Shown:
    return ask("What is in the picture?", picture(3), **{"max_tokens": 60, **sampling}, constraint=constraint)


def thinking(shown: Shown) -> Shown:
    return replace(shown, request=shown.request.model_copy(update={"template": (("enable_thinking", True),)}))


async def gathered(engine: Engine, shown: Shown) -> tuple[list[str], Done]:
    """The texts of the answers, and the end."""
    texts: dict[int, str] = {}
    async for event in engine.generate(shown.request, shown.media):
        match event:
            case Piece():
                texts[event.index] = texts.get(event.index, "") + event.text
            case Done():
                return [texts.get(index, "") for index in range(len(event.reasons))], event
    raise AssertionError("no end")


def answers(engine: Engine, *shown: Shown) -> list[tuple[list[str], Done]]:
    async def run() -> list[Any]:
        return await asyncio.gather(*(gathered(engine, one) for one in shown))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def engine(tiny: LoadedModel) -> Iterator[Engine]:
    """One for all: its forms are compiled once."""
    serve = Serve(tiny)
    yield serve(Settings(device="cpu"))
    serve.close()


def is_thing(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"shape", "count"} and value["shape"] in THING["properties"]["shape"]["enum"]  # type: ignore[index]


def test_answers_in_a_form_stand_beside_free_ones_and_change_none(engine: Engine) -> None:
    """The same free answers alone and beside forms of every kind."""
    free = [asked(None), ask("How many objects are there?", picture(5), max_tokens=20)]
    alone = [answers(engine, one)[0][0] for one in free]
    formed = [
        asked(schema(THING)),
        asked(Constraint(kind="choice", text='["red", "blue"]'), temperature=1.0, seed=1),
        asked(Constraint(kind="regex", text="[a-c]{2,5}x"), temperature=2.0, seed=2),
        asked(Constraint(kind="grammar", text='start: "a" b\nb: "c" | "d"')),
        asked(Constraint(kind="grammar", text='root ::= "yes" | "no"')),
    ]
    together = answers(engine, *free, *formed)
    assert [texts for texts, _ in together[:2]] == alone
    thing, choice, regex, lark, gbnf = (texts[0] for texts, _ in together[2:])
    assert is_thing(thing)
    assert choice in ("red", "blue")
    assert re.fullmatch("[a-c]{2,5}x", regex)
    assert lark in ("ac", "ad")
    assert gbnf in ("yes", "no")
    assert {done.reasons for _, done in together[2:]} == {("stop",)}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_each_of_several_answers_has_the_form(engine: Engine, temperature: float) -> None:
    [(texts, done)] = answers(engine, asked(schema(THING), n=4, temperature=temperature, seed=7, logprobs=2))
    assert all(map(is_thing, texts))
    assert done.reasons == ("stop",) * 4


def test_a_form_holds_under_penalties_bias_and_a_wish_for_more_tokens(engine: Engine) -> None:
    biased = tuple((end, 100.0) for end in sorted(engine._spec.eos_ids))
    hard = {"repetition_penalty": 1.8, "presence_penalty": 2.0, "logit_bias": biased, "min_tokens": 50}
    [(texts, done)] = answers(engine, asked(schema(THING), **hard, ignore_eos=True))
    assert is_thing(texts[0])
    assert done.reasons == ("stop",)


def test_where_more_can_follow_the_least_number_of_tokens_is_waited_for(engine: Engine) -> None:
    [(texts, _)] = answers(engine, asked(Constraint(kind="regex", text="[0-9]+"), min_tokens=12, max_tokens=20))
    assert len(texts[0]) >= 12
    assert texts[0].isdigit()


def test_an_answer_that_is_cut_is_valid_so_far(engine: Engine) -> None:
    [(texts, done)] = answers(engine, asked(schema(FREE), max_tokens=9))
    assert done.reasons == ("length",)
    assert texts[0].startswith('{"text": "')


def test_a_stop_string_ends_it_as_any_answer(engine: Engine) -> None:
    [(texts, done)] = answers(engine, asked(schema(THING), stop=("count",)))
    assert (texts[0][-1], done.reasons) == ('"', ("stop",))


def test_log_probabilities_are_the_models_own(engine: Engine) -> None:
    """What the form takes out of a row is still the likeliest by the model."""
    shown = asked(Constraint(kind="choice", text='["zzz"]'), logprobs=1)

    async def run() -> list[Any]:
        pieces = engine.generate(shown.request, shown.media)
        return [token async for event in pieces if isinstance(event, Piece) for token in event.logprobs]

    tokens = asyncio.run(run())
    assert b"".join(token.chosen.bytes for token in tokens) == b"zzz"
    assert tokens[0].top[0].logprob > tokens[0].chosen.logprob


def test_the_form_begins_behind_the_thought(engine: Engine) -> None:
    [(texts, done)] = answers(engine, thinking(asked(schema(THING), thinking_budget=6)))
    thought, _, rest = texts[0].partition("</think>\n\n")
    assert is_thing(rest)
    assert thought
    assert 0 < done.usage.reasoning_tokens <= 7


def test_without_a_limit_a_thinking_answer_may_be_long(engine: Engine) -> None:
    shown = asked(None, max_tokens=None)
    prompt = engine.builder.build(shown.request, shown.media)
    thought = engine.builder.build(thinking(shown).request, shown.media)
    assert (prompt.opens_thought, thought.opens_thought) == (False, True)
    assert engine._max_tokens(prompt, shown.request.sampling) == 512
    assert engine._max_tokens(thought, shown.request.sampling) == 4096 - len(thought.ids)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
OTHER = {
    "type": "function",
    "function": {"name": "other", "parameters": {"type": "object", "additionalProperties": False}},
}


def with_tools(shown: Shown, *, is_strict: bool = True, **options: Any) -> Shown:
    tools = tuple(
        Tool(name=one["function"]["name"], definition=json.dumps(one), is_strict=is_strict) for one in (WEATHER, OTHER)
    )
    return replace(shown, request=shown.request.model_copy(update={"tools": Tools(offered=tools, **options)}))


@pytest.mark.parametrize("is_strict", [True, False])
def test_a_named_tool_is_called_with_arguments_of_its_schema(engine: Engine, is_strict: bool) -> None:
    shown = asked(None, temperature=1.0, seed=3)
    [(texts, done)] = answers(engine, with_tools(shown, is_strict=is_strict, named="weather"))
    body = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", texts[0])
    assert body is not None
    call = json.loads(body[1])
    assert call["name"] == "weather"
    assert call["arguments"]["city"] in ("Rome", "Oslo")
    assert 1 <= call["arguments"]["days"] <= 7
    assert done.reasons == ("stop",)


def test_a_schema_that_cannot_be_compiled_holds_the_arguments_of_no_tool_that_is_not_strict(engine: Engine) -> None:
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 1}]}
    parameters = {"type": "object", "properties": {"a": overlapping}, "required": ["a"]}
    definition = json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})
    for is_strict in (False, True):
        tools = Tools(offered=(Tool(name="f", definition=definition, is_strict=is_strict),), named="f")
        shown = asked(None, max_tokens=30)
        shown = replace(shown, request=shown.request.model_copy(update={"tools": tools}))
        if is_strict:
            with pytest.raises(InputInvalid, match="oneOf"):
                answers(engine, shown)
        else:
            assert answers(engine, shown)[0][0][0].startswith('<tool_call>\n{"name": "f", "arguments": {')


def test_where_a_call_is_required_the_answer_begins_with_one(engine: Engine) -> None:
    [(texts, _)] = answers(engine, with_tools(asked(None), choice="required", is_parallel=False))
    assert re.fullmatch(r'<tool_call>\n\{"name": "(weather|other)", "arguments": \{.*\}\}\n</tool_call>', texts[0])


def test_beside_tools_the_answer_has_its_form_or_is_a_call(engine: Engine) -> None:
    [(texts, _)] = answers(engine, with_tools(asked(schema(THING))))
    assert texts[0].startswith("<tool_call>") or is_thing(texts[0])


def test_a_free_answer_may_have_calls_of_strict_tools(engine: Engine) -> None:
    [(texts, done)] = answers(engine, with_tools(asked(None)))
    assert done.reasons in (("stop",), ("length",))
    assert texts[0]


@pytest.mark.parametrize("text", ["</think>", "a <tool_call> b", "<think>", "<|im_end|>x"])
def test_a_form_may_have_the_letters_of_an_added_token(engine: Engine, text: str) -> None:
    [(texts, _)] = answers(engine, asked(Constraint(kind="choice", text=json.dumps([text]))))
    assert texts == [text]


def test_stop_strings_do_not_count_in_the_blank_line_behind_a_thought(engine: Engine) -> None:
    shown = thinking(asked(Constraint(kind="regex", text="[0-9]{3}"), thinking_budget=4, stop=("\n", "</think>")))
    [(texts, done)] = answers(engine, shown)
    assert re.fullmatch("[0-9]{3}", texts[0].partition("</think>\n\n")[2])
    assert done.reasons == ("stop",)


def test_more_tokens_are_waited_for_where_the_end_token_is_no_end(engine: Engine) -> None:
    form = Constraint(kind="regex", text="a*")
    [(texts, _)] = answers(engine, asked(form, min_tokens=8, max_tokens=10, ignore_eos=True))
    assert len(texts[0]) >= 8


BAD = {
    "a number beyond 64 bits": (schema({"maximum": 2**64}), "cannot be compiled"),
    "half a character": (schema({"const": "\ud800"}), "cannot be compiled"),
    "no end": (Constraint(kind="grammar", text="start: start"), "allows no answer that ends"),
    "no draft": (schema({"$schema": "secret"}), "$schema names a draft"),
    "a look-ahead": (Constraint(kind="regex", text="a(?=b)"), "look-ahead"),
    "no regular expression": (Constraint(kind="regex", text="(a"), "not a regular expression"),
    "a pattern": (schema({"type": "string", "pattern": "(?!a)b"}), "look-ahead"),
    "alternatives that overlap": (
        schema({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 1}]}),
        "oneOf is only supported where",
    ),
    "another file": (schema({"$ref": "https://example.org/a.json"}), "$ref is only supported within the schema"),
    "nothing fits": (schema({"type": "string", "const": 1}), "allows no value"),
    "no such type": (schema({"type": "secret"}), "unknown type"),
    "a rule that is not there": (Constraint(kind="grammar", text="start: secret"), "not defined"),
    "no grammar": (Constraint(kind="grammar", text="secret words"), "cannot be compiled"),
    "no GBNF": (Constraint(kind="grammar", text="root ::= ((("), "not a GBNF grammar"),
}


@pytest.mark.parametrize(("constraint", "message"), BAD.values(), ids=BAD.keys())
def test_a_form_that_cannot_be_is_refused_in_our_words(engine: Engine, constraint: Constraint, message: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        answers(engine, asked(constraint))
    assert message in caught.value.message
    assert "secret" not in caught.value.message


def test_a_form_that_costs_too_much_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Constraint(kind="regex", text="(abc)*")
    heavy, plain = asked(form, max_tokens=200), asked(None, max_tokens=12)
    engine.constraints.compiled(form, Tools())
    monkeypatch.setattr("worker.engine.grammar.MAX_STEP_S", -1)  # no mask may take any time from here on

    async def run() -> list[Any]:
        return await asyncio.gather(gathered(engine, heavy), gathered(engine, plain), return_exceptions=True)

    failed, (texts, _) = asyncio.run(run())
    assert isinstance(failed, GrammarTooComplex)
    assert texts == answers(engine, plain)[0][0]


LONG = "certain " * 60


def certain(engine: Engine) -> list[tuple[list[str], Done]]:
    """Answers of which much is certain, all at once, beside one of which nothing is."""
    return answers(
        engine,
        asked(schema(THING)),
        asked(schema({"type": "array", "items": THING, "minItems": 2, "maxItems": 2}), n=3, temperature=0.7, seed=4),
        asked(Constraint(kind="choice", text=json.dumps(["yes, there is", "no, there is not", "nobody knows"]))),
        thinking(asked(schema(THING), thinking_budget=2)),
        with_tools(asked(None), named="weather"),
        asked(None),
    )


def test_what_is_certain_is_not_asked_of_the_model(tiny: LoadedModel) -> None:
    """The same answers of as many tokens, in fewer steps."""
    serve, feeds = Serve(tiny), {jumps: Feeding(tiny.runner, takes_several=jumps) for jumps in (True, False)}
    found = {}
    for jumps, runner in feeds.items():
        said = certain(serve(Settings(device="cpu", prefix_sharing="off"), lambda _: runner))  # noqa: B023
        found[jumps] = [(texts, done.reasons, done.usage) for texts, done in said]
    serve.close()
    assert found[True] == found[False]
    assert max(feeds[False].counts) == 1
    assert max(feeds[True].counts) > 3
    assert len(feeds[True].counts) < 0.8 * len(feeds[False].counts)


@pytest.mark.parametrize("limit", range(1, 16))
def test_an_answer_of_certain_tokens_is_cut_where_it_should_be(engine: Engine, limit: int) -> None:
    [(whole, _), (cut, done)] = answers(engine, asked(schema(THING)), asked(schema(THING), max_tokens=limit))
    assert whole[0].startswith(cut[0])
    assert done.usage.completion_tokens <= limit
    assert done.reasons == (("length",) if done.usage.completion_tokens == limit and cut != whole else ("stop",))


def test_a_stop_string_among_certain_tokens_ends_the_answer(engine: Engine) -> None:
    [(texts, done)] = answers(engine, asked(schema(THING), stop=('count"',)))
    assert re.fullmatch(r'\{"shape": "\w+", "', texts[0])
    assert done.reasons == ("stop",)


@pytest.mark.parametrize("error", [RuntimeError("secret"), torch.OutOfMemoryError("secret")])
def test_after_a_failed_step_certain_tokens_are_computed_again(tiny: LoadedModel, error: Exception) -> None:
    serve = Serve(tiny)
    expected = certain(serve())
    found = certain(serve(runner=lambda inner: FailingOnce(inner, "decode", error)))
    serve.close()
    assert [(texts, done.reasons) for texts, done in found] == [(texts, done.reasons) for texts, done in expected]


def test_certain_tokens_have_their_log_probabilities(tiny: LoadedModel) -> None:
    """They are the model's, so that it is asked for each."""
    serve, runner = Serve(tiny), Feeding(tiny.runner, takes_several=True)
    engine = serve(runner=lambda _: runner)

    async def logprobs() -> list[str]:
        shown = asked(schema(THING), logprobs=1)
        pieces = [event async for event in engine.generate(shown.request, shown.media) if isinstance(event, Piece)]
        return [token.chosen.bytes.decode() for piece in pieces for token in piece.logprobs]

    said = asyncio.run(logprobs())
    serve.close()
    assert is_thing("".join(said))
    assert max(runner.counts) == 1


def test_a_long_certain_text_is_fed_in_parts(tiny: LoadedModel) -> None:
    """All answers of a step together are fed no more than a chunk of a prompt, since each waits for the others."""
    serve, runner = Serve(tiny), Feeding(tiny.runner, takes_several=True)
    choices = [LONG + "yes", LONG + "no"]
    chosen = [asked(Constraint(kind="choice", text=json.dumps(choices)), max_tokens=500, n=n) for n in (1, 3)]
    engine = serve(Settings(device="cpu", prefill_chunk=40), lambda _: runner)
    found = [answers(engine, one) for one in chosen]
    serve.close()
    for [(texts, done)] in found:
        assert set(texts) <= set(choices)
        assert done.usage.completion_tokens > 80 * len(texts)
    assert runner.counts[0] == 40
    assert 13 in runner.counts
    assert max(runner.totals) == 40
