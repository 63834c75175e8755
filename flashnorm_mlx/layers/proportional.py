"""Proportional RoPE: a head's first pairs turn as they would in a full rotation, the others stand still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def inverse_frequencies(dims: int, base: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """``base^(-2i/dims) / factor`` for the first ``i < partial_rotary_factor · dims/2``, and 0; float64 ``[dims/2]``.

    A partial RoPE of the default kind differs in two ways: its frequencies span the rotated channels alone, and it
    pairs channels within them, not across the whole head.
    """
    rotated = int(dims * scaling.get("partial_rotary_factor", 1.0))
    i = np.arange(0, dims, 2, dtype=np.float64)
    return np.where(i < rotated, base ** (-i / dims) / scaling.get("factor", 1.0), 0.0)
