"""Norm → project → epilogue in one launch, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import project_cases
import pytest
from kernel_runs import DTYPES, array, assert_close, covering, dense, f64, name_of, random_layer
from project_cases import EPS, SIZES, Case, check, draw, inverse_rms, run

from flashnorm_mlx.kernels.packed import pack
from flashnorm_mlx.kernels.project import ACTIVATIONS, Variant, default_variant, project


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


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(("columns", "bits"), [(768, 4), (768, 8), (2048, 4), (2560, 8), (768, None), (2048, None)])
def test_a_layer_norm_has_a_layout_for_every_shape(rows: int, columns: int, bits: int | None, device: str) -> None:
    """Those of GPT-2, OLMo 1 and StableLM 2."""
    check(Case(dtype="float16", bits=bits, columns=columns, rows=rows, centred=True, gain=True, bias=True, out=32))


@pytest.mark.parametrize("bits", [4, None])
def test_a_variance_is_that_around_the_mean(bits: int | None, device: str) -> None:
    """``mean(x²) - mean(x)²`` of numbers of 1000 ± 1 has three digits left in float32."""
    rng = np.random.default_rng(0)
    layer, x = random_layer(rng, 8, 640, bits, 32, "float32"), array(rng.normal(size=(3, 640)) + 1000, "float32")
    got = project(x, pack(layer, mx.float32), rows=3, eps=EPS, centred=True)
    centred = f64(x) - np.mean(f64(x), 1, keepdims=True)
    want = centred * inverse_rms(centred) @ dense(layer).T
    assert_close(got, want, "float32", 5e-3 * float(np.abs(want).max()))


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


def test_control_a_mean_and_a_bias_that_are_left_out_are_seen(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(centred=True, gain=True, bias=True)
    check(case)

    def uncentred(*given: Any, **options: Any) -> mx.array:
        return project(*given, **{**options, "centred": False})

    def without_bias(*given: Any, norm_bias: mx.array) -> Any:
        return pack(*given)

    for name, wrong in (("project", uncentred), ("pack", without_bias)):
        with monkeypatch.context() as broken:
            broken.setattr(project_cases, name, wrong)
            with pytest.raises(AssertionError, match="tolerance"):
                check(case)


def test_control_another_eps_is_seen(device: str) -> None:
    for wrong in (0.0, 2e-5):
        result = run(Case(size="tiny"), eps=wrong)
        assert np.abs(f64(result.got) - result.want).max() > 0.1 * np.abs(result.want).max()
        with pytest.raises(AssertionError, match="tolerance"):  # of the sum with what is pending, which comes first
            run(Case(size="tiny", pending=True), eps=wrong)
