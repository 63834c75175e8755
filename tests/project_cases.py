"""What tests of projections share: a layer, an input, an epilogue and a layout, by a kernel and in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from kernel_runs import DTYPES, activate, array, assert_close, dense, divisors, f64, random_layer

from flashnorm_mlx.kernels.packed import pack
from flashnorm_mlx.kernels.project import ACTIVATIONS, Variant, project

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
    centred: bool = False  # a LayerNorm, with a bias
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
        case = replace(case, centred=case.norm and not case.pending and rng.random() < 0.4)
    whole = case.pending or case.centred
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
            words=4 if whole else rng.choice([1, 2, 4]),  # all of a row at once
            split=rng.choice(["exact", "more"] if whole else ["exact", "more", "fewer", "one"]),
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
    x = array((rng.normal(size=shape) + (2.0 if case.centred else 0.0)) * SIZES[case.size], case.dtype)
    gain = array(rng.uniform(0.3, 2.0, case.columns), case.dtype) if case.gain else None
    residual = array(rng.normal(size=(case.rows, case.out)), case.dtype) if case.residual else None
    pending = array(rng.normal(size=shape) * SIZES[case.size], case.dtype) if case.pending else None
    post_gain = mx.array(rng.uniform(0.3, 2.0, case.columns) * SIZES[case.size], mx.float32) if case.pending else None
    factor = mx.array(rng.uniform(0.3, 2.0, 1), mx.float32) if case.factor else None
    times = array(rng.normal(size=(case.rows, case.out)), case.dtype) if case.times else None
    norm_bias = array(rng.normal(size=case.columns), case.dtype) if case.centred else None
    weights, bias = dense(layer), f64(layer.bias) if case.bias else 0.0
    around = mx.full((case.offset,), math.nan, x.dtype)
    got = project(
        mx.concatenate([around, x.flatten(), around]) if case.offset else x,
        pack(layer, DTYPES[case.dtype], gain, post_gain, factor, norm_bias=norm_bias),
        rows=case.rows,
        eps=eps if case.norm else None,
        centred=case.centred,
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
    if case.centred:
        inputs = inputs - np.mean(inputs, 1, keepdims=True)
    inputs = inputs * (inverse_rms(inputs) if case.norm else 1.0) * (1.0 if gain is None else f64(gain))
    inputs = inputs if norm_bias is None else inputs + f64(norm_bias)
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
