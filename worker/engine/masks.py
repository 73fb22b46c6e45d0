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
        forms = [form for sampler in samplers if (form := sampler.guide.form) is not None]
        if not forms:
            yield
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
        masks = self._pool.submit(_prepare, forms)
        try:
            yield
        finally:
            masks.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _prepare(forms: Sequence[State]) -> None:
    for form in forms:
        form.prepare()
