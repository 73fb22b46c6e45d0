"""Trains the tiny model from nothing; resumes from its last checkpoint."""

import json
import multiprocessing as mp
import queue
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from builder.tiny_model import recipe, skills
from builder.tiny_model.batches import Batch, BatchMaker, Stage, load_tokenizer
from builder.tiny_model.sequences import IGNORED, Grid
from worker.core.safe_json import JsonObject


@dataclass(frozen=True)
class Plan:
    """One part of the training: its curriculum, and a learning rate of its own that ends at zero.

    kept: it ends with a mean: one after the other, so much of the way back to what an earlier part ended with.
    """

    stages: tuple[Stage, ...]
    peak_rate: float = 2e-3
    warmup_steps: int = 200
    kept: tuple[tuple[str, float], ...] = ()


ALL_OF_IT = Stage(
    "all of it", 750, 64, (0, 1, 1, 2, 2, 3, 3, 4), (2, 3, 4, 4), (4, 6, 8), True,
    (0.44, 0.2, 0.14, 0.02, 0.2), 3, 0.2, skills.BOX_SKILLS, at_border=False,
    clip_skills=skills.TIMED_CLIP_SKILLS, late=True, follow_ups=0.25, compares=0.7, pair_asks=4,
    pair_tokens=48, own_sizes=True,
)  # fmt: skip
PLANS = {
    "first": Plan((
        Stage("first shapes", 850, 20, (0, 1, 1, 1, 1, 1, 2), (1, 1, 2), (2, 4), False, (0.6, 0.28, 0.08, 0.04)),
        Stage("more of everything", 1050, 36, (0, 1, 1, 2, 2, 3, 3, 4, 5), (1, 2, 3, 3, 4, 4), (2, 3, 4, 6), False),
        Stage("every size", 850, 64, (0, 1, 1, 2, 2, 3, 3, 4, 5, 6), (1, 2, 2, 3, 3, 4, 4), (2, 3, 4, 5, 6, 8), True),
    )),
    "which one": Plan((
        Stage("one of two", 1000, 20, (2, 2, 3), (1, 2, 3, 4), (2, 4), False, (0.94, 0.02, 0.02, 0.02), 6, 0.0,
              skills.PICKING_SKILLS),
        Stage("one of many", 900, 36, (1, 2, 2, 3, 3, 4), (1, 2, 3, 3, 4, 4), (2, 3, 4, 6), False,
              (0.78, 0.1, 0.09, 0.03), 4, 0.3, skills.ALL_SCENE_SKILLS),
        Stage("every size again", 900, 64, (0, 1, 1, 2, 2, 3, 3, 4, 5), (1, 2, 2, 3, 3, 4, 4), (2, 3, 4, 5, 6, 8), True,
              (0.74, 0.15, 0.08, 0.03), 3, 0.2, skills.BOX_SKILLS),
    )),
    "edges": Plan((
        Stage("edges and digits", 700, 64, (0, 1, 1, 2, 2, 3, 3, 4), (2, 3, 3, 4, 4, 4), (4, 6, 8), True,
              (0.62, 0.22, 0.13, 0.03), 3, 0.2, skills.BOX_SKILLS, at_border=False),
    ), peak_rate=1.2e-3, warmup_steps=50),
    "in time": Plan((
        Stage("when, which and before", 800, 64, (0, 1, 1, 2, 2, 3, 3, 4), (2, 3, 4, 4), (4, 6, 8), True,
              (0.38, 0.14, 0.26, 0.02, 0.2), 3, 0.2, skills.BOX_SKILLS, at_border=False,
              clip_skills=skills.TIMED_CLIP_SKILLS, late=True, follow_ups=0.4),
    ), peak_rate=1.2e-3, warmup_steps=50, kept=(("edges", 0.25),)),
    "side by side": Plan((
        Stage("which of two", 450, 20, (0, 1, 1, 2, 2, 3), (2, 3, 4, 4), (4, 6), False,
              (0.18, 0.1, 0.1, 0.01, 0.61), 4, 0.3, skills.ALL_SCENE_SKILLS, at_border=False,
              clip_skills=skills.TIMED_CLIP_SKILLS, late=True, follow_ups=0.2, compares=0.9, pair_asks=6,
              pair_tokens=20),
        ALL_OF_IT,
    ), peak_rate=1e-3, warmup_steps=50),
    "polish": Plan((
        replace(ALL_OF_IT, name="numbers and edges", steps=360, mix=(0.45, 0.3, 0.09, 0.01, 0.15), follow_ups=0.2),
    ), peak_rate=6e-4, warmup_steps=30, kept=(("side by side", 0.5), ("edges", 0.12))),
    "small talk": Plan((
        replace(ALL_OF_IT, name="as people type", steps=160, max_tokens=36,
                mix=(0.25, 0.13, 0.06, 0.46, 0.1), follow_ups=0.2),
    ), peak_rate=4e-4, warmup_steps=30),
    "all again": Plan((
        replace(ALL_OF_IT, name="all again", steps=140, mix=(0.42, 0.16, 0.06, 0.22, 0.14), follow_ups=0.3),
    ), peak_rate=3e-4, warmup_steps=20),
    "forms": Plan((
        replace(ALL_OF_IT, name="forms, tools and thoughts", steps=440,
                mix=(0.44, 0.12, 0.07, 0.08, 0.09, 0.2), skills=skills.FORM_SKILLS,
                forms=0.3, thoughts=0.2, typed=0.35, follow_ups=0.15),
    ), peak_rate=1e-3, warmup_steps=40),
    "forms, then all": Plan((
        replace(ALL_OF_IT, name="forms, then all", steps=160,
                mix=(0.46, 0.14, 0.07, 0.08, 0.13, 0.12), skills=skills.FORM_SKILLS,
                forms=0.22, thoughts=0.14, typed=0.3, follow_ups=0.2),
    ), peak_rate=4e-4, warmup_steps=20),
    "forms, polished": Plan((
        replace(ALL_OF_IT, name="forms, polished", steps=230,
                mix=(0.5, 0.15, 0.05, 0.04, 0.15, 0.11), skills=skills.FORM_SKILLS,
                forms=0.28, thoughts=0.2, typed=0.25, follow_ups=0.15),
    ), peak_rate=6e-4, warmup_steps=20, kept=(("forms, then all", 0.5),)),
    "system prompts": Plan((
        replace(ALL_OF_IT, name="schemas in system prompts", steps=900,
                mix=(0.55, 0.14, 0.06, 0.04, 0.12, 0.09), skills=skills.SYSTEM_PROMPT_SKILLS,
                forms=0.24, thoughts=0.17, typed=0.22, system_prompts=0.12, follow_ups=0.15),
    ), peak_rate=1e-3, warmup_steps=30, kept=(("forms, polished", 0.25),)),
    "system prompts, polished": Plan((
        replace(ALL_OF_IT, name="system prompts, polished", steps=190,
                mix=(0.54, 0.17, 0.05, 0.03, 0.11, 0.1), skills=skills.SYSTEM_PROMPT_SKILLS,
                forms=0.22, thoughts=0.16, typed=0.18, system_prompts=0.2, follow_ups=0.15),
    ), peak_rate=4e-4, warmup_steps=15, kept=(("system prompts", 0.4),)),
}  # fmt: skip
ROWS = 64
MATRIX_LR = 1.5  # of the common rate
PATCH_LR = 0.05  # of the common rate: its 1536 inputs move together and would drown the positions
CHECKPOINT_EVERY = 200


def stages(plan: Plan, scale: float) -> tuple[Stage, ...]:
    """The plan's curriculum, `scale` times as long."""
    return tuple(replace(stage, steps=max(1, round(stage.steps * scale))) for stage in plan.stages)


def stage_at(plan: tuple[Stage, ...], step: int) -> Stage:
    for stage in plan:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return plan[-1]


def learning_rate(plan: Plan, step: int, total: int) -> float:
    """Linear warm-up, a plateau, then a straight line to zero over the last 60 %."""
    return plan.peak_rate * min(1.0, (step + 1) / plan.warmup_steps, max(0.0, (total - step) / (total * 0.6)))


def train(
    folder: Path,
    work: Path,
    *,
    plan: Plan,
    scale: float,
    workers: int,
    device: str,
    seed: int,
    start: Path | None = None,
) -> None:
    """Write `folder` (the checkpoint) and `work` (state for resuming); returns when the plan is done.

    `start` is a checkpoint folder whose weights to begin with; a state takes precedence over it.
    """
    recipe.write_folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**recipe.model_config())).float().to(device)
    if start is None:
        _place_positions(model.model.visual.pos_embed)
    else:
        model.load_state_dict(load_file(start / "model.safetensors"), strict=False)
    _speed_up(model)
    optimizers = _optimizers(model)
    curriculum = stages(plan, scale)
    total = sum(stage.steps for stage in curriculum)
    state_file = work / "state.pt"
    first = _resume(state_file, model, optimizers) if state_file.exists() else 0
    progress = tqdm(range(first, total), initial=first, total=total, mininterval=10)
    losses: list[float] = []
    with _Batches(folder, curriculum, first, total, workers, seed) as batches:
        for step, batch in zip(progress, batches, strict=False):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(plan, step, total) * group["share"]
            loss = loss_of(model, batch, device)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if step % 20 == 0:
                progress.set_postfix_str(f"{stage_at(curriculum, step).name}, loss {np.mean(losses[-100:]):.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == total:
                _save_state(state_file, step + 1, model, optimizers)
                _log_loss(work / "losses.jsonl", step + 1, losses)
                save_weights(model, folder)
    for name, share in plan.kept:
        _average_in(model, load_file(end_of(work.parent, name)), share)
    save_weights(model, folder)
    shutil.copyfile(folder / "model.safetensors", end_of(work.parent, work.name))


def end_of(work: Path, name: str) -> Path:
    """Where the weights lie that a part of the training ended with."""
    return work / name / "end.safetensors"


@torch.no_grad()
def _average_in(model: torch.nn.Module, before: dict[str, torch.Tensor], share: float) -> None:
    """Draw each weight by `share` of the way back to what it was."""
    for name, tensor in model.state_dict().items():
        if name in before:
            tensor.lerp_(before[name].to(tensor), share)


def _save_state(file: Path, step: int, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """All that resuming needs; the file is whole at every moment."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def _log_loss(file: Path, step: int, losses: list[float]) -> None:
    row = {"step": step, "loss": round(float(np.mean(losses[-CHECKPOINT_EVERY:])), 4), "at": round(time.time())}
    with file.open("a") as log:
        log.write(json.dumps(row) + "\n")


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    """`model.safetensors` in float16, the tied head left out, as the family's own files have it."""
    tensors = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def loss_of(model: Any, batch: Batch, device: str) -> torch.Tensor:
    """Mean cross entropy over the answers' tokens, each with its weight."""
    ids = torch.from_numpy(batch.ids).to(device)
    labels = torch.from_numpy(batch.labels).to(device)
    branch = torch.from_numpy(batch.branch).to(device)
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
        embeds = model.get_input_embeddings()(ids)
        visual: JsonObject = {}
        if batch.patches is not None:
            pixels = torch.from_numpy(batch.patches).to(device).float().div_(127.5).sub_(1.0)
            mask = ids == recipe.special_id("<|video_pad|>" if batch.is_video else "<|image_pad|>")
            seen, *deep = features_of(model, pixels, batch.grids, len(ids))
            embeds = embeds.masked_scatter(mask[..., None], seen.to(embeds.dtype))
            visual = {"visual_pos_masks": mask, "deepstack_visual_embeds": deep}
        hidden = model.model.language_model(
            input_ids=None,
            inputs_embeds=embeds,
            position_ids=torch.from_numpy(batch.positions).to(device),
            attention_mask=attention_mask(branch),
            use_cache=False,
            **visual,
        ).last_hidden_state
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[:, :-1][wanted])
    weights = torch.from_numpy(batch.weights).to(device)[:, 1:][wanted]
    losses = functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="none")
    return (losses * weights).sum() / weights.sum()


def features_of(model: Any, pixels: torch.Tensor, grids: tuple[Grid, ...], rows: int) -> list[torch.Tensor]:
    """(tokens, hidden) of all rows in the order of their tokens, then the same of each deepstack layer."""
    sizes = [rows * t * h * w for t, h, w in grids]
    by_place = []
    for part, grid in zip(torch.split(pixels, sizes), grids, strict=True):
        seen = model.model.visual(part, grid_thw=torch.tensor([grid] * rows, device=part.device), return_dict=True)
        by_place.append([seen.pooler_output, *seen.deepstack_features])
    return [
        torch.cat([features.view(rows, -1, features.shape[-1]) for features in level], 1).flatten(0, 1)
        for level in zip(*by_place, strict=True)
    ]


def attention_mask(branch: torch.Tensor) -> torch.Tensor:
    """(rows, 1, length, length) bool: what came before, in the shared beginning (0) or in the same branch."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    same = branch[:, :, None] == branch[:, None, :]
    shared = (branch == 0)[:, None, :]
    return ((same | shared) & causal)[:, None]


def _optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and mergers, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    patches: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (patches if "patch_embed" in name else matrices if is_matrix else others).append(parameter)
    groups = [{"params": patches, "share": PATCH_LR}, {"params": others, "share": 1.0}]
    return [
        torch.optim.Muon([{"params": matrices, "share": MATRIX_LR}], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def _place_positions(embedding: torch.nn.Embedding) -> None:
    """Start the learned position grid with waves along both axes: from random numbers it learns places very late."""
    side, width = int(embedding.num_embeddings**0.5), embedding.embedding_dim
    waves = 0.25 * 32 ** torch.linspace(0, 1, width // 4)
    angles = torch.linspace(0, 2 * torch.pi, side)[:, None] * waves
    axis = torch.cat([angles.sin(), angles.cos()], -1) * 0.5
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    embedding.weight.copy_(torch.cat([rows, columns], -1).reshape(side * side, width))


def _resume(state_file: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    state = torch.load(state_file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _speed_up(model: Any) -> None:
    """Same arithmetic, fewer calls: every picture of a batch has one grid, and a patch embedding is a product."""

    def embed(module: Any, patches: torch.Tensor) -> torch.Tensor:
        return functional.linear(patches, module.proj.weight.flatten(1), module.proj.bias)

    def attend(
        module: Any, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any, **_: Any
    ) -> torch.Tensor:
        total, length = len(hidden_states), int(cu_seqlens[1])
        q, k, v = (
            module.qkv(hidden_states).view(total // length, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        cos, sin = (part.view(total // length, 1, length, -1).to(q.dtype) for part in position_embeddings)
        q, k = (x * cos + _rotate_half(x) * sin for x in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: torch.Tensor = module.proj(mixed.transpose(1, 2).reshape(total, -1))
        return projected

    visual = model.model.visual
    visual.patch_embed.forward = MethodType(embed, visual.patch_embed)
    for block in visual.blocks:
        block.attn.forward = MethodType(attend, block.attn)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class _Batches:
    """Batches in order of steps, drawn ahead by worker processes; the same for a seed, however many workers."""

    def __init__(self, folder: Path, plan: tuple[Stage, ...], first: int, total: int, workers: int, seed: int) -> None:
        self._steps = range(first, total)
        context = mp.get_context("spawn")
        self._queues = [context.Queue(maxsize=6) for _ in range(workers)]
        self._processes = [
            context.Process(
                target=_draw_batches, args=(q, folder, plan, range(first + i, total, workers), seed), daemon=True
            )
            for i, q in enumerate(self._queues)
        ]

    def __enter__(self) -> Iterator[Batch]:
        for process in self._processes:
            process.start()
        return self._all()

    def _all(self) -> Iterator[Batch]:
        for index, _ in enumerate(self._steps):
            yield self._queues[index % len(self._queues)].get(timeout=300)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _draw_batches(out: Any, folder: Path, plan: tuple[Stage, ...], steps: range, seed: int) -> None:
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)
    for step in steps:
        batch = BatchMaker(tokenizer, seed * 1_000_003 + step, ROWS).make(stage_at(plan, step))
        while not _is_put(out, batch):
            if not _has_trainer():
                return


def _is_put(out: Any, batch: Batch) -> bool:
    try:
        out.put(batch, timeout=10)
    except queue.Full:
        return False
    return True


def _has_trainer() -> bool:
    """Whether the process that trains still lives; killed, it cannot end the ones that draw."""
    parent = mp.parent_process()
    return parent is not None and parent.is_alive()
