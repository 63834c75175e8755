"""Kernels to try the harness and the type check on."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from msl.harness import Kernel, metal_kernel

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
RMS = f"""
uint row = threadgroup_position_in_grid.x;
uint lid = thread_position_in_threadgroup.x;
uint n = threads_per_threadgroup.x;
uint sg = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
threadgroup float part[32];
int D = x_shape[1];
const device T* xr = x + row * D;
float acc = 0;
for (int i = lid; i < D; i += n) {{ float v = float(xr[i]); acc += v * v; }}
acc = simd_sum(acc);
if (lane == 0) part[sg] = acc;
{BARRIER}
acc = simd_sum(lane < simdgroups_per_threadgroup ? part[lane] : 0.0f);
float s = metal::precise::rsqrt(acc / D + eps);
for (int i = lid; i < D; i += n) y[row * D + i] = T(float(xr[i]) * s) * w[i];
"""
ROWS, WIDTH = 5, 200


def rms_call(dtype: mx.Dtype) -> dict:
    mx.random.seed(0)
    x, w = mx.random.normal((ROWS, WIDTH)).astype(dtype), mx.random.normal((WIDTH,)).astype(dtype)
    return {
        "inputs": [x, w, mx.array(1e-5)],
        "template": [("T", dtype)],
        "grid": (ROWS * 96, 1, 1),
        "threadgroup": (96, 1, 1),
        "output_shapes": [x.shape],
        "output_dtypes": [dtype],
    }


LANGUAGE_HEADER = """
#define UNROLL _Pragma("clang loop unroll(full)")
constant constexpr float TABLE[4] = {1.0f, 2.0f, 3.0f, 4.0f};
template <typename U> struct Sum { static inline float of(float a, float b) { return a + b; } };
template <typename U, int N> inline float total(const device U* p) {
  float sum = 0.0f;
  UNROLL
  for (int i = 0; i < N; i++) sum = Sum<U>::of(sum, float(p[i]));
  return sum;
}
template <int N> inline void put(threadgroup float* tile, uint at, thread const float (&values)[N]) {
  for (int i = 0; i < N; i++) tile[at * N + i] = values[i];
}
inline void twice(thread float& a) { a *= 2.0f; }
/* a comment ( about threadgroup float x[2]; */
"""
LANGUAGE = """
constexpr int VALUES = 8;
static_assert(sizeof(T) == 2 && K % VALUES == 0, "what the loads below expect");
threadgroup float tile[(32 * VALUES + 1) / 1], maxima[SG * 2];
threadgroup uint count;
const uint lane = thread_index_in_simdgroup, row = threadgroup_position_in_grid.x;
const device T* xr = x + row * K + lane * VALUES;
const uint4 q = *(const device uint4*)xr;
const uint2 half_of_it = ((const device uint2*)xr)[1];
thread float values[VALUES];
const uint words[4] = {q.x, q.y, q.z, q.w};
UNROLL
for (int i = 0; i < 4; i++) {
  if (sizeof(T) == 2 && FLOAT16) {
    const half2 pair = as_type<half2>(words[i]);
    values[2 * i] = float(pair.x); values[2 * i + 1] = float(pair.y);
  } else {
    values[2 * i] = as_type<float>(words[i] << 16); values[2 * i + 1] = as_type<float>(words[i] & 0xffff0000u);
  }
}
put(tile, lane, values);
if (lane == 0) count = half_of_it.x == q.z && half_of_it.y == q.w ? 1u : 0u;
float top = values[0];
for (int i = 1; i < VALUES; i++) top = max(top, values[i]);
top = simd_max(top);
if (lane == 0) maxima[0] = top;
threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
float other = tile[(31 - lane) * VALUES];
const float4 f = ((const threadgroup float4*)tile)[lane * 2];
float2 g = float2(f.x, f.w) + f.yz * 2.0f;
g += 1.0f;
float gx = g.x;
twice(gx);
float sum = total<T, VALUES>(xr);
for (ushort m = 16; m; m /= 2) sum += simd_shuffle_xor(sum, m);
const float e = metal::precise::tanh(values[0]) + metal::precise::exp(values[1]) + metal::fast::exp(values[2])
    + metal::precise::sqrt(fabs(values[3])) + metal::precise::rsqrt(1.0f + values[4] * values[4]);
device float4* out = (device float4*)(y + row * 32 * 8 + lane * 8);
out[0] = float4(gx, g.y, sum, e);
out[1] = float4(select(-1.0f, 1.0f, values[5] < 0.0f), clamp(values[6], -0.5f, 0.5f) + TABLE[lane & 3],
    fma(values[7], 2.0f, float(count)) + (as_type<uint>(1.0f) == 0x3f800000u ? 0.0f : 100.0f),
    simd_shuffle(other, ushort(31 - lane)) + (maxima[0] > -INFINITY ? maxima[0] : 0.0f));
"""


def language_call(dtype: mx.Dtype, rows: int = 3) -> dict:
    mx.random.seed(1)
    return {
        "inputs": [mx.random.normal((rows, 256)).astype(dtype)],
        "template": [("T", dtype), ("K", 256), ("SG", 1), ("FLOAT16", dtype == mx.float16)],
        "grid": (32 * rows, 1, 1),
        "threadgroup": (32, 1, 1),
        "output_shapes": [(rows, 32, 8)],
        "output_dtypes": [mx.float32],
    }


def language_expected(x: np.ndarray) -> np.ndarray:
    v = x.reshape(len(x), 32, 8).astype(np.float64)
    columns = [
        2 * (v[..., 0] + 2 * v[..., 1] + 1),
        v[..., 3] + 2 * v[..., 2] + 1,
        np.broadcast_to(v.sum((1, 2))[:, None], v.shape[:2]),
        np.tanh(v[..., 0])
        + np.exp(v[..., 1])
        + np.exp(v[..., 2])
        + np.sqrt(abs(v[..., 3]))
        + (1 + v[..., 4] ** 2) ** -0.5,
        np.where(v[..., 5] < 0, 1, -1),
        np.clip(v[..., 6], -0.5, 0.5) + np.arange(32) % 4 + 1,
        v[..., 7] * 2 + 1,
        v[..., 0] + v.max((1, 2))[:, None],
    ]
    return np.stack(columns, -1)


def language(check: bool, source: str = LANGUAGE, offset: int = 0) -> Kernel:
    return metal_kernel(
        "language", ["x"], ["y"], source, LANGUAGE_HEADER, check=check, seeds=(0, 3), input_offset=offset
    )
