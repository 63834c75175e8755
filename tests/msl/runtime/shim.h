// The language half: types, vectors and mathematics of <metal_stdlib>, as far as compute kernels need them, in C++20.
#pragma once
#include "runtime.h"
#include <cfloat>
#include <cmath>
#include <type_traits>

#define device
#define constant const
#define thread
#define threadgroup  // of pointers; variables are rewritten to MSL_THREADGROUP
#define MSL_THREADGROUP static __attribute__((section("msl_threadgroup")))
#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL__ 1
#define __METAL_VERSION__ 310
#define M_PI_F 3.14159265358979323846f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define MAXFLOAT FLT_MAX
#define HALF_MAX 65504.0h

typedef uint8_t uchar;
typedef uint16_t ushort;
typedef uint32_t uint;
typedef uint64_t ulong;
typedef _Float16 half;
constexpr half operator""h(long double v) { return (half)v; }

// Becomes a float by itself, and is made of one only when asked, as in Metal.
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  static constexpr uint16_t nearest(float f) {
    uint32_t b = __builtin_bit_cast(uint32_t, f);
    if ((b & 0x7fffffff) > 0x7f800000) return (b >> 16) | 64;
    return (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  }
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T> || std::is_same_v<T, half>>>
  explicit constexpr bfloat(T v) : bits(nearest((float)v)) {}
  constexpr operator float() const { return __builtin_bit_cast(float, (uint32_t)bits << 16); }
  friend constexpr bfloat operator-(bfloat a) { return bfloat(-float(a)); }
};
// With an integer the result is a bfloat, with a float it is a float.
#define MSL_BFLOAT(op) \
  constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); } \
  template <class I, class = std::enable_if_t<std::is_integral_v<I>>> \
  constexpr bfloat operator op(bfloat a, I b) { return a op bfloat(b); } \
  template <class I, class = std::enable_if_t<std::is_integral_v<I>>> \
  constexpr bfloat operator op(I a, bfloat b) { return bfloat(a) op b; } \
  template <class T> constexpr bfloat& operator op##=(bfloat& a, T b) { return a = bfloat(float(a) op float(b)); }
MSL_BFLOAT(+) MSL_BFLOAT(-) MSL_BFLOAT(*) MSL_BFLOAT(/)
#undef MSL_BFLOAT
typedef bfloat bfloat16_t;
typedef half float16_t;

// ---- vectors ----

template <class T, int N> struct vec;
#define MSL_SWIZZLED(op) \
  friend constexpr V operator op(swizzle a, V b) { return V(a) op b; } \
  friend constexpr V operator op(V a, swizzle b) { return a op V(b); } \
  template <int... J> constexpr V operator op(swizzle<T, N, J...> b) const { return V(*this) op V(b); }
template <class T, int N, int... I> struct swizzle {  // v.xy and the like, also on the left
  T d[N];
  using V = vec<T, sizeof...(I)>;
  constexpr operator V() const { return V(d[I]...); }
  constexpr swizzle& operator=(V v) {
    int k = 0;
    ((d[I] = v[k++]), ...);
    return *this;
  }
  MSL_SWIZZLED(+) MSL_SWIZZLED(-) MSL_SWIZZLED(*) MSL_SWIZZLED(/)
};
#undef MSL_SWIZZLED
#define MSL_VECTOR(N) \
  vec() = default; \
  constexpr T& operator[](int i) { return d[i]; } \
  constexpr const T& operator[](int i) const { return d[i]; } \
  template <class U> constexpr explicit vec(const vec<U, N>& o) { for (int i = 0; i < N; i++) d[i] = (T)o[i]; }
template <class T> struct alignas(sizeof(T) * 2) vec<T, 2> {
  union {
    T d[2];
    struct { T x, y; };
    struct { T r, g; };
    swizzle<T, 2, 0, 1> xy;
    swizzle<T, 2, 1, 0> yx;
  };
  MSL_VECTOR(2)
  constexpr vec(T a) : d{a, a} {}
  constexpr vec(T a, T b) : d{a, b} {}
};
template <class T> struct alignas(sizeof(T) * 4) vec<T, 3> {
  union {
    T d[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
    swizzle<T, 3, 0, 1> xy;
    swizzle<T, 3, 0, 2> xz;
    swizzle<T, 3, 1, 2> yz;
    swizzle<T, 3, 0, 1, 2> xyz;
  };
  MSL_VECTOR(3)
  constexpr vec(T a) : d{a, a, a} {}
  constexpr vec(T a, T b, T c) : d{a, b, c} {}
};
template <class T> struct alignas(sizeof(T) * 4) vec<T, 4> {
  union {
    T d[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    swizzle<T, 4, 0, 1> xy;
    swizzle<T, 4, 2, 3> zw;
    swizzle<T, 4, 0, 2> xz;
    swizzle<T, 4, 0, 3> xw;
    swizzle<T, 4, 1, 2> yz;
    swizzle<T, 4, 1, 3> yw;
    swizzle<T, 4, 0, 1, 2> xyz;
    swizzle<T, 4, 1, 2, 3> yzw;
    swizzle<T, 4, 0, 1, 2, 3> xyzw;
    swizzle<T, 4, 3, 2, 1, 0> wzyx;
  };
  MSL_VECTOR(4)
  constexpr vec(T a) : d{a, a, a, a} {}
  constexpr vec(T a, T b, T c, T e) : d{a, b, c, e} {}
  constexpr vec(vec<T, 2> p, vec<T, 2> q) : d{p[0], p[1], q[0], q[1]} {}
};
#define MSL_EACH(R, op, A, B, a_i, b_i) \
  template <class T, int N> constexpr vec<R, N> operator op(A a, B b) { \
    vec<R, N> r; \
    for (int i = 0; i < N; i++) r[i] = (R)(a_i op b_i); \
    return r; \
  }
#define MSL_V vec<T, N>
#define MSL_SCALAR std::type_identity_t<T>
#define MSL_OPERATOR(R, op) \
  MSL_EACH(R, op, MSL_V, MSL_V, a[i], b[i]) MSL_EACH(R, op, MSL_V, MSL_SCALAR, a[i], b) \
  MSL_EACH(R, op, MSL_SCALAR, MSL_V, a, b[i])
#define MSL_ARITHMETIC(op) \
  MSL_OPERATOR(T, op) \
  template <class T, int N, class U> constexpr vec<T, N>& operator op##=(vec<T, N>& a, U b) { return a = a op b; }
MSL_ARITHMETIC(+) MSL_ARITHMETIC(-) MSL_ARITHMETIC(*) MSL_ARITHMETIC(/) MSL_ARITHMETIC(%)
MSL_ARITHMETIC(&) MSL_ARITHMETIC(|) MSL_ARITHMETIC(^) MSL_ARITHMETIC(<<) MSL_ARITHMETIC(>>)
MSL_OPERATOR(bool, <) MSL_OPERATOR(bool, >) MSL_OPERATOR(bool, <=) MSL_OPERATOR(bool, >=)
MSL_OPERATOR(bool, ==) MSL_OPERATOR(bool, !=)
template <class T, int N> constexpr vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = -a[i];
  return a;
}
#define MSL_TYPES(t) typedef vec<t, 2> t##2; typedef vec<t, 3> t##3; typedef vec<t, 4> t##4;
MSL_TYPES(float) MSL_TYPES(half) MSL_TYPES(bfloat) MSL_TYPES(int) MSL_TYPES(uint) MSL_TYPES(short) MSL_TYPES(ushort)
MSL_TYPES(char) MSL_TYPES(uchar) MSL_TYPES(bool) MSL_TYPES(long) MSL_TYPES(ulong)
template <class T, class F> MSL_RT inline T as_type(F f) {
  static_assert(sizeof(T) == sizeof(F), "as_type between types of different sizes");
  return __builtin_bit_cast(T, f);
}

// ---- mathematics: reckoned in float, rounded to the argument's type ----

namespace metal {
using ::as_type, ::bfloat, ::half, ::uint, ::vec;
using std::bool_constant, std::conditional, std::conditional_t, std::enable_if, std::enable_if_t, std::false_type;
using std::integral_constant, std::is_convertible_v, std::is_floating_point_v, std::is_integral, std::is_integral_v;
using std::is_same, std::is_same_v, std::remove_cv_t, std::true_type;
template <class T> constexpr bool is_real = std::is_arithmetic_v<T> || is_same_v<T, half> || is_same_v<T, bfloat>;

template <class T> struct numeric_limits {
  static constexpr bool whole = std::is_integral_v<T>;
  static constexpr T infinity() { return (T)__builtin_inff(); }
  static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }
  static constexpr T max() {
    if constexpr (whole) return std::is_signed_v<T> ? T(~(T(1) << (8 * sizeof(T) - 1))) : T(~T(0));
    else return is_same_v<T, half> ? T(65504.f) : is_same_v<T, bfloat> ? T(3.38953139e38f) : T(FLT_MAX);
  }
  static constexpr T min() {
    if constexpr (whole) return std::is_signed_v<T> ? T(T(1) << (8 * sizeof(T) - 1)) : T(0);
    else return is_same_v<T, half> ? T(6.103515625e-5f) : T(FLT_MIN);
  }
  static constexpr T lowest() { return whole ? min() : T(-max()); }
};

template <class T> using Float = std::conditional_t<std::is_integral_v<T>, float, T>;
template <class T> using Real = std::enable_if_t<is_real<T>, Float<T>>;
#define MSL_UNARY(n, e) \
  template <class T> MSL_RT inline Real<T> n(T v) { float x = (float)v; return (Float<T>)(e); } \
  template <class T, int N> MSL_RT inline vec<T, N> n(vec<T, N> v) { \
    for (int i = 0; i < N; i++) v[i] = n(v[i]); \
    return v; \
  }
#define MSL_BINARY(n, e) \
  template <class T> MSL_RT inline Real<T> n(T a, std::type_identity_t<T> b) { \
    float x = (float)a, y = (float)b; \
    return (Float<T>)(e); \
  } \
  template <class T, int N> MSL_RT inline vec<T, N> n(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = n(a[i], b[i]); \
    return a; \
  }
#define MSL_MATHEMATICS \
  MSL_UNARY(exp, std::exp(x)) MSL_UNARY(exp2, std::exp2(x)) MSL_UNARY(exp10, std::pow(10.0f, x)) \
  MSL_UNARY(log, std::log(x)) MSL_UNARY(log2, std::log2(x)) MSL_UNARY(log10, std::log10(x)) \
  MSL_UNARY(sqrt, std::sqrt(x)) MSL_UNARY(rsqrt, 1.0f / std::sqrt(x)) \
  MSL_UNARY(sin, std::sin(x)) MSL_UNARY(cos, std::cos(x)) MSL_UNARY(tan, std::tan(x)) \
  MSL_UNARY(asin, std::asin(x)) MSL_UNARY(acos, std::acos(x)) MSL_UNARY(atan, std::atan(x)) \
  MSL_UNARY(sinh, std::sinh(x)) MSL_UNARY(cosh, std::cosh(x)) MSL_UNARY(tanh, std::tanh(x)) \
  MSL_UNARY(floor, std::floor(x)) MSL_UNARY(ceil, std::ceil(x)) MSL_UNARY(rint, std::rint(x)) \
  MSL_UNARY(round, std::round(x)) MSL_UNARY(trunc, std::trunc(x)) MSL_UNARY(fabs, std::fabs(x)) \
  MSL_UNARY(sign, float((x > 0) - (x < 0))) MSL_UNARY(fract, x - std::floor(x)) \
  MSL_BINARY(pow, std::pow(x, y)) MSL_BINARY(powr, std::pow(x, y)) MSL_BINARY(atan2, std::atan2(x, y)) \
  MSL_BINARY(fmod, std::fmod(x, y)) MSL_BINARY(fmax, std::fmax(x, y)) MSL_BINARY(fmin, std::fmin(x, y)) \
  MSL_BINARY(divide, x / y) MSL_BINARY(copysign, std::copysign(x, y))
MSL_MATHEMATICS
namespace precise {
MSL_MATHEMATICS
}
namespace fast {
MSL_MATHEMATICS
}
#undef MSL_UNARY
#undef MSL_BINARY
#undef MSL_MATHEMATICS
}  // namespace metal
