"""Texts as models write them to the typed results of tasks."""

from typing import Any

import pytest

from worker.core.contract import MediaInfo
from worker.core.outcome import DetectedObject
from worker.core.tasks import TASKS, Language, MediaCounts, TaskCall, TaskName, prompt_of, schema_of
from worker.parsers.results import NotInFormError, result_of

PICTURE = MediaInfo(where="image", kind="image", width=32, height=32, tokens=1)
VIDEO = MediaInfo(where="video", kind="video", width=32, height=32, tokens=1)


@pytest.mark.parametrize(
    ("name", "text", "media", "result"),
    [
        ("caption", " A cat.\n", [PICTURE], {"caption": "A cat."}),
        ("ocr", "```\nTotal\n\n 12.40 \n```", [PICTURE], {"text": "Total\n\n 12.40", "lines": ["Total", "12.40"]}),
        ("count", "There are 12 of them.", [PICTURE], {"count": 12}),
        ("count", "1,200 pieces", [PICTURE], {"count": 1200}),
        ("count", "1, 200 or 3", [PICTURE], {"count": 1}),
        ("ocr", "```markdown\n# A\n```python\nx = 1\n```\n```", [PICTURE],
         {"text": "# A\n```python\nx = 1\n```", "lines": ["# A", "```python", "x = 1", "```"]}),
        ("ocr", "Run:\n```\nmake\n```\nThen:\n```\nls\n```", [PICTURE],
         {"text": "Run:\n```\nmake\n```\nThen:\n```\nls\n```",
          "lines": ["Run:", "```", "make", "```", "Then:", "```", "ls", "```"]}),
        ("ocr", "```\na\n```\nb\n```\nc\n```", [PICTURE],
         {"text": "```\na\n```\nb\n```\nc\n```", "lines": ["```", "a", "```", "b", "```", "c", "```"]}),
        ("ocr", "```text\ncut of", [PICTURE], {"text": "cut of", "lines": ["cut of"]}),
        ("extract", '{"code": "```json\\n{}\\n```"}', [PICTURE], {"code": "```json\n{}\n```"}),
        ("extract", 'Here it is: {"a": "}"} as asked.', [PICTURE], {"a": "}"}),
        ("extract", 'Here: ```json {"a": 1}``` and no more', [PICTURE], {"a": 1}),
        ("video_events", '{"events": [{"start": 1, "description": "a {b} falls"}]}', [VIDEO],
         {"events": [{"start": 1.0, "end": None, "description": "a {b} falls", "video": 0}]}),
        ("video_events", f"It takes {'9' * 40} s. It starts at 2 s.", [VIDEO],
         {"events": [{"start": 2.0, "end": None, "description": "It starts at 2 s.", "video": 0}]}),
        ("count", "没有，共0个。", [PICTURE], {"count": 0}),
        ("extract", '```json\n{"a": [1, {"b": null}]}\n```', [PICTURE], {"a": [1, {"b": None}]}),
        (
            "video_events",
            'So: [{"start_time": "00:01.50", "end_time": "00:03.00", "event": "falls"}, {"start": 4, "event": "lies"}]',
            [VIDEO],
            {"events": [
                {"start": 1.5, "end": 3.0, "description": "falls", "video": 0},
                {"start": 4.0, "end": None, "description": "lies", "video": 0},
            ]},
        ),
        (
            "video_events",
            "A car comes at 0.5 seconds. It leaves from 2.25 to 3 s! Then nothing.",
            [PICTURE, VIDEO],
            {"events": [
                {"start": 0.5, "end": None, "description": "A car comes at 0.5 seconds.", "video": 1},
                {"start": 2.25, "end": 3.0, "description": "It leaves from 2.25 to 3 s!", "video": 1},
            ]},
        ),
        ("video_events", "从第1.5秒起向左移动。", [VIDEO],
         {"events": [{"start": 1.5, "end": None, "description": "从第1.5秒起向左移动。", "video": 0}]}),
        ("video_events", "Nothing moves.", [VIDEO], {"events": []}),
        ("compare", "Picture 2, not Image 3.", [PICTURE] * 3, {"text": "Picture 2, not Image 3.", "images": [1, 2]}),
        ("compare", "The second.", [VIDEO, PICTURE, PICTURE], {"text": "The second.", "images": [2]}),
        ("compare", "第一张。", [PICTURE] * 2, {"text": "第一张。", "images": [0]}),
        ("compare", "Both have two.", [PICTURE] * 2, {"text": "Both have two.", "images": [0, 1]}),
        ("compare", "They differ in size.", [PICTURE] * 2, {"text": "They differ in size.", "images": []}),
    ],
)  # fmt: skip
def test_a_text_becomes_a_result(name: TaskName, text: str, media: list[MediaInfo], result: Any) -> None:
    assert result_of(name, text, (), media) == result


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "Many."),
        ("extract", "I cannot."),
        ("extract", '{"a": 1'),
        ("extract", "[1]"),
        ("extract", '{"a": 1e999}'),
        ("extract", '{"a": ' + "[" * 700 + "]" * 700 + "}"),
        ("count", "1" * 10),
        ("video_events", '[{"sta'),
    ],
)
def test_a_text_without_the_form_is_told_apart(name: TaskName, text: str) -> None:
    with pytest.raises(NotInFormError):
        result_of(name, text, (), [PICTURE])


@pytest.mark.parametrize("text", ["9" * 100_000, "9 " * 50_000, "1.1" * 30_000])
def test_long_numbers_that_are_no_times_are_looked_at_once(text: str) -> None:
    assert result_of("video_events", text + " things", (), [VIDEO]) == {"events": []}


def test_objects_are_counted_by_label_where_they_are_valid() -> None:
    objects = [DetectedObject(label="a", image=0), DetectedObject(label="a", image=0, problem="empty"),
               DetectedObject(label=None, image=0)]  # fmt: skip
    assert result_of("detect", "", objects, [PICTURE]) == {"count": 2, "labels": {"a": 1, "": 1}}
    layout = result_of("ocr_layout", "", objects[:1], [PICTURE])
    assert layout == {"text": "a", "lines": [{"text": "a", "object": 0}]}


@pytest.mark.parametrize("name", TASKS)
def test_a_preset_has_words_in_both_languages_and_all_is_filled_in(name: TaskName) -> None:
    task = TASKS[name]
    labels, fields = ("labels" in task.takes) * ("cup", "plate"), '{"a": 1}' if "fields" in task.takes else None
    words = [
        prompt_of(TaskCall(name=name, labels=labels, fields=fields, language=language)) for language in ("en", "zh")
    ]
    assert len(set(words)) == 2
    for word in words:
        assert not {"{labels}", "{fields}"} & set(word.split())
        assert all(label in word for label in labels)


def test_objects_of_several_pictures_must_say_which() -> None:
    one, two = (schema_of(TaskCall(name="detect"), MediaCounts(images=count)) for count in (1, 2))
    assert one is not None
    assert two is not None
    assert "image" not in one["items"]["properties"]
    assert two["items"]["properties"]["image"] == {"type": "integer", "minimum": 1, "maximum": 2}
    assert "image" in two["items"]["required"]
    assert '"image"' not in prompt_of(TaskCall(name="detect"))
    assert '"image"' in prompt_of(TaskCall(name="detect"), MediaCounts(images=2))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.reads_objects])
def test_objects_of_videos_must_say_when_and_of_several_in_which(name: TaskName, language: Language) -> None:
    call, counts = TaskCall(name=name, language=language), [MediaCounts(0, 1), MediaCounts(0, 3)]
    one, several = (schema_of(call, count) for count in counts)
    assert one is not None
    assert several is not None
    assert {"time"} == one["items"]["properties"].keys() - several["items"]["properties"].keys() | {"time"}
    assert several["items"]["properties"]["video"]["maximum"] == 3
    words = [prompt_of(call, count) for count in counts]
    assert all('"time"' in word and ("video" in word or "视频" in word) for word in words)
    assert ['"video"' in word for word in words] == [False, True]
    assert not any("image" in word or "图" in word for word in words)
