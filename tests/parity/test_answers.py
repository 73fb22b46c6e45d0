"""The tiny model's answers, by transformers' own processor and `generate`, and by this worker."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from builder.tiny_model.evaluate import generate
from tests.parity.conftest import note
from tests.parity.reference import opened
from worker.core.contract import ChatRequest, Controls, Media, Message, Text, Upload
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.models.loading import load
from worker.prompt.builder import PromptBuilder

PICTURES = sorted((Path(__file__).parents[2] / "docs" / "pictures").glob("*.jpg"))
QUESTIONS = ("What is in the picture?", "How many objects are there?", "图片里有什么？")


@pytest.mark.parametrize("question", QUESTIONS)
def test_both_say_the_same_of_the_albums_pictures(question: str) -> None:
    processor = AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    reference = Qwen3VLForConditionalGeneration.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
    ours = load(Settings(device="cpu", model_code="transformers"))
    assert PICTURES
    for path in PICTURES:
        data = path.read_bytes()
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        asked = processor(text=[text], images=[image], return_tensors="pt")
        with torch.inference_mode():
            said = reference.generate(**asked, max_new_tokens=60, do_sample=False)
        expected = processor.tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        media = Media(kind="image", source=Upload(data=data), where="test")
        request = ChatRequest(messages=(Message(role="user", parts=(media, Text(text=question))),))
        seen = opened(ours, "image", data, Controls())
        answer = generate(ours, PromptBuilder(ours.spec, Settings()).build(request, [seen]))
        note("answers of the tiny model", "tiny", float(answer != expected))
        assert answer == expected, path.name
