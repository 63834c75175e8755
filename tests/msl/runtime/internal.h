// What the scheduler and the memory checker share.
#pragma once
#include "runtime.h"

// Threadgroup variables of the kernel, gathered in one section; absent where a kernel has none.
extern "C" {
extern char __start_msl_threadgroup[] __attribute__((weak, visibility("hidden")));
extern char __stop_msl_threadgroup[] __attribute__((weak, visibility("hidden")));
}

namespace msl {
constexpr uint64_t MAX_ERRORS = 6;
constexpr int MAX_SIMD = MAX_THREADS / SIMD_WIDTH;

extern Launch call;
extern char* stacks;
extern uint32_t group_number;
// Times that accesses are ordered by: they go up at barriers of threadgroup memory, device memory, one SIMD group.
extern uint32_t threadgroup_time, device_time, simd_time[MAX_SIMD];

inline size_t threadgroup_bytes() {
  return __start_msl_threadgroup ? __stop_msl_threadgroup - __start_msl_threadgroup : 0;
}

void stop();  // leaves the kernel for good; called on a fiber

#ifdef MSL_CHECK
void checker_start();
void checker_new_group();
void checker_finish();
#else
inline void checker_start() {}
inline void checker_new_group() {}
inline void checker_finish() {}
#endif
}  // namespace msl
