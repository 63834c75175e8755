"""What stands between the matrix products of a long prompt, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from decode_runs import checkpoint, error, fused, run
from kernel_runs import DTYPES, activate, array, assert_close, f64

from flashnorm_mlx.architectures import base
from flashnorm_mlx.engine import compiled
from flashnorm_mlx.kernels.project import ACTIVATIONS
from flashnorm_mlx.kernels.prompt import add_norm, covers, gate
from flashnorm_mlx.layers import prompt
from flashnorm_mlx.layers.norm import weightless_norm
from flashnorm_mlx.loader import load_model

EPS = 1e-5
#: A chunk a row, some threads idle, several simdgroups, and more chunks than threads.
SIZES = [8, 96, 576, 2056, 9216]


@pytest.mark.parametrize("size", [3e-3, 100.0])
@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_and_norm(dtype: str, dims: int, size: float, device: str) -> None:
    rng = np.random.default_rng(dims)
    x, r = (array(rng.normal(size=(2, 3, dims)) * size, dtype) for _ in range(2))
    gain = array(rng.uniform(0.3, 2.0, dims), dtype)
    for given in (gain, None):
        a, n = add_norm(x, r, EPS, given)
        assert a.dtype == n.dtype == DTYPES[dtype]
        assert_close(a, f64(x) + f64(r), dtype, 5e-7 * size)
        want = f64(a) / np.sqrt(np.mean(f64(a) ** 2, -1, keepdims=True) + EPS)
        assert_close(n, want if given is None else want * f64(gain), dtype, 2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dims", [96, 2056])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: str, dims: int, activation: str, device: str) -> None:
    rng = np.random.default_rng(dims)
    x = array(rng.normal(size=(2, 3, 2 * dims)) * 2, dtype)
    y = gate(x, activation)
    assert y.dtype == DTYPES[dtype]
    first, second = f64(x)[..., :dims], f64(x)[..., dims:]
    want = activate(activation, first) * second
    assert_close(y, want, dtype, 1e-6 * float(np.abs(want).max()))


@pytest.fixture
def untraced(device: str) -> Iterator[str]:
    """Under the harness nothing can be traced."""
    if device == "harness":
        mx.disable_compile()
    yield device
    mx.enable_compile()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_weightless_norm_is_mlxs(dtype: mx.Dtype) -> None:
    x = mx.random.normal((3, 40), key=mx.random.key(2)).astype(dtype) * 0.01
    want = mx.fast.rms_norm(x, None, 1e-5)
    first_in_a_trace = mx.compile(lambda a: weightless_norm(a, 1e-5))
    for got in (first_in_a_trace(x), weightless_norm(x, 1e-5)):
        assert got.dtype == dtype and mx.array_equal(got, want).item()


def test_rows_that_are_not_whole_chunks_are_not_covered() -> None:
    assert covers(576, mx.float16) and covers(4, mx.float32) and covers(16384, mx.float32)
    assert not covers(12, mx.float16) and not covers(6, mx.float32) and not covers(16388, mx.float32)


WHOLE = [
    *[("llama", "flashnorm"), ("qwen2", "baseline"), ("qwen3", "flashnorm"), ("llama", "none")],
    *[("gemma2", "baseline"), ("gemma3_text", "flashnorm"), ("openelm", "flashnorm")],
]


@pytest.mark.parametrize(("family", "arm"), WHOLE)
def test_prompts_are_the_models_own(
    family: str, arm: str, tmp_path: Path, untraced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole models, with and without cached tokens in front of the prompt; all blocks are compiled."""
    passes: list[Any] = []
    original = compiled._behind
    monkeypatch.setattr(compiled, "MANY", 1)
    monkeypatch.setattr(compiled, "_behind", lambda block, *a: passes.append(block) or original(block, *a))
    path = checkpoint(tmp_path / "m", family, **({"sliding_window_pattern": 2} if family == "gemma3_text" else {}))
    plan = [("prompt", 9), ("step", 1), ("prompt", 12), ("prompt", 12)]
    got = run(fused(path, arm=arm), plan)
    assert passes and all(isinstance(block, prompt.PromptBlock) for block in passes)
    assert error(got, run(load_model(path, arm=arm, kernels="reference"), plan)) <= 5e-6


def test_control_a_block_that_loses_what_is_due_is_seen(
    tmp_path: Path, untraced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MANY", 1)
    monkeypatch.setattr(prompt, "add_norm", lambda h, due, *a: add_norm(h, due * 0, *a))
    path = checkpoint(tmp_path / "m")
    assert error(run(fused(path), [("prompt", 9)]), run(load_model(path, kernels="reference"), [("prompt", 9)])) > 1e-2


def test_control_a_sum_that_loses_what_is_due_is_seen(
    tmp_path: Path, untraced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "whole", lambda h: h[0] if isinstance(h, tuple) else h)
    path = checkpoint(tmp_path / "m")
    got = run(fused(path), [("prompt", 9)])
    assert error(got, run(load_model(path, kernels="reference"), [("prompt", 9)])) > 1e-2


def test_slower_kernels_are_not_used(tmp_path: Path, untraced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt.choice, "fastest", lambda *a: "plain")
    model = fused(checkpoint(tmp_path / "m"))
    block = model.layers[0].prompt(mx.float32, measure=True)
    assert not block.joins and block.gate is prompt.forms_of_gate("silu")["plain"]
