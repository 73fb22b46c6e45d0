"""Greedy tokens of the demonstration model in bfloat16 on a device, for `benchmarks.gpu`.

python -m benchmarks.gpu_tiny cuda|cpu
"""

import asyncio
import sys

from worker.core.contract import ChatRequest, Done, Message, Text
from worker.core.sampling import Sampling
from worker.core.settings import load as settings
from worker.engine.engine import Engine, continuous_engine
from worker.models import loading, varlen

ASKED = ("Who are you?", "What can you do?", "Hello", "How many objects are there?")


async def answer(engine: Engine, text: str) -> str:
    message = Message(role="user", parts=(Text(text=text),))
    request = ChatRequest(messages=(message,), sampling=Sampling(max_tokens=24, temperature=0))
    return "".join([event.text async for event in engine.generate(request, []) if not isinstance(event, Done)])


async def answers(engine: Engine) -> list[str]:
    return list(await asyncio.gather(*(answer(engine, text) for text in ASKED * 2)))


def main() -> None:
    device = sys.argv[1]
    if device == "cpu":
        setattr(loading, "kernel_for", lambda *_: varlen.plain)  # noqa: B010
    made = settings({"DEVICE": device, "DTYPE": "bfloat16", "MODEL_ID": "tiny-qwen3-vl", "KV_CACHE_MIB": "256"})
    engine = continuous_engine(loading.load(made), made)
    engine.start()
    print(asyncio.run(answers(engine)))
    engine.close()


if __name__ == "__main__":
    main()
