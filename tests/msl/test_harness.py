"""The harness that runs Metal kernels on the CPU: right kernels pass, and every planted bug is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from msl.examples import BARRIER, RMS, ROWS, TYPES, WIDTH, rms_call
from msl.harness import KernelError, metal_kernel, missing, warm
from msl.translate import Untranslatable, rewrite_threadgroup

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent


def rms(source: str, dtype: mx.Dtype, check: bool, header: str = "") -> float:
    """The largest error of an RMS norm."""
    kernel = metal_kernel("rms", ["x", "w", "eps"], ["y"], source, header, check=check, seeds=(0, 1, 2))
    call = rms_call(dtype)
    (y,) = kernel(**call)
    expected = mx.fast.rms_norm(call["inputs"][0], call["inputs"][1], 1e-5)
    return float(mx.abs(y.astype(mx.float32) - expected.astype(mx.float32)).max())


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_right_kernel_agrees_with_mlx(dtype: str, check: bool) -> None:
    bound = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    assert rms(RMS, TYPES[dtype], check) <= bound


def test_the_checker_counts_the_bytes_a_kernel_moves() -> None:
    kernel = metal_kernel("rms", ["x", "w", "eps"], ["y"], RMS, check=True)
    kernel(**rms_call(mx.float32))
    size = ROWS * WIDTH * 4
    assert kernel.traffic["x"] == (2 * size, 0)
    assert kernel.traffic["w"] == (size, 0)
    assert kernel.traffic["y"] == (0, size)


BUGS = {
    "no barrier": (BARRIER, "", "RACE"),
    "barrier of nothing": ("mem_flags::mem_threadgroup", "mem_flags::mem_none", "RACE"),
    "uninitialised threadgroup memory": (
        "lane < simdgroups_per_threadgroup ? part[lane] : 0.0f",
        "part[lane]",
        "UNINITIALISED",
    ),
    "read beyond the end": ("i < D; i += n) { float v", "i < D + 8; i += n) { float v", "OUT OF BOUNDS"),
    "write beyond the end": ("i < D; i += n) y[", "i <= D; i += n) y[", "OUT OF BOUNDS|RACE"),
    "index outside of an array": ("part[sg] = acc", "part[sg + 31] = acc", "OUT OF BOUNDS"),
    "barrier that some threads skip": (BARRIER, f"if (lid < 64) {BARRIER}", "DIVERGENCE"),
    "sum that some lanes skip": ("acc = simd_sum(acc);", "if (lane < 16) acc = simd_sum(acc);", "DIVERGENCE"),
    "return before a barrier": ("int D =", "if (lid == 5) return;\nint D =", "DIVERGENCE"),
    "two threadgroups write one row": ("y[row * D + i]", "y[(row / 2) * D + i]", "RACE"),
    "row that is not written": ("float acc = 0;", "if (row == 4) return;\nfloat acc = 0;", "UNWRITTEN"),
    "write to an input": ("float acc = 0;", "float acc = 0; ((device T*)x)[0] = T(0.0f);", "WRITE to an input"),
    "division by zero": ("float acc = 0;", "float acc = float(D / (int(lid) - int(lid)));", "DIVISION"),
    "shift by too much": ("float acc = 0;", "float acc = float(lid >> (32 + D));", "SHIFT"),
    "lane that isn't there": ("float acc = 0;", "float acc = 0 * simd_shuffle(1.0f, 40);", "not active"),
    "float to T by itself": ("T(float(xr[i]) * s) * w[i]", "float(xr[i]) * s", "does not compile"),
    "unknown name": ("acc / D", "acc / E", "does not compile"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    right, wrong, says = BUGS[bug]
    assert right in RMS
    with pytest.raises(KernelError, match=says) as failure:
        rms(RMS.replace(right, wrong, 1), mx.bfloat16, check=True)
    assert "line" in str(failure.value) or says == "UNWRITTEN"


def test_an_uninitialised_register_spoils_the_result() -> None:
    assert not rms(RMS.replace("float acc = 0;", "float acc;"), mx.bfloat16, check=True) < 0.1


def test_a_report_quotes_the_line_of_the_kernel() -> None:
    with pytest.raises(KernelError, match=r"line \d+: `acc = simd_sum\(lane < simdgroups"):
        rms(RMS.replace(BARRIER, ""), mx.float32, check=True)


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_a_wild_or_endless_kernel_takes_nothing_with_it(check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match=r"CRASH|WILD"):
        rms(RMS.replace("int D =", "((device float*)0)[3] = 1.0f;\nint D ="), mx.float32, check)
    monkeypatch.setenv("MSL_TIMEOUT", "1")
    with pytest.raises(KernelError, match="does not end within 1 s"):
        rms(RMS.replace("float acc = 0;", "float acc = 0; for (volatile int z = 0;; z = 1) {}"), mx.float32, check)


def test_limits_of_a_threadgroup() -> None:
    with pytest.raises(KernelError, match="bytes of threadgroup memory: the limit is 32768"):
        rms(RMS.replace("part[32]", "part[8193]"), mx.float32, check=False)
    call = {**rms_call(mx.float32), "grid": (ROWS * 2048, 1, 1), "threadgroup": (2048, 1, 1)}
    with pytest.raises(KernelError, match="a threadgroup of 2048 threads: the limit is 1024"):
        metal_kernel("rms", ["x", "w", "eps"], ["y"], RMS)(**call)


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_atomics_are_no_races(check: bool) -> None:
    source = "atomic_fetch_add_explicit(&y[thread_position_in_grid.x % 3], x[0], memory_order_relaxed);"
    kernel = metal_kernel("count", ["x"], ["y"], source, atomic_outputs=True, check=check, seeds=(0, 1))
    launch = {"grid": (99, 1, 1), "threadgroup": (40, 1, 1), "output_shapes": [(3,)], "output_dtypes": [mx.int32]}
    (y,) = kernel(inputs=[mx.array([2])], init_value=1, **launch)
    assert y.tolist() == [67, 67, 67]


@pytest.mark.parametrize("count", [7, 8])
def test_small_inputs_are_constant(count: int) -> None:
    kernel = metal_kernel("space", ["x"], ["y"], "y[thread_position_in_grid.x] = x[0];")
    launch = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    text = kernel.record(inputs=[mx.zeros(count)], **launch).text
    assert f"const {'constant' if count < 8 else 'device'} float* x" in text


def test_threadgroup_variables_are_told_from_pointers() -> None:
    for variable in ("threadgroup float a[(N + 31) / 32];", "threadgroup vec<T, 4> a, b[2];", "threadgroup uint n;"):
        assert rewrite_threadgroup(variable).startswith("MSL_THREADGROUP")
    for pointer in ("threadgroup T* p = a;", "f((threadgroup T*)a);", "void f(threadgroup float a[4], int b);"):
        assert rewrite_threadgroup(pointer) == pointer
    with pytest.raises(Untranslatable, match="initialiser"):
        rewrite_threadgroup("threadgroup float a = 0;")


def test_processes_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSL_CACHE", str(tmp_path))
    code = (
        "import mlx.core as mx; from msl.harness import metal_kernel\n"
        "k = metal_kernel('one', ['x'], ['y'], 'y[thread_position_in_grid.x] = x[0];')\n"
        "g = dict(grid=(9, 1, 1), threadgroup=(9, 1, 1), output_shapes=[(9,)], output_dtypes=[mx.float32])\n"
        "assert k(inputs=[mx.ones(3)], **g)[0].sum() == 9"
    )
    command = [sys.executable, "-c", code]
    for process in [subprocess.Popen(command, cwd=ROOT / "tests") for _ in range(3)]:
        assert process.wait() == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".o", ".so"]  # header, runtime and kernel
    kernel = metal_kernel("one", ["x"], ["y"], "y[thread_position_in_grid.x] = x[0];")
    launch = {"grid": (9, 1, 1), "threadgroup": (9, 1, 1), "output_shapes": [(9,)], "output_dtypes": [mx.float32]}
    warm([(kernel, {"inputs": [mx.ones(3)], **launch})])
    kernel(inputs=[mx.ones(3)], **launch)
    assert kernel.compile_seconds == 0 and len(list(tmp_path.iterdir())) == 3
