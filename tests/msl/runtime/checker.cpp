// Watches every load and store of a kernel, through the calls that -fsanitize=thread and -fsanitize=undefined put into
// it: races, reads of what was never written, accesses outside of buffers, misaligned ones, writes to inputs.
#include "internal.h"
#include <cstdio>
#include <vector>

extern "C" {
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace msl {
constexpr int NOBODY = -1, SEVERAL = -2;
constexpr size_t NEAR = 4096;  // this close to a buffer, an access is taken for one that meant the buffer

// The last write and the last reads of a byte.
struct Byte {
  uint32_t write_time, write_simd_time, write_group;
  uint32_t read_time, read_simd_time, read_group;
  int16_t writer = NOBODY, write_simd, reader = NOBODY, read_simd;
  bool written, write_atomic, read_atomic;
};

static std::vector<Byte> threadgroup_shadow;
static std::vector<std::vector<Byte>> shadows;

void checker_start() {
  for (uint64_t i = 0; i < call.count; i++)
    shadows.emplace_back(call.buffers[i].read_only ? 0 : call.buffers[i].bytes, Byte{});
}

void checker_new_group() { threadgroup_shadow.assign(threadgroup_bytes(), Byte{}); }

void checker_finish() {
  for (uint64_t i = 0; i < call.count; i++)
    for (size_t at = shadows[i].size(); at-- > 0;)
      if (!shadows[i][at].written) call.report->never_written[i]++, call.report->first_unwritten[i] = at;
}

// An access in words: what was wrong, where in which memory, who did it and who else took part, and its address in the
// program, which Python turns into a line.
static void report(const char* problem, int buffer, size_t offset, int other, void* pc) {
  char where[96] = "", versus[40] = "";
  if (buffer == NOBODY) snprintf(where, sizeof where, "threadgroup memory +%zu", offset);
  else if (buffer >= 0) snprintf(where, sizeof where, "'%s' %+ld", call.buffers[buffer].name, (long)offset);
  else snprintf(where, sizeof where, "no known memory");
  if (other >= 0) snprintf(versus, sizeof versus, " against thread %d", other);
  note("%s: %s, thread %u of threadgroup (%u,%u,%u)%s @+%#lx", problem, where, cur->linear, group.x, group.y, group.z,
       versus, (char*)pc - __ehdr_start);
}

static void check_order(const Byte& b, bool write, int buffer, size_t offset, void* pc) {
  uint32_t time = buffer == NOBODY ? threadgroup_time : device_time;
  int me = cur->linear, simd = cur->simd;
  auto ordered = [&](uint32_t then, int then_simd, uint32_t then_simd_time) {
    return then != time || (then_simd == simd && then_simd_time != simd_time[simd]);
  };
  if (b.written && !(in_atomic && b.write_atomic)) {
    if (b.write_group != group_number)
      report(write ? "RACE: two threadgroups write" : "RACE: read of what another threadgroup wrote", buffer, offset,
             b.writer, pc);
    else if (b.writer != me && !ordered(b.write_time, b.write_simd, b.write_simd_time))
      report(write ? "RACE: two threads write" : "RACE: read of what another thread wrote", buffer, offset, b.writer,
             pc);
  }
  if (write && b.reader != NOBODY && !(in_atomic && b.read_atomic)) {
    if (b.read_group != group_number)
      report("RACE: write to what another threadgroup read", buffer, offset, b.reader, pc);
    else if (b.reader != me && !ordered(b.read_time, b.read_simd, b.read_simd_time))
      report("RACE: write to what another thread read", buffer, offset, b.reader, pc);
  }
}

static void touch(Byte& b, bool write, int buffer, size_t offset, void* pc) {
  check_order(b, write, buffer, offset, pc);
  int me = cur->linear, simd = cur->simd;
  uint32_t time = buffer == NOBODY ? threadgroup_time : device_time;
  if (write) {
    b.writer = me, b.write_simd = simd, b.write_time = time, b.write_simd_time = simd_time[simd];
    b.write_group = group_number, b.write_atomic = in_atomic > 0, b.written = true;
    return;
  }
  if (!b.written && (buffer == NOBODY || !call.buffers[buffer].filled))
    report("UNINITIALISED read", buffer, offset, NOBODY, pc);
  bool again = b.reader != NOBODY && b.reader != me && b.read_time == time && b.read_group == group_number;
  b.read_simd = again && b.read_simd != simd ? SEVERAL : simd;
  b.reader = again ? SEVERAL : me;
  b.read_time = time, b.read_simd_time = simd_time[simd];
  b.read_group = group_number, b.read_atomic = in_atomic > 0;
}

// One report for an access, not for each of its bytes.
static void touch_all(Byte* shadow, size_t size, bool write, int buffer, size_t offset, void* pc) {
  uint64_t before = call.report->errors;
  for (size_t i = 0; i < size && call.report->errors == before; i++) touch(shadow[i], write, buffer, offset + i, pc);
}

static void access(void* pointer, size_t size, bool write, void* pc) {
  char* p = (char*)pointer;
  if (!cur || (p >= stacks && p < stacks + STACK * MAX_THREADS)) return;
  if (p >= __start_msl_threadgroup && p < __stop_msl_threadgroup) {
    size_t offset = p - __start_msl_threadgroup;
    if (p + size > __stop_msl_threadgroup) report("OUT OF BOUNDS", NOBODY, offset, NOBODY, pc), stop();
    return touch_all(&threadgroup_shadow[offset], size, write, NOBODY, offset, pc);
  }
  for (uint64_t i = 0; i < call.count; i++) {
    const Buffer& buffer = call.buffers[i];
    char* end = buffer.data + buffer.bytes;
    if (p < buffer.data - NEAR || p >= end + NEAR) continue;
    size_t offset = p - buffer.data;
    if (p < buffer.data || p + size > end)
      report(write ? "OUT OF BOUNDS write" : "OUT OF BOUNDS read", i, offset, NOBODY, pc), stop();
    if (size <= 16 && (size & (size - 1)) == 0 && ((uintptr_t)p & (size - 1)))
      report("MISALIGNED access", i, offset, NOBODY, pc), stop();
    (write ? call.report->bytes_written : call.report->bytes_read)[i] += size;
    if (!buffer.read_only) return touch_all(&shadows[i][offset], size, write, i, offset, pc);
    if (write) report("WRITE to an input", i, offset, NOBODY, pc), stop();
    return;
  }
  if (p < __ehdr_start || p >= _end) report(write ? "WILD write" : "WILD read", SEVERAL, 0, NOBODY, pc), stop();
}
}  // namespace msl

// ---- what the compiler calls before each load and store ----

#define HOOK(name, size, write) \
  extern "C" void name(void* p) { msl::access(p, size, write, __builtin_return_address(0)); }
#define HOOKS(size) \
  HOOK(__tsan_read##size, size, false) HOOK(__tsan_write##size, size, true) \
  HOOK(__tsan_unaligned_read##size, size, false) HOOK(__tsan_unaligned_write##size, size, true)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)

extern "C" {
void __tsan_read_range(void* p, size_t size) { msl::access(p, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t size) { msl::access(p, size, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_init() {}
}

// ---- what it calls where the language leaves the result undefined ----

struct Place {
  const char* file;
  uint32_t line, column;
};

static void undefined(const Place* place, const char* problem) {
  msl::note("%s, thread %u of threadgroup (%u,%u,%u) @line %u of %s", problem, msl::cur->linear, msl::group.x,
            msl::group.y, msl::group.z, place->line, place->file);
  msl::stop();
}

extern "C" {
// The check is asked for alignment alone, so that is what has failed.
void __ubsan_handle_type_mismatch_v1(Place* place, void*) { undefined(place, "MISALIGNED access"); }
void __ubsan_handle_out_of_bounds(Place* place, void* index) {
  char problem[64];
  snprintf(problem, sizeof problem, "OUT OF BOUNDS index %ld of an array", (long)index);
  undefined(place, problem);
}
void __ubsan_handle_shift_out_of_bounds(Place* place, void*, void*) { undefined(place, "SHIFT by too many bits"); }
void __ubsan_handle_divrem_overflow(Place* place, void*, void*) { undefined(place, "DIVISION by zero"); }
}
