"""Norm → project → epilogue in one launch, against float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import DTYPES, activate, array, assert_close, covering, dense, divisors, f64, name_of, random_layer

from flashnorm_mlx.kernels.packed import pack
from flashnorm_mlx.kernels.project import ACTIVATIONS, Variant, default_variant, project

EPS = 1e-5
#: x so small that ε counts, x of about 1, and x whose unscaled products float16 can't hold.
SIZES = {"tiny": 3e-3, "plain": 1.0, "huge": 1e4}


@dataclass(frozen=True)
class Case:
    """A layer, an input, an epilogue and a layout."""

    dtype: str = "float32"
    bits: int | None = 4
    group: int = 32
    columns: int = 96
    out: int = 33
    rows: int = 1
    size: str = "plain"
    norm: bool = True
    gain: bool = False
    bias: bool = False
    residual: bool = False
    pending: bool = False
    factor: bool = False  # of the sum with what is pending
    times: bool = False
    activation: str | None = None
    gated: bool = True
    softcap: float | None = None
    offset: int = 0
    # of the layout; None: the default one
    batch: int | None = None
    batches: int = 1
    words: int = 1
    split: str = "exact"
    teams: int = 1

    def variant(self) -> Variant | None:
        if self.batch is None:
            return None
        bits = self.bits or 8 * DTYPES[self.dtype].size
        chunks = self.columns * bits // 32 // self.words
        exact = -(-chunks // 32)
        split = {"exact": exact, "more": exact + 1, "fewer": max(1, exact // 2), "one": 1}[self.split]
        return Variant(self.batch, self.batches, self.words, min(split, 32 // self.teams), self.teams)


def draw(rng: random.Random) -> Case:
    columns = rng.choice([96, 288, 576, 640, 896, 1152, 1280, 4864])
    rows = rng.choice([1, 1, 2, 3, 4, 5, 6, 7, 8])
    activation = rng.choice([None, None, *ACTIVATIONS])
    case = Case(
        dtype=rng.choice(list(DTYPES)),
        bits=rng.choice([4, 4, 8, None]),
        group=rng.choice(divisors(columns, (32, 64, 128))),
        columns=columns,
        out=rng.choice([1, 7, 32, 33, 131]),
        rows=rows,
        activation=activation,
        gated=activation is None or rng.choice([True, True, False]),
        gain=rng.choice([False, True]),
        bias=rng.choice([False, True]),
        residual=rng.choice([False, True]),
        softcap=rng.choice([None, None, 1.5]),
        offset=rng.choice([0, 64]),
        times=rng.choice([False, False, True]),
        norm=rng.choice([True, True, False]),
    )
    if columns <= 1152:
        case = replace(case, pending=rng.random() < 0.3)
        case = replace(case, factor=case.pending and rng.random() < 0.5)
    if case.norm:
        case = replace(case, size=rng.choice(list(SIZES)))
    if rng.random() < 0.7:
        most = 32 // rows
        case = replace(
            case,
            batch=rng.choice(
                [n for n in (1, 2, 4, 8) if n <= most and not (case.activation and case.gated and n == 1)]
            ),
            batches=rng.choice([1, 2, 3]),
            words=4 if case.pending else rng.choice([1, 2, 4]),  # all of a row at once
            split=rng.choice(["exact", "more"] if case.pending else ["exact", "more", "fewer", "one"]),
            teams=rng.choice([1, 2, 3]),
        )
    return case


@dataclass(frozen=True)
class Result:
    """What the kernel says, what float64 says, and how large the numbers are that the latter was summed from."""

    got: mx.array
    want: np.ndarray
    size: float


def run(case: Case, eps: float = EPS) -> Result:
    rng = np.random.default_rng(case.columns * 1000 + case.out * 10 + case.rows)
    gated = case.gated and case.activation is not None
    width, shape = 2 * case.out if gated else case.out, (case.rows, case.columns)
    layer = random_layer(rng, width, case.columns, case.bits, case.group, case.dtype, bias=case.bias)
    x = array(rng.normal(size=shape) * SIZES[case.size], case.dtype)
    gain = array(rng.uniform(0.3, 2.0, case.columns), case.dtype) if case.gain else None
    residual = array(rng.normal(size=(case.rows, case.out)), case.dtype) if case.residual else None
    pending = array(rng.normal(size=shape) * SIZES[case.size], case.dtype) if case.pending else None
    post_gain = mx.array(rng.uniform(0.3, 2.0, case.columns) * SIZES[case.size], mx.float32) if case.pending else None
    factor = mx.array(rng.uniform(0.3, 2.0, 1), mx.float32) if case.factor else None
    times = array(rng.normal(size=(case.rows, case.out)), case.dtype) if case.times else None
    weights, bias = dense(layer), f64(layer.bias) if case.bias else 0.0
    around = mx.full((case.offset,), math.nan, x.dtype)
    got = project(
        mx.concatenate([around, x.flatten(), around]) if case.offset else x,
        pack(layer, DTYPES[case.dtype], gain, post_gain, factor),
        rows=case.rows,
        eps=eps if case.norm else None,
        activation=case.activation,
        gated=case.gated,
        softcap=case.softcap,
        times=times,
        residual=residual,
        pending=pending,
        post_eps=eps if case.pending else None,
        x_offset=case.offset,
        variant=case.variant(),
    )
    inputs = f64(x)
    if pending is not None and post_gain is not None:
        got, normed = got[: case.rows * case.out].reshape(case.rows, -1), got[case.rows * case.out :].reshape(shape)
        inputs = inputs + f64(pending) * inverse_rms(f64(pending)) * f64(post_gain)
        inputs = inputs * (1.0 if factor is None else f64(factor))
        if case.dtype == "float16":
            inputs = np.clip(inputs, -65504, 65504)
        assert_close(normed, inputs, case.dtype, 5e-7 * float(np.abs(inputs).max()))
        inputs = f64(normed)  # as the kernel rounded it, which was just checked
    inputs = inputs * (inverse_rms(inputs) if case.norm else 1.0) * (1.0 if gain is None else f64(gain))
    want = inputs @ weights.T + bias
    size = float(np.sqrt(inputs**2 @ weights.T**2).max())
    if case.activation:
        up = want[:, case.out :] if gated else 1.0
        want = activate(case.activation, want[:, : case.out]) * up
    if case.softcap:
        want = case.softcap * np.tanh(want / case.softcap)
    want = want if times is None else want * f64(times)
    want = want if residual is None else want + f64(residual)
    return Result(got, want, max(size, float(np.abs(want).max())))


def inverse_rms(x: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.mean(x * x, 1, keepdims=True) + EPS)


def check(case: Case) -> None:
    result = run(case)
    assert result.got.dtype == DTYPES[case.dtype]
    assert_close(result.got, result.want, case.dtype, 1.5e-6 * result.size)


@pytest.mark.parametrize("case", covering(draw, 90), ids=name_of)
def test_against_float64(case: Case, device: str) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", [1, 2, 3, 5, 7, 9, 131])
def test_parts_of_the_buffer_start_where_the_layer_ends_them(dtype: str, out: int, device: str) -> None:
    """Three groups a row: scales that fill no word, or no 16 bytes."""
    check(Case(dtype=dtype, out=out, bias=True, gain=True))


@pytest.mark.parametrize("columns", [32, 1024, 1056, 1088])
def test_columns_that_are_just_one_step_or_a_lane_more(columns: int, device: str) -> None:
    """A lane has 32 columns: one lane does all of them, or all 32 lanes do, or one or two go a second step."""
    check(Case(columns=columns, batch=2, words=4, split="one", out=5, bias=True))
    check(Case(columns=columns // 8, bits=None, batch=2, words=4, split="one", out=5, rows=2))
    check(Case(columns=columns // 8, bits=None, batch=1, batches=2, words=4, split="one", out=5, rows=2))


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (2, 1), (3, 1), (5, 1), (3, 3), (7, 2), (5, 4), (8, 4), (4, 8)])
def test_sums_of_any_number(rows: int, batch: int, device: str) -> None:
    """They are reduced 2, 4, 8, 16 or 32 at a time."""
    check(Case(rows=rows, batch=batch, out=8, bias=True, gain=True))


@pytest.mark.parametrize("bits", [4, None])
@pytest.mark.parametrize("out", [3072, 12290])
def test_many_rows_take_other_layouts(out: int, bits: int | None, device: str) -> None:
    layer = random_layer(np.random.default_rng(0), out, 96, bits, 32, "float16")
    few, many = (replace(pack(layer, mx.float16), rows=rows) for rows in (96, out))
    assert default_variant(few, 1, gated=False) != default_variant(many, 1, gated=False)
    check(Case(dtype="float16", bits=bits, out=out))


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(("columns", "bits"), [(640, 4), (1152, 4), (1152, 8), (1152, None), (2560, None), (5376, 4)])
def test_a_pending_post_norm_has_a_layout_for_every_shape(
    rows: int, columns: int, bits: int | None, device: str
) -> None:
    """Those of Gemma 3 270M and 1B, and of Gemma 4's largest."""
    check(Case(dtype="bfloat16", bits=bits, columns=columns, rows=rows, pending=True, gain=True, out=32))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pending_post_norm_with_no_norm_behind_it(dtype: str, rows: int, device: str) -> None:
    """OLMo 2's."""
    check(Case(dtype=dtype, norm=False, pending=True, columns=640, rows=rows, out=5))
    check(Case(dtype=dtype, norm=False, pending=True, rows=rows, out=6, activation="silu", bias=True))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_times_a_factor_and_a_result_times_another(dtype: str, rows: int, device: str) -> None:
    """Gemma 4's: the factor is a layer's, in front of the next one; and layers have inputs that a projection gates."""
    case = Case(dtype=dtype, rows=rows, pending=True, factor=True, columns=640)
    for bits in (4, None):
        check(replace(case, bits=bits, gain=True, bias=True))
        check(replace(case, bits=bits, norm=False, activation="gelu_pytorch_tanh", gated=False, times=True, out=12))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activation_without_a_gate(dtype: str, activation: str, device: str) -> None:
    """GPT-2's. An odd number of rows has no halves."""
    case = Case(dtype=dtype, activation=activation, gated=False, bias=True, out=7)
    for bits in (4, None):
        check(replace(case, bits=bits))
        check(replace(case, bits=bits, norm=False, residual=True, rows=3, batch=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_that_the_dtype_can_not_hold_before_they_are_scaled(dtype: str, device: str) -> None:
    """A residual of RMS 1e4: sums are float32, and rounded only behind the scale."""
    case = Case(dtype=dtype, columns=640, rows=2, size="huge", bias=True, gain=True)
    result = run(case)
    unscaled = np.abs(result.want).max() * SIZES["huge"]
    assert unscaled > np.finfo(np.float16).max / 4
    assert np.isfinite(f64(result.got)).all()
    check(case)


def test_a_residual_that_float16_can_not_hold_is_clipped(device: str) -> None:
    """After a post-norm, as stock does it."""
    case = Case(dtype="float16", columns=640, rows=2, size="huge", pending=True)
    check(case)
    check(replace(case, split="more", batch=2))


@pytest.mark.parametrize(("rows", "layout"), [(9, None), (0, None), (8, Variant(8, 1, 1, 1, 1))])
def test_more_than_a_simd_group_can_sum_is_refused(rows: int, layout: Variant | None) -> None:
    packed = pack(random_layer(np.random.default_rng(0), 8, 96, 4, 32, "float32"), mx.float32)
    with pytest.raises(ValueError, match=f"{rows} rows"):
        project(mx.zeros((rows, 96)), packed, rows=rows, variant=layout)


def test_control_another_eps_is_seen(device: str) -> None:
    for wrong in (0.0, 2e-5):
        result = run(Case(size="tiny"), eps=wrong)
        assert np.abs(f64(result.got) - result.want).max() > 0.1 * np.abs(result.want).max()
        with pytest.raises(AssertionError, match="tolerance"):  # of the sum with what is pending, which comes first
            run(Case(size="tiny", pending=True), eps=wrong)
