"""How many answers are decoded together and how much is kept, where the settings leave it to what the device has."""

import logging
from dataclasses import dataclass, replace

from worker.core.settings import MIB, Settings
from worker.models.kv_widths import KVLayout

log = logging.getLogger(__name__)
ROWS_ON_CPU = 16
MOST_ROWS = 64  # of a step on a GPU, where little more is read for them than for one; not measured there yet
ROW_TOKENS = 2_048  # that each row should find room for
# Of a GPU's free memory, in MiB: the share of a cache, the least and the most.
PREFIX_CACHE = 0.08, 512, 8_192
FEATURE_CACHE = 0.02, 256, 2_048
JOBS_A_ROW = 3  # taken from the platform: media of those that wait is fetched meanwhile


@dataclass(frozen=True)
class Sizes:
    """What an engine is made for. room: bytes for keys and values."""

    max_num_seqs: int
    prefix_cache_mib: int
    feature_cache_mib: int
    room: int

    def under(self, settings: Settings) -> "Sizes":
        """The same, but for what settings say."""
        return Sizes(
            _given(settings.max_num_seqs, self.max_num_seqs),
            _given(settings.prefix_cache_mib, self.prefix_cache_mib),
            _given(settings.feature_cache_mib, self.feature_cache_mib),
            self.room if settings.kv_cache_mib is None else settings.kv_cache_mib * MIB,
        )

    @property
    def concurrency(self) -> int:
        """Jobs taken at once, where no setting says otherwise."""
        return JOBS_A_ROW * self.max_num_seqs


def sizes_on_gpu(settings: Settings, free: int, bytes_per_token: int, layout: KVLayout, num_devices: int = 1) -> Sizes:
    """By `free` bytes of a GPU with the weights on it, or of the fullest of several that share them."""
    usable = max(0, free - settings.vision_reserve_mib * MIB)
    sizes = Sizes(0, _share(usable, *PREFIX_CACHE), _share(usable, *FEATURE_CACHE), 0).under(settings)
    room = max(0, usable - (sizes.prefix_cache_mib + sizes.feature_cache_mib) * MIB) * num_devices
    room = replace(sizes, room=room).under(settings).room
    fitting = layout.at_once(ROW_TOKENS, room // bytes_per_token) // 8 * 8
    return replace(sizes, room=room, max_num_seqs=min(MOST_ROWS, max(ROWS_ON_CPU, fitting))).under(settings)


def sizes_on_cpu(settings: Settings, room: int) -> Sizes:
    """Where more rows at once take longer by as much. room: bytes for keys and values."""
    return Sizes(ROWS_ON_CPU, PREFIX_CACHE[1], FEATURE_CACHE[1], room).under(settings)


def log_sizes(settings: Settings, sizes: Sizes) -> None:
    """One line: each size, and whether a setting chose it."""
    chosen = {
        "MAX_NUM_SEQS": (sizes.max_num_seqs, settings.max_num_seqs),
        "CONCURRENCY": (settings.concurrency or sizes.concurrency, settings.concurrency),
        "KV_CACHE_MIB": (sizes.room // MIB, settings.kv_cache_mib),
        "PREFIX_CACHE_MIB": (sizes.prefix_cache_mib, settings.prefix_cache_mib),
        "FEATURE_CACHE_MIB": (sizes.feature_cache_mib, settings.feature_cache_mib),
        "VISION_RESERVE_MIB": (settings.vision_reserve_mib, settings.vision_reserve_mib),
        "PREFILL_CHUNK": (settings.prefill_chunk, settings.prefill_chunk),
    }
    shown = (f"{name} {value:,}{' (by memory)' if given is None else ''}" for name, (value, given) in chosen.items())
    log.info("sizes: %s", ", ".join(shown))


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _share(usable: int, share: float, least: int, most: int) -> int:
    """In MiB, whole steps of the least."""
    return min(most, max(least, int(usable * share) // MIB // least * least))
