"""Clients of the other APIs (OpenAI's Responses and Completions, Anthropic's Messages) and gateways between, against a
running server: see test_clients.py.

with_other_apis.py NAME BASE_URL PICTURE NUMBER, as with_python.py. A name of OPENAI2 needs openai 2, in another
environment.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

MODEL = "tiny-qwen3-vl"
QUESTION = "What is in the picture?"
ZOOM = "Zoom in and read the number."
BOX = {"type": "object", "properties": {"box": {"type": "array", "items": {"type": "integer"}}}, "required": ["box"]}


class Thing(BaseModel):
    """What the picture shows."""

    shape: Literal["circle", "square", "triangle", "star", "cross", "ring"]
    color: Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]


def asked(question: str, picture: str) -> list[Any]:
    """A Responses input."""
    shown = {"type": "input_image", "image_url": picture, "detail": "auto"}
    return [{"role": "user", "content": [shown, {"type": "input_text", "text": question}]}]


def _openai(base_url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key="k1", max_retries=0)


def responses_parse(base_url: str, picture: str, number: str) -> Any:
    response = _openai(base_url).responses.parse(
        model=MODEL, input=asked(QUESTION, picture), text_format=Thing, temperature=0
    )
    return response.output_parsed.model_dump()


def responses_stream(base_url: str, picture: str, number: str) -> Any:
    with _openai(base_url).responses.stream(
        model=MODEL, input=asked(QUESTION, picture), text_format=Thing, temperature=0
    ) as stream:
        for _ in stream:
            pass
        return stream.get_final_response().output_parsed.model_dump()


def responses_tool(base_url: str, picture: str, number: str) -> Any:
    """The call, streamed; then its result with a picture in it."""
    client, turns = _openai(base_url), asked(ZOOM, number)
    tools = [{"type": "function", "name": "zoom", "description": "Look at a part of the picture.", "parameters": BOX}]
    with client.responses.stream(model=MODEL, input=turns, tools=tools, temperature=0) as stream:
        first = stream.get_final_response()
    [call] = [item for item in first.output if item.type == "function_call"]
    shown = {"type": "input_image", "image_url": number, "detail": "auto"}
    turns += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": [shown]}]
    last = client.responses.create(model=MODEL, input=turns, tools=tools, temperature=0)
    return {"box": json.loads(call.arguments)["box"], "answer": last.output_text}


def agents_responses(base_url: str, picture: str, number: str) -> Any:
    """The library's default model, whose tool returns a picture."""
    import agents
    from agents import ModelSettings, OpenAIResponsesModel, Runner, ToolOutputImage, function_tool
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    boxes: list[list[int]] = []

    @function_tool(name_override="zoom")
    def look(box: list[int]) -> ToolOutputImage:
        """Look at a part of the picture."""
        boxes.append(box)
        return ToolOutputImage(image_url=number)

    model = OpenAIResponsesModel(MODEL, openai_client=AsyncOpenAI(base_url=base_url, api_key="k1"))
    agent = agents.Agent(name="a", model=model, tools=[look], model_settings=ModelSettings(temperature=0))
    result = asyncio.run(Runner.run(agent, asked(ZOOM, number), max_turns=3))
    return {"box": boxes[0], "answer": result.final_output}


def _anthropic(base_url: str) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=base_url.removesuffix("/v1"), api_key="k1", max_retries=0)


def _image(picture: str) -> Any:
    head, data = picture.split(",", 1)
    media_type = head.removeprefix("data:").removesuffix(";base64")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def anthropic_json(base_url: str, picture: str, number: str) -> Any:
    content = [_image(picture), {"type": "text", "text": QUESTION}]
    message = _anthropic(base_url).messages.parse(
        model=MODEL,
        max_tokens=64,
        messages=[{"role": "user", "content": content}],
        output_format=Thing,
        extra_body={"temperature": 0},
    )
    return message.parsed_output.model_dump()


def anthropic_tool(base_url: str, picture: str, number: str) -> Any:
    """The call, streamed; then its result with a picture in it."""
    client, greedy = _anthropic(base_url), {"temperature": 0}
    turns: list[Any] = [{"role": "user", "content": [_image(number), {"type": "text", "text": ZOOM}]}]
    tools = [{"name": "zoom", "description": "Look at a part of the picture.", "input_schema": BOX}]
    asking = {"model": MODEL, "max_tokens": 100, "tools": tools, "extra_body": greedy}
    with client.messages.stream(messages=turns, **asking) as stream:
        first = stream.get_final_message()
    [call] = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [_image(number)]}
    turns += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(messages=turns, **asking)
    return {"box": call.input["box"], "answer": last.content[-1].text}


def litellm_anthropic(base_url: str, picture: str, number: str) -> Any:
    """litellm as Anthropic's client."""
    import litellm

    shown = {"type": "image_url", "image_url": {"url": picture}}
    reply = litellm.completion(
        model=f"anthropic/{MODEL}",
        api_base=base_url.removesuffix("/v1"),
        api_key="k1",
        max_tokens=64,
        messages=[{"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}],
    )
    return reply.choices[0].message.content


def litellm_fallback(base_url: str, picture: str, number: str) -> Any:
    """A prompt that is too long is known as that, and another model is asked."""
    import litellm

    here = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "k1"}
    router = litellm.Router(
        model_list=[
            {"model_name": "small", "litellm_params": here},
            {"model_name": "large", "litellm_params": {**here, "mock_response": "from the larger one"}},
        ],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )
    long = [{"role": "user", "content": "word " * 5000}]
    try:
        litellm.completion(messages=long, num_retries=0, **here)
    except litellm.ContextWindowExceededError:
        return router.completion(model="small", messages=long).choices[0].message.content
    return None


def llama_index_complete(base_url: str, picture: str, number: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model=MODEL, api_base=base_url, api_key="k1", is_chat_model=False, temperature=0, max_tokens=24)
    by_hand = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    streamed = [part.delta for part in llm.stream_complete(by_hand)]
    return [llm.complete(by_hand).text, "".join(part or "" for part in streamed)]


def llama_index_chat(base_url: str, picture: str, number: str) -> Any:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model=MODEL, api_base=base_url, api_key="k1", is_chat_model=True, temperature=0)
    said = ChatMessage(role="user", blocks=[ImageBlock(url=picture), TextBlock(text=QUESTION)])
    return llm.chat([said]).message.content


CLIENTS: dict[str, Callable[[str, str, str], Any]] = {
    "openai responses parse": responses_parse,
    "openai responses parse, streamed": responses_stream,
    "openai responses tools": responses_tool,
    "openai-agents Responses, a tool that returns an image": agents_responses,
    "anthropic parse": anthropic_json,
    "anthropic tools": anthropic_tool,
    "litellm over Anthropic's API": litellm_anthropic,
    "litellm fallback": litellm_fallback,
}
OPENAI2: dict[str, Callable[[str, str, str], Any]] = {
    "LlamaIndex complete": llama_index_complete,
    "LlamaIndex chat": llama_index_chat,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps({**CLIENTS, **OPENAI2}[name](*arguments)))
