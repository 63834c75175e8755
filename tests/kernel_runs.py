"""What tests of kernels share: where they run, random layers, float64 references' helpers, and choices of cases.

Under the harness every kernel is checked and run in several orders of its threads, and its text is read as Metal where
a clang is there for it. With `-m gpu` the same tests run the real kernels.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from msl.build import Library
from msl.harness import RECORDED, Kernel, KernelError, Recording, missing
from msl.typecheck import available, typecheck

from flashnorm_mlx.kernels import dialect

DEVICES = ["harness", pytest.param("gpu", marks=pytest.mark.gpu)]
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
#: How far rounding to a dtype moves a number, relative to it. float32 is left to a test's own tolerance.
ROUNDING = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}

C = TypeVar("C")


def wrong_as_metal(text: str) -> list[str]:
    return typecheck(text) if available() else []


class ReadKernel(Kernel):
    """A kernel of the harness whose text is read as Metal too. Each text is translated once."""

    built: ClassVar[dict[tuple[str, bool], Library]] = {}

    def build(self, recording: Recording) -> Library:
        key = recording.text, self.check
        if key not in self.built:
            if wrong := wrong_as_metal(recording.text):
                raise KernelError("is not Metal:\n" + "\n".join(wrong))
            self.built[key] = super().build(recording)
        return self.built[key]


@contextmanager
def on_device(name: str, *, check: bool = True, seeds: Sequence[int] = (0, 1, 2)) -> Iterator[str]:
    """Runs MLX's kernels under the harness, or on the GPU. Threads may run in any order: each seed is another one."""
    if name == "harness" and missing():
        pytest.skip(str(missing()))

    def metal_kernel(name: str, input_names: Sequence[str], output_names: Sequence[str], **text: str) -> Kernel:
        kernel = RECORDED(name=name, input_names=input_names, output_names=output_names, **text)
        return ReadKernel((input_names, output_names), kernel, check, seeds, 0, apart=check)

    before, original = mx.default_device(), mx.fast.metal_kernel
    dialect.build.cache_clear()
    try:
        mx.set_default_device(mx.cpu if name == "harness" else mx.gpu)
        if name == "harness":
            mx.fast.metal_kernel = metal_kernel
        yield name
    finally:
        mx.fast.metal_kernel = original
        mx.set_default_device(before)
        dialect.build.cache_clear()


# ---- layers and numbers ------------------------------------------------------------------------------------------


def f64(a: mx.array) -> np.ndarray:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def array(a: np.ndarray, dtype: str) -> mx.array:
    return mx.array(a.astype(np.float32)).astype(DTYPES[dtype])


def random_layer(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    bits: int | None,
    group: int,
    dtype: str,
    *,
    bias: bool = False,
    kind: str = "linear",
) -> nn.Module:
    """A layer whose products of normal numbers are about 1. Quantised: any words, scales of both signs, offsets."""
    layer = nn.Linear(1, 1, bias=False) if kind == "linear" else nn.Embedding(1, 1)
    if bits is None:
        layer.weight = array(rng.normal(size=(rows, columns)) * columns**-0.5, dtype)
    else:
        make = nn.QuantizedLinear if kind == "linear" else nn.QuantizedEmbedding
        options = {"bias": False} if kind == "linear" else {}
        layer = make(group, group, group_size=group, bits=bits, **options)
        words = rng.integers(0, 2**32, (rows, columns * bits // 32), np.uint32)
        steps = rng.uniform(0.5, 1.5, (rows, columns // group)) * rng.choice([-1, 1], (rows, columns // group))
        steps *= 3.5 * columns**-0.5 / 2**bits
        layer.weight = mx.array(words)
        layer.scales = array(steps, dtype)
        layer.biases = array(-steps * 2**bits * rng.uniform(0.3, 0.7, steps.shape), dtype)
    if bias:
        layer.bias = array(rng.normal(size=rows), dtype)
    return layer


def dense(layer: nn.Module) -> np.ndarray:
    """A layer's weights in float64."""
    if "scales" not in layer:
        return f64(layer.weight)
    words, bits, group = np.array(layer.weight), layer.bits, layer.group_size
    places = np.arange(0, 32, bits, dtype=np.uint32)
    q = (words[..., None] >> places & np.uint32(2**bits - 1)).reshape(len(words), -1).astype(np.float64)
    return q * np.repeat(f64(layer.scales), group, 1) + np.repeat(f64(layer.biases), group, 1)


def assert_close(got: mx.array | np.ndarray, want: np.ndarray, dtype: str, tolerance: float) -> None:
    """Every number within one rounding to dtype, plus an absolute tolerance for what was summed in float32."""
    values = f64(got) if isinstance(got, mx.array) else got
    assert values.shape == want.shape
    tiny = 2**-25 if dtype == "float16" else 0.0
    excess = np.abs(values - want) - (1.001 * ROUNDING[dtype] * np.abs(want) + tolerance + tiny)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
    assert excess[worst] <= 0, f"{values[worst]} for {want[worst]} at {worst}, tolerance {tolerance:.1e}"


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """The gate's activation ``name``."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return np.maximum(x, 0) ** {"relu": 1, "relu2": 2}[name]


# ---- choices -----------------------------------------------------------------------------------------------------


def settings_of(case: Any) -> frozenset:
    """All pairs of a case's settings."""
    assert is_dataclass(case)
    return frozenset(itertools.combinations(sorted(asdict(case).items(), key=str), 2))  # type: ignore[arg-type]


def covering(draw: Callable[[random.Random], C], count: int, seed: int = 0) -> list[C]:
    """So many random cases, each the one among 40 that has the most pairs of settings which none had before it."""
    rng, seen, cases = random.Random(seed), set[Any](), list[C]()
    while len(cases) < count:
        best = max((draw(rng) for _ in range(40)), key=lambda case: len(settings_of(case) - seen))
        seen |= settings_of(best)
        cases.append(best)
    return cases


def name_of(case: Any) -> str:
    return "-".join(f"{key}={value}" for key, value in asdict(case).items() if value not in (None, False))


def divisors(n: int, among: Sequence[int]) -> list[int]:
    return [d for d in among if n % d == 0]
