"""QK-norm → RoPE → attention against the cache and its tail, and the join of a split sequence, against float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import DTYPES, ROUNDING, array, assert_close, covering, divisors, f64, name_of

from flashnorm_mlx.kernels.attend import TAIL, Heads, Layout, attend, default_layout, step_rows

EPS = 0.1  # large, so that it counts


@dataclass(frozen=True)
class Case:
    """New tokens, heads, and a cache with `appended` tokens and `waiting` ones in its tail."""

    dtype: str = "float32"
    batch: int = 1
    length: int = 1
    kv_heads: int = 1
    shared: int = 2
    dim: int = 64
    rotary: int = 64
    traditional: bool = False
    qk_norm: str | None = None
    own_gains: bool = False  # of each head
    growth: tuple[float, float] | None = None
    v_norm: bool = False
    k_eq_v: bool = False
    shares: bool = False  # the new tokens are in the tail already
    softcap: float | None = None
    window: int | None = None
    padding: tuple[int, ...] = ()  # in front of each sequence; empty: none
    appended: int = 40
    waiting: int = 5
    capacity: int = 96
    size: float = 1.0  # of queries and new keys and values
    offset: float = 0.0  # their mean
    cached: float = 1.0  # of those in the cache
    # of the layout; None: the default one
    splits: int | None = 1
    group: int = 1
    simdgroups: int = 4

    @property
    def heads(self) -> Heads:
        return Heads(
            self.kv_heads * self.shared,
            self.kv_heads,
            self.dim,
            scale=self.dim**-0.5,
            rotary_dims=self.rotary,
            traditional=self.traditional,
            qk_norm_eps=EPS if self.qk_norm else None,
            qk_norm=self.qk_norm or "head",
            growth=self.growth,
            softcap=self.softcap,
            window=self.window,
            v_norm=self.v_norm,
            k_eq_v=self.k_eq_v,
            shares=self.shares,
        )

    @property
    def new(self) -> int:
        """Of keys and values, how many each token's row has."""
        return 0 if self.shares else 1 if self.k_eq_v else 2

    @property
    def paddings(self) -> tuple[int, ...]:
        return self.padding or (0,) * self.batch

    @property
    def layout(self) -> Layout | None:
        return None if self.splits is None else Layout(self.splits, self.group, self.simdgroups)


def draw(rng: random.Random) -> Case:
    dim = rng.choice([64, 80, 96, 112, 128, 160, 192, 256, 512])
    qk_norm = rng.choice([None, None, "head", "layer", "all"])
    batch = rng.choice([1, 1, 2, 3])
    length = rng.choice([n for n in (1, 1, 2, 3, 4, 5, 6, 7, 8) if batch * n <= 8])
    shared = rng.choice([1, 2, 3, 4, 6])
    group = rng.choice(divisors(shared, (1, 2, 3, 4)))
    appended, waiting = rng.choice([0, 1, 33, 70, 96]), rng.choice([0, 1, 7, TAIL - length])
    padding = tuple(rng.choice([0, min(1, appended), appended // 2, appended + waiting]) for _ in range(batch))
    return Case(
        dtype=rng.choice(list(DTYPES)),
        batch=batch,
        length=length,
        kv_heads=rng.choice([1, 2, 3]),
        shared=shared,
        dim=dim,
        rotary=rng.choice([dim, dim, dim // 2, 32, 16, 0]),
        traditional=rng.choice([False, True]),
        qk_norm=qk_norm,
        own_gains=qk_norm is not None and rng.choice([False, True]),
        growth=rng.choice([None, None, (0.4, 7.0)]),
        v_norm=qk_norm is not None and rng.choice([False, True]),
        k_eq_v=rng.choice([False, False, True]),
        shares=rng.choice([False, False, False, True]),
        softcap=rng.choice([None, 2.0]),
        window=rng.choice([None, None, 1, 2, 20, 1000]),
        padding=rng.choice([(), padding]),
        appended=appended,
        waiting=waiting,
        size=rng.choice([0.7, 5.0]),
        splits=rng.choice([None, 1, 1, 2, 3, 5]),
        group=group,
        simdgroups=rng.choice([n for n in (1, 3, 4, 8, 16) if group * n <= 32 and dim * n <= 4096]),
    )


def normed(x: np.ndarray, gain: np.ndarray, kind: str) -> np.ndarray:
    """x [batch, length, heads, dim], gain [heads or 1, dim]."""
    if kind == "layer":
        x = x - np.mean(x, -1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, (-2, -1) if kind == "all" else -1, keepdims=True) + EPS) * gain


def rotate(case: Case, x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x [batch, length, heads, dim], angles [batch, length, rotary / 2]."""
    cos, sin, out, half = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None], x.copy(), case.rotary // 2
    low, high = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if case.traditional else (slice(half), slice(half, 2 * half))
    )
    out[..., low] = x[..., low] * cos - x[..., high] * sin
    out[..., high] = x[..., high] * cos + x[..., low] * sin
    return out


def attention(case: Case, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """q [batch, length, heads, dim], keys and values [batch, kv_heads, tokens, dim]; the largest score, too."""
    before, out, largest = case.appended + case.waiting, np.zeros_like(q), 0.0
    keys, values = np.repeat(keys, case.shared, 1), np.repeat(values, case.shared, 1)
    for b, i in np.ndindex(case.batch, case.length):
        start = max(case.paddings[b], before + i + 1 - (case.window or math.inf))
        seen = slice(int(start), before + i + 1)
        scores = np.einsum("hd,htd->ht", q[b, i], keys[b, :, seen]) * case.dim**-0.5
        if case.softcap:
            scores = case.softcap * np.tanh(scores / case.softcap)
        largest = max(largest, float(np.abs(scores).max()))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[b, i] = np.einsum("ht,htd->hd", p / p.sum(-1, keepdims=True), values[b, :, seen])
    return out, largest


def check(case: Case) -> None:
    rng = np.random.default_rng(case.dim * 100 + case.appended + case.length)
    h, before, dtype = case.heads, case.appended + case.waiting, DTYPES[case.dtype]
    rows, width = case.batch * case.length, case.heads.heads * case.dim
    qkv = rng.normal(size=(rows, width + case.new * case.kv_heads * case.dim)) * case.size + case.offset
    qkv = array(qkv, case.dtype)
    kv = rng.normal(size=(2, case.batch, case.kv_heads, case.capacity, case.dim)) * case.cached
    kv[..., case.appended :, :] = math.nan  # nobody may look there
    tail = rng.normal(size=(2, case.batch, case.kv_heads, TAIL, case.dim))
    tail[..., case.waiting + case.length * case.shares :, :] = math.nan
    for b, padding in enumerate(case.paddings):
        kv[:, b, :, : min(padding, case.appended)] = math.nan
        tail[:, b, :, : max(0, padding - case.appended)] = math.nan
    kv, tail = array(kv, case.dtype), array(tail, case.dtype)
    own = (h.heads, case.kv_heads) if case.own_gains else (1, 1)
    gains = mx.array(rng.uniform(0.3, 2.0, (sum(own), case.dim)).astype(np.float32))
    positions = np.arange(before, before + case.length) - np.array(case.paddings)[:, None]
    angles = positions[..., None] * 100.0 ** (-np.arange(0, case.rotary, 2) / max(case.rotary, 1))
    factors = h.query_factors(positions)
    layout = case.layout or default_layout(h, case.capacity)
    counts = case.appended, case.waiting, case.capacity, layout.splits
    step = mx.array(step_rows(*counts, angles, 1.0, factors, np.array(case.paddings)))
    a, new_tail, start = attend(
        qkv, kv, tail.flatten(), step, h, gains=gains if case.qk_norm else None, batch=case.batch, length=case.length,
        layout=case.layout,
    )  # fmt: skip
    assert a.dtype == dtype and new_tail.dtype == dtype
    got = f64(a.flatten()[start : start + rows * width]).reshape(case.batch, case.length, h.heads, case.dim)
    kept = f64(new_tail.flatten()[: tail.size]).reshape(tail.shape)

    split = f64(qkv).reshape(case.batch, case.length, -1, case.dim)
    q, last = split[:, :, : h.heads], split[:, :, -max(case.new, 1) * case.kv_heads :]
    k, v = last[:, :, : case.kv_heads], last[:, :, -case.kv_heads :]
    if case.qk_norm:
        q, k = (normed(x, g, case.qk_norm) for x, g in zip((q, k), np.split(f64(gains), own[:1]), strict=True))
    q, k = rotate(case, q, angles), rotate(case, k, angles)
    new = slice(case.waiting, case.waiting + case.length * (not case.shares))
    if not case.shares:
        assert_close(kept[0, :, :, new], k.transpose(0, 2, 1, 3), case.dtype, 4e-7 * float(np.abs(k).max()))
        if case.v_norm:
            v = normed(v, np.ones(1), "head")
            assert_close(kept[1, :, :, new], v.transpose(0, 2, 1, 3), case.dtype, 4e-7 * float(np.abs(v).max()))
        else:
            np.testing.assert_array_equal(kept[1, :, :, new], v.transpose(0, 2, 1, 3))
    others = np.delete(np.arange(TAIL), np.arange(TAIL)[new])
    np.testing.assert_array_equal(kept[..., others, :], f64(tail)[..., others, :])

    # the reference's keys are the kernel's own, which were just checked; its queries are rounded once as they are
    if case.growth:
        beta, original = case.growth
        want = [1 + beta * math.log(1 + p // original) for p in positions.flat]
        np.testing.assert_allclose(factors.flatten(), want)
    q = f64(array(q, case.dtype)) * factors[..., None, None]
    everything = np.concatenate([f64(kv)[..., : case.appended, :], kept[..., : case.waiting + case.length, :]], axis=3)
    want, largest = attention(case, q, *everything)
    largest = min(largest, case.softcap or math.inf)
    tolerance = max(1e-6, ROUNDING[case.dtype] / 2) * (1 + largest / 4)
    assert_close(got, want, case.dtype, tolerance * float(np.abs(want).max()))


@pytest.mark.parametrize("case", covering(draw, 90), ids=name_of)
def test_against_float64(case: Case, device: str) -> None:
    check(case)


@pytest.mark.parametrize("waiting", range(TAIL))
def test_every_place_in_the_tail(waiting: int, device: str) -> None:
    check(Case(waiting=waiting, appended=37, simdgroups=2))
    if waiting % 8 == 3:
        check(Case(waiting=waiting, appended=37, splits=2, window=30))


@pytest.mark.parametrize("appended", [0, 1, 2, 3, 255, 256])
def test_an_empty_and_a_full_cache(appended: int, device: str) -> None:
    for waiting in (0, 1, 31):
        check(Case(appended=appended, waiting=waiting, capacity=256, splits=None))
        check(Case(appended=appended, waiting=waiting, capacity=256, splits=4, group=2, simdgroups=2))


def test_long_sequences_are_split(device: str) -> None:
    assert default_layout(Case().heads, 256).splits == 1
    case = Case(appended=2000, waiting=20, capacity=2048, splits=None, shared=4, length=2, dtype="float16")
    layout = default_layout(case.heads, case.capacity)
    assert layout.splits > 1 and layout.group > 1
    check(case)


def test_rows_of_different_lengths(device: str) -> None:
    """What is in front of the shorter ones, in the buffer and in the tail, is never read."""
    case = Case(batch=3, length=2, padding=(0, 17, 45), qk_norm="head", growth=(0.4, 7.0))
    for layout in ({"splits": 1}, {"splits": 3}, {"splits": 2, "window": 20}):
        check(replace(case, **layout))


def test_control_padding_that_is_read_is_seen(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = step_rows
    monkeypatch.setitem(globals(), "step_rows", lambda *given: original(*given[:-1], 0))
    with pytest.raises(AssertionError):
        check(Case(batch=2, padding=(0, 17)))


def test_layouts_of_too_many_registers_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="more registers"):
        check(Case(shared=4, group=4, splits=1, simdgroups=16))


@pytest.mark.parametrize("window", [1, 2, 3, 45, 46, 47])
def test_windows_as_long_as_what_is_there(window: int, device: str) -> None:
    """Forty-five tokens before three new ones: a window may end in the buffer, in the tail, or among the new."""
    check(Case(window=window, length=3, splits=2, simdgroups=2))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_scores_that_are_hundreds_apart(splits: int, seed: int, device: str) -> None:
    """No exponential is infinite, and no part's sum is lost: the largest score is subtracted everywhere."""
    case = Case(size=20.0, cached=5.0, splits=splits, shared=3, group=3, simdgroups=3)
    check(replace(case, appended=61 + seed, waiting=4, length=2, batch=2))
    check(replace(case, appended=0, waiting=seed, kv_heads=2, batch=3))  # where the largest may be far below 0


def test_more_than_the_registers_hold_is_refused() -> None:
    case = Case(shared=4)
    with pytest.raises(ValueError, match="registers"):
        attend(*(mx.zeros(1) for _ in range(4)), case.heads, layout=Layout(1, 4, 16))
