"""Good bodies: what they become in the contract."""

import base64
from typing import Any

import pytest

from worker.core.contract import ChatRequest, Controls, Frames, Inline, Media, Text, Url
from worker.core.errors import InputInvalid, MediaParamInvalid
from worker.dialects.table import DIALECTS


def parse(body: dict[str, Any]) -> ChatRequest:
    call = DIALECTS.choose(body)
    request = call.dialect.parse(call.body())
    assert isinstance(request, ChatRequest)
    return request


@pytest.mark.parametrize(
    ("form", "source"),
    [
        ("https://a.test/x.png", Url(url="https://a.test/x.png")),
        ("HTTP://a.test/x.png", Url(url="HTTP://a.test/x.png")),
        ("file:///etc/passwd", Url(url="file:///etc/passwd")),
        ("data:image/png;base64,AAAA", Inline(data="data:image/png;base64,AAAA")),
        ("iVBORw0KGgo", Inline(data="iVBORw0KGgo")),
        ({"url": "https://a.test/x"}, Url(url="https://a.test/x")),
        ({"url": "data:;base64,AA"}, Inline(data="data:;base64,AA")),
        ({"base64": "AAAA"}, Inline(data="AAAA")),
    ],
)
def test_a_picture_has_many_forms(form: object, source: Url | Inline) -> None:
    [media] = parse({"prompt": "x", "image": form}).media
    assert media == Media(kind="image", source=source, where="image")


@pytest.mark.parametrize(
    ("form", "fps"),
    [(["a", {"base64": "b"}], None), ({"frames": ["a", "b"]}, None), ({"frames": ["a", "b"], "fps": 4}, 4.0)],
)
def test_a_video_is_a_list_of_frames(form: object, fps: float | None) -> None:
    [media] = parse({"prompt": "x", "video": form}).media
    assert media.source == Frames(frames=(Inline(data="a"), Inline(data="b")), fps=fps)


def test_pictures_come_before_videos_before_the_prompt() -> None:
    request = parse({"prompt": "x", "system": "s", "video": ["a"], "images": ["b"], "image": "c"})
    system, user = request.messages
    assert system.parts == (Text(text="s"),)
    assert [getattr(part, "where", "text") for part in user.parts] == ["image", "images[0]", "video", "text"]


def test_blocks_keep_their_order_and_their_place() -> None:
    content = [
        {"type": "text", "text": "first"},
        {"type": "image", "image": "a"},
        {"type": "image_url", "image_url": {"url": "https://a.test/"}},
        {"type": "video", "video": ["b"], "fps": 3},
    ]
    [message] = parse({"messages": [{"role": "user", "content": content}]}).messages
    places = [getattr(part, "where", "text") for part in message.parts]
    assert places == ["text", "messages[0].content[1]", "messages[0].content[2]", "messages[0].content[3]"]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert parse({"prompt": "x", "stop": "\n"}).sampling.stop == ("\n",)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    request = parse({"prompt": "x", "image": {"url": "https://a.test/", "max_pixels": 65536.0}, "max_tokens": 512.0})
    assert (request.sampling.max_tokens, request.media[0].controls.max_pixels) == (512, 65536)
    with pytest.raises(InputInvalid, match="max_tokens"):
        parse({"prompt": "x", "max_tokens": 512.5})


def test_sampling_that_is_not_given_is_left_open() -> None:
    sampling = parse({"prompt": "x"}).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, sampling.max_tokens) == (None,) * 5


def test_openai_chat_is_read() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:;base64,AA", "detail": "auto"}}],
            },
        ],
        "max_completion_tokens": 7,
        "temperature": 0,
        "stop": None,
        "n": 1,
        "tools": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u",
        "metadata": {"a": "b"},
    }
    request = parse({"openai_route": "/v1/chat/completions", "openai_input": body})
    assert [message.role for message in request.messages] == ["system", "user"]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (7, 0)
    assert (request.stream, request.include_usage, request.model) == (True, True, "m")
    assert request.ignored == ("metadata", "user")


def test_the_openai_clients_own_reply_may_be_sent_back() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hey", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "again"},
    ]
    options = {"include_usage": True, "include_obfuscation": False}
    body = {"messages": messages, "stream": True, "stream_options": options}
    assert len(parse({"openai_route": "/v1/chat/completions", "openai_input": body}).messages) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({}, None),
    ],
)
def test_both_names_of_the_token_limit_are_read(fields: dict[str, Any], expected: int | None) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    assert parse({"openai_route": "/v1/chat/completions", "openai_input": body}).sampling.max_tokens == expected


def test_controls_are_read_from_the_form_and_from_the_block() -> None:
    seen = {"min_pixels": 4096, "max_pixels": 65536, "resized_height": 64, "resized_width": 96}
    part = {"nframes": 8, "min_frames": 4, "max_frames": 8, "video_start": 1, "video_end": 2.5, "total_pixels": 10**6}
    content = [
        {"type": "image", "image": "a", **seen},
        {"type": "image", "image": {"url": "https://a.test/", **seen}},
        {"type": "image_url", "image_url": {"url": "https://a.test/", **seen}},
        {"type": "video", "video": "b", **part},
        {"type": "video", "video": {"base64": "b", **part}},
        {"type": "video_url", "video_url": {"url": "https://a.test/", **part}},
    ]
    media = parse({"messages": [{"role": "user", "content": content}]}).media
    assert [one.controls for one in media] == [Controls(**seen)] * 3 + [Controls(**part)] * 3
    [native] = parse({"prompt": "x", "video": {"url": "https://a.test/", "fps": 4}}).media
    assert native.controls == Controls(fps=4)


def test_the_form_takes_precedence_over_its_block() -> None:
    block = {"type": "image", "image": {"url": "https://a.test/", "max_pixels": 1024}, "max_pixels": 9, "min_pixels": 5}
    [media] = parse({"messages": [{"role": "user", "content": [block]}]}).media
    assert media.controls == Controls(max_pixels=1024, min_pixels=5)


@pytest.mark.parametrize(("detail", "pixels"), [("low", 512 * 512), ("high", None), ("auto", None)])
def test_low_detail_is_a_smaller_picture(detail: str, pixels: int | None) -> None:
    block = {"type": "image_url", "image_url": {"url": "https://a.test/", "detail": detail}}
    [media] = parse({"messages": [{"role": "user", "content": [block]}]}).media
    assert media.controls.max_pixels == pixels


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"url": "https://a.test/", "fps": 1, "nframes": 4}, "fps and nframes exclude each other"),
        ({"url": "https://a.test/", "min_frames": 9, "max_frames": 4}, "min_frames is greater than max_frames"),
        ({"url": "https://a.test/", "video_start": 9, "video_end": 4}, "video_start is greater than video_end"),
        ({"url": "https://a.test/", "resized_height": 64}, "resized_height needs resized_width"),
        ({"url": "https://a.test/", "min_pixels": 9, "max_pixels": 4}, "min_pixels is greater than max_pixels"),
    ],
)
def test_controls_that_contradict_each_other_are_refused(video: Any, said: str) -> None:
    with pytest.raises(MediaParamInvalid, match=said) as failure:
        parse({"prompt": "x", "video": video})
    assert failure.value.where == "video"


def test_frames_of_a_list_may_have_their_own_times() -> None:
    [media] = parse({"prompt": "x", "video": {"frames": ["a", "b"], "times": [0.5, 7]}}).media
    assert media.source.times == (0.5, 7.0)
    assert media.source.fps is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"times": [1]}, "1 times for 2 frames"),
        ({"times": [1, 1]}, "times must increase"),
        ({"times": [2, 1]}, "times must increase"),
        ({"times": [1, 2], "fps": 2}, "fps and times exclude each other"),
    ],
)
def test_times_that_cannot_be_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(MediaParamInvalid, match=said):
        parse({"prompt": "x", "video": {"frames": ["a", "b"], **more}})


def test_frames_of_a_list_are_not_chosen_from() -> None:
    block = {"type": "video", "video": ["a", "b"], "nframes": 4}
    with pytest.raises(MediaParamInvalid, match="a list of frames is used whole"):
        parse({"messages": [{"role": "user", "content": [block]}]})


def openai_chat(*blocks: Any, **more: Any) -> ChatRequest:
    messages = [{"role": "user", "content": list(blocks)}]
    return parse({"openai_route": "/v1/chat/completions", "openai_input": {"messages": messages, **more}})


def test_processor_kwargs_hold_for_media_that_say_nothing_themselves() -> None:
    request = openai_chat(
        {"type": "image_url", "image_url": {"url": "https://a.test/"}},
        {"type": "image_url", "image_url": {"url": "https://a.test/", "max_pixels": 500}},
        {"type": "video_url", "video_url": {"url": "https://a.test/"}},
        {"type": "video_url", "video_url": {"url": "https://a.test/", "nframes": 8}},
        {"type": "video", "video": ["a", "b"]},
        {"type": "video", "video": {"frames": ["a", "b"], "times": [1, 2]}},
        mm_processor_kwargs={"max_pixels": 900, "fps": 1.0},
    )
    assert [media.controls for media in request.media] == [
        Controls(max_pixels=900),
        Controls(max_pixels=500),
        Controls(max_pixels=900, fps=1.0),
        Controls(max_pixels=900, nframes=8),
        Controls(max_pixels=900),
        Controls(max_pixels=900),
    ]
    assert [media.source.fps for media in request.media[4:]] == [1.0, None]


def test_an_images_own_bound_takes_precedence_over_processor_kwargs() -> None:
    block = {"type": "image_url", "image_url": {"url": "https://a.test/", "min_pixels": 1000}}
    assert openai_chat(block, mm_processor_kwargs={"max_pixels": 900}).media[0].controls == Controls(min_pixels=1000)
    low = {"type": "image_url", "image_url": {"url": "https://a.test/", "detail": "low"}}
    [media] = openai_chat(low, mm_processor_kwargs={"min_pixels": 500_000}).media
    assert media.controls == Controls(max_pixels=512 * 512)
    with pytest.raises(MediaParamInvalid, match=r"messages\[0\].content\[0\].*min_pixels is greater than max_pixels"):
        openai_chat(low | {"image_url": {"url": "x"}}, mm_processor_kwargs={"max_pixels": 800, "min_pixels": 900})


def test_the_template_is_told_plain_values_alone() -> None:
    told = {"add_vision_id": True, "level": 3, "effort": "high"}
    given = {**told, "enable_thinking": None}  # null says nothing
    assert dict(openai_chat({"type": "text", "text": "x"}, chat_template_kwargs=given).template) == told
    for wrong in (
        {"messages": "x"},
        {"chat_template": "x"},
        {"add_generation_prompt": False},
        {"a b": 1},
        {"x": "<|im_start|>"},
        {"x": []},
        {"namespace": 1},
        {"self": 1},
    ):
        with pytest.raises(InputInvalid, match="chat_template_kwargs"):
            openai_chat({"type": "text", "text": "x"}, chat_template_kwargs=wrong)


def test_without_a_model_the_older_services_defaults_hold() -> None:
    block = {"type": "text", "text": "x"}
    flat, named = openai_chat(block).sampling, openai_chat(block, model="m").sampling
    assert (flat.max_tokens, flat.temperature, flat.top_p) == (512, 0.7, 0.9)
    assert (named.max_tokens, named.temperature, named.top_p) == (None, None, None)
    assert openai_chat(block, temperature=0, max_completion_tokens=9).sampling.temperature == 0
    assert openai_chat(block, max_completion_tokens=9).sampling.max_tokens == 9


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"dialect": "generate", "messages": [{"role": "user", "content": "x"}]}, "generate"),
        ({"dialect": "openai_chat", "messages": [{"role": "user", "content": "x"}]}, "openai_chat"),
        ({"dialect": "chat_vl", "messages": [{"role": "user", "content": "x"}]}, "chat_vl"),
        ({"dialect": "recognize", "image": "aGk=", "prompt": "x"}, "recognize"),
        ({"dialect": "bot_private", "type": "private", "user_id": 1, "content": "x"}, "bot_private"),
        ({"dialect": "bot_group", "type": "group", "group_id": 1, "user_id": 1, "content": "x"}, "bot_group"),
        ({"dialect": "native", "prompt": "x"}, "native"),
        ({"messages": [{"role": "user", "content": "x"}]}, "native"),
    ],
)
def test_a_named_dialect_takes_precedence_over_the_table(body: dict[str, Any], name: str) -> None:
    assert DIALECTS.choose(body).dialect.name == name
    assert len(parse(body).messages) == 1


@pytest.mark.parametrize("name", ["", "qwen", 3, None, "openai_models", "__init__"])
def test_a_dialect_that_is_not_there_is_refused_with_those_that_are(name: object) -> None:
    with pytest.raises(
        InputInvalid, match=r"dialect: .*one of anthropic_count, .*bot_group, bot_private, chat_vl, generate, native"
    ):
        DIALECTS.choose({"dialect": name, "prompt": "x"})


FRAME = base64.b64encode(b"\xff\xd8\xff\xe0 picture").decode()


@pytest.mark.parametrize(
    "head", ["data:video/jpeg;base64,", " DATA:video/jpg;charset=x;base64,", "data:video/png;base64,"]
)
def test_frames_in_one_data_uri_are_a_list_of_frames(head: str) -> None:
    """vLLM's form for frames."""
    block = {"type": "video_url", "video_url": {"url": head + ",".join([FRAME] * 3)}}
    [media] = openai_chat(block).media
    assert isinstance(media.source, Frames)
    assert [frame.data for frame in media.source.frames if isinstance(frame, Inline)] == [FRAME] * 3
    assert media.source.fps is None
    [media] = openai_chat({**block, "video_url": {**block["video_url"], "fps": 4}}).media
    assert isinstance(media.source, Frames)
    assert media.source.fps == 4
    [media] = parse({"prompt": "x", "video": head + FRAME}).media
    assert isinstance(media.source, Frames)
    assert len(media.source.frames) == 1


def test_a_whole_file_in_a_data_uri_is_one() -> None:
    for text in ("data:video/mp4;base64,AAAA,BBBB", "data:video/jpeg;base64,AAAAIGZ0eXA="):
        [media] = parse({"prompt": "x", "video": text}).media
        assert media.source == Inline(data=text)


def test_vllms_media_arguments_choose_frames() -> None:
    frames = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join([FRAME] * 5)}}
    film = {"type": "video_url", "video_url": {"url": "https://a.test/film.mp4"}}
    picture = {"type": "image_url", "image_url": {"url": "https://a.test/"}}

    def media_of(**video: Any) -> list[Media]:
        return list(openai_chat(frames, film, picture, media_io_kwargs={"video": video}).media)

    first, second, third = media_of(fps=4, num_frames=-1)
    assert isinstance(first.source, Frames)
    assert (first.source.fps, len(first.source.frames)) == (4, 5)
    assert (second.controls, third.controls) == (Controls(fps=4), Controls())
    first, second, third = media_of(num_frames=3)
    assert isinstance(first.source, Frames)
    assert len(first.source.frames) == 3
    assert (second.controls, third.controls) == (Controls(nframes=3), Controls())
    own = {**film, "video_url": {**film["video_url"], "nframes": 8}}
    [media] = openai_chat(own, media_io_kwargs={"video": {"num_frames": 3}, "image": {"mode": "RGB"}}).media
    assert media.controls == Controls(nframes=8)
    with pytest.raises(InputInvalid, match=r"media_io_kwargs.video.num_frames"):
        openai_chat(film, media_io_kwargs={"video": {"num_frames": 0}})


def test_damage_is_refused_where_the_request_says_so() -> None:
    film = {"type": "video_url", "video_url": {"url": "https://a.test/film.mp4"}}
    mild = {"type": "video_url", "video_url": {"url": "https://a.test/film.mp4", "strict_media": False}}
    said = [media.controls.strict_media for media in openai_chat(film, mild, strict_media=True).media]
    assert said == [True, False]
    [media] = parse({"prompt": "x", "video": "https://a.test/film.mp4", "strict_media": True}).media
    assert media.controls == Controls(strict_media=True)


def test_a_picture_may_keep_its_colors_as_stored() -> None:
    [media] = parse({"prompt": "x", "image": {"url": "https://a.test/", "color": "as_is"}}).media
    assert media.controls == Controls(color="as_is")
    with pytest.raises(InputInvalid, match="color"):
        parse({"prompt": "x", "image": {"url": "https://a.test/", "color": "cmyk"}})


@pytest.mark.parametrize("text", ["\n https://a.test/x.png", "\ufeffhttps://a.test/x.png"])
def test_an_address_with_blanks_before_it_is_one(text: str) -> None:
    [media] = parse({"prompt": "x", "image": text}).media
    assert media.source == Url(url=text)


def chat(*content: Any, **body: Any) -> ChatRequest:
    said = {"messages": [{"role": "user", "content": list(content) or "hello"}], **body}
    return parse({"openai_route": "/v1/chat/completions", "openai_input": said})


PICTURE = {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://a.test/x.mp4"}}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": "https://a.test/x.png"},
        {"type": "image_url", "image_url": {"url": "https://a.test/x.png", "detail": None}},
        {"type": "image_url", "image_url": {"url": "https://a.test/x.png", "detail": "original"}, "text": None},
        {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}, "uuid": "cat-1"},
        {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}, "cache_control": {"type": "ephemeral"}},
    ],
)
def test_clients_dump_and_decorate_their_blocks(block: dict[str, Any]) -> None:
    assert chat(block).media == chat(PICTURE).media


def test_hints_to_other_servers_caches_are_named_as_ignored() -> None:
    block = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    assert chat(block).ignored == ("messages[].content[].cache_control",)
    assert parse({"messages": [{"role": "user", "content": [block]}]}).texts == ("hello",)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"content": None}, ()),
        ({"content": []}, ()),
        ({}, ()),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, ("no",)),
        ({"content": None, "refusal": "no"}, ("no",)),
        ({"content": "yes", "refusal": None}, ("yes",)),
    ],
)
def test_an_assistants_turn_may_be_empty_or_a_refusal(turn: dict[str, Any], words: tuple[str, ...]) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", **turn}, {"role": "user", "content": "b"}]
    request = parse({"openai_route": "/v1/chat/completions", "openai_input": {"messages": said}})
    assert tuple(part.text for part in request.messages[1].parts if isinstance(part, Text)) == words


def test_the_processors_own_names_for_sizes_and_frames_take_effect() -> None:
    kwargs = {"fps": 2, "do_sample_frames": True, "size": {"shortest_edge": 3136, "longest_edge": 100352}, "x": None}
    picture, video = chat(PICTURE, VIDEO, mm_processor_kwargs=kwargs).media
    assert picture.controls == Controls(shortest_edge=3136, longest_edge=100352)
    assert video.controls == Controls(fps=2.0, shortest_edge=3136, longest_edge=100352)
    [video] = chat(VIDEO, mm_processor_kwargs={"num_frames": 8, "do_sample_frames": False}).media
    assert video.controls == Controls(nframes=8)
    with pytest.raises(InputInvalid, match="do_sample_frames: false needs the number of frames"):
        chat(VIDEO, mm_processor_kwargs={"do_sample_frames": False})
    frames = {"type": "video", "video": ["AA", "AA"]}
    assert chat(frames, mm_processor_kwargs={"do_sample_frames": False, "fps": 2}).media
    with pytest.raises(InputInvalid, match=r"mm_processor_kwargs\.size\.longest_edgee: unknown field: did you mean"):
        chat(PICTURE, mm_processor_kwargs={"size": {"longest_edgee": 5}})


def test_nulls_are_absent_wherever_kwargs_are_given() -> None:
    request = chat(
        VIDEO,
        mm_processor_kwargs={"fps": None, "size": {"shortest_edge": None}},
        media_io_kwargs={"video": {"num_frames": None}, "image": None},
        chat_template_kwargs={"enable_thinking": None},
        stream_options={"include_usage": None},
    )
    assert (request.media[0].controls, request.template) == (Controls(), ())


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"tools": 5}, "tools"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
        ({"stop": [["x"]]}, "stop[0]"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"chat_template_kwargs": {"enable_thinking": []}}, "chat_template_kwargs.enable_thinking"),
        ({"structured_outputs": {"json": []}}, "structured_outputs.json"),
        ({"mm_processor_kwargs": {"size": 5}}, "mm_processor_kwargs.size"),
        ({"stream_options": {"include_usage": 5}}, "stream_options.include_usage"),
    ],
)
def test_a_place_has_steps_of_the_body_alone(body: dict[str, Any], place: str) -> None:
    with pytest.raises(InputInvalid) as failed:
        chat(**body)
    assert failed.value.where == place


def test_a_call_with_arguments_of_another_kind_is_named_without_its_types() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "x", "arguments": 5}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(InputInvalid) as failed:
        parse({"openai_route": "/v1/chat/completions", "openai_input": {"messages": [turn]}})
    assert failed.value.where == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"route": "/api/chat/group", "body": {"type": "group", "group_id": {"a": 1}, "user_id": "u"}}, "group_id"),
        (
            {"route": "/chat-vl", "body": {"messages": [{"role": "user", "content": {"str": "x"}}]}},
            "messages[0].content",
        ),
        ({"route": "/chat-vl", "body": {"messages": "[]", "file": {"a": 1}}}, "file"),
    ],
)
def test_older_formats_show_no_steps_of_their_validator(body: dict[str, Any], place: str) -> None:
    with pytest.raises(InputInvalid) as failed:
        parse(body)
    assert str(failed.value.where).startswith(place)
    assert "str" not in str(failed.value.where)[len(place) :]
