"""Rows of the embedding table in one launch, and the buffers that hold a layer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kernel_runs import DTYPES, array, assert_close, dense, f64, random_layer

from flashnorm_mlx.kernels.embed import embed
from flashnorm_mlx.kernels.packed import Uncovered, pack

IDS = [0, 7, 6, 7, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("bits", "group", "columns"),
    [
        (4, 32, 96),
        (4, 64, 576),
        (4, 128, 640),
        (8, 32, 96),
        (8, 64, 640),
        (8, 128, 1152),
        (None, 32, 72),
        (None, 32, 640),
    ],
)
def test_embed_against_float64(bits: int | None, group: int, columns: int, dtype: str, device: str) -> None:
    for rows, factor, kind in ((8, 1.0, mx.int32), (8, 25.5, mx.uint32), (9, 1.0, mx.int32)):
        layer = random_layer(np.random.default_rng(rows), rows, columns, bits, group, dtype, kind="embedding")
        want = dense(layer)[IDS] * factor
        got = embed(mx.array([IDS], kind), pack(layer, DTYPES[dtype]), factor=factor)
        assert got.dtype == DTYPES[dtype]
        assert_close(got, want, dtype, 2e-7 * float(np.abs(want).max()))
        residual = array(np.random.default_rng(1).normal(size=want.shape), dtype)
        got = embed(mx.array([IDS], kind), pack(layer, DTYPES[dtype]), factor=factor, residual=residual)
        assert_close(got, want + f64(residual), dtype, 2e-7 * float(np.abs(want).max() + 4))


@pytest.mark.parametrize("ids", [1, 2, 8])
def test_any_number_of_ids(ids: int, device: str) -> None:
    layer = random_layer(np.random.default_rng(0), 8, 64, 4, 32, "float32", kind="embedding")
    numbers = np.arange(ids) % 8
    assert_close(embed(mx.array(numbers), pack(layer, mx.float32)), dense(layer)[numbers], "float32", 1e-7)


def test_ids_outside_of_the_table(device: str) -> None:
    """Negative ones count from its end, as MLX's do; none reads outside of the buffer."""
    layer = random_layer(np.random.default_rng(0), 8, 64, 4, 32, "float32", kind="embedding")
    ids, rows = [8, 1000, 7, -1, -2, -7, -8, -9, -1000], [7, 7, 7, 7, 6, 1, 0, 0, 0]
    assert_close(embed(mx.array(ids), pack(layer, mx.float32)), dense(layer)[rows], "float32", 1e-7)


# ---- pack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8, None])
@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.parametrize("rows", [1, 7, 9, 16])
def test_a_packed_layer_keeps_its_values(dtype: str, bits: int | None, kind: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    layer = random_layer(rng, rows, 96, bits, 32, dtype, bias=kind == "linear", kind=kind)
    before, weights = dict(layer), dense(layer)
    x = array(rng.normal(size=(3, 96)), dtype)
    want = None if kind == "embedding" else layer(x)
    gain = array(rng.uniform(size=96), dtype)
    packed = pack(layer, DTYPES[dtype], gain)
    assert (packed.rows, packed.columns) == (rows, 96)
    assert packed.bits == (bits or 8 * DTYPES[dtype].size)
    assert (packed.bias, packed.gain) == (kind == "linear", True)
    for name, old in before.items():
        assert layer[name].dtype == old.dtype and mx.array_equal(layer[name], old), name
    np.testing.assert_array_equal(dense(layer), weights)
    assert want is None or mx.array_equal(layer(x), want)
    floats = packed.buffer.view(mx.float32)
    assert mx.array_equal(floats[-96:], gain.astype(mx.float32))
    if kind == "linear":
        assert mx.array_equal(floats[-96 - -(-rows // 4) * 4 :][:rows], layer.bias.astype(mx.float32))


def test_a_packed_layer_can_be_packed_again() -> None:
    """A tied head and the embedding may be one layer."""
    layer = random_layer(np.random.default_rng(0), 9, 96, 4, 32, "float32")
    first, again = pack(layer, mx.float32), pack(layer, mx.float32)
    assert mx.array_equal(first.buffer, again.buffer)


def quantised(bits: int, mode: str = "affine", group: int = 32) -> nn.Module:
    return nn.QuantizedLinear.from_linear(nn.Linear(128, 8, bias=False), group, bits, mode=mode)


def in_dtype(layer: nn.Module, dtype: mx.Dtype) -> nn.Module:
    layer.set_dtype(dtype)
    return layer


UNCOVERED = {
    "affine quantisation with 3 bits in groups of 32": (lambda: quantised(3), mx.float32),
    "affine quantisation with 6 bits in groups of 64": (lambda: quantised(6, group=64), mx.float32),
    "mxfp4 quantisation with 4 bits in groups of 32": (lambda: quantised(4, "mxfp4"), mx.float32),
    "mxfp8 quantisation with 8 bits in groups of 32": (lambda: quantised(8, "mxfp8"), mx.float32),
    "scales of dtype float32 with activations in float16": (lambda: quantised(4), mx.float16),
    "scales of dtype float16 with activations in bfloat16": (
        lambda: in_dtype(quantised(8), mx.float16),
        mx.bfloat16,
    ),
    "weights of dtype float32 with activations in bfloat16": (lambda: nn.Linear(64, 8), mx.bfloat16),
    "weights of dtype float16 with activations in float32": (
        lambda: in_dtype(nn.Embedding(8, 64), mx.float16),
        mx.float32,
    ),
    "rows of 84 float16 weights, which are no multiple of 16 bytes": (
        lambda: in_dtype(nn.Linear(84, 8), mx.float16),
        mx.float16,
    ),
    "rows of 98 float32 weights, which are no multiple of 16 bytes": (lambda: nn.Linear(98, 8), mx.float32),
}


@pytest.mark.parametrize("reason", UNCOVERED)
def test_what_is_not_covered_says_so_and_stays_as_it_is(reason: str) -> None:
    make, dtype = UNCOVERED[reason]
    layer = make()
    before = dict(layer)
    with pytest.raises(Uncovered) as said:
        pack(layer, dtype)
    assert str(said.value) == reason
    assert all(layer[name] is before[name] for name in before)


def test_covered_next_to_what_is_not() -> None:
    for layer in (quantised(4), quantised(8), quantised(4, group=64), nn.Linear(84, 8), nn.Embedding(8, 64)):
        pack(layer, mx.float32)
    assert f64(pack(nn.Linear(84, 8), mx.float32).buffer).size == 84 * 8 + 8
