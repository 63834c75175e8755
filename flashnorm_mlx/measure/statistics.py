"""Median, spread, paired ratios and their bootstrap intervals; a drift check."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SEED, RESAMPLES, LEVEL = 0, 5000, 0.95

#: A spread (standard deviation over mean) or a drift of more than this makes small differences meaningless.
WIDE = 0.05


def summary(values: Sequence[float]) -> dict[str, Any]:
    """``median``, ``mean`` and ``sd`` (n − 1 in the denominator; None for a single value)."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"median": statistics.median(values), "mean": statistics.fmean(values), "sd": sd}


def interval(value: float, statistic: Callable[..., np.ndarray], sizes: Sequence[int]) -> dict[str, Any]:
    """``value`` with its percentile bootstrap interval, ``{value, low, high}``; no limits from a single repetition.

    Args:
        statistic: from indices ``[resamples, n]``, one such array for each of ``sizes``, to ``[resamples]``.
    """
    if min(sizes) < 2:
        return {"value": value, "low": None, "high": None}
    random = np.random.default_rng(SEED)
    found = statistic(*(random.integers(0, n, (RESAMPLES, n)) for n in sizes))
    found = found[np.isfinite(found)]
    if not len(found):
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The median over repetitions of ``values[i] / others[i]``: what both lost in a slow moment cancels."""
    ratios = np.array(values) / np.array(others)
    return interval(float(np.median(ratios)), lambda i: np.median(ratios[i], axis=1), [len(ratios)])


def unpaired_ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The median of ``values`` over that of ``others``, of two runs whose repetitions have nothing in common."""
    a, b = np.array(values), np.array(others)

    def statistic(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.median(a[i], axis=1) / np.median(b[j], axis=1)

    return interval(float(np.median(a) / np.median(b)), statistic, [len(a), len(b)])


def recovered(baseline: Sequence[float], flashnorm: Sequence[float], none: Sequence[float]) -> dict[str, Any] | None:
    """The share of the norms' cost that FlashNorm gives back: (baseline − flashnorm) / (baseline − none), in seconds.

    1: as fast as without norms. None where the norms' cost itself, baseline − none, can't be told from zero.
    """
    b, f, n = np.array(baseline), np.array(flashnorm), np.array(none)
    cost = interval(float(np.median(b - n)), lambda i: np.median((b - n)[i], axis=1), [len(b)])
    if cost["low"] is None or cost["low"] <= 0:
        return None

    def statistic(i: np.ndarray) -> np.ndarray:
        return np.median((b - f)[i], axis=1) / np.median((b - n)[i], axis=1)

    return interval(float(np.median(b - f) / np.median(b - n)), statistic, [len(b)])


def drift(runs: Mapping[str, Sequence[float]]) -> float | None:
    """How much faster (or, negative, slower) the last repetitions were than the first, over all arms.

    Each arm's speeds are taken relative to its median; the last third of the repetitions over the first third, less 1.
    None below three repetitions.
    """
    count = min(map(len, runs.values()), default=0)
    if count < 3:
        return None
    relative = np.mean([np.array(v[:count]) / np.median(v[:count]) for v in runs.values()], axis=0)
    third = max(1, count // 3)
    return float(np.mean(relative[-third:]) / np.mean(relative[:third]) - 1)


def warnings(runs: Mapping[str, Sequence[float]]) -> list[str]:
    """What keeps these repetitions from being conclusive, in a line each."""
    said = []
    moved = drift(runs)
    if moved is not None and abs(moved) > WIDE:
        said.append(
            f"drift: the last repetitions were {abs(moved):.0%} {'faster' if moved > 0 else 'slower'} than the first"
            " (heat, power or other work?); try --delay"
        )
    for name, values in runs.items():
        found = summary(values)
        if found["sd"] is not None and found["sd"] > WIDE * found["mean"]:
            said.append(f"spread: {name} varies by {found['sd'] / found['mean']:.0%}: too wide for small differences")
    return said
