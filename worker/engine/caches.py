"""The memory of an engine on its device: keys and values of what is decoded, and what is kept to be used again."""

from dataclasses import dataclass

import torch

from worker.core.engine_protocol import CacheStats
from worker.core.settings import MIB, Settings
from worker.engine.prefix_cache import FeatureCache, PrefixCache
from worker.models.kv_cache import KVCache
from worker.models.sizes import Sizes


@dataclass(frozen=True)
class EngineCaches:
    """kv: of what is being decoded; features: the vision encoder's outputs; prefixes: of earlier prompts, None where
    the model cannot use a part of one."""

    kv: KVCache
    features: FeatureCache
    prefixes: PrefixCache | None
    device: torch.device

    def release(self) -> None:
        """Give back all memory that nobody needs now."""
        self.kv.trim()
        self.features.clear()
        if self.prefixes is not None:
            self.prefixes.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def stats(self) -> dict[str, CacheStats]:
        prefixes = self.prefixes
        return {
            "features": CacheStats(self.features.num_hits, self.features.num_bytes),
            "prefixes": CacheStats(prefixes.num_hits, prefixes.num_bytes) if prefixes else CacheStats(),
        }

    @property
    def device_bytes(self) -> int:
        """Memory of the device that torch holds; 0 on the CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0


def caches_for(kv: KVCache, settings: Settings, sizes: Sizes, device: torch.device) -> EngineCaches:
    """Caches of these sizes. Recurrent states cannot be cut back to where two prompts part."""
    is_shared = settings.prefix_sharing != "off"
    has_prefixes = is_shared and sizes.prefix_cache_mib and not kv.has_states
    prefixes = PrefixCache(sizes.prefix_cache_mib * MIB) if has_prefixes else None
    features = FeatureCache(sizes.feature_cache_mib * MIB if is_shared else 0)
    return EngineCaches(kv, features, prefixes, device)
