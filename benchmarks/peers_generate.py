"""The plainest server there can be of a vision-language model: transformers' `generate`, one request after the other,
behind the part of OpenAI's API that `benchmarks.peers` asks. What is measured beside it should be better.

python -m benchmarks.peers_generate MODEL DTYPE PORT
"""

import asyncio
import base64
import io
import json
import sys
import threading
from typing import Any

import torch
from aiohttp import web
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, TextIteratorStreamer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Generate:
    """A model that answers one request at a time."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._lock = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events with the text, then the usage."""
        asked = await request.json()
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        async with self._lock:
            given = await asyncio.to_thread(self._inputs, asked)
            streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, timeout=600)
            count = asked["max_tokens"]
            options: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
            thread = threading.Thread(
                target=self._model.generate, kwargs={**given, **options, "streamer": streamer}, daemon=True
            )
            thread.start()
            while (text := await asyncio.to_thread(next, streamer, None)) is not None:
                await _send(reply, {"choices": [{"delta": {"content": text}}]})
            thread.join()
            await _send(reply, {"choices": [], "usage": {"completion_tokens": count}})
        await reply.write_eof()
        return reply

    def _inputs(self, asked: Any) -> dict[str, Any]:
        picture, question = asked["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        seen = self._processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": question["text"]}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        count = int(seen["image_grid_thw"].prod()) // 4
        ids = self._tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
        kinds = (ids == self._model.config.image_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen}


async def _send(reply: web.StreamResponse, event: object) -> None:
    await reply.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def _application(folder: str, dtype: str) -> web.Application:
    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/chat/completions", Generate(folder, dtype).answer)
    return application


if __name__ == "__main__":
    web.run_app(_application(*sys.argv[1:3]), host="127.0.0.1", port=int(sys.argv[3]), print=None)
