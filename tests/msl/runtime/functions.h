// Metal's remaining functions: those of several arguments, SIMD-group collectives, barriers, atomics, 8 × 8 matrices.
#pragma once
#include "shim.h"

namespace metal {
template <class T> using Same = std::type_identity_t<T>;  // converted to the type of the first argument
template <class T, class R = T> using IfReal = std::enable_if_t<is_real<T>, R>;

template <class T> MSL_RT inline IfReal<T> abs(T v) { return v < T(0) ? T(-v) : v; }
MSL_RT inline bool isnan(float x) { return __builtin_isnan(x); }
MSL_RT inline bool isinf(float x) { return __builtin_isinf(x); }
MSL_RT inline bool isfinite(float x) { return __builtin_isfinite(x); }

// Integers of one size may be mixed (a literal is an int); anything else is ambiguous in Metal.
template <class A, class B> constexpr bool not_ambiguous() {
  return is_same_v<A, B> || (is_integral_v<A> && is_integral_v<B> && sizeof(A) == sizeof(B));
}
#define MSL_EXTREME(n, e) \
  template <class T, class U> \
  MSL_RT constexpr std::enable_if_t<is_real<T> && is_real<U>, std::common_type_t<T, U>> n(T x, U y) { \
    static_assert(not_ambiguous<T, U>(), "ambiguous in Metal: cast the arguments to one type"); \
    std::common_type_t<T, U> a = x, b = y; \
    return e; \
  } \
  template <class T, int N> MSL_RT constexpr vec<T, N> n(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = n(a[i], b[i]); \
    return a; \
  }
MSL_EXTREME(max, a < b ? b : a)
MSL_EXTREME(min, b < a ? b : a)
#undef MSL_EXTREME
template <class T> MSL_RT constexpr IfReal<T> clamp(T v, Same<T> low, Same<T> high) {
  return v < low ? low : high < v ? high : v;
}
template <class T, int N> MSL_RT constexpr vec<T, N> clamp(vec<T, N> v, vec<T, N> low, vec<T, N> high) {
  for (int i = 0; i < N; i++) v[i] = clamp(v[i], low[i], high[i]);
  return v;
}
template <class T> MSL_RT inline T select(T a, Same<T> b, bool c) { return c ? b : a; }
template <class T, int N> MSL_RT inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; i++) a[i] = c[i] ? b[i] : a[i];
  return a;
}
template <class T> MSL_RT inline IfReal<T> mix(T a, Same<T> b, Same<T> t) { return T(a + (b - a) * t); }
#define MSL_FMA \
  template <class T> MSL_RT inline IfReal<T> fma(T a, Same<T> b, Same<T> c) { \
    return (T)std::fma((float)a, (float)b, (float)c); \
  } \
  template <class T, int N> MSL_RT inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) { \
    for (int i = 0; i < N; i++) a[i] = fma(a[i], b[i], c[i]); \
    return a; \
  }
MSL_FMA
namespace precise {
MSL_FMA
}
namespace fast {
MSL_FMA
}
#undef MSL_FMA
template <class T> MSL_RT inline IfReal<T> ldexp(T a, int e) { return (T)std::ldexp((float)a, e); }
template <class T, int N> MSL_RT inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <int N> MSL_RT inline bool any(vec<bool, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r |= v[i];
  return r;
}
template <int N> MSL_RT inline bool all(vec<bool, N> v) {
  bool r = true;
  for (int i = 0; i < N; i++) r &= v[i];
  return r;
}
template <class T> MSL_RT inline T popcount(T v) { return (T)__builtin_popcountll((std::make_unsigned_t<T>)v); }
template <class T> MSL_RT inline T clz(T v) {
  return v ? T(__builtin_clzll((std::make_unsigned_t<T>)v) - 64 + 8 * sizeof(T)) : T(8 * sizeof(T));
}
template <class T> MSL_RT inline T ctz(T v) { return v ? T(__builtin_ctzll(v)) : T(8 * sizeof(T)); }
template <class T> MSL_RT inline T extract_bits(T v, uint offset, uint bits) {
  return bits >= 8 * sizeof(T) ? T(v >> offset) : T((v >> offset) & T((T(1) << bits) - 1));
}

// ---- barriers ----

enum class mem_flags : uint32_t { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint32_t)a | (uint32_t)b); }
#define MSL_LINE int line = __builtin_LINE()
MSL_RT inline void threadgroup_barrier(mem_flags flags, MSL_LINE) {
  msl::wait(msl::AT_BARRIER, "threadgroup_barrier", line, (uint32_t)flags);
}
MSL_RT inline void simdgroup_barrier(mem_flags flags, MSL_LINE) {
  msl::wait(msl::AT_SIMD_BARRIER, "simdgroup_barrier", line, (uint32_t)flags);
}

// ---- collectives: meet, then look at the others' values ----

// As a butterfly over neighbours 1, 2, 4, 8, 16 would add them up.
template <class T, class F>
MSL_RT inline T fold(T v, int width, msl::State state, const char* what, int line, F f) {
  using A = std::conditional_t<is_same_v<T, bfloat>, float, T>;
  msl::meet((A)v, state, what, line);
  A a[msl::SIMD_WIDTH];
  int count = 0, base = msl::cur->lane / width * width;
  for (int i = base; i < base + width; i++)
    if (msl::active(i)) a[count++] = msl::peer<A>(i);
  for (; count > 1; count = (count + 1) / 2)
    for (int i = 0; i < (count + 1) / 2; i++) a[i] = 2 * i + 1 < count ? (A)f(a[2 * i], a[2 * i + 1]) : a[2 * i];
  return (T)a[0];
}
#define MSL_FOLD(n, e) \
  template <class T> MSL_RT inline T simd_##n(T v, MSL_LINE) { \
    return fold(v, 32, msl::AT_SIMD, "simd_" #n, line, [](auto a, auto b) MSL_RT { return e; }); \
  } \
  template <class T> MSL_RT inline T quad_##n(T v, MSL_LINE) { \
    return fold(v, 4, msl::AT_QUAD, "quad_" #n, line, [](auto a, auto b) MSL_RT { return e; }); \
  }
MSL_FOLD(sum, a + b) MSL_FOLD(product, a * b) MSL_FOLD(max, a < b ? b : a) MSL_FOLD(min, b < a ? b : a)
MSL_FOLD(or, a | b) MSL_FOLD(and, a & b) MSL_FOLD(xor, a ^ b)
#undef MSL_FOLD

// `keep`: beyond the ends a lane keeps its own value, as shuffles up and down do.
template <class T>
MSL_RT inline T shuffle(T v, int from, bool keep, const char* what, int line, msl::State state = msl::AT_SIMD) {
  msl::meet(v, state, what, line);
  if (keep && (from < 0 || from >= msl::SIMD_WIDTH)) return v;
  if (msl::active(from)) return msl::peer<T>(from);
  msl::note("%s of lane %d, which is not active, line %d", what, from, line);
  T poison;
  memset(&poison, 0xFF, sizeof poison);
  return poison;
}
#define MSL_SHUFFLE(n, argument, from, keep, state) \
  template <class T> MSL_RT inline T n(T v, argument, MSL_LINE) { \
    return shuffle(v, from, keep, #n, line, msl::state); \
  }
MSL_SHUFFLE(simd_shuffle, ushort lane, lane, false, AT_SIMD)
MSL_SHUFFLE(simd_broadcast, ushort lane, lane, false, AT_SIMD)
MSL_SHUFFLE(simd_shuffle_xor, ushort mask, msl::cur->lane ^ mask, false, AT_SIMD)
MSL_SHUFFLE(simd_shuffle_down, ushort delta, msl::cur->lane + delta, true, AT_SIMD)
MSL_SHUFFLE(simd_shuffle_up, ushort delta, msl::cur->lane - delta, true, AT_SIMD)
MSL_SHUFFLE(quad_broadcast, ushort lane, (msl::cur->lane & ~3) + lane, false, AT_QUAD)
MSL_SHUFFLE(quad_shuffle_xor, ushort mask, msl::cur->lane ^ mask, false, AT_QUAD)
#undef MSL_SHUFFLE
template <class T> MSL_RT inline T simd_broadcast_first(T v, MSL_LINE) {
  return shuffle(v, 0, false, "simd_broadcast_first", line);
}
template <class T> MSL_RT inline T simd_shuffle_and_fill_up(T v, T fill, ushort delta, MSL_LINE) {
  T r = shuffle(v, msl::cur->lane - delta, true, "simd_shuffle_and_fill_up", line);
  return msl::cur->lane < delta ? fill : r;
}
template <class T> MSL_RT inline T scan(T v, int before, const char* what, int line) {
  msl::meet(v, msl::AT_SIMD, what, line);
  T sum = T(0);
  for (int i = 0; i < before; i++)
    if (msl::active(i)) sum = sum + msl::peer<T>(i);
  return sum;
}
template <class T> MSL_RT inline T simd_prefix_inclusive_sum(T v, MSL_LINE) {
  return scan(v, msl::cur->lane + 1, "simd_prefix_inclusive_sum", line);
}
template <class T> MSL_RT inline T simd_prefix_exclusive_sum(T v, MSL_LINE) {
  return scan(v, msl::cur->lane, "simd_prefix_exclusive_sum", line);
}
MSL_RT inline bool simd_any(bool b, MSL_LINE) { return simd_max((int)b, line); }
MSL_RT inline bool simd_all(bool b, MSL_LINE) { return simd_min((int)b, line); }

// ---- 8 × 8 matrices, in Apple's layout: lane -> row, and two columns ----

template <class T, int R, int C> struct simdgroup_matrix {
  T e[2];
  simdgroup_matrix() = default;
  MSL_RT explicit simdgroup_matrix(T v) {
    for (int i = 0; i < 2; i++) e[i] = row() == column() + i ? v : T(0);
  }
  MSL_RT static int row(int lane = msl::cur->lane) { return (lane / 4 & 4) + lane / 2 % 4; }
  MSL_RT static int column(int lane = msl::cur->lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }
  MSL_RT vec<T, 2>& thread_elements() { return *(vec<T, 2>*)e; }
};
template <class T> using Matrix = simdgroup_matrix<T, 8, 8>;
typedef Matrix<float> simdgroup_float8x8;
typedef Matrix<half> simdgroup_half8x8;
template <class P> METAL_FUNC P& element(P* p, ulong ld, ulong2 origin, bool transpose, int i) {
  ulong r = Matrix<int>::row() + origin[1], c = Matrix<int>::column() + i + origin[0];
  return transpose ? p[c * ld + r] : p[r * ld + c];
}
template <class T, class P>
METAL_FUNC void simdgroup_load(
    Matrix<T>& m, const P* p, ulong ld = 8, ulong2 origin = ulong2(0), bool transpose = false) {
  for (int i = 0; i < 2; i++) m.e[i] = (T)element(p, ld, origin, transpose, i);
}
template <class T, class P>
METAL_FUNC void simdgroup_store(Matrix<T> m, P* p, ulong ld = 8, ulong2 origin = ulong2(0), bool transpose = false) {
  for (int i = 0; i < 2; i++) element(p, ld, origin, transpose, i) = m.e[i];
}
template <class D, class A, class B, class C>
MSL_RT inline void simdgroup_multiply_accumulate(Matrix<D>& d, Matrix<A> a, Matrix<B> b, Matrix<C> c, MSL_LINE) {
  struct Both { A a[2]; B b[2]; } both{{a.e[0], a.e[1]}, {b.e[0], b.e[1]}};
  msl::meet(both, msl::AT_SIMD, "simdgroup_multiply_accumulate", line);
  A left[8][8];
  B right[8][8];
  for (int lane = 0; lane < msl::SIMD_WIDTH; lane++) {
    Both other = msl::peer<Both>(lane);
    for (int i = 0; i < 2; i++) {
      left[a.row(lane)][a.column(lane) + i] = other.a[i];
      right[a.row(lane)][a.column(lane) + i] = other.b[i];
    }
  }
  for (int i = 0; i < 2; i++) {
    float sum = (float)c.e[i];
    for (int k = 0; k < 8; k++) sum += (float)left[a.row()][k] * (float)right[k][a.column() + i];
    d.e[i] = (D)sum;
  }
}

// ---- atomics: relaxed only, as in Metal ----

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T v; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
struct Atomically {
  MSL_RT Atomically() { msl::in_atomic++; }
  MSL_RT ~Atomically() { msl::in_atomic--; }
};
#define MSL_ATOMIC(n, e) \
  template <class T> METAL_FUNC T atomic_##n##_explicit(volatile atomic<T>* p, Same<T> b, memory_order) { \
    Atomically scope; \
    T a = p->v; \
    p->v = (e); \
    return a; \
  }
MSL_ATOMIC(fetch_add, a + b) MSL_ATOMIC(fetch_sub, a - b) MSL_ATOMIC(fetch_max, a < b ? b : a)
MSL_ATOMIC(fetch_min, b < a ? b : a) MSL_ATOMIC(fetch_or, a | b) MSL_ATOMIC(fetch_and, a & b) MSL_ATOMIC(exchange, b)
#undef MSL_ATOMIC
template <class T> METAL_FUNC T atomic_load_explicit(const volatile atomic<T>* p, memory_order) {
  Atomically scope;
  return p->v;
}
template <class T> METAL_FUNC void atomic_store_explicit(volatile atomic<T>* p, Same<T> b, memory_order) {
  Atomically scope;
  p->v = b;
}
}  // namespace metal
using namespace metal;

MSL_RT inline uint3 msl_uint3(msl::Uint3 v) { return uint3(v.x, v.y, v.z); }

// What MLX puts in front of every kernel, as far as kernels of their own use it.
#define MLX_MTL_PRAGMA_UNROLL
template <class U> struct Limits {
  static constexpr bool whole = std::is_integral_v<U>;
  static constexpr U max = whole ? numeric_limits<U>::max() : numeric_limits<U>::infinity();
  static constexpr U min = whole ? numeric_limits<U>::min() : U(-numeric_limits<U>::infinity());
  static constexpr U finite_max = numeric_limits<U>::max(), finite_min = numeric_limits<U>::lowest();
};
template <class T, class U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }
