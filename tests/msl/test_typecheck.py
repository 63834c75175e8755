"""The type check of kernels as Metal: right ones pass, and what Metal refuses is refused."""

from __future__ import annotations

import mlx.core as mx
import pytest
from msl.examples import RMS, TYPES, language, language_call, rms_call
from msl.harness import metal_kernel
from msl.typecheck import available, typecheck

if not available():
    pytest.skip("no clang here reads C++ for OpenCL (install clang-19, or pip's libclang)", allow_module_level=True)

FIRST = "template <typename U> inline float first(const device U* p) { return float(p[0]); }\n"
END = "y[row * D + lid] = "


def check(source: str, header: str = "", dtype: mx.Dtype = mx.bfloat16) -> list[str]:
    call = rms_call(dtype)
    call["inputs"] += [mx.zeros((3,), dtype)]
    return typecheck(metal_kernel("rms", ["x", "w", "eps", "few"], ["y"], source, header).record(**call).text)


@pytest.mark.parametrize("dtype", TYPES)
def test_right_kernels_pass(dtype: str) -> None:
    assert check(RMS, dtype=TYPES[dtype]) == []
    if dtype != "float32":
        assert typecheck(language(False).record(**language_call(TYPES[dtype])).text) == []


WRONG = {
    "constant passed as device": (RMS + f"{END}T(first(few));", FIRST),
    "threadgroup passed as device": (RMS + f"{END}T(first(part));", FIRST),
    "device passed as threadgroup": (RMS + f"{END}T(first(xr));", FIRST.replace("device", "threadgroup")),
    "pointer cast to another address space": (RMS + f"{END}*((const threadgroup T*)xr);", ""),
    "pointer without an address space": (
        RMS + f"{END}T(last(xr));",
        "inline float last(const float* p) { return *p; }\n",
    ),
    "write to an input": (RMS.replace("float acc = 0;", "float acc = 0; xr[0] = T(0.0f);"), ""),
    "double": (RMS.replace("float acc = 0;", "double acc = 0;"), ""),
    "threadgroup variable in a helper": (RMS, "inline void help() { threadgroup float z[4]; z[0] = 0; }\n"),
    "std": (RMS.replace("acc / D", "std::max(acc, 1.0f)"), ""),
    "unknown name": (RMS.replace("acc / D", "acc / E"), ""),
    "ambiguous max": (RMS + f"{END}T(float(max(1, lid)));", ""),
    "ambiguous clamp": (RMS + f"{END}T(clamp(acc, 0, 1.0f));", ""),
    "function pointer": (RMS + f"float (*f)(float) = metal::exp; {END}T(f(1.0f));", ""),
    "as_type of another size": (RMS + f"{END}T(float(as_type<ushort>(1.0f)));", ""),
    "printf": (RMS + 'printf("x");', ""),
    "if constexpr": (RMS + "if constexpr (sizeof(T) == 2) { return; }", ""),
    "structured binding": (
        RMS + "struct Two { int a, b; }; Two two = {1, 2}; auto [a, b] = two; y[0] = T(float(a + b));",
        "",
    ),
    "fold expression": (RMS, "template <class... A> inline float sum(A... a) { return (a + ...); }\n"),
    "lambda expression": (RMS + "auto f = [](float a) { return a; };", ""),
    "goto": (RMS + "goto end; end: return;", ""),
    "variable out of functions": (RMS, "constexpr float HALF = 0.5f;\n"),
    "table out of functions": (RMS, "static const int TABLE[2] = {1, 2};\n"),
    "static variable": (RMS, "struct S {\n  static constexpr int N = 2;\n};\n"),
    "no initial value": (RMS.replace("float acc = 0;", "float acc; acc += 1.0f;"), ""),
}


RIGHT_HEADER = """
constant constexpr float TABLE[2] = {0.5f, 1.0f};
static constexpr constant int SIZE = 4;
#define UNROLL \\
  const int x = 3;
struct Scale {
  static constexpr constant int N = 2;
  float s;
};
template <int N>
inline float
second(const constant bfloat16_t* p) { const float v = float(p[1]); return v; }
"""


@pytest.mark.parametrize("wrong", WRONG)
def test_what_metal_refuses_is_refused(wrong: str) -> None:
    source, header = WRONG[wrong]
    assert check(source, header)


def test_constants_and_helpers_pass() -> None:
    assert check(RMS + f"{END}T(second<SIZE>(few) * TABLE[0] * Scale::N);", RIGHT_HEADER) == []


def test_an_error_quotes_its_line() -> None:
    (error,) = check(RMS.replace("acc / D", "acc / E"))
    assert "`float s = metal::precise::rsqrt(acc / E + eps);`: error: use of undeclared identifier 'E'" in error
