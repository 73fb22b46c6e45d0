"""Memory that can still be taken, on a device or within the container's limit."""

from pathlib import Path

import torch

from worker.core.errors import ModelError

CGROUPS = (  # both kinds: where, the limit, what is used of it, and what of that is files' pages, given back at need
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("total_inactive_file", "total_active_file"),
    ),
)


def check_room(needed: int, device: torch.device) -> None:
    """Raises ModelError where the weights cannot fit, before any is read."""
    free = free_bytes(device)
    if needed > free:
        raise ModelError(
            f"the weights need {needed / 2**30:.1f} GiB on {device}, but {free / 2**30:.1f} GiB are free. "
            "Use a smaller model, a smaller DTYPE or a machine with more memory"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: the device's, or on the CPU the machine's within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    for group, most, used, cached in CGROUPS:
        limit = group / most
        if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            held = int((group / used).read_text(encoding="utf-8")) - sum(int(stat.get(name, 0)) for name in cached)
            free = min(free, int(text) - held)
    return free
