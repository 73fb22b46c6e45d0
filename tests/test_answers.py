"""What an answer carries beside its text, by the tiny model's own true answers: natively and in OpenAI's form, plain
and streamed."""

import base64
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.tiny_model import scenes
from builder.tiny_model.evaluate import iou
from tests.answering import (
    answering,
    as_openai,
    chunks_of,
    drawn,
    failure_of,
    outputs_of,
    reply_of,
    scene_of,
    true_box,
)
from tests.engine.serving import Serve
from tests.fakes import as_base64
from worker.core.timeline import Timeline
from worker.service import Service

PRICE = 0.0005
COUNT = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}


@pytest.fixture
def service(serve: Serve) -> Iterator[Service]:
    with answering(serve, gpu_usd_per_second=PRICE) as made:
        yield made


def question(scene: scenes.Scene) -> tuple[str, scenes.Thing]:
    """About something that there is one of."""
    names = [(thing.colour, thing.shape) for thing in scene.things]
    thing = next(thing for thing in scene.things if names.count((thing.colour, thing.shape)) == 1)
    return f"Locate the {thing.colour} {thing.shape}.", thing


@pytest.mark.parametrize(("width", "height"), [(300, 240), (160, 420), (900, 300), (1600, 1200), (120, 90)])
def test_a_box_is_in_pixels_of_the_source(service: Service, width: int, height: int) -> None:
    """Tall, wide, large and small ones."""
    overlaps = []
    for seed in range(2):
        scene = scene_of(seed, width / height)
        prompt, thing = question(scene)
        reply = reply_of(service, prompt=prompt, image=as_base64(drawn(scene, width, height)), objects=True)
        [found] = reply["objects"]
        assert found["label"] == f"{thing.colour} {thing.shape}"
        assert (found["image"], found["valid"]) == (0, True)
        assert found["box_norm"] == pytest.approx(
            [side / of for side, of in zip(found["box"], (width, height) * 2, strict=True)], abs=1e-4
        )
        overlaps.append(iou(found["box"], true_box(thing, width, height)))
    assert min(overlaps) > 0.6
    assert sum(overlaps) / len(overlaps) > 0.8


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_box_of_a_turned_picture_is_in_both_frames(service: Service, orientation: int) -> None:
    width, height = 320, 240
    scene = scene_of(4, width / height)
    prompt, thing = question(scene)
    upright = drawn(scene, width, height)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    reply = reply_of(service, prompt=prompt, image=as_base64(stored, exif=exif), objects=True)
    [found], [info] = reply["objects"], reply["media"]
    assert (info["orientation"], info["source_width"], info["source_height"]) == (orientation, width, height)
    truth = true_box(thing, width, height)
    assert iou(found["box"], truth) > 0.7
    mask = np.zeros((height, width), np.uint8)
    mask[round(truth[1]) : round(truth[3]), round(truth[0]) : round(truth[2])] = 255
    rows, columns = np.nonzero(np.asarray(Image.fromarray(mask).transpose(undo[orientation])))
    assert iou(found["box_stored"], (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)) > 0.7


def test_streams_say_an_object_as_soon_as_it_is_whole(service: Service) -> None:
    scene = scene_of(9, 1.25, 4)
    two = scenes.Scene(scene.background, tuple(scene.things))
    prompt, _ = question(two)
    body = {"prompt": prompt, "image": as_base64(drawn(two, 300, 240)), "objects": True, "temperature": 0}
    [[plain], native, [whole], openai] = outputs_of(
        service, body, {**body, "stream": True}, as_openai(body), as_openai({**body, "stream": True})
    )
    objects = plain["objects"]
    assert objects
    at = next(place for place, chunk in enumerate(native) if chunk.get("objects"))
    assert native[at]["objects"] == objects[:1]
    assert at < len(native) - 2, "before the text is at its end"
    assert "".join(chunk["text"] for chunk in native) == plain["text"]
    assert native[-1]["objects"] == objects
    assert whole["choices"][0]["objects"] == objects
    choices = [chunk["choices"][0] for chunk in chunks_of(openai)]
    told = [each for choice in choices[:-1] for each in choice.get("objects", ())]
    assert told == objects == choices[-1]["objects"]
    assert choices[-1]["objects_status"] == {"broken": 0, "is_whole": True}


def test_what_is_cut_off_says_so_and_keeps_what_is_whole(service: Service) -> None:
    scene = scene_of(9, 1.25, 4)
    prompt, _ = question(scene)
    body = {"prompt": prompt, "image": as_base64(drawn(scene, 300, 240)), "objects": True}
    reply = reply_of(service, **body, max_tokens=12)
    assert (reply["objects"], reply["finish_reason"]) == ([], "length")
    assert reply["objects_status"]["is_whole"] is False


def test_without_the_option_nothing_is_read(service: Service) -> None:
    scene = scene_of(1, 1.25)
    reply = reply_of(service, prompt=question(scene)[0], image=as_base64(drawn(scene, 300, 240)))
    assert not {"objects", "objects_status", "result", "confidence", "annotated", "crops"} & reply.keys()


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_the_picture_comes_back_with_its_boxes_and_the_cut_out(service: Service, form: str) -> None:
    scene = scene_of(4, 1.5)
    prompt, thing = question(scene)
    picture = drawn(scene, 1500, 1000)
    body = {"prompt": prompt, "image": as_base64(picture, "JPEG", quality=95), "objects": True}
    reply = reply_of(service, **body, annotate={"format": form}, crops={"format": form})
    [shown], [crop], [found] = reply["annotated"], reply["crops"], reply["objects"]
    image, cut = (opened(each["data"], form) for each in (shown, crop))
    assert image.size == (shown["width"], shown["height"]) == (1500, 1000)
    pixels = np.asarray(image).astype(int)
    difference = np.abs(pixels - np.asarray(picture.convert("RGB"))).max(2)
    left, top, right, bottom = (round(side) for side in found["box"])
    line = pixels[(top + bottom) // 2, left + 2]
    assert np.abs(line - np.array([0xFF, 0xB0, 0x00])).max() < 40, "the box's left edge, in the first color"
    assert difference[(top + bottom) // 2, : max(1, left - 20)].mean() < 20, "what is beside it is as it was"
    assert (crop["object"], cut.size) == (0, (crop["width"], crop["height"]))
    assert abs(cut.width - (right - left)) <= 2
    assert iou(found["box"], true_box(thing, 1500, 1000)) > 0.7


def opened(uri: str, form: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == f"data:image/{form};base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == form.upper()
    return image.convert("RGB")


def test_pictures_that_come_back_are_within_the_limit(serve: Serve) -> None:
    scene = scene_of(4, 1.5)
    with answering(serve, max_result_bytes=80_000) as service:
        image = as_base64(drawn(scene, 1500, 1000))
        body = {"prompt": question(scene)[0], "image": image, "annotate": {"format": "png"}}
        reply = reply_of(service, **body)
        assert len(json.dumps(reply)) < 80_000
        assert reply["annotated"][0]["width"] < 1500
    with answering(serve, max_result_bytes=60_000) as service:
        reply = reply_of(service, **body)
        assert reply["drawing_error"]["code"] == "RESULT_TOO_LARGE"
        assert "annotated" not in reply
        assert reply["objects"]


def test_pictures_of_several_answers_come_once_and_fit(serve: Serve) -> None:
    scene = scene_of(4, 1.5)
    body = {"prompt": question(scene)[0], "image": as_base64(drawn(scene, 900, 600)), "annotate": True, "n": 3}
    with answering(serve, max_result_bytes=150_000, max_chunk_bytes=150_000) as service:
        [[plain], stream] = outputs_of(service, body, {**body, "stream": True})
        assert "annotated" not in plain
        assert [len(choice["annotated"]) for choice in plain["choices"]] == [1, 1, 1]
        assert "annotated" not in stream[-1]
        assert [len(outcome["annotated"]) for outcome in stream[-1]["outcomes"]] == [1, 1, 1]


def test_an_answer_whose_pictures_cannot_be_drawn_is_not_lost(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.media.annotate._draw", lambda *_, **__: [].pop())
    scene = scene_of(4, 1.5)
    reply = reply_of(service, prompt=question(scene)[0], image=as_base64(drawn(scene, 300, 200)), annotate=True)
    assert reply["objects"]
    assert reply["drawing_error"]["code"] == "INTERNAL"


def test_the_report_says_what_became_of_a_picture(service: Service) -> None:
    scene = scene_of(2, 1.5)
    picture = as_base64(drawn(scene, 1800, 1200), "JPEG")
    body = {"prompt": "Describe the picture.", "image": picture, "temperature": 0}
    first, again = (reply_of(service, **body)["media"][0] for _ in range(2))
    assert (first["type"], first["bytes"]) == ("image/jpeg", len(base64.b64decode(picture)))
    assert (first["source_width"], first["source_height"]) == (1800, 1200)
    assert first["width"] * first["height"] == first["tokens"] * 32 * 32
    assert [told["code"] for told in first["warnings"]] == ["IMAGE_SHRUNK"]
    assert first["decode_s"] > 0
    assert "1800x1200 was shrunk to " in first["warnings"][0]["message"]
    assert "cached" not in first
    assert again["cached"] == "prefix"
    [[openai]] = outputs_of(service, as_openai(body))
    assert openai["media"][0]["type"] == "image/jpeg"
    reply = reply_of(service, prompt="How many objects are there?", system="Be short.", image=picture)
    assert reply["media"][0]["cached"] == "features"


def test_the_report_says_which_frames_were_seen(service: Service) -> None:
    clip = scenes.random_clip(random.Random(3), 1.0, 4)
    frames = [as_base64(drawn(scene, 128, 128)) for scene in clip.frames]
    reply = reply_of(service, prompt="What moves where, and when?", video={"frames": frames, "fps": 2})
    [info] = reply["media"]
    assert (info["kind"], info["times"]) == ("video", [0.0, 0.5, 1.0, 1.5])
    assert info["bytes"] == sum(len(base64.b64decode(frame)) for frame in frames)


def test_the_seconds_of_all_answers_are_those_of_the_device(serve: Serve) -> None:
    """Shared among rows and prompts, also by answers of several and by those that are cancelled at their limit."""
    with answering(serve, gpu_usd_per_second=PRICE) as service:
        engine = service._engine
        bodies: list[dict[str, Any]] = []
        for seed in range(6):
            picture = as_base64(drawn(scene_of(seed, 1.25), 300, 240))
            bodies.append({"prompt": "Describe the picture.", "image": picture, "n": 1 + seed % 2, "temperature": 0.5})
        bodies.append({"prompt": "Who are you?", "max_tokens": 200, "ignore_eos": True, "max_gpu_seconds": 0.05})
        replies = [outputs[0] for outputs in outputs_of(service, *bodies)]
        spent = [reply["cost"]["gpu_seconds"] for reply in replies]
        assert all(seconds > 0 for seconds in spent)
        assert sum(spent) == pytest.approx(engine.stats().busy_s, rel=1e-3)
        for reply in replies:
            assert reply["cost"]["cost_usd"] == pytest.approx(reply["cost"]["gpu_seconds"] * PRICE, rel=1e-4)
            timing = reply["timing"]
            parts = [timing[name] for name in ("preprocess_s", "queue_s", "prefill_s", "decode_s")]
            assert sum(parts) + timing.get("vision_s", 0) + timing.get("media_s", 0) <= timing["total_s"] + 0.01
        assert replies[-1]["finish_reason"] == "time"
        assert replies[-1]["usage"]["completion_tokens"] < 200


def test_the_first_answer_alone_has_the_price_of_the_start(serve: Serve) -> None:
    """Without the time in which nobody asked."""
    timeline = Timeline()
    timeline.end("warmup")
    with answering(serve, gpu_usd_per_second=PRICE) as made:
        service = Service(made._engine, made._opener, made._settings, timeline=timeline)
        first, second = (reply_of(service, prompt="Who are you?")["cost"] for _ in range(2))
    assert first["start_seconds"] == timeline.report["warmup"] < timeline.report["total"]
    assert first["start_cost_usd"] == pytest.approx(first["start_seconds"] * PRICE, rel=1e-3)
    assert second.keys() == {"gpu_seconds", "cost_usd"}


def test_a_limit_of_cost_ends_an_answer_with_what_it_has(service: Service) -> None:
    body = {"prompt": "Who are you?", "ignore_eos": True, "max_tokens": 400}
    reply = reply_of(service, **body, max_cost_usd=0.05 * PRICE)
    assert reply["finish_reason"] == "time"
    assert reply["text"]
    assert reply["usage"]["completion_tokens"] < 400


def test_a_limit_that_the_prompt_exceeds_fails(serve: Serve) -> None:
    with answering(serve, prefill_chunk=16) as service:
        failure = failure_of(service, prompt="Who are you? " * 20, max_gpu_seconds=1e-9)
    assert failure["code"] == "DEADLINE_EXCEEDED"
    assert "max_gpu_seconds" in failure["message"]


def test_a_limit_of_cost_needs_a_price(serve: Serve) -> None:
    with answering(serve) as service:
        failure = failure_of(service, prompt="x", max_cost_usd=1.0)
        assert "cost_usd" not in reply_of(service, prompt="Who are you?")["cost"]
    assert failure["code"] == "INPUT_INVALID"
    assert "GPU_USD_PER_SECOND" in failure["message"]


def test_confidence_is_of_each_field(service: Service) -> None:
    scene = scene_of(3, 1.25)
    body = {"prompt": "How many objects are there?", "image": as_base64(drawn(scene, 300, 240)), "json_schema": COUNT}
    reply = reply_of(service, **body)
    confidence = reply["confidence"]
    assert confidence["calibrated"] is False
    assert confidence["fields"].keys() == {"count"}
    assert 0.5 < confidence["fields"]["count"] <= 1
    assert "logprobs" not in reply
    with_all = reply_of(service, **body, logprobs=True)
    assert with_all["confidence"]["fields"]["count"] == pytest.approx(confidence["fields"]["count"], abs=0.01)
    assert with_all["text"] == reply["text"]
    assert "confidence" not in reply_of(service, **body, confidence=False)
    [[openai]] = outputs_of(service, as_openai({**body, "temperature": 0}))
    assert openai["choices"][0]["confidence"] == confidence
    streamed = chunks_of(outputs_of(service, as_openai({**body, "stream": True}))[0])
    assert streamed[-1]["choices"][0]["confidence"] == confidence


def test_tasks_have_typed_results(service: Service) -> None:
    scene = scene_of(5, 1.25, 3)
    picture = as_base64(drawn(scene, 300, 240))
    thing = scene.things[0]
    caption = reply_of(service, task="caption", image=picture)
    assert caption["result"] == {"caption": caption["text"]}
    assert f"{thing.colour} {thing.shape}" in caption["text"].lower()
    assert reply_of(service, task="count", image=picture)["result"] == {"count": len(scene.things)}
    assert reply_of(service, task="count", image=picture, language="zh")["result"] == {"count": len(scene.things)}
    fields = {"type": "object", "properties": {"shape": {"type": "string"}, "color": {"type": "string"}}}
    extracted = reply_of(service, task="extract", image=picture, fields={**fields, "required": ["shape", "color"]})
    assert extracted["result"] == {"shape": thing.shape, "color": thing.colour}
    assert extracted["confidence"]["fields"].keys() == {"shape", "color"}
    prompt, sought = question(scene)
    found = reply_of(service, task="detect", prompt=prompt, image=picture)
    assert found["result"] == {"count": 1, "labels": {f"{sought.colour} {sought.shape}": 1}}
    assert iou(found["objects"][0]["box"], true_box(sought, 300, 240)) > 0.7
    detected = reply_of(service, task="detect", image=picture)
    assert isinstance(json.loads(detected["text"]), list), "the preset's own words have its form"


def test_a_comparison_names_pictures(service: Service) -> None:
    pictures = [as_base64(drawn(scene_of(seed, 1.25, count), 300, 240)) for seed, count in ((1, 1), (2, 4))]
    reply = reply_of(service, task="compare", prompt="Which picture has more objects?", images=pictures)
    assert reply["result"] == {"text": "The second.", "images": [1]}


def test_events_have_their_times(service: Service) -> None:
    clip = scenes.random_clip(random.Random(3), 1.0, 6, late=True)
    frames = [as_base64(drawn(scene, 128, 128)) for scene in clip.frames]
    body = {"task": "video_events", "prompt": "What moves where, and when?"}
    reply = reply_of(service, **body, video={"frames": frames, "fps": clip.fps})
    [event] = reply["result"]["events"]
    assert f"from {event['start']} seconds" in reply["text"]
    assert event == {"start": event["start"], "end": None, "description": reply["text"], "video": 0}


@pytest.mark.parametrize(
    ("body", "where", "words"),
    [
        ({"task": "caption"}, "task", "needs a picture or video"),
        ({"task": "compare", "image": "x"}, "task", "needs 2 pictures"),
        ({"task": "video_events", "image": "x"}, "task", "needs a video"),
        ({"task": "caption", "labels": ["a"], "image": "x"}, "labels", "belongs to the task detect, point, count"),
        ({"task": "extract", "image": "x"}, "fields", "needs the JSON schema"),
        ({"task": "extract", "image": "x", "fields": {"type": "array"}}, "fields", "schema of an object"),
        ({"task": "detct", "image": "x"}, "task", "must be one of"),
        ({"task": "detect", "image": "x", "video": "y"}, "task", "pictures or videos, not both"),
        ({"prompt": "x", "objects": True}, "objects", "needs a picture or video"),
        ({"prompt": "x", "crops": True}, "crops", "needs a picture or video"),
        ({"prompt": "x", "labels": ["a"]}, "labels", "write task beside it"),
        ({"prompt": "x", "annotate": {"format": "gif"}}, "annotate.format", "must be one of"),
        ({"prompt": "x", "annotate": {"size": 3}}, "annotate.size", "unknown field"),
        ({"prompt": "x", "objects": "yes"}, "objects", "true or false"),
        ({"prompt": "x", "max_gpu_seconds": 0}, "max_gpu_seconds", "above 0"),
        ({"task": "count", "image": "x", "json_schema": {}}, "task", "cannot be combined with json_schema"),
        ({}, "input", "needs prompt"),
    ],
)
def test_wrong_use_is_a_coded_error_that_says_what_to_do(
    service: Service, body: dict[str, Any], where: str, words: str
) -> None:
    for form in (body, as_openai(body)) if "prompt" in body and "image" not in body else (body,):
        [outputs] = outputs_of(service, form)
        failure = json.loads(outputs[0]["error"])
        failure = failure.get("error", failure)
        assert failure.get("worker_code", failure["code"]) == "INPUT_INVALID"
        assert where in (failure.get("where") or failure.get("param") or failure["message"])
        assert words in failure["message"]


COLOR = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (COLOR, {"color"}),
        ({"properties": COLOR["properties"], "required": ["color"]}, {"color"}),
        ({"$ref": "#/$defs/it", "$defs": {"it": COLOR}}, {"color"}),
        ({"anyOf": [COLOR, COUNT]}, {"color"}),
        ({"allOf": [COLOR, COUNT]}, {"color", "count"}),
    ],
)
def test_fields_may_be_any_schema_of_an_object(service: Service, fields: dict[str, Any], names: set[str]) -> None:
    picture = as_base64(drawn(scene_of(0, 1.5), 300, 200))
    reply = reply_of(service, task="extract", image=picture, fields=fields, max_tokens=80)
    assert names <= reply["result"].keys()
    assert reply_of(service, task="extract", image=picture, fields={"type": "object"}, max_tokens=80)["result"]


def test_objects_of_a_film_say_when_they_are_seen(service: Service) -> None:
    clip = scenes.random_clip(random.Random(3), 1.0, 4)
    frames = [as_base64(drawn(scene, 128, 128)) for scene in clip.frames]
    bias = {str(service._engine.builder._spec.tokenizer.encode("]")[0]): -100}  # type: ignore[attr-defined]
    body = {"task": "detect", "video": {"frames": frames, "fps": 2}, "logit_bias": bias, "max_tokens": 60}
    found = reply_of(service, **body)["objects"]
    assert found
    assert all(each["image"] == 0 and each["frame_time"] in (0.0, 0.5, 1.0, 1.5) for each in found)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("completions", {"prompt": "Who are you?"}),
        ("responses", {"input": "Who are you?"}),
        ("messages", {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 300}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}]}),
    ],
)
def test_every_api_tells_the_cost_and_why_an_answer_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch, route: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr("worker.engine.loop_guard.LoopGuard.push", lambda *_, **__: True)
    [[plain], stream] = outputs_of(
        service, *({"route": f"/v1/{route}", "body": {**body, "stream": stream}} for stream in (False, True))
    )
    assert plain["cost"]["gpu_seconds"] > 0
    for told in (json.dumps(plain), "".join(stream)):
        assert '"gpu_seconds"' in told
        assert '"worker_finish_reason": "repetition"' in told


def test_the_presets_are_listed(service: Service) -> None:
    [[listed], [one], [wrong]] = outputs_of(
        service, {"route": "/v1/tasks"}, {"route": "/v1/tasks/detect"}, {"route": "/v1/tasks/other"}
    )
    assert [card["id"] for card in listed["data"]] == [
        *("caption", "ocr", "ocr_layout", "detect", "point", "count", "extract", "video_events", "compare"),
    ]
    assert one in listed["data"]
    assert json.loads(wrong["error"])["code"] == "ROUTE_UNKNOWN"


def test_an_answer_that_repeats_itself_is_ended_without_its_tail(service: Service) -> None:
    token = service._engine.builder._spec.tokenizer.encode(" red")[0]  # type: ignore[attr-defined]
    body = {"prompt": "Who are you?", "logit_bias": {str(token): 100}, "max_tokens": 300, "temperature": 0}
    [[plain], native, [openai], [off], [fixed], two] = outputs_of(
        service,
        body,
        {**body, "stream": True},
        as_openai(body),
        {**body, "loop_guard": False},
        {**body, "ignore_eos": True},
        {**body, "n": 2, "stream": True},
    )
    assert plain["finish_reason"] == "repetition"
    assert plain["usage"]["completion_tokens"] == 67, "three periods of one token, and 64"
    assert 1 <= plain["text"].count("red") < 30
    assert "".join(chunk["text"] for chunk in native) == plain["text"]
    assert native[-1]["finish_reason"] == "repetition"
    [choice] = openai["choices"]
    assert (choice["finish_reason"], choice["worker_finish_reason"]) == ("stop", "repetition")
    assert (off["finish_reason"], fixed["finish_reason"]) == ("length", "length")
    assert two[-1]["finish_reasons"] == ["repetition", "repetition"]


def test_the_tail_of_an_answer_in_a_schema_is_cut_as_well(service: Service) -> None:
    """Though most of its tokens are certain."""
    tokenizer = service._engine.builder._spec.tokenizer  # type: ignore[attr-defined]
    item = {"type": "object", "properties": {"label": {"enum": ["red", "blue"]}, "size": {"enum": ["small", "large"]}}}
    item["required"] = ["label", "size"]
    bias = {str(tokenizer.encode(text)[0]): 100 for text in ("red", "small", '"}, {"', ",")}
    bias[str(tokenizer.encode("]")[0])] = -100
    body = {"prompt": "Which?", "json_schema": {"type": "array", "items": item}, "logit_bias": bias, "temperature": 0}
    [[plain], stream] = outputs_of(service, body, {**body, "stream": True})
    assert plain["finish_reason"] == stream[-1]["finish_reason"] == "repetition"
    assert "".join(chunk["text"] for chunk in stream) == plain["text"]
    assert 1 <= plain["text"].count("small") <= 3


def test_a_loop_in_a_thought_with_a_budget_ends_the_thought(service: Service) -> None:
    token = service._engine.builder._spec.tokenizer.encode(" red")[0]  # type: ignore[attr-defined]
    body = {"prompt": "Who are you?", "logit_bias": {str(token): 100}, "temperature": 0, "enable_thinking": True}
    [[within], [without]] = outputs_of(service, {**body, "thinking_budget": 200}, body)
    assert within["usage"]["reasoning_tokens"] == 68, "three periods of one token, and 64, and its end"
    assert 1 <= within["reasoning"].count("red") < 30
    assert within["text"].startswith("red")
    assert (without["text"], without["finish_reason"]) == ("", "repetition")


def test_the_guard_can_be_off_for_all(serve: Serve) -> None:
    with answering(serve, loop_guard=False) as service:
        token = serve.model.spec.tokenizer.encode(" red")[0]
        body = {"prompt": "Who are you?", "logit_bias": {str(token): 100}, "max_tokens": 100}
        assert reply_of(service, **body)["finish_reason"] == "length"
        assert reply_of(service, **body, loop_guard=True)["finish_reason"] == "repetition"
        assert reply_of(service, **body, loop_guard=True, min_tokens=90)["usage"]["completion_tokens"] == 90


def test_log_probabilities_of_a_cut_tail_are_cut_with_it(service: Service) -> None:
    token = service._engine.builder._spec.tokenizer.encode(" red")[0]  # type: ignore[attr-defined]
    body = {"prompt": "Who are you?", "logit_bias": {str(token): 100}, "max_tokens": 300, "logprobs": True}
    reply = reply_of(service, **body)
    assert "".join(each["token"] for each in reply["logprobs"]) == reply["text"]
