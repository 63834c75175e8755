// Declarations only: lets clang's "C++ for OpenCL" front end read Metal with real address spaces. Nothing here is run.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL__ 1
#define __METAL_VERSION__ 310
#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 0
#define __METAL_PRECISE_MATH__ 0
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 0x1.fffffep+127f
#define FLT_MIN 0x1p-126f
#define FLT_EPSILON 0x1p-23f
#define MAXFLOAT FLT_MAX
#define HALF_MAX 65504.0h
#define M_PI_F 3.14159265358979323846f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong, size_t, uint64_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t, ptrdiff_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef __bf16 bfloat;
#define VECTOR(t, n) typedef t t##n __attribute__((ext_vector_type(n)));
#define VECTORS(t) VECTOR(t, 2) VECTOR(t, 3) VECTOR(t, 4)
VECTORS(float) VECTORS(half) VECTORS(int) VECTORS(uint) VECTORS(short) VECTORS(ushort)
VECTORS(char) VECTORS(uchar) VECTORS(long) VECTORS(ulong) VECTORS(bfloat)
typedef int2 bool2;  // comparisons of vectors give integers here
typedef int3 bool3;
typedef int4 bool4;
template <class T, int N> struct vec_ { typedef T type __attribute__((ext_vector_type(N))); };
template <class T, int N> using vec = typename vec_<T, N>::type;
namespace metal {
using ::vec;
template <class T, T v> struct integral_constant {
  static constexpr constant T value = v;
  using type = integral_constant;
};
template <bool b> using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <bool b, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool b, class T = void> using enable_if_t = typename enable_if<b, T>::type;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> static constexpr constant bool is_same_v = is_same<A, B>::value;
template <class A, class B> static constexpr constant bool is_convertible_v = __is_convertible_to(A, B);
template <bool b, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
template <bool b, class A, class B> using conditional_t = typename conditional<b, A, B>::type;
template <class T> struct remove_cv { using type = T; };
template <class T> struct remove_cv<const T> { using type = T; };
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> using remove_addrspace_t = T;
template <class T> struct is_integral : bool_constant<__is_integral(T)> {};
template <class T> static constexpr constant bool is_integral_v = __is_integral(T);
template <class T> static constexpr constant bool is_floating_point_v = __is_floating_point(T);
template <class T> struct numeric_limits {
  static constexpr T max() { return T(1); }
  static constexpr T min() { return T(0); }
  static constexpr T infinity() { return T(1); }
  static constexpr T lowest() { return T(0); }
  static constexpr T quiet_NaN() { return T(0); }
};

}  // namespace metal
template <class T, class F> metal::enable_if_t<sizeof(T) == sizeof(F), T> as_type(F);
namespace metal {
using ::as_type;
#define VECTOR1(n) template <class T> enable_if_t<(sizeof(T{}.xy) > 0), T> n(T);
#define UNARY(n) float n(float); half n(half); VECTOR1(n)
#define BINARY(n) float n(float, float); half n(half, half); float2 n(float2, float2); float4 n(float4, float4);
#define FAST1(n) float n(float); VECTOR1(n)
#define FAST2(n) float n(float, float);
#define FUNCTIONS(F1, F2) \
  F1(exp) F1(exp2) F1(exp10) F1(log) F1(log2) F1(log10) F1(sqrt) F1(rsqrt) F1(sin) F1(cos) F1(tan) F1(sinh) F1(cosh) \
  F1(tanh) F1(asin) F1(acos) F1(atan) F1(asinh) F1(acosh) F1(atanh) F1(sinpi) F1(cospi) F1(tanpi) F1(floor) F1(ceil) \
  F1(rint) F1(round) F1(trunc) F1(fabs) F1(fract) F1(sign) \
  F2(pow) F2(powr) F2(atan2) F2(fmod) F2(fmax) F2(fmin) F2(divide) F2(copysign)
FUNCTIONS(UNARY, BINARY)
float fma(float, float, float);
half fma(half, half, half);
float2 fma(float2, float2, float2);
float4 fma(float4, float4, float4);
half2 fma(half2, half2, half2);
half4 fma(half4, half4, half4);
float ldexp(float, int);
half ldexp(half, int);
namespace precise {
FUNCTIONS(FAST1, FAST2)
float fma(float, float, float);
}
namespace fast {
FUNCTIONS(FAST1, FAST2)
float fma(float, float, float);
}

#define EACH(F) F(char) F(uchar) F(short) F(ushort) F(int) F(uint) F(long) F(ulong) F(float) F(half)
#define EACH_VECTOR(F) F(float2) F(float4) F(half2) F(half4) F(int2) F(int4) F(uint2) F(uint4)
#define EXTREMES(t) t max(t, t); t min(t, t); t clamp(t, t, t); t abs(t);
EACH(EXTREMES) EACH_VECTOR(EXTREMES)
#define SELECT(t) t select(t, t, bool);
EACH(SELECT) EACH_VECTOR(SELECT)
template <class T, class B> enable_if_t<(sizeof(T{}.xy) > 0 && sizeof(B{}.xy) > 0), T> select(T, T, B);
float dot(float2, float2);
float dot(float3, float3);
float dot(float4, float4);
half dot(half2, half2);
half dot(half4, half4);
float mix(float, float, float);
half mix(half, half, half);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
template <class B> bool any(B);
template <class B> bool all(B);
#define BITS(t) t popcount(t); t clz(t); t ctz(t); t extract_bits(t, uint, uint); t reverse_bits(t); t mulhi(t, t);
BITS(int) BITS(uint) BITS(ushort) BITS(short) BITS(uchar)

#define LANES(t) \
  t simd_sum(t); t simd_product(t); t simd_max(t); t simd_min(t); t simd_prefix_inclusive_sum(t); \
  t simd_prefix_exclusive_sum(t); t quad_sum(t); t quad_product(t); t quad_max(t); t quad_min(t); SHUFFLES(t)
#define SHUFFLES(t) \
  t simd_shuffle(t, ushort); t simd_broadcast(t, ushort); t simd_broadcast_first(t); t simd_shuffle_xor(t, ushort); \
  t simd_shuffle_up(t, ushort); t simd_shuffle_down(t, ushort); t simd_shuffle_and_fill_up(t, t, ushort); \
  t simd_shuffle_and_fill_down(t, t, ushort); t simd_shuffle_rotate_up(t, ushort); \
  t simd_shuffle_rotate_down(t, ushort); t quad_broadcast(t, ushort); t quad_shuffle_xor(t, ushort); \
  t quad_shuffle_down(t, ushort);
LANES(float) LANES(half) LANES(int) LANES(uint) LANES(short) LANES(ushort) LANES(char) LANES(uchar)
EACH_VECTOR(LANES)
#define LOGIC(t) t simd_or(t); t simd_and(t); t simd_xor(t); t quad_or(t); t quad_and(t); t quad_xor(t);
LOGIC(int) LOGIC(uint) LOGIC(short) LOGIC(ushort)
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint)a | (uint)b); }
void threadgroup_barrier(mem_flags) __attribute__((convergent));
void simdgroup_barrier(mem_flags) __attribute__((convergent));

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T v; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
#define ATOMIC(n, space) template <class T> T atomic_##n##_explicit(volatile space atomic<T>*, T, memory_order);
#define ATOMICS(space) \
  ATOMIC(fetch_add, space) ATOMIC(fetch_sub, space) ATOMIC(fetch_max, space) ATOMIC(fetch_min, space) \
  ATOMIC(fetch_or, space) ATOMIC(fetch_and, space) ATOMIC(exchange, space) \
  template <class T> T atomic_load_explicit(const volatile space atomic<T>*, memory_order); \
  template <class T> void atomic_store_explicit(volatile space atomic<T>*, T, memory_order);
ATOMICS(device) ATOMICS(threadgroup)

template <class T, int R, int C> struct simdgroup_matrix {
  T e[2];
  thread vec<T, 2>& thread_elements() thread;
};
template <class T> using matrix_ = simdgroup_matrix<T, 8, 8>;
typedef matrix_<float> simdgroup_float8x8;
typedef matrix_<half> simdgroup_half8x8;
#define MATRIX(space) \
  template <class T> \
  void simdgroup_load(thread matrix_<T>&, const space T*, ulong = 8, ulong2 = 0, bool = false); \
  template <class T> void simdgroup_store(matrix_<T>, space T*, ulong = 8, ulong2 = 0, bool = false);
MATRIX(device) MATRIX(threadgroup)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(thread matrix_<D>&, matrix_<A>, matrix_<B>, matrix_<C>);
}  // namespace metal
