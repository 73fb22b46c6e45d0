"""Continuous batching on a thread of its own: one prefill, one decode step of all live rows, again and again.

Sequences join and leave at every step. The event loop never waits for this thread: requests come in through a
queue, events go out through each sequence's `emit`.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor

import torch

from worker.contract import ChatRequest, Done, Event, Opened, Piece, Sampling
from worker.engine.cache import SlotCache
from worker.engine.loading import LoadedModel
from worker.engine.prompt import Prompt, PromptBuilder
from worker.engine.runner import Runner
from worker.engine.sampling import pick, resolve
from worker.engine.sequence import Emit, Sequence
from worker.engine.streaming import TextStream
from worker.errors import EngineStopped, InternalError, OutOfMemory, PromptTooLong, QueueFull, WorkerError
from worker.settings import Settings

log = logging.getLogger(__name__)


class Engine:
    """Serves one model. `start` it, send it work from any thread or event loop, `close` it: the thread is joined."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._builder = PromptBuilder(model, settings)
        self._runner = Runner(model)
        self._cache = SlotCache(self._runner.num_layers, settings.max_num_seqs, model.device)
        self._incoming: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()
        self._live: list[Sequence] = []
        self._num_unfinished = 0
        self._lock = threading.Lock()
        self._is_closing = False
        self._is_dead = False
        self._thread = threading.Thread(target=self._run, name="engine")
        self._preparing = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="prepare")

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self._model.name

    def start(self) -> None:
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether work is taken."""
        return self._thread.is_alive() and not self._is_dead and not self._is_closing

    def close(self) -> None:
        """End now: whatever is unfinished fails with EngineStopped. Returns when the thread has ended."""
        with self._lock:
            self._is_closing = True
        self._preparing.shutdown()
        self._incoming.put(None)
        if self._thread.is_alive():
            self._thread.join()

    async def generate(self, request: ChatRequest, media: Items[Opened]) -> AsyncGenerator[Event, None]:
        """Pieces of text, then exactly one Done. `media` are the request's, opened. Leaving early frees the slot.

        What has gathered while the consumer was busy comes as one piece. Raises WorkerError.
        """
        if not self.is_healthy:
            raise EngineStopped()
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._preparing, self._builder.build, request, media)
        events: asyncio.Queue[Event | WorkerError] = asyncio.Queue()

        def emit(event: Event | WorkerError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
                loop.call_soon_threadsafe(events.put_nowait, event)

        sequence = self.submit(prompt, request.sampling, emit)
        task = asyncio.current_task()
        assert task is not None
        # A task that is cancelled while its consumer is busy never comes back into this generator,
        # so `finally` alone would leave the slot taken.
        release = lambda _: self.cancel(sequence)  # noqa: E731
        task.add_done_callback(release)
        try:
            while True:
                gathered = [await events.get()]
                while not events.empty():
                    gathered.append(events.get_nowait())
                text = "".join(event.text for event in gathered if isinstance(event, Piece))
                if text:
                    yield Piece(text=text)
                match gathered[-1]:
                    case WorkerError() as error:
                        raise error
                    case Done() as done:
                        yield done
                        return
                    case Piece():
                        pass
        finally:
            task.remove_done_callback(release)
            self.cancel(sequence)

    def submit(self, prompt: Prompt, sampling: Sampling, emit: Emit) -> Sequence:
        """Hand over a prompt; `emit` is called on the engine's thread.

        Raises QueueFull, PromptTooLong, EngineStopped.
        """
        sequence = Sequence(
            prompt=prompt,
            max_tokens=self._max_tokens(prompt, sampling),
            choice=resolve(sampling, self._model.generation),
            stream=TextStream(self._model.tokenizer, sampling.stop),
            eos_ids=self._model.eos_ids,
            emit=emit,
        )
        limit = self._settings.max_num_seqs + self._settings.max_queue
        with self._lock:
            if not self.is_healthy:
                raise EngineStopped()
            if self._num_unfinished >= limit:
                raise QueueFull(detail=f"{limit} requests are unfinished")
            self._num_unfinished += 1
            self._incoming.put(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Free the sequence's slot before the next step; again or afterwards does nothing."""
        sequence.is_cancelled = True

    def _max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        room = self._model.max_model_len - len(prompt.ids)
        wanted = sampling.max_tokens or max(1, min(self._settings.max_tokens_default, room))
        if wanted > room:
            numbers = f"prompt {len(prompt.ids)} + max_tokens {wanted} > {self._model.max_model_len}"
            raise PromptTooLong(detail=numbers)
        return wanted

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._receive()
                self._drop_over()
                self._prefill_one()
                self._decode_all()
        except Exception:
            log.exception("the engine has ended")
            self._is_dead = True
        finally:
            self._fail_everything()

    def _receive(self) -> None:
        """Take in what has come; wait for it where there is nothing else to do."""
        while True:
            is_idle = not self._live and not self._waiting
            try:
                sequence = self._incoming.get(block=is_idle)
            except queue.Empty:
                return
            if sequence is None:
                return
            self._waiting.append(sequence)

    def _drop_over(self) -> None:
        """Free the rows of what has ended, and forget what was cancelled while it waited."""
        for row in reversed(range(len(self._live))):
            if self._live[row].is_over:
                self._leave(row)
        kept = deque(sequence for sequence in self._waiting if not sequence.is_cancelled)
        self._finished(len(self._waiting) - len(kept))
        self._waiting = kept

    def _prefill_one(self) -> None:
        if not self._waiting or len(self._live) == self._settings.max_num_seqs:
            return
        sequence = self._waiting.popleft()
        try:
            logits, filled = self._runner.prefill(sequence.prompt)
            sequence.take(pick(logits[None], [sequence.choice], [sequence.source])[0])
            if not sequence.is_over:
                self._cache.join(filled, len(sequence.prompt.ids))
                self._live.append(sequence)
                return
        except torch.OutOfMemoryError:
            sequence.fail(OutOfMemory())
        except torch.AcceleratorError:
            sequence.fail(EngineStopped())
            raise
        except Exception:
            log.exception("a prefill failed")
            sequence.fail(InternalError())
        self._finished(1)

    def _decode_all(self) -> None:
        """One token for every live sequence. A failure here cannot be told apart by row: all live ones fail."""
        if not self._live:
            return
        try:
            logits = self._runner.decode(
                [sequence.tokens[-1] for sequence in self._live],
                [sequence.next_position for sequence in self._live],
                self._cache,
            )
            tokens = pick(logits, [s.choice for s in self._live], [s.source for s in self._live])
            for sequence, token in zip(self._live, tokens, strict=True):
                self._take(sequence, token)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.exception("a decode step failed")
            is_memory = isinstance(error, torch.OutOfMemoryError)
            for sequence in self._live:
                if not sequence.is_over:
                    sequence.fail(OutOfMemory() if is_memory else InternalError())
            self._finished(len(self._live))
            self._live.clear()
            self._cache.clear()

    def _take(self, sequence: Sequence, token: int) -> None:
        """A token whose text fails ends its own request only."""
        try:
            sequence.take(token)
        except Exception:
            log.exception("a token could not be turned into text")
            sequence.fail(InternalError())

    def _leave(self, row: int) -> None:
        """The cache moves its last row into the hole, and so does the list."""
        self._cache.leave(row)
        last = self._live.pop()
        if row < len(self._live):
            self._live[row] = last
        self._finished(1)

    def _finished(self, count: int) -> None:
        with self._lock:
            self._num_unfinished -= count

    def _fail_everything(self) -> None:
        with self._lock:
            self._is_closing = True
        left = [*self._live, *self._waiting]
        while not self._incoming.empty():
            sequence = self._incoming.get()
            if sequence is not None:
                left.append(sequence)
        for sequence in left:
            if not sequence.is_over:
                sequence.fail(EngineStopped())
        self._finished(len(left))
        self._live.clear()
        self._waiting.clear()
        self._cache.clear()
