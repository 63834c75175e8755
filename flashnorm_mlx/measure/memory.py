"""How much memory a run will take, before any of it is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import FlashNormError

#: Activations, temporaries of quantising, and the allocator's rounding.
HEADROOM = 1.15


def weight_bytes(parameters: int, *, size: int, bits: int | None, group_size: int) -> int:
    """Bytes of so many weights of ``size`` bytes each; quantised, a group's scale and bias come on top of its bits."""
    return round(parameters * (bits / 8 + 2 * size / group_size if bits else size))


def needed(model_bytes: int, arms: int, cache_bytes: int, scratch: int = 0) -> int:
    """Every arm holds its own weights (folding changes them); one cache at a time; ``scratch`` is a file in memory."""
    return round(HEADROOM * (arms * model_bytes + cache_bytes)) + scratch


def available() -> int | None:
    """Bytes that the default device can still have, None where the system doesn't tell."""
    if mx.default_device() != mx.cpu:
        info: dict[str, Any] = mx.device_info()
        for key in ("free_memory", "max_recommended_working_set_size", "total_memory", "memory_size"):
            if isinstance(info.get(key), int) and info[key] > 0:
                return int(info[key])
        return None
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def check(want: int, have: int | None, what: str) -> None:
    """Raise a FlashNormError unless there is so much memory."""
    if have is not None and want > have:
        raise FlashNormError(
            f"{what} would take about {want / 1e9:.1f} GB, and {have / 1e9:.1f} GB are free; "
            "try fewer --arms, fewer --bits, or shorter -p and -d"
        )
