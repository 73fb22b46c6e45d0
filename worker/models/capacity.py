"""What memory holds: room for keys and values, and how long a prompt and its answer may be in it."""

import logging
from dataclasses import dataclass

import torch

from worker.checkpoint.memory import free_bytes
from worker.core.errors import ModelError
from worker.core.settings import MIB, Settings
from worker.models.kv_widths import SMALLEST_WIDTH, KVLayout, width_for
from worker.models.sizes import Sizes, sizes_on_cpu, sizes_on_gpu

log = logging.getLogger(__name__)
# How many answers of full length must fit beside each other, and the length below which fewer will do.
AT_ONCE = ((4, 8_192), (2, 2_048), (1, 0))


@dataclass(frozen=True)
class Capacity:
    """max_bytes: for keys and values. limit: the checkpoint's own context length. layout: of the KV cache."""

    max_bytes: int
    bytes_per_token: int
    limit: int
    layout: KVLayout

    @property
    def num_tokens(self) -> int:
        """That `max_bytes` hold."""
        return self.max_bytes // self.bytes_per_token

    def holds(self, length: int, num_answers: int) -> bool:
        """Whether requests of `length` tokens are answered beside each other, by the scheduler's own count."""
        return self.layout.alone(length, length, num_answers) <= self.num_tokens

    def at_once(self, length: int) -> int:
        """How many requests of `length` tokens are answered at once."""
        return self.layout.at_once(length, self.num_tokens)

    @property
    def model_len(self) -> int:
        """The default context length, in tokens of a prompt and its answer: the longest at which four fit at once, no
        more than the checkpoint's limit; below 8,192 tokens, at which two fit; below 2,048, one."""
        most = self.limit
        for num_answers, enough in AT_ONCE:
            length = min(most, self._longest(num_answers))
            if length >= min(enough, self.limit):
                return length
            most = enough
        return 0

    def _longest(self, num_answers: int) -> int:
        """A width of the cache, so that none of it stays empty."""
        if self.holds(self.limit, num_answers):
            return self.limit
        longest, width = 0, SMALLEST_WIDTH
        while width < self.limit and self.holds(width, num_answers):
            longest, width = width, width_for(width + 1)
        return longest


def sizes_for(
    settings: Settings, device: torch.device, num_devices: int, bytes_per_token: int, layout: KVLayout
) -> Sizes:
    """What an engine is made for: as set, or by what is free now that the weights are loaded. Each of several devices
    has the keys and values of its layers: the fullest one is the limit."""
    if device.type != "cuda":
        return sizes_on_cpu(settings, free_bytes(device) // 4)
    devices = [device] if num_devices == 1 else [torch.device("cuda", index) for index in range(num_devices)]
    free = min(int(torch.cuda.mem_get_info(each)[0]) for each in devices)
    return sizes_on_gpu(settings, free, bytes_per_token, layout, num_devices)


_MORE_MEMORY = "Use a smaller model, QUANTIZATION or a larger GPU, or lower VISION_RESERVE_MIB or the caches"


def fitting_len(settings: Settings, capacity: Capacity, max_num_seqs: int) -> int:
    """MAX_MODEL_LEN as it counts: as set, else what fits. Raises ModelError where nothing does."""
    if not capacity.holds(SMALLEST_WIDTH, 1):
        raise ModelError(
            f"{capacity.max_bytes / MIB:.0f} MiB are left for the KV cache, enough for {capacity.num_tokens} tokens. "
            + ("Raise KV_CACHE_MIB" if settings.kv_cache_mib else _MORE_MEMORY)
        )
    if settings.max_model_len is None:
        length = capacity.model_len
        reason = (
            "the model's own limit"
            if length == capacity.limit
            else f"by memory, the model's limit is {capacity.limit:,}"
        )
    else:
        length = min(settings.max_model_len, capacity.limit)
        reason = "MAX_MODEL_LEN" if length == settings.max_model_len else "the model's own limit, below MAX_MODEL_LEN"
    log.info(
        "context length %s tokens (%s); the KV cache (%s MiB) holds %s tokens: %s concurrent requests of that length, "
        "or %s of 2,048 tokens; MAX_NUM_SEQS allows %d",
        *(f"{length:,}", reason, f"{capacity.max_bytes / MIB:,.0f}", f"{capacity.num_tokens:,}"),
        *(f"{capacity.at_once(length):,}", f"{capacity.at_once(min(2_048, length)):,}", max_num_seqs),
    )
    if not capacity.holds(length, 1):
        log.warning(
            "the KV cache does not hold MAX_MODEL_LEN tokens, requests of that length are refused: unset it, or raise "
            "KV_CACHE_MIB"
        )
    return length
