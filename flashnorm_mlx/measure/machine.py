"""What a measurement ran on: chip, memory, system, versions, power, and the settings of MLX."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx

from .. import __version__
from ..info import device_name

#: A command's output; empty where it can't be run.
Run = Callable[[list[str]], str]


def run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, Any]:
    """The facts; None for what the system doesn't tell."""
    return {
        "device": device_name(),
        "chip": mx.device_info().get("device_name"),
        "gpu_cores": gpu_cores() if sys.platform == "darwin" else None,
        "memory_bytes": _memory(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "mlx": _version("mlx"),
        "mlx_lm": _version("mlx-lm"),
        "flashnorm_mlx": __version__,
        **(power() if sys.platform == "darwin" else {"power_source": None, "low_power_mode": None, "thermal": None}),
        "environment": environment(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def environment() -> dict[str, str]:
    """The variables that change how MLX, or this package, computes; not where it keeps what it has compiled."""
    named = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("MLX_", "FLASHNORM_"))}
    return {k: v for k, v in named.items() if k != "MLX_PTX_CACHE_DIR"}


def power(run: Run = run) -> dict[str, Any]:
    """Power source, low-power mode and thermal limit, as macOS's pmset tells them."""
    source = re.search(r"drawing from '([^']+)'", run(["pmset", "-g", "batt"]))
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", run(["pmset", "-g"]), re.M)
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", thermal := run(["pmset", "-g", "therm"]))
    calm = "No thermal warning" in thermal
    return {
        "power_source": source[1] if source else None,
        "low_power_mode": low[1] == "1" if low else None,
        "thermal": f"CPU limited to {limit[1]} %" if limit else "no warning" if calm else None,
    }


def gpu_cores(run: Run = run) -> int | None:
    """Of Apple's GPU."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', run(["ioreg", "-r", "-c", "AGXAccelerator", "-d", "1"]))
    return int(found[1]) if found else None


def warnings(facts: dict[str, Any]) -> list[str]:
    """What about the machine makes its speed not its own."""
    said = []
    if facts.get("low_power_mode"):
        said.append("low-power mode is on: the chip is slowed down")
    if "battery" in str(facts.get("power_source") or "").lower():
        said.append("on battery: connect the power supply for comparable results")
    if "limited" in str(facts.get("thermal") or ""):
        said.append(f"thermal pressure: {facts['thermal']}")
    return said


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
