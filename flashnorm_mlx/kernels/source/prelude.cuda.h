// Metal's vocabulary for CUDA: the shared bodies are plain Metal. NVRTC is run with device functions as the default.
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef __nv_bfloat16 bfloat;
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
__device__ inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
template <class V> __device__ inline V simd_shuffle_xor(V v, int m) { return __shfl_xor_sync(~0u, v, m); }
template <class V> __device__ inline V simd_sum(V v) {
  UNROLL for (int m = 16; m; m /= 2) v += simd_shuffle_xor(v, m);
  return v;
}
// A whole number below 2^23 as a float; one instruction of a full-rate pipe less than the conversion.
__device__ inline float small_float(uint v) { return __uint_as_float(v | 0x4b000000u) - 8388608.0f; }
__device__ inline float clamp(float v, float low, float high) { return fminf(fmaxf(v, low), high); }
template <class To, class From> __device__ inline To as_type(From v) {
  static_assert(sizeof(To) == sizeof(From), "as_type between sizes");
  To t;
  memcpy(&t, &v, sizeof(t));
  return t;
}
namespace metal {
namespace precise {
__device__ inline float rsqrt(float x) { return rsqrtf(x); }
__device__ inline float exp(float x) { return expf(x); }
__device__ inline float exp2(float x) { return exp2f(x); }
__device__ inline float tanh(float x) { return tanhf(x); }
}
}
#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
#define thread_index_in_threadgroup (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define thread_index_in_simdgroup (thread_index_in_threadgroup % 32)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup / 32)
// A launch that asks for more registers than a threadgroup can have does nothing, and nobody says so: the compiler is
// told how many threads there are, and keeps within that.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(THREADS)
// Last, for __device__ itself expands to a token `device`. Bodies declare threadgroup arrays, never pointers.
#define device
#define constant
#define thread
#define threadgroup __shared__
