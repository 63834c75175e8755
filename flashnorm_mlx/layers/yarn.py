"""YaRN: rotary frequencies for a context that is longer than the one trained on, and what it does to magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def inverse_frequencies(dims: int, base: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """``θ_i / position``: ``f_i = base^(-2i/dims)`` where it turns often, ``f_i / factor`` where it hardly does.

    Between the pairs that turn ``beta_fast`` and ``beta_slow`` times within the original context, the two are blended
    linearly in the pair's number i. float64 ``[dims/2]``.
    """
    f = base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    original = scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        """The i at which ``f_i · original = 2π · turns``."""
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_of(scaling.get("beta_fast", 32))), 0)
    last = min(math.ceil(pair_of(scaling.get("beta_slow", 1))), dims - 1)
    slow = np.clip((np.arange(dims // 2) - first) / (last - first or 1e-3), 0.0, 1.0)
    return f * (1 - slow) + f / scaling["factor"] * slow


def rope_magnitude(scaling: Mapping[str, Any]) -> float:
    """What the rotated channels are multiplied by: the :func:`magnitude` of ``mscale`` over that of ``mscale_all_dim``.

    They are 1 and 0 where config.json doesn't say, so queries and keys grow with the context's logarithm.
    """
    factor = scaling["factor"]
    return magnitude(factor, scaling.get("mscale", 1)) / magnitude(factor, scaling.get("mscale_all_dim", 0))


def magnitude(factor: float, mscale: float) -> float:
    """``0.1 · mscale · ln(factor) + 1``: how much larger attention's inputs are made; 1 where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
