"""Continuous batching on a thread of its own: some tokens of prompts, one step of all live rows, again and again.

Answers join and leave at every step. The event loop never waits for this thread: requests come in through a
queue, events go out through each request's `emit`.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Protocol

import torch

from worker.core.contract import ChatRequest, Done, Event, Opened, Piece, Sampling
from worker.core.deadline import Deadline
from worker.core.errors import (
    EngineStopped,
    InputInvalid,
    InternalError,
    OutOfMemory,
    PromptTooLong,
    QueueFull,
    WorkerError,
)
from worker.core.settings import MIB, Settings
from worker.engine.detokenizer import TextStream
from worker.engine.prefill import Prefill
from worker.engine.prefix_cache import SHORTEST_PREFIX, FeatureCache, PrefixCache, shared_beginning
from worker.engine.sampling import Chooser, Row, resolve, rows
from worker.engine.scheduler import Admission, Entry
from worker.engine.sequence import Emit, Request, Sequence
from worker.models.kv_cache import SlotCache
from worker.models.loading import LoadedModel, ServedModel
from worker.models.runner import Prompt, Runner
from worker.prompt.builder import PromptBuilder

log = logging.getLogger(__name__)
SMALLEST_CHUNK = 64
GATHER_S = 0.02  # for prompts being made when the first of a burst has come
GROWTH = 1.03  # of the time between two pieces of a stream, at each of them
MOST_LOGPROBS = 100  # of a piece; the platform refuses large chunks
MOST_CHARS = 50_000
MOST_INTERVALS = 5  # and where that ends
WATCHES = 8  # in the time after which a turn is stuck
STUCK_S = 5.0  # after its deadline a request no longer waits for the engine's thread to end it


class Builder(Protocol):
    """Builds prompts, from many threads."""

    def build(self, request: ChatRequest, media: Items[Opened]) -> Prompt: ...


class Engine:
    """Serves one model. `start` it, send it work from any thread or event loop, `close` it: the thread is joined.

    `on_death` is called when it ended by itself, or when its thread does not come back, after everybody was told.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: Settings,
        on_death: Callable[[], None] = lambda: None,
        *,
        builder: Builder | None = None,
    ) -> None:
        self._on_death = on_death
        self._model = model
        self._settings = settings
        if builder is None:
            assert isinstance(model, LoadedModel)
            builder = PromptBuilder(model, settings)
        self._builder = builder
        self._runner: Runner = model.runner
        self._cache: SlotCache = self._runner.slots()
        self._features = FeatureCache(settings.feature_cache_mib * MIB)
        self._can_pad = can_cut = not self._cache.has_states
        self._prefixes = PrefixCache(settings.prefix_cache_mib * MIB) if can_cut and settings.prefix_cache_mib else None
        max_bytes = _cache_bytes(settings, model.device, model.num_devices)
        self._admission = Admission(settings.max_num_seqs, max_bytes, self._cache, self._runner.bytes_per_token)
        self._incoming: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._beginning: list[Entry] = []
        self._live: list[Sequence] = []
        self._num_turns = 0
        self._num_preparing = 0  # prompts being made; the event loop's
        self._unfinished: set[Request] = set()
        self._lock = threading.Lock()
        self._is_closing = False
        self._is_dead = False
        self._is_stuck = False
        self._is_idle = True
        self._beats = 0  # turns of the loop
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine")
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)
        self._preparing = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="prepare")

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self._model.name

    @property
    def model_code(self) -> str:
        """Whose model code runs the model: `native`, `transformers` or `generate`."""
        return self._model.code

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return len(self._admission.waiting)

    @property
    def reused(self) -> dict[str, tuple[int, int]]:
        """For what is kept to be used again: how often it was, and its bytes."""
        return {
            "features": (self._features.num_hits, self._features.num_bytes),
            "prefixes": (self._prefixes.num_hits, self._prefixes.num_bytes) if self._prefixes else (0, 0),
        }

    @property
    def room(self) -> tuple[int, int]:
        """For the keys and values of what is being decoded: bytes, and the tokens that they hold."""
        max_bytes = self._admission.max_bytes
        return max_bytes, max_bytes // self._runner.bytes_per_token

    @property
    def device_bytes(self) -> int:
        """Memory of the device that torch holds; 0 on the CPU."""
        return torch.cuda.memory_reserved(self._model.device) if self._model.device.type == "cuda" else 0

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self._model.max_model_len

    async def weigh(self, request: ChatRequest, media: Items[Opened]) -> tuple[int, tuple[int, ...]]:
        """Tokens of the request's prompt, and of each of its media. Raises PromptTooLong."""
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._preparing, self._builder.build, request, media)
        return len(prompt.ids), tuple(seen.tokens for seen in prompt.seen)

    def start(self) -> None:
        self._thread.start()
        self._watchdog.start()

    @property
    def builder(self) -> Builder:
        return self._builder

    @property
    def is_dead(self) -> bool:
        """Whether it ended by itself: the worker must be replaced."""
        return self._is_dead

    @property
    def is_stuck(self) -> bool:
        """Whether its thread has not come back from the device: it cannot be joined, the process must be left."""
        return self._is_stuck

    @property
    def is_healthy(self) -> bool:
        """Whether work is taken."""
        return self._thread.is_alive() and not self._is_dead and not self._is_closing

    @property
    def num_live(self) -> int:
        """Answers being decoded."""
        return len(self._live)

    @property
    def num_unfinished(self) -> int:
        """Requests that are waiting or being answered."""
        return len(self._unfinished)

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of what is being decoded."""
        return self._cache.num_bytes

    def close(self) -> None:
        """End now: whatever is unfinished fails with EngineStopped. Returns when the thread has ended."""
        with self._lock:
            self._is_closing = True
        self._preparing.shutdown()
        self._incoming.put(None)
        if self._thread.is_alive() and not self._is_stuck:
            self._thread.join()
        self._has_ended.set()
        if self._watchdog.is_alive() and self._watchdog is not threading.current_thread():
            self._watchdog.join()

    async def generate(
        self, request: ChatRequest, media: Items[Opened], deadline: Deadline | None = None
    ) -> AsyncGenerator[Event, None]:
        """Pieces of text, then exactly one Done. `media` are the request's, opened. Leaving early frees the slot.

        A plain request's text comes in one piece. In a stream the first piece comes at once, then what has gathered
        in STREAM_INTERVAL_MS, or for as long as the consumer was busy; the longer the answer, the rarer and larger.
        At the deadline the answer ends as it is, with the reason `time`. Raises WorkerError.
        """
        if not self.is_healthy:
            raise EngineStopped()
        deadline = deadline or Deadline()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | WorkerError] = asyncio.Queue()
        has_ended = asyncio.Event()

        def deliver(event: Event | WorkerError) -> None:
            events.put_nowait(event)
            if not isinstance(event, Piece):
                has_ended.set()

        def emit(event: Event | WorkerError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
                loop.call_soon_threadsafe(deliver, event)

        self._num_preparing += 1
        try:
            async with deadline.watch():
                prompt = await loop.run_in_executor(self._preparing, self._builder.build, request, media)
        finally:
            self._num_preparing -= 1
        submitted = self.submit(prompt, request.sampling, emit, deadline)
        task = asyncio.current_task()
        assert task is not None
        # A task that is cancelled while its consumer is busy never comes back into this generator,
        # so `finally` alone would leave the slot taken.
        release = lambda _: self.cancel(submitted)  # noqa: E731
        task.add_done_callback(release)
        pause = self._settings.stream_interval_ms / 1000 if request.stream else None
        may_speak_at = loop.time()
        most = MOST_INTERVALS * (pause or 0)
        try:
            while True:
                async with deadline.watch(STUCK_S):
                    gathered = [await events.get()]
                    await _until(has_ended, None if pause is None else may_speak_at - loop.time())
                if pause is not None:
                    may_speak_at = loop.time() + pause
                    pause = min(pause * GROWTH, most)
                while not events.empty():
                    gathered.append(events.get_nowait())
                said = list(takewhile(lambda event: isinstance(event, Piece), gathered))
                for piece in _merged(said):
                    yield piece
                match gathered[len(said) :]:
                    case [WorkerError() as error, *_]:
                        raise error
                    case [Done() as done, *_]:
                        yield done
                        return
        finally:
            task.remove_done_callback(release)
            self.cancel(submitted)

    def submit(self, prompt: Prompt, sampling: Sampling, emit: Emit, deadline: Deadline | None = None) -> Request:
        """Hand over a prompt; `emit` is called on the engine's thread.

        Raises QueueFull, PromptTooLong, InputInvalid, EngineStopped.
        """
        request = Request(prompt, self._max_tokens(prompt, sampling), emit, sampling.n, deadline or Deadline())
        self._check(request, sampling)
        choice = resolve(sampling, self._model.generation)
        ending = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._model.eos_ids)
        entry = Entry(
            [
                Sequence(
                    request=request,
                    index=index,
                    chooser=Chooser(choice, prompt.ids, ending, index),
                    stream=TextStream(self._model.tokens, sampling.stop),
                    ending=ending,
                    vocabulary=self._model.tokens,
                    num_likely=sampling.logprobs,
                )
                for index in range(sampling.n)
            ]
        )
        limit = self._settings.max_num_seqs + self._settings.max_queue
        with self._lock:
            if not self.is_healthy:
                raise EngineStopped()
            if len(self._unfinished) >= limit:
                self._unfinished = {other for other in self._unfinished if not other.is_over}
            if len(self._unfinished) >= limit:
                raise QueueFull(detail=f"{limit} requests are unfinished")
            self._unfinished.add(request)
            self._incoming.put(entry)
        return request

    def cancel(self, request: Request) -> None:
        """Free the request's slots before the next step; again or afterwards does nothing."""
        request.is_cancelled = True

    def _max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        room = self._model.max_model_len - len(prompt.ids)
        wanted = sampling.max_tokens or max(1, min(self._settings.max_tokens_default, room))
        if wanted > room:
            numbers = f"prompt {len(prompt.ids)} + max_tokens {wanted} > {self._model.max_model_len}"
            raise PromptTooLong(detail=numbers)
        return wanted

    def _check(self, request: Request, sampling: Sampling) -> None:
        if sampling.n > self._settings.max_num_seqs:
            raise InputInvalid(where="n", detail=f"at most {self._settings.max_num_seqs}")
        size = self._model.vocabulary_size
        for where, ids in (
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", tuple(token for token, _ in sampling.logit_bias)),
        ):
            if any(not 0 <= token < size for token in ids):
                raise InputInvalid(where=where, detail=f"token ids are 0 to {size - 1}")
        needed = self._admission.bytes_alone(request)
        if needed > self._admission.max_bytes:
            detail = (
                f"{sampling.n} x {request.num_positions} tokens need {needed / MIB:.1f} MiB of keys and values, "
                f"there are {self._admission.max_bytes / MIB:.1f}"
            )
            raise PromptTooLong(detail=detail)

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._beats += 1
                self._receive()
                self._end_overdue()
                self._drop_over()
                self._prefill_some()
                self._decode_all()
        except BaseException:  # a panic in a library written in Rust is no Exception
            log.exception("the engine has ended")
            self._is_dead = True
        finally:
            self._fail_everything()
        if self._is_dead:
            self._on_death()

    def _watch(self) -> None:
        """Give everybody an error when a turn takes `engine_stuck_s`.

        It counts how often it woke, not the clock: in a process that was frozen nothing has been stuck.
        """
        seen, same = -1, 0
        while not self._has_ended.wait(self._settings.engine_stuck_s / WATCHES):
            same = same + 1 if not self._is_idle and self._beats == seen else 0
            seen = self._beats
            if same >= WATCHES:
                log.error("the engine's thread has not come back for %g s", self._settings.engine_stuck_s)
                self._is_stuck = self._is_dead = True
                self._fail_unfinished()
                self._on_death()
                return

    def _receive(self) -> None:
        """Take in what has come; wait for it where there is nothing else to do.

        What ends a rest may be the first of a burst: prompts that are being made are waited for, a moment, so that they
        are computed together.
        """
        gather_until = 0.0
        while True:
            is_idle = not self._live and not self._beginning and not self._admission.waiting
            self._is_idle = is_idle
            moment = gather_until - time.monotonic() if self._num_preparing else 0.0
            try:
                entry = self._incoming.get(block=is_idle or moment > 0, timeout=None if is_idle else max(0.0, moment))
            except queue.Empty:
                return
            if is_idle:
                gather_until = time.monotonic() + GATHER_S
            self._is_idle = False
            if entry is None:
                return
            self._admission.waiting.append(entry)

    def _end_overdue(self) -> None:
        """End what is still here at its deadline."""
        apart = [one for entry in (*self._beginning, *self._admission.waiting) for one in entry.sequences]
        for sequence in (*self._live, *apart):
            if sequence.is_over or not sequence.request.deadline.has_passed:
                continue
            try:
                sequence.run_out_of_time()
            except Exception:
                log.exception("an answer could not be ended in time")
                sequence.request.fail(InternalError())

    def _drop_over(self) -> None:
        """Free the rows of what has ended, and forget what was cancelled on the way."""
        for row in reversed(range(len(self._live))):
            if self._live[row].is_over:
                self._leave(row)
        self._beginning = [entry for entry in self._beginning if not entry.is_over]
        self._admission.drop_over()
        with self._lock:
            self._unfinished = {request for request in self._unfinished if not request.is_over}

    def _prefill_some(self) -> None:
        """Compute prompts for at most `prefill_chunk` tokens, and a picture's worth where it is larger."""
        self._admit()
        self._cache.expect([one.request.num_positions for one in self._beginning for _ in one.sequences])
        budget = self._settings.prefill_chunk
        while self._beginning and budget > 0:
            entry = self._next_to_prefill()
            if entry.is_over:
                self._beginning.remove(entry)
                continue
            together = self._alike(entry, budget)
            if len(together) > 1:
                budget -= self._prefill_together(together)
                continue
            try:
                self._open(entry)
                assert entry.prefill is not None
                budget -= max(1, entry.prefill.step(max(budget, min(SMALLEST_CHUNK, self._settings.prefill_chunk))))
                if not entry.prefill.left:
                    self._begin(entry)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                self._give_up_prefill(entry, error)

    def _admit(self) -> None:
        """Let waiting requests begin, as far as rows and bytes allow."""
        while (entry := self._admission.next(self._beginning)) is not None:
            self._beginning.append(entry)

    def _open(self, entry: Entry) -> None:
        """Find out how much of the prompt is known already."""
        if entry.prefill is None:
            tokens = entry.sequences[0].tokens
            entry.prefill = Prefill(entry.request.prompt, tokens, self._runner, self._features, self._prefixes)
            entry.request.num_cached = entry.prefill.reused

    def _alike(self, first: Entry, budget: int) -> list[Entry]:
        """The entry, and others whose short prompts can be computed in one forward with it.

        Those that begin like one of them come later: then they need only what follows.
        """
        together: list[Entry] = []
        longest = 0
        for entry in (first, *(one for one in self._beginning if one is not first)):
            prompt = entry.request.prompt
            longest = max(longest, len(prompt.ids))
            is_fitting = longest * (len(together) + 1) <= budget and longest <= 2 * len(prompt.ids)
            if not is_fitting or not self._can_pad or entry.is_apart or entry.must_be_alone or entry.is_over:
                break
            known = [other.request.prompt.fingerprint for other in together]
            if any(shared_beginning(prompt.fingerprint, one) >= SHORTEST_PREFIX for one in known):
                continue
            try:
                self._open(entry)
            except torch.AcceleratorError:
                raise
            except Exception:
                break  # it fails again, and is given up, when its own turn comes
            assert entry.prefill is not None
            if not entry.prefill.is_plain:
                break
            together.append(entry)
        return together

    def _prefill_together(self, entries: list[Entry]) -> int:
        """Compute whole prompts in one forward; what it cost in tokens. Where it fails, each is tried apart."""
        try:
            logits, caches = self._runner.prefill_together([entry.request.prompt for entry in entries])
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.warning("%d prompts could not be computed together: each is tried apart", len(entries))
            if isinstance(error, torch.OutOfMemoryError):
                self._let_go_of_caches()
            for entry in entries:
                entry.is_apart = True
            return 0
        for entry, row, cache in zip(entries, logits, caches, strict=True):
            try:
                assert entry.prefill is not None
                entry.prefill.finish(row, cache)
                self._begin(entry)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                self._give_up_prefill(entry, error)
        return len(entries) * max(len(entry.request.prompt.ids) for entry in entries)

    def _next_to_prefill(self) -> Entry:
        """The one with the least left and the one that came first take turns: short ones pass, long ones go on."""
        self._num_turns += 1
        if self._num_turns % 2:
            return self._beginning[0]
        return min(self._beginning, key=lambda entry: entry.prefill.left if entry.prefill else 0)

    def _begin(self, entry: Entry) -> None:
        """First tokens from a whole prefill, and rows for the answers that go on."""
        prefill = entry.prefill
        assert prefill is not None and prefill.logits is not None
        length = len(entry.request.prompt.ids) + len(entry.sequences[0].tokens)
        (row,) = rows(prefill.logits[None], [entry.sequences[0].chooser.choice])
        if row.is_finite:
            prefill.keep()
        else:  # what it was computed from may be kept already
            self._let_go_of_caches()
        for sequence in entry.sequences:
            sequence.take(row)
            if not sequence.is_over:
                row_in_step = self._cache.join(prefill.cache, length, entry.request.num_positions)
                self._live.insert(row_in_step, sequence)
        self._beginning.remove(entry)

    def _give_up_prefill(self, entry: Entry, error: Exception) -> None:
        """A prefill failed. Without memory it is tried once more, alone; all other failures are its own."""
        self._beginning.remove(entry)
        if isinstance(error, torch.OutOfMemoryError):
            self._let_go_of_caches()
            if entry.must_be_alone:
                entry.request.fail(OutOfMemory())
                return
            log.warning("no memory for a prompt: it is tried again alone")
            left = [one for one in entry.sequences if not one.is_over and one not in self._live]
            begun = [Entry([one], must_be_alone=True) for one in left if one.tokens]
            fresh = [one for one in left if not one.tokens]
            self._admission.waiting.extendleft([*begun, *([Entry(fresh, must_be_alone=True)] if fresh else [])])
        elif isinstance(error, WorkerError):
            entry.request.fail(error)
        else:
            log.error("a prefill failed", exc_info=error)
            entry.request.fail(InternalError())

    def _decode_all(self) -> None:
        """One token for every live answer."""
        if not self._live:
            return
        try:
            logits = self._runner.decode(
                [sequence.tokens[-1] for sequence in self._live],
                [sequence.next_position for sequence in self._live],
                self._cache,
            )
            found = rows(logits, [sequence.chooser.choice for sequence in self._live])
            self._cache.end_step()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._take_back(error)
            return
        for sequence, row in zip(self._live, found, strict=True):
            if sequence.is_over:  # cancelled, or another answer to the same prompt has just failed
                continue
            self._take(sequence, row)

    def _take(self, sequence: Sequence, row: Row) -> None:
        """Choose an answer's next token; what fails in that is its request's own."""
        try:
            sequence.take(row)
        except torch.AcceleratorError:
            raise
        except WorkerError as error:
            sequence.request.fail(error)
        except Exception:
            log.exception("a token could not be chosen or turned into text")
            sequence.request.fail(InternalError())

    def _take_back(self, error: Exception) -> None:
        """A step failed, and it cannot be told by whom. Without memory the longest answer goes back to be tried again
        alone; else all do, one after the other, so that only the one at fault fails."""
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if is_memory:
            self._let_go_of_caches()
            log.warning("no memory for a step of %d answers", len(self._live))
        else:
            log.error("a step of %d answers failed", len(self._live), exc_info=error)
        if is_memory and not self._cache.has_states:
            lengths = self._cache.lengths
            taken = [max(range(len(lengths)), key=lengths.__getitem__)]
        else:  # recurrent states may be half a step further: none of the rows can go on
            taken = list(range(len(self._live)))
        for row in reversed(taken):
            sequence = self._live[row]
            self._leave(row)
            if sequence.is_retried:
                sequence.request.fail(OutOfMemory() if is_memory else InternalError())
            elif not sequence.is_over:
                sequence.is_retried = True
                self._admission.waiting.appendleft(Entry([sequence], must_be_alone=True))
        self._cache.trim()

    def _let_go_of_caches(self) -> None:
        self._cache.trim()
        self._features.clear()
        if self._prefixes is not None:
            self._prefixes.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _leave(self, row: int) -> None:
        """The cache moves another row into the hole, and so does the list."""
        moved = self._live.pop(gone := self._cache.leave(row))
        if gone != row:
            self._live[row] = moved

    def _fail_unfinished(self) -> None:
        with self._lock:
            self._is_closing = True
            unfinished, self._unfinished = self._unfinished, set()
        for request in unfinished:
            request.fail(EngineStopped())

    def _fail_everything(self) -> None:
        self._fail_unfinished()
        self._live.clear()
        self._beginning.clear()
        self._admission.waiting.clear()
        self._cache.clear()


async def _until(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, but no longer than `seconds`; None waits as long as it takes."""
    if seconds is None or seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


def _merged(events: Items[Event | WorkerError]) -> list[Piece]:
    """The pieces among the events, joined answer by answer, as far as a chunk may hold them."""
    merged: list[Piece] = []
    last: dict[int, int] = {}  # each answer's latest place in `merged`
    for event in events:
        if not isinstance(event, Piece):
            continue
        at = last.get(event.index)
        if at is None or len(merged[at].logprobs) >= MOST_LOGPROBS or len(merged[at].text) >= MOST_CHARS:
            last[event.index] = len(merged)
            merged.append(event)
        else:
            merged[at] = _joined(merged[at], event)
    return merged


def _joined(first: Piece, second: Piece) -> Piece:
    return Piece(text=first.text + second.text, index=first.index, logprobs=first.logprobs + second.logprobs)


def _cache_bytes(settings: Settings, device: torch.device, num_devices: int) -> int:
    """The memory for keys and values: as set, or from what is free now that the weights are loaded. Each of several
    devices has those of its layers: the fullest one is the limit."""
    if settings.kv_cache_mib is not None:
        return settings.kv_cache_mib * MIB
    if device.type == "cuda":
        reserve = settings.vision_reserve_mib + settings.feature_cache_mib + settings.prefix_cache_mib
        devices = [device] if num_devices == 1 else [torch.device("cuda", index) for index in range(num_devices)]
        free = min(int(torch.cuda.mem_get_info(one)[0]) for one in devices)
        return max(0, free - reserve * MIB) * num_devices
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 4
