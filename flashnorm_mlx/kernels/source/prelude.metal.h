// What the shared bodies need beyond Metal itself.
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
inline float small_float(uint v) { return float(v); }
