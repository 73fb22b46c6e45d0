"""Masks of the next tokens, computed on a thread of their own while the model computes the logits that they hold."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from worker.engine.guide import State
from worker.engine.sampling import Sampler


class MaskWorker:
    """The thread, once there is something for it to do."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def preparing(self, samplers: Sequence[Sampler]) -> Iterator[None]:
        """While inside, the masks of these rows are computed; at the end they are there."""
        grammars = [grammar for sampler in samplers if (grammar := sampler.guide.grammar) is not None]
        if not grammars:
            yield
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
        masks = self._pool.submit(_prepare, grammars)
        try:
            yield
        finally:
            masks.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _prepare(grammars: Sequence[State]) -> None:
    for grammar in grammars:
        grammar.prepare()
