"""What the published checkpoints of a family have in common, for copies that lack it: rules for pixels, a chat
template; and the sampling that their model cards advise. Sources: docs/models.md."""

from worker.checkpoint.family import CardSampling
from worker.checkpoint.preprocessor import PreprocessorConfig

QWEN2_VL_PIXELS = PreprocessorConfig(
    patch=14,
    merge=2,
    temporal=2,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    image_min_pixels=3_136,
    image_max_pixels=12_845_056,
    video_min_pixels=3_136,
    video_max_pixels=12_845_056,
    video_fps=2.0,
    caps_frames=True,
    frame_max_tokens=768,
    is_video_per_frame=True,
)
QWEN3_VL_PIXELS = PreprocessorConfig(
    patch=16,
    merge=2,
    temporal=2,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    image_min_pixels=65_536,
    image_max_pixels=16_777_216,
    video_min_pixels=4_096,
    video_max_pixels=25_165_824,
    video_fps=2.0,
    caps_frames=True,
    frame_max_tokens=768,
)

# Of Qwen2-VL and Qwen2.5-VL: ChatML, a system message where the conversation begins without one, and a number before
# each picture and video where `add_vision_id` asks for it.
QWEN2_TEMPLATE = """\
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- for message in messages -%}
  {%- if loop.first and message.role != "system" -%}
    {{ "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
  {%- endif -%}
  {{ "<|im_start|>" ~ message.role ~ "\\n" }}
  {%- set parts = [{"text": message.content}] if message.content is string else message.content -%}
  {%- for part in parts -%}
    {%- if part.type == "image" or "image" in part or "image_url" in part -%}
      {%- set seen.pictures = seen.pictures + 1 -%}
      {{ ("Picture " ~ seen.pictures ~ ": " if add_vision_id else "") ~ "<|vision_start|><|image_pad|><|vision_end|>" }}
    {%- elif part.type == "video" or "video" in part -%}
      {%- set seen.videos = seen.videos + 1 -%}
      {{ ("Video " ~ seen.videos ~ ": " if add_vision_id else "") ~ "<|vision_start|><|video_pad|><|vision_end|>" }}
    {%- elif "text" in part -%}
      {{ part.text }}
    {%- endif -%}
  {%- endfor -%}
  {{ "<|im_end|>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ "<|im_start|>assistant\\n" }}
{%- endif -%}
"""

# Of the model cards, for questions about pictures and videos.
QWEN3_VL_SAMPLING = CardSampling(
    plain={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
    thinking={"temperature": 1.0, "top_p": 0.95, "top_k": 20},
)
QWEN3_5_SAMPLING = CardSampling(
    plain={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
    thinking={"temperature": 1.0, "top_p": 0.95, "top_k": 20, "presence_penalty": 1.5},
)
