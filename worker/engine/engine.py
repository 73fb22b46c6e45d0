"""The engine's entry point: a request and its media in, events out. See `core.engine_protocol.Engine`.

Prompts are built in a pool of threads, answers on the engine's own thread; the event loop never waits for either.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from worker.core.contract import ChatRequest, Done, Event, Piece
from worker.core.deadline import Deadline
from worker.core.engine_protocol import EngineInfo, EngineState, EngineStats, OnUsage, TokenCounts
from worker.core.errors import EngineStopped, InputInvalid, PromptTooLong, WorkerError
from worker.core.opened import Opened
from worker.core.pacing import joined
from worker.core.sampling import Sampling
from worker.core.settings import MIB, Settings
from worker.core.threads import on_thread
from worker.core.units import context_length
from worker.engine.caches import EngineCaches, caches_for
from worker.engine.constraints import CompiledGrammar, Constraints
from worker.engine.continuous_batch import ContinuousBatch
from worker.engine.detokenizer import TextStream
from worker.engine.event_bridge import EventBridge
from worker.engine.guide import Guide, ThinkingTokens, thinking_tokens
from worker.engine.loop import Batch, EngineLoop
from worker.engine.loop_guard import LoopGuard
from worker.engine.recovery import Recovery
from worker.engine.sampling import Sampler, resolve
from worker.engine.scheduler import PrefillGroup, Scheduler
from worker.engine.sequence import Emit, Request, Sequence
from worker.models.capacity import sizes_for
from worker.models.kv_cache import KVCache
from worker.models.kv_widths import KVLayout
from worker.models.loading import LoadedModel, ServedModel
from worker.models.openmp import compute_alone, end_team
from worker.models.sizes import Sizes
from worker.prompt.builder import PromptBuilder
from worker.prompt.types import Prompt

STUCK_S = 5.0  # after its deadline a request no longer waits for the engine's thread to end it


class Builder(Protocol):
    """Builds prompts, from many threads."""

    def build(self, request: ChatRequest, media: Items[Opened]) -> Prompt: ...


class KeepsKVCache(Protocol):
    """What an engine asks of a runner to plan its memory."""

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def kv_layout(self) -> KVLayout: ...

    def kv_cache(self, max_bytes: int) -> KVCache: ...


@dataclass(frozen=True)
class EngineParts:
    """What an engine is made of."""

    scheduler: Scheduler[Sequence]
    caches: EngineCaches
    recovery: Recovery
    batch: Batch
    sizes: Sizes


class Engine:
    """Serves one model. `start` it, send it work from any thread or event loop, `close` it: the thread is joined."""

    def __init__(self, model: ServedModel, builder: Builder, settings: Settings, parts: EngineParts) -> None:
        self.info: EngineInfo = replace(model.info(), concurrency=parts.sizes.concurrency)
        self.builder = builder
        self.parts = parts
        self._spec = model.spec
        self.constraints, self._thinking = Constraints(model.spec), thinking_tokens(model.spec.tokenizer)
        self._settings = settings
        self._scheduler, self._caches = parts.scheduler, parts.caches
        limit, stuck_s = parts.sizes.max_num_seqs + settings.max_queue, settings.engine_stuck_s
        self._loop = EngineLoop(parts.scheduler, parts.batch, parts.recovery, limit=limit, stuck_s=stuck_s)
        begin = compute_alone if self.info.device == "cpu" else None
        self._pool = ThreadPoolExecutor(settings.prepare_threads, "prepare", begin)

    def start(self) -> None:
        """By the thread that has loaded the model."""
        end_team()
        self._loop.start()

    def close(self) -> None:
        """End now: whatever is unfinished fails with EngineStopped. Returns when the thread has ended."""
        self._pool.shutdown()
        self._loop.close()

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have it called when the engine ends by itself, or when its thread does not come back, after everybody was
        told."""
        self._loop.on_death(callback)

    @property
    def state(self) -> EngineState:
        return self._loop.state

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_unfinished=self._loop.num_unfinished,
            kv_cache_bytes=self._caches.kv.num_bytes,
            device_bytes=self._caches.device_bytes,
            caches=self._caches.stats(),
            busy_s=self.parts.batch.meter.busy_s,
        )

    async def count_tokens(self, request: ChatRequest, media: Items[Opened]) -> TokenCounts:
        """Build the request's prompt and count it. Raises PromptTooLong."""
        prompt = await on_thread(self._pool, self.builder.build, request, media)
        return TokenCounts(len(prompt.ids), prompt.media, prompt.ids)

    async def generate(
        self,
        request: ChatRequest,
        media: Items[Opened],
        deadline: Deadline | None = None,
        on_usage: OnUsage = lambda _: None,
    ) -> AsyncGenerator[Event, None]:
        """Pieces of text, then exactly one Done. `media` are the request's, opened. Leaving early frees the slot.
        `on_usage` is called with what was computed, however the request ends.

        A plain request's text comes in one piece. At the deadline the answer ends as it is, with the reason `time`.
        Raises WorkerError.
        """
        if self.state != "ready":
            raise EngineStopped()
        deadline = deadline or Deadline()
        bridge = EventBridge(wakes_for_pieces=request.stream)
        with self._loop.preparing():
            async with deadline.watch():
                came_at = time.monotonic()
                grammar = await self._grammar(request)
                prompt = await on_thread(self._pool, self.builder.build, request, media)
        del media  # pixels and files are needed no more
        submitted = self.submit(
            prompt,
            request.sampling,
            bridge.emit,
            deadline,
            grammar,
            max_gpu_seconds=request.max_gpu_seconds,
            preprocess_s=time.monotonic() - came_at,
        )
        del prompt
        try:
            while True:
                async with deadline.watch(STUCK_S):
                    gathered = await bridge.take()
                for event in _joined(gathered):
                    yield event
                match gathered[-1:]:
                    case [WorkerError() as error]:
                        raise error
                    case [Done()]:
                        return
        finally:
            self.cancel(submitted)
            if submitted.has_begun:
                on_usage(submitted.usage)

    async def _grammar(self, request: ChatRequest) -> CompiledGrammar | None:
        """The grammar of the answer. Raises InputInvalid, GrammarTooComplex."""
        constraint, tools = request.sampling.constraint, request.tools
        if self.constraints.is_free(constraint, tools):
            return None
        return await on_thread(self._pool, self.constraints.compiled, constraint, tools)

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        emit: Emit,
        deadline: Deadline | None = None,
        grammar: CompiledGrammar | None = None,
        *,
        max_gpu_seconds: float | None = None,
        preprocess_s: float = 0.0,
    ) -> Request:
        """Hand over a prompt; `emit` is called on the engine's thread. grammar: of the answers; max_gpu_seconds: the
        request's share of the device's time after which they end; preprocess_s: that the prompt took.

        Raises QueueFull, PromptTooLong, InputInvalid, EngineStopped.
        """
        request = Request(
            prompt,
            self._max_tokens(prompt, sampling),
            emit,
            sampling.n,
            deadline or Deadline(),
            max_gpu_seconds=math.inf if max_gpu_seconds is None else max_gpu_seconds,
            preprocess_s=preprocess_s,
        )
        self._check(request, sampling)
        resolved = resolve(sampling, self._spec.generation)
        ending = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._spec.eos_ids)
        ends_grammar = frozenset() if grammar is None else self._spec.eos_ids
        known = prompt.distinct_ids if resolved.repetition_penalty != 1 else torch.empty(0, dtype=torch.long)
        num_alternatives = 0 if sampling.logprobs is None and sampling.wants_confidence else sampling.logprobs
        sequences = [
            Sequence(
                request=request,
                index=index,
                sampler=Sampler(
                    resolved,
                    known,
                    ending | ends_grammar,
                    index,
                    self._guide(prompt, sampling, grammar),
                    num_alternatives,
                ),
                stream=TextStream(self._spec.tokenizer, sampling.stop, keeps_stop=sampling.keeps_stop),
                ending=ending,
                tokenizer=self._spec.tokenizer,
                stop_ids=frozenset(sampling.stop_token_ids),
                num_alternatives=num_alternatives,
                skips_certain=sampling.logprobs is None,
                guard=self._guard_of(sampling),
                min_tokens=sampling.min_tokens,
            )
            for index in range(sampling.n)
        ]
        self._loop.submit(request, PrefillGroup(sequences))
        return request

    def cancel(self, request: Request) -> None:
        """Free the request's slots before the next step; again or afterwards does nothing."""
        request.is_cancelled = True

    def _guide(self, prompt: Prompt, sampling: Sampling, grammar: CompiledGrammar | None) -> Guide:
        return Guide(
            ThinkingTokens() if prompt.is_raw else self._thinking,
            opens_thought=prompt.opens_thought,
            budget=sampling.thinking_budget,
            state=None if grammar is None else grammar.begin(),
        )

    def _guard_of(self, sampling: Sampling) -> LoopGuard | None:
        """An answer that is to go on whatever the model says is not ended for repeating itself."""
        is_on = self._settings.loop_guard if sampling.loop_guard is None else sampling.loop_guard
        if not is_on or sampling.ignore_eos:
            return None
        return LoopGuard(self._spec.tokenizer.bytes_of)

    def _max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        """Raises PromptTooLong."""
        limit = self._spec.max_model_len
        room = limit - len(prompt.ids)
        wanted = sampling.max_tokens or max(1, min(self._default_max_tokens(prompt, sampling), room))
        if sampling.fits_context and wanted > 1:
            wanted = max(1, min(wanted, room, self._max_held(prompt, sampling)))
        if wanted > room:
            asked = f"the prompt has {len(prompt.ids)} and max_tokens asks for {wanted}: lower it to {room}"
            raise PromptTooLong(detail=f"{context_length(limit)}, {asked}")
        return wanted

    def _default_max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        """Thinking is long: where the answer begins within it, what the KV cache can hold, up to a setting."""
        if not prompt.opens_thought:
            return self._settings.max_tokens_default
        held = self._max_held(prompt, sampling)
        return min(self._settings.max_tokens_thinking, max(held, self._settings.max_tokens_default))

    def _max_held(self, prompt: Prompt, sampling: Sampling) -> int:
        """Tokens of each answer that the KV cache can hold behind the prompt."""
        return self._scheduler.max_positions(len(prompt.ids), sampling.n) - len(prompt.ids)

    def _check(self, request: Request, sampling: Sampling) -> None:
        """Raises InputInvalid, PromptTooLong."""
        if sampling.n > (most := self._scheduler.max_rows):
            raise InputInvalid(where="n", detail=f"must be at most {most} (MAX_NUM_SEQS)")
        size = self._spec.vocabulary_size
        biased = tuple(token for token, _ in sampling.logit_bias)
        for where, ids in (("stop_token_ids", sampling.stop_token_ids), ("logit_bias", biased)):
            if any(not 0 <= token < size for token in ids):
                raise InputInvalid(where=where, detail=f"token ids must be from 0 to {size - 1}")
        needed = self._scheduler.bytes_alone(len(request.prompt.ids), request.num_positions, request.num_answers)
        if needed > self._scheduler.max_bytes:
            detail = (
                f"{sampling.n} x {request.num_positions} tokens need {needed / MIB:.1f} MiB of KV cache, "
                f"there are {self._scheduler.max_bytes / MIB:.1f} MiB"
            )
            raise PromptTooLong(detail=detail)


def continuous_engine(model: LoadedModel, settings: Settings, *, runs_ahead: bool | None = None) -> Engine:
    """An engine that batches continuously, for a model of a known family. runs_ahead: see `DecodeSteps`."""
    parts = continuous_parts(model, settings, runs_ahead=runs_ahead)
    return Engine(model, PromptBuilder(model.spec, settings), settings, parts)


def continuous_parts(model: LoadedModel, settings: Settings, *, runs_ahead: bool | None = None) -> EngineParts:
    """The parts of an engine that batches continuously."""
    batch_of = partial(ContinuousBatch, model.runner, prefill_chunk=settings.prefill_chunk, runs_ahead=runs_ahead)
    return parts_around(batch_of, model, model.runner, settings)


def parts_around(
    batch_of: Callable[[Scheduler[Sequence], EngineCaches, Recovery], Batch],
    model: ServedModel,
    runner: KeepsKVCache,
    settings: Settings,
) -> EngineParts:
    """The parts of an engine whose turns `batch_of` makes."""
    sizes = model.sizes or sizes_for(
        settings, model.device, model.num_devices, runner.bytes_per_token, runner.kv_layout
    )
    sizes = sizes.under(settings)
    caches = caches_for(runner.kv_cache(sizes.room), settings, sizes, model.device)
    scheduler: Scheduler[Sequence] = Scheduler(caches.kv, sizes.max_num_seqs, sizes.room, runner.bytes_per_token)
    recovery = Recovery(scheduler, caches)
    return EngineParts(scheduler, caches, recovery, batch_of(scheduler, caches, recovery), sizes)


def _joined(events: Items[Event | WorkerError]) -> list[Event]:
    """The events with pieces of one answer joined, up to an error."""
    return joined([event for event in events if isinstance(event, Piece | Done)])
