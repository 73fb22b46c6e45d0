"""The plainest server there can be of a vision-language model: transformers' `generate`, one request after the other,
behind the part of OpenAI's API that `benchmarks.peers` asks. What is measured beside it should be better.

python -m benchmarks.peers_generate MODEL DTYPE PORT
"""

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, TextIteratorStreamer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Generate(BaseHTTPRequestHandler):
    """Answers one request at a time."""

    protocol_version = "HTTP/1.0"
    tokenizer: Any
    processor: Any
    model: Any
    lock = threading.Lock()

    def do_POST(self) -> None:  # the library's name
        """Server-sent events with the text, then the usage."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        count = asked["max_tokens"]
        with self.lock:
            streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, timeout=600)
            options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "streamer": streamer}
            thread = threading.Thread(
                target=self.model.generate, kwargs={**self._inputs(asked), **options}, daemon=True
            )
            thread.start()
            for text in streamer:
                self._send({"choices": [{"delta": {"content": text}}]})
            thread.join()
        self._send({"choices": [], "usage": {"completion_tokens": count}})

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _send(self, event: object) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _inputs(self, asked: Any) -> dict[str, Any]:
        picture, question = asked["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        seen = self.processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": question["text"]}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        count = int(seen["image_grid_thw"].prod()) // 4
        ids = self.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
        kinds = (ids == self.model.config.image_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen}


def main() -> None:
    folder, dtype, port = sys.argv[1:]
    Generate.tokenizer = AutoTokenizer.from_pretrained(folder)
    Generate.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    Generate.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ThreadingHTTPServer(("127.0.0.1", int(port)), Generate).serve_forever()


if __name__ == "__main__":
    main()
