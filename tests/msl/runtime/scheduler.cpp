// Runs a kernel's threads as fibers, in any order that Metal allows, and finds threads that miss each other.
#include "internal.h"
#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

void msl_entry();  // generated: calls the kernel with its arguments

namespace msl {
Lane lanes[MAX_THREADS];
Lane* cur;
int nlanes, nsimd, in_atomic;
Uint3 group, group_size, full_group_size, grid_size, groups_per_grid;
void** arguments;
Launch call;
char* stacks;
uint32_t group_number, threadgroup_time, device_time, simd_time[MAX_SIMD];

static void* host;
static bool stopped;
static uint64_t random_state;
constexpr uint64_t STACK_END = 0x5AFE57ACC0FFEE42;

static uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

template <class T> static void shuffle(T* first, int count) {
  if (call.seed)
    for (int i = count - 1; i > 0; i--) std::swap(first[i], first[random_number() % (i + 1)]);
}

void note(const char* format, ...) {
  if (call.report->errors++ >= MAX_ERRORS) return;
  char* text = call.report->text;
  size_t used = strlen(text);
  va_list list;
  va_start(list, format);
  vsnprintf(text + used, MAX_TEXT - used, format, list);
  va_end(list);
  used = strlen(text);
  if (used + 2 < MAX_TEXT) strcpy(text + used, "\n");
}

// ---- fibers ----

extern "C" void msl_switch(void** save, void* to) __attribute__((visibility("hidden")));
asm(R"(.text
.hidden msl_switch
.globl msl_switch
.type msl_switch,@function
msl_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

static void to_host() {
  call.report->switches++;
  msl_switch(&cur->sp, host);
}

static void fiber() {
  msl_entry();
  cur->state = DONE;
  to_host();
  __builtin_unreachable();
}

void stop() {
  stopped = true;
  to_host();
  __builtin_unreachable();
}

void wait(State state, const char* what, int line, uint32_t flags) {
  cur->state = state;
  cur->what = what;
  cur->line = line;
  cur->flags = flags;
  to_host();
}

static void start(Lane& lane) {
  *(uint64_t*)lane.stack = STACK_END;
  void** top = (void**)(lane.stack + STACK);
  *--top = nullptr;
  *--top = (void*)&fiber;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  lane.sp = top;
  lane.state = READY;
  lane.seq = 0;
}

static void resume(Lane& lane) {
  cur = &lane;
  msl_switch(&host, lane.sp);
  cur = nullptr;
  if (*(uint64_t*)lane.stack != STACK_END) {
    note("STACK OVERFLOW: thread %u keeps more than %zu bytes of its own", lane.linear, STACK);
    stopped = true;
  }
}

// ---- meetings ----

static void diverged(int a, int b, const char* scope) {
  char places[2][160];
  int who[] = {a, b};
  for (int i = 0; i < 2; i++) {
    const Lane& lane = lanes[who[i]];
    if (lane.state == DONE) snprintf(places[i], sizeof places[i], "has returned");
    else snprintf(places[i], sizeof places[i], "is at %s, line %d", lane.what, lane.line);
  }
  note("DIVERGENCE in threadgroup (%u,%u,%u), %s: thread %d %s but thread %d %s", group.x, group.y, group.z, scope, a,
       places[0], b, places[1]);
  stopped = true;
}

static bool same_place(const Lane& a, const Lane& b) {
  return a.state == b.state && a.line == b.line && a.what == b.what;
}

// Lets the lanes [begin, end) go on if all that still run wait at the same place, and says whether it did.
static bool release(int begin, int end, State state) {
  int first = begin;
  while (first < end && lanes[first].state == DONE) first++;
  if (first == end || lanes[first].state != state) return false;
  for (int i = begin; i < end; i++) {
    if (lanes[i].state == DONE && state == AT_BARRIER) return diverged(first, i, "threadgroup_barrier"), false;
    if (lanes[i].state != DONE && !same_place(lanes[i], lanes[first])) return false;
  }
  for (int i = begin; i < end; i++)
    if (lanes[i].state != DONE) lanes[i].state = READY;
  return true;
}

// Finds two lanes of [begin, end) that wait for each other at different places.
static bool find_divergence(int begin, int end, const char* scope) {
  int first = begin;
  while (first < end && lanes[first].state == DONE) first++;
  for (int i = begin; i < end; i++)
    if (!same_place(lanes[i], lanes[first])) return diverged(first, i, scope), true;
  return false;
}

static int end_of(int simd) { return std::min((simd + 1) * SIMD_WIDTH, nlanes); }

// Runs a SIMD group until its lanes have returned or wait at a threadgroup barrier (or, now and then, for less long).
static bool run_simd(int simd) {
  int begin = simd * SIMD_WIDTH, end = end_of(simd), order[SIMD_WIDTH];
  bool progress = false;
  while (!stopped) {
    for (int i = begin; i < end; i++) order[i - begin] = i;
    shuffle(order, end - begin);
    bool ran = false;
    for (int i = 0; i < end - begin && !stopped; i++)
      if (lanes[order[i]].state == READY) resume(lanes[order[i]]), ran = true;
    if (stopped) break;
    bool released = false;
    for (int quad = begin; quad < end; quad += 4) released |= release(quad, std::min(quad + 4, end), AT_QUAD);
    if (!released) released = release(begin, end, AT_SIMD);
    if (!released && release(begin, end, AT_SIMD_BARRIER)) released = true, simd_time[simd]++;
    progress |= ran || released;
    if (released ? call.seed && random_number() % 4 == 0 : !ran) break;
  }
  return progress;
}

static bool run_group() {
  if (threadgroup_bytes()) memset(__start_msl_threadgroup, 0xFF, threadgroup_bytes());
  threadgroup_time++, device_time++;
  for (uint32_t& time : simd_time) time++;
  checker_new_group();
  for (int i = 0; i < nlanes; i++) start(lanes[i]);
  int order[MAX_SIMD];
  for (int i = 0; i < nsimd; i++) order[i] = i;
  while (!stopped) {
    shuffle(order, nsimd);
    bool progress = false;
    for (int i = 0; i < nsimd && !stopped; i++) progress |= run_simd(order[i]);
    if (stopped) break;
    int done = 0, waiting = 0;
    for (int i = 0; i < nlanes; i++) done += lanes[i].state == DONE, waiting += lanes[i].state == AT_BARRIER;
    if (done == nlanes) return true;
    if (done + waiting == nlanes) {
      int first = 0;
      while (lanes[first].state == DONE) first++;
      if (!release(0, nlanes, AT_BARRIER)) {
        if (!stopped) find_divergence(0, nlanes, "threadgroup_barrier");
        break;
      }
      call.report->barriers++;
      threadgroup_time += (lanes[first].flags & 2) != 0;
      device_time += lanes[first].flags & 1;
      for (uint32_t& time : simd_time) time++;
    } else if (!progress) {
      for (int simd = 0; simd < nsimd; simd++)
        if (find_divergence(simd * SIMD_WIDTH, end_of(simd), "one SIMD group")) return false;
      note("DEADLOCK in threadgroup (%u,%u,%u)", group.x, group.y, group.z);
      break;
    }
  }
  return false;
}

// ---- a whole grid ----

static void place_lanes(Uint3 size) {
  group_size = {std::min(size.x, grid_size.x - group.x * size.x), std::min(size.y, grid_size.y - group.y * size.y),
                std::min(size.z, grid_size.z - group.z * size.z)};
  nlanes = group_size.x * group_size.y * group_size.z;
  nsimd = (nlanes + SIMD_WIDTH - 1) / SIMD_WIDTH;
  for (uint32_t i = 0; i < (uint32_t)nlanes; i++) {
    Lane& lane = lanes[i];
    lane.linear = i, lane.lane = i % SIMD_WIDTH, lane.simd = i / SIMD_WIDTH;
    lane.in_group = {i % group_size.x, i / group_size.x % group_size.y, i / group_size.x / group_size.y};
    lane.in_grid = {group.x * size.x + lane.in_group.x, group.y * size.y + lane.in_group.y,
                    group.z * size.z + lane.in_group.z};
  }
}

static void run() {
  stopped = false;
  stacks = nullptr;
  const uint32_t *g = call.grid, *t = call.threadgroup;
  Uint3 size{std::min(t[0], g[0]), std::min(t[1], g[1]), std::min(t[2], g[2])};
  call.report->threadgroup_bytes = threadgroup_bytes();
  if ((uint64_t)size.x * size.y * size.z > MAX_THREADS)
    return note("a threadgroup of %lu threads: the limit is %d", (uint64_t)size.x * size.y * size.z, MAX_THREADS);
  if (threadgroup_bytes() > MAX_THREADGROUP_MEMORY)
    return note("%zu bytes of threadgroup memory: the limit is %zu", threadgroup_bytes(), MAX_THREADGROUP_MEMORY);
  stacks = (char*)mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return stacks = nullptr, note("no memory for the stacks");
  for (int i = 0; i < MAX_THREADS; i++) lanes[i].stack = stacks + i * STACK;
  random_state = 0x9E3779B97F4A7C15ull * (call.seed + 1) | 1;
  std::vector<void*> pointers;
  for (uint64_t i = 0; i < call.count; i++) pointers.push_back(call.buffers[i].data);
  arguments = pointers.data();
  grid_size = {g[0], g[1], g[2]};
  full_group_size = size;
  groups_per_grid = {(g[0] + size.x - 1) / size.x, (g[1] + size.y - 1) / size.y, (g[2] + size.z - 1) / size.z};
  std::vector<uint32_t> order(groups_per_grid.x * groups_per_grid.y * groups_per_grid.z);
  for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
  shuffle(order.data(), order.size());
  checker_start();
  for (uint32_t number : order) {
    group = {number % groups_per_grid.x, number / groups_per_grid.x % groups_per_grid.y,
             number / groups_per_grid.x / groups_per_grid.y};
    group_number = number;
    place_lanes(size);
    if (!run_group() || call.report->errors >= MAX_ERRORS) return;
    call.report->groups++;
  }
  checker_finish();
}
}  // namespace msl

// In a child if it is to be apart; returns the child's wait status.
int msl_launch(const msl::Launch* launch) {
  pid_t child = launch->apart ? fork() : 0;
  if (child < 0) return -1;
  int status = 0;
  if (child) {
    waitpid(child, &status, 0);
    return status;
  }
  if (launch->apart)
    for (int number : {SIGALRM, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) signal(number, SIG_DFL);
  alarm(launch->seconds);
  msl::call = *launch;
  msl::run();
  launch->report->finished = 1;
  if (launch->apart) _exit(0);
  alarm(0);
  if (msl::stacks) munmap(msl::stacks, msl::STACK * msl::MAX_THREADS);
  return status;
}
