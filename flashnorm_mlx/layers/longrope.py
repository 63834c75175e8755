"""LongRoPE: a factor for each rotary frequency, and what a longer context does to magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def inverse_frequencies(dims: int, base: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """``θ_i / position = base^(-2i/dims) / long_factor_i``; float64 ``[dims/2]``.

    The long factors serve every length, as in mlx-lm: a cache couldn't change over to them where the short ones end.
    """
    long_factor: Sequence[float] = scaling["long_factor"]
    return base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims) / np.array(long_factor, np.float64)


def rope_magnitude(scaling: Mapping[str, Any]) -> float:
    """What the rotated channels are multiplied by: ``sqrt(1 + ln(max / original) / ln(original))``.

    Of the positions that a context has, and had in training; 1 where it is no longer than that.
    """
    original = scaling["original_max_position_embeddings"]
    stretch = scaling["max_position_embeddings"] / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
