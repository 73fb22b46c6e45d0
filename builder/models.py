"""The published checkpoints and what of them fits which card: the tables of docs/models.md.

python -m builder.models

Parameters are counted on the library's own model of each config, on `meta`; what fits is computed by the code that
chooses MAX_MODEL_LEN at a start.
"""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from builder.published import MODELS, PublishedModel, config
from worker.checkpoint.spec import parts
from worker.core.settings import MIB, Settings
from worker.models.capacity import Capacity
from worker.models.families import FAMILIES
from worker.models.kv_widths import ARENA, POOLS, token_bytes
from worker.models.sizes import sizes_on_gpu

GIB = 1024 * MIB
BFLOAT16 = 2
CONTEXT_MIB = 600  # of a card, held by CUDA itself: assumed
SHORT = 2_048


@dataclass(frozen=True)
class Card:
    """total_mib: as nvidia-smi says."""

    name: str
    total_mib: int


CARDS = (
    Card("16 GB (RTX A4000)", 16_376),
    Card("24 GB (L4)", 23_034),
    Card("24 GB (RTX 4090)", 24_564),
    Card("32 GB (RTX 5090)", 32_607),
    Card("48 GB (L40S)", 46_068),
    Card("80 GB (A100)", 81_920),
    Card("141 GB (H200)", 143_771),
    Card("180 GB (B200)", 183_359),
)


@cache
def num_parameters(of: PublishedModel) -> int:
    """Of text model and vision tower, a tied head once."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(of)), encoding="utf-8")
        known = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        module = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(known)](known)
    return sum(parameter.numel() for parameter in module.parameters())


def kv_bytes(of: PublishedModel) -> int:
    """Of a token in bfloat16; recurrent layers have none."""
    text, _ = parts(config(of))
    layers = sum(kind == "full_attention" for kind in text.get("layer_types") or ["full_attention"] * of.text[2])
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return token_bytes(layers, text["num_key_value_heads"], head_dim, BFLOAT16)


def capacity(of: PublishedModel, card: Card, settings: Settings | None = None) -> tuple[Capacity, int] | None:
    """What is left for keys and values on an empty card with the model in bfloat16, and MAX_NUM_SEQS; None where it
    does not fit."""
    free = (card.total_mib - CONTEXT_MIB) * MIB - num_parameters(of) * BFLOAT16
    layout = POOLS if FAMILIES[of.kind].native is None else ARENA
    sizes = sizes_on_gpu(settings or Settings(), free, kv_bytes(of), layout)
    room = Capacity(sizes.room, kv_bytes(of), of.context, layout)
    return (room, sizes.max_num_seqs) if free > 0 and room.model_len else None


def checkpoints() -> str:
    """A Markdown table of what is published."""
    rows = [
        "| checkpoint | `model_type` | parameters | weights in bfloat16 | KV cache per token | context | shards | "
        "generation_config.json | model code | read |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for of in MODELS:
        count = num_parameters(of)
        sampling = ", ".join(f"{name} {value:g}" for name, value in (of.generation or {}).items()) or "none"
        cells = (
            *(of.name, f"`{of.kind}`", f"{count / 1e9:.2f} B", f"{count * BFLOAT16 / GIB:.1f} GiB"),
            *(f"{kv_bytes(of) / 1024:g} KiB", f"{of.context:,}", str(of.shards or "?"), sampling),
            *("transformers" if FAMILIES[of.kind].native is None else "native", of.seen),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def cards() -> str:
    """A Markdown table of default contexts: tokens of prompt and answer, how many such requests at once, and how many
    of SHORT tokens, no more than MAX_NUM_SEQS."""
    rows = [f"| | {' | '.join(card.name for card in CARDS)} |", f"|---|{'---|' * len(CARDS)}"]
    shown = set()
    for of in MODELS:
        shape = (of.kind, of.text, of.tower, of.vocabulary_size)
        if shape in shown:  # the same numbers as of a sister
            continue
        shown.add(shape)
        sisters = [
            other.name for other in MODELS if (other.kind, other.text, other.tower, other.vocabulary_size) == shape
        ]
        cells = [_cell(capacity(of, card)) for card in CARDS]
        rows.append(f"| {', '.join(sisters)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cell(found: tuple[Capacity, int] | None) -> str:
    if found is None:
        return "-"
    room, most = found
    length = room.model_len
    return f"{length:,} × {min(most, room.at_once(length))}; {min(most, room.at_once(min(SHORT, length)))}"


def main() -> None:
    print(checkpoints())
    print(cards(), end="")


if __name__ == "__main__":
    main()
