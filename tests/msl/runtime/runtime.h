// What a running kernel and the scheduler share: one fiber for each Metal thread, which waits at every collective.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// The checker must not watch the stand-ins for Metal's own functions.
#ifdef MSL_CHECK
#define MSL_RT __attribute__((no_sanitize("thread", "undefined")))
#else
#define MSL_RT
#endif

namespace msl {
constexpr int MAX_THREADS = 1024, SIMD_WIDTH = 32, MAX_BUFFERS = 32, MAX_TEXT = 1 << 13;
constexpr size_t STACK = 64 << 10, MAX_THREADGROUP_MEMORY = 32768;

struct Uint3 {
  uint32_t x, y, z;
};

enum State : uint8_t { READY, AT_QUAD, AT_SIMD, AT_SIMD_BARRIER, AT_BARRIER, DONE };

struct Lane {
  void* sp;
  char* stack;
  State state;
  const char* what;  // the collective it waits at, and where
  int line;
  uint32_t flags;  // a barrier's mem_flags
  uint32_t seq;    // how many values it has published
  uint16_t lane, simd;
  uint32_t linear;
  Uint3 in_group, in_grid;
  alignas(16) unsigned char slot[2][64];  // the value published last, and the one before
};

extern Lane lanes[MAX_THREADS];
extern Lane* cur;
extern int nlanes, nsimd;
extern Uint3 group, group_size, full_group_size, grid_size, groups_per_grid;
extern void** arguments;
extern int in_atomic;

void wait(State state, const char* what, int line, uint32_t flags = 0);
void note(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A value for the others of my SIMD group; they read it after the meeting. Two slots: a fast lane may already be
// publishing the next value while a slow one still reads this one.
template <class T> MSL_RT inline void meet(const T& value, State state, const char* what, int line) {
  static_assert(sizeof(T) <= 64, "too large for a lane's slot");
  memcpy(cur->slot[cur->seq & 1], &value, sizeof(T));
  cur->seq++;
  wait(state, what, line);
}

template <class T> MSL_RT inline T peer(int lane) {
  T value;
  memcpy(&value, lanes[cur->simd * SIMD_WIDTH + lane].slot[(cur->seq - 1) & 1], sizeof(T));
  return value;
}

MSL_RT inline bool active(int lane) {
  int i = cur->simd * SIMD_WIDTH + lane;
  return lane >= 0 && lane < SIMD_WIDTH && i < nlanes && lanes[i].seq >= cur->seq;
}

// ---- what Python hands over, in memory shared with the child that runs the kernel ----

struct Buffer {
  char* data;
  uint64_t bytes;
  uint64_t read_only, filled;
  const char* name;
};

struct Report {
  uint64_t finished, errors, switches, barriers, groups, threadgroup_bytes;
  uint64_t bytes_read[MAX_BUFFERS], bytes_written[MAX_BUFFERS];        // filled in by the checker
  uint64_t never_written[MAX_BUFFERS], first_unwritten[MAX_BUFFERS];
  char text[MAX_TEXT];
};

struct Launch {
  const Buffer* buffers;
  uint64_t count;
  uint32_t grid[3], threadgroup[3];
  uint64_t seed, seconds, apart;
  Report* report;
};
}  // namespace msl

extern "C" __attribute__((visibility("default"))) int msl_launch(const msl::Launch* launch);
