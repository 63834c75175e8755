"""Medians, intervals and warnings: laws, and data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from flashnorm_mlx.measure.statistics import drift, paired_ratio, recovered, summary, unpaired_ratio, warnings


def noisy(mean: float, sd: float, count: int, seed: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(mean, sd, count)]


def test_summary() -> None:
    assert summary([1.0, 2.0, 6.0]) == {"median": 2.0, "mean": 3.0, "sd": pytest.approx(7**0.5)}
    assert summary([4.0])["sd"] is None


def test_pairs_cancel_what_both_lost() -> None:
    """A machine that halves its speed leaves a ratio alone; the unpaired one can't know."""
    pace = [1.0, 0.9, 0.5, 0.6, 1.0]
    ours, theirs = [110 * p for p in pace], [100 * p for p in pace]
    paired, unpaired = paired_ratio(ours, theirs), unpaired_ratio(ours, theirs)
    assert paired["low"] == pytest.approx(1.1) == paired["high"]
    assert unpaired["high"] - unpaired["low"] > 0.5


def test_ratios_are_seeded_and_turn_over() -> None:
    a, b = noisy(110, 2, 7, 1), noisy(100, 2, 7, 2)
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there == paired_ratio(a, b)
    assert there["value"] == pytest.approx(1 / back["value"])
    assert there["low"] == pytest.approx(1 / back["high"])
    assert there["low"] <= there["value"] <= there["high"]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 measurements of a ratio of 1.1, about 95 % have it in their interval, and few have 1."""
    found = [paired_ratio(noisy(110, 3, 9, i), noisy(100, 3, 9, 1000 + i)) for i in range(200)]
    hits = sum(r["low"] <= 1.1 <= r["high"] for r in found)
    assert 0.9 <= hits / 200 <= 1.0
    assert sum(r["low"] <= 1.0 <= r["high"] for r in found) < 20


def test_a_single_repetition_has_no_limits() -> None:
    assert paired_ratio([2.0], [1.0]) == {"value": 2.0, "low": None, "high": None}


@pytest.mark.parametrize(("flashnorm", "share"), [(1.0, 1.0), (1.2, 0.0), (1.1, 0.5), (1.3, -0.5), (0.9, 1.5)])
def test_share_recovered(flashnorm: float, share: float) -> None:
    found = recovered([1.2] * 5, [flashnorm] * 5, [1.0] * 5)
    assert found is not None
    assert [found[key] for key in ("low", "value", "high")] == pytest.approx([share] * 3)


def test_no_share_of_a_cost_that_is_not_there() -> None:
    base, none = noisy(1.0, 0.05, 5, 1), noisy(1.0, 0.05, 5, 2)
    assert recovered(base, base, none) is None
    assert recovered([1.0], [0.9], [0.8]) is None


def test_drift_and_spread_are_warned_of() -> None:
    steady = {"a": noisy(100, 1, 6, 1), "b": noisy(50, 0.5, 6, 2)}
    assert warnings(steady) == []
    cooling = {"a": [100.0, 97.0, 94.0, 90.0, 88.0, 85.0]}
    assert drift(cooling) == pytest.approx((88 + 85) / 197 - 1)
    assert "slower" in warnings(cooling)[0]
    assert drift({"a": [1.0, 2.0]}) is None
    wide = warnings({"a": [100.0, 80.0, 120.0, 120.0, 80.0, 100.0]})
    assert len(wide) == 1
    assert wide[0].startswith("spread: a varies by")
