"""Two reports side by side: which speeds changed, and by how much at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FlashNormError
from .files import ROW_KEYS
from .report import between, label
from .statistics import unpaired_ratio

#: Two runs of the same thing differ by this much more often than their repetitions let expect.
THRESHOLD = 0.02

#: No change of ours reaches it: what it gained or lost, the machine did.
CONTROL = "mlx-lm"


@dataclass(frozen=True)
class Change:
    """A speed of B over A's, ``ratio`` = value, low, high, and a verdict: slower, faster, same or unsure.

    slower and faster: the whole interval is beyond the tolerance. same: all of it is within. unsure: the rest.
    """

    row: str
    arm: str
    before: float
    after: float
    ratio: dict[str, Any]
    verdict: str


def compare(
    a: dict[str, Any], b: dict[str, Any], *, threshold: float = THRESHOLD, relative_to: str | None = None
) -> list[Change]:
    """The changes from report ``a`` to ``b``, for every row and arm that both have.

    Args:
        threshold: a change of less is none; :func:`tolerance` may ask for more.
        relative_to: compare the ratios to this arm within each repetition instead of tokens a second; what made the
            whole machine faster or slower cancels.

    Raises:
        FlashNormError: if they are of different models, or have nothing in common.
    """
    for key in ("name", "bits", "group_size", "dtype", "converted"):
        if a["model"].get(key) != b["model"].get(key):
            raise FlashNormError(
                f"the reports are not of the same model: {key} is {a['model'].get(key)!r} and {b['model'].get(key)!r}"
            )
    allowed = tolerance(a, b, threshold=threshold, relative_to=relative_to)
    changes = []
    for row, other in _pairs(a, b):
        for arm in row["arms"]:
            before, after = _values(row, arm, relative_to), _values(other, arm, relative_to)
            if before and after and arm != relative_to:
                ratio = unpaired_ratio(after, before)
                medians = float(np.median(before)), float(np.median(after))
                changes.append(Change(label(row), arm, *medians, ratio, verdict(ratio, allowed)))
    if not changes:
        theirs = " and ".join(", ".join(label(row) for row in report["rows"]) or "none" for report in (a, b))
        raise FlashNormError(f"the reports have no row and arm in common: their rows are {theirs}")
    return changes


def tolerance(
    a: dict[str, Any], b: dict[str, Any], *, threshold: float = THRESHOLD, relative_to: str | None = None
) -> float:
    """The threshold, or the most that stock mlx-lm changed between the two, if that is more.

    Repetitions within a run know nothing of what differs between runs; the arm that can't have changed does. With
    ``relative_to``, what all its rows have in common cancels, and what they differ by counts.
    """
    moved = []
    for row, other in _pairs(a, b):
        before, after = _values(row, CONTROL, None), _values(other, CONTROL, None)
        if before and after:
            moved.append(float(np.median(after) / np.median(before)))
    centre = float(np.median(moved)) if relative_to and moved else 1.0
    return max([threshold, *(abs(ratio / centre - 1) for ratio in moved)])


def verdict(ratio: dict[str, Any], threshold: float) -> str:
    """See :class:`Change`."""
    low, high = ratio["low"], ratio["high"]
    if low is None:
        return "unsure"
    if high < 1 - threshold:
        return "slower"
    if low > 1 + threshold:
        return "faster"
    return "same" if low >= 1 - threshold and high <= 1 + threshold else "unsure"


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What the two ran on that was not the same."""
    names = ("device", "chip", "os", "mlx", "mlx_lm", "flashnorm_mlx", "power_source", "low_power_mode", "environment")
    x, y = a["machine"], b["machine"]
    return [f"{name}: {x.get(name)} and {y.get(name)}" for name in names if x.get(name) != y.get(name)]


def line(change: Change) -> tuple[str, ...]:
    """A row of the table."""
    figures = f"{change.before:.4g}", f"{change.after:.4g}"
    return change.row, change.arm, *figures, between(change.ratio), change.verdict


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows that both have."""
    others = {_key(row): row for row in b["rows"]}
    return [(row, others[_key(row)]) for row in a["rows"] if _key(row) in others]


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row[key] for key in ROW_KEYS)


def _values(row: dict[str, Any], arm: str, relative_to: str | None) -> list[float]:
    runs: list[float] = row["arms"].get(arm, {}).get("tokens_per_second", {}).get("runs", [])
    if relative_to is None:
        return runs
    base = row["arms"].get(relative_to, {}).get("tokens_per_second", {}).get("runs", [])
    return [x / y for x, y in zip(runs, base, strict=False)]
