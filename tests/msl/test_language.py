"""What kernels are written in, run on the CPU: vectors, casts, helpers, mathematics, SIMD groups."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from msl.examples import LANGUAGE, TYPES, language, language_call, language_expected
from msl.harness import KernelError, metal_kernel, missing

if missing():
    pytest.skip(str(missing()), allow_module_level=True)


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_kernels_are_written_in(dtype: str, check: bool) -> None:
    call = language_call(TYPES[dtype])
    (y,) = language(check)(**call)
    expected = language_expected(np.array(call["inputs"][0].astype(mx.float32)))
    np.testing.assert_allclose(np.array(y), expected, rtol=1e-5, atol=2e-5)


def test_misaligned_vectors_are_found() -> None:
    call = language_call(mx.float16)
    for wrong in (LANGUAGE.replace("lane * VALUES;", "lane * VALUES + (lane == 31 ? -1 : 1);"), LANGUAGE):
        with pytest.raises(KernelError, match=r"MISALIGNED access.*uint4"):
            language(True, wrong, offset=int(wrong is LANGUAGE))(**call)
    with pytest.raises(KernelError, match=r"MISALIGNED access.*line \d+: `const float4 f"):
        language(True, LANGUAGE.replace("threadgroup float4*)tile)", "threadgroup float4*)(tile + 1))"))(**call)


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_half_is_rounded_after_every_operation(check: bool) -> None:
    source = "uint i = thread_position_in_grid.x; y[i] = x[i] * x[i] + T(1) - x[i];"
    mx.random.seed(2)
    x = mx.random.normal((64,)).astype(mx.float16)
    kernel = metal_kernel("half_steps", ["x"], ["y"], source, check=check)
    launch = {"grid": (64, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(64,)], "output_dtypes": [mx.float16]}
    (y,) = kernel(inputs=[x], template=[("T", mx.float16)], **launch)
    v = np.array(x)
    assert (np.array(y) == v * v + np.float16(1) - v).all()


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_matrices_of_a_simd_group(check: bool) -> None:
    source = """
        simdgroup_float8x8 a, b, c = simdgroup_float8x8(1.0f);
        simdgroup_load(a, x, 24);
        simdgroup_load(b, x + 8, 24, ulong2(0), true);
        simdgroup_multiply_accumulate(c, a, b, c);
        simdgroup_store(c, y);
    """
    mx.random.seed(3)
    x = mx.random.normal((8, 24))
    kernel = metal_kernel("matrix", ["x"], ["y"], source, check=check, seeds=(0, 1))
    launch = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(8, 8)], "output_dtypes": [mx.float32]}
    (y,) = kernel(inputs=[x], **launch)
    v = np.array(x, np.float64)
    np.testing.assert_allclose(np.array(y), v[:, :8] @ v[:, 8:16].T + np.eye(8), rtol=1e-5, atol=1e-5)
