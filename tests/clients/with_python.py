"""Client libraries for Python against a running server, in an environment of their own: see test_clients.py.

with_python.py NAME BASE_URL PICTURE NUMBER: a name of CLIENTS, the address of the API, a picture of a red
circle, and one of a small number, as data URIs. Prints what came back as JSON. Nothing is told to the libraries but the
address, a key and the model's name.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, create_model

MODEL = "tiny-qwen3-vl"
QUESTION = "What is in the picture?"
ZOOM = "Zoom in and read the number."


class Thing(BaseModel):
    """What the picture shows."""

    shape: Literal["circle", "square", "triangle", "star", "cross", "ring"]
    color: Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]


zoom = create_model("zoom", box=(list[int], ...), __doc__="Look at a part of the picture.")


def content(question: str, picture: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]


def messages(question: str, picture: str) -> list[Any]:
    return [{"role": "user", "content": content(question, picture)}]


def openai_parse(base_url: str, picture: str, number: str) -> Any:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="k1", max_retries=0)
    completion = client.chat.completions.parse(
        model=MODEL, messages=messages(QUESTION, picture), response_format=Thing, temperature=0
    )
    parsed = completion.choices[0].message.parsed
    assert parsed is not None
    return parsed.model_dump()


def openai_stream(base_url: str, picture: str, number: str) -> Any:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="k1", max_retries=0)
    with client.chat.completions.stream(
        model=MODEL, messages=messages(QUESTION, picture), response_format=Thing, temperature=0
    ) as stream:
        for _ in stream:
            pass
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed is not None
    return parsed.model_dump()


def openai_tool(base_url: str, picture: str, number: str) -> Any:
    """The call, parsed by the library; then its result with a picture in it."""
    from openai import OpenAI, pydantic_function_tool

    client = OpenAI(base_url=base_url, api_key="k1", max_retries=0)
    turns, tools = messages(ZOOM, number), [pydantic_function_tool(zoom)]
    message = client.chat.completions.parse(model=MODEL, messages=turns, tools=tools, temperature=0).choices[0].message
    assert message.tool_calls, message
    [call] = message.tool_calls
    turns += [message, {"role": "tool", "tool_call_id": call.id, "content": content("", number)[:1]}]
    last = client.chat.completions.create(model=MODEL, messages=turns, tools=tools, temperature=0).choices[0]
    return {"box": call.function.parsed_arguments.box, "answer": last.message.content}


def _langchain(base_url: str) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=base_url, api_key="k1", model=MODEL, temperature=0, max_retries=0)


def _langchain_structured(method: str) -> Callable[[str, str, str], Any]:
    def run(base_url: str, picture: str, number: str) -> Any:
        from langchain_core.messages import HumanMessage

        chain = _langchain(base_url).with_structured_output(Thing, method=method)
        question = QUESTION + (" Answer in JSON with shape, color" if method == "json_mode" else "")
        return chain.invoke([HumanMessage(content=content(question, picture))]).model_dump()

    return run


def langchain_bind_tools(base_url: str, picture: str, number: str) -> Any:
    from langchain_core.messages import HumanMessage, ToolMessage

    model = _langchain(base_url).bind_tools([zoom])
    asked = HumanMessage(content=content(ZOOM, number))
    called = model.invoke([asked])
    [call] = called.tool_calls
    result = ToolMessage(content=content("", number)[:1], tool_call_id=call["id"])
    return {"box": call["args"]["box"], "answer": model.invoke([asked, called, result]).content}


def _instructor(mode: str) -> Callable[[str, str, str], Any]:
    def run(base_url: str, picture: str, number: str) -> Any:
        import instructor
        from openai import OpenAI

        client = instructor.from_openai(
            OpenAI(base_url=base_url, api_key="k1", max_retries=0), mode=getattr(instructor.Mode, mode)
        )
        thing = client.chat.completions.create(
            model=MODEL, messages=messages(QUESTION, picture), response_model=Thing, temperature=0, max_retries=0
        )
        return thing.model_dump()

    return run


def _pydantic_ai(base_url: str) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=base_url, api_key="k1"))


def pydantic_ai_output(base_url: str, picture: str, number: str) -> Any:
    """By a tool, as is its default."""
    from pydantic_ai import Agent, ImageUrl

    agent = Agent(_pydantic_ai(base_url), output_type=Thing, retries=0, model_settings={"temperature": 0})
    return agent.run_sync([ImageUrl(url=picture), QUESTION]).output.model_dump()


def pydantic_ai_native_output(base_url: str, picture: str, number: str) -> Any:
    from pydantic_ai import Agent, ImageUrl, NativeOutput

    agent = Agent(_pydantic_ai(base_url), output_type=NativeOutput(Thing), model_settings={"temperature": 0})
    return agent.run_sync([ImageUrl(url=picture), QUESTION]).output.model_dump()


def openai_agents_picture(base_url: str, picture: str, number: str) -> Any:
    """An agent whose tool returns a picture, over litellm: the library's own chat-completions model leaves it out."""
    from agents import Agent, ModelSettings, Runner, ToolOutputImage, function_tool, set_tracing_disabled
    from agents.extensions.models.litellm_model import LitellmModel

    set_tracing_disabled(True)
    boxes: list[list[int]] = []

    @function_tool(name_override="zoom")
    def look(box: list[int]) -> ToolOutputImage:
        """Look at a part of the picture."""
        boxes.append(box)
        return ToolOutputImage(image_url=number)

    model = LitellmModel(model=f"openai/{MODEL}", base_url=base_url, api_key="k1")
    agent = Agent(name="a", model=model, tools=[look], model_settings=ModelSettings(temperature=0))
    asked = [
        {"type": "input_image", "image_url": number, "detail": "auto"},
        {"type": "input_text", "text": ZOOM},
    ]
    result = asyncio.run(Runner.run(agent, [{"role": "user", "content": asked}], max_turns=3))  # type: ignore[list-item]
    return {"box": boxes[0], "answer": result.final_output}


def openai_agents_output(base_url: str, picture: str, number: str) -> Any:
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(MODEL, openai_client=AsyncOpenAI(base_url=base_url, api_key="k1"))
    agent = Agent(name="a", model=model, output_type=Thing, model_settings=ModelSettings(temperature=0))
    asked = [
        {"type": "input_image", "image_url": picture, "detail": "auto"},
        {"type": "input_text", "text": QUESTION},
    ]
    result = asyncio.run(Runner.run(agent, [{"role": "user", "content": asked}]))  # type: ignore[list-item]
    return result.final_output.model_dump()


CLIENTS: dict[str, Callable[[str, str, str], Any]] = {
    "openai parse": openai_parse,
    "openai parse, streamed": openai_stream,
    "openai tools": openai_tool,
    "LangChain json_schema": _langchain_structured("json_schema"),
    "LangChain function_calling": _langchain_structured("function_calling"),
    "LangChain json_mode": _langchain_structured("json_mode"),
    "LangChain bind_tools": langchain_bind_tools,
    "instructor JSON": _instructor("JSON"),
    "instructor JSON_SCHEMA": _instructor("JSON_SCHEMA"),
    "instructor TOOLS": _instructor("TOOLS"),
    "pydantic-ai output by a tool": pydantic_ai_output,
    "pydantic-ai NativeOutput": pydantic_ai_native_output,
    "openai-agents output": openai_agents_output,
    "openai-agents over litellm, a tool that returns an image": openai_agents_picture,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(CLIENTS[name](*arguments)))
