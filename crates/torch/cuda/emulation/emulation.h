// CUDA's part that the kernels use, on a CPU: for tests on machines without a GPU.
//
// `launch` runs the blocks of a grid one after another. The threads of a block are fibers of one system thread, which
// change places only where CUDA's threads wait for each other: at `__syncthreads`, and at shuffles, votes and matrix
// products of a warp. A barrier that a thread of the block or warp never reaches is an error, not a hang. Two
// launches run the threads in opposite orders, so that a missing barrier shows in a comparison of both.
//
// Not emulated: memory spaces, alignment of loads, limits of registers, and time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

using cudaStream_t = void*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kMaxSharedBytes = 227 << 10;
// Written behind the dynamic shared memory of a block, and looked at when it ends.
constexpr unsigned char kGuard = 0xa5;
constexpr size_t kGuardBytes = 256;

// Goes on at the stack pointer `to`, and keeps the present one in `from`.
extern "C" void asyncthink_emulation_switch(void** from, void* to);

struct Fiber {
  void* stack_pointer = nullptr;
  bool waits = false;
  bool is_done = false;
};

struct Warp {
  // Values that the lanes exchange.
  uint64_t words[kWarpSize][8];
  unsigned arrived = 0;
};

struct Block {
  dim3 grid, size, index;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> stacks;
  size_t num_stacks = 0;
  std::vector<unsigned char> shared;
  void* scheduler = nullptr;
  unsigned current = 0, arrived = 0, num_done = 0;
  bool is_reversed = false;
  std::function<void()> body;
};

inline Block& block() {
  static thread_local Block state;
  return state;
}

inline void yield() {
  Block& b = block();
  asyncthink_emulation_switch(&b.fibers[b.current].stack_pointer, b.scheduler);
}

inline void wait_for_block() {
  Block& b = block();
  if (++b.arrived == b.fibers.size()) {
    b.arrived = 0;
    for (Fiber& fiber : b.fibers) fiber.waits = false;
    return;
  }
  b.fibers[b.current].waits = true;
  yield();
}

inline unsigned lane() { return block().current % kWarpSize; }
inline Warp& warp() { return block().warps[block().current / kWarpSize]; }

inline void wait_for_warp() {
  Block& b = block();
  if (++warp().arrived == kWarpSize) {
    warp().arrived = 0;
    const unsigned first = b.current - lane();
    for (unsigned i = 0; i < kWarpSize; ++i) b.fibers[first + i].waits = false;
    return;
  }
  b.fibers[b.current].waits = true;
  yield();
}

// Shows `value` to the warp, gives what `read` makes of all that is shown.
template <typename T, typename Read>
auto exchange(const T& value, Read&& read) {
  static_assert(sizeof(T) <= sizeof(uint64_t) * 8, "an exchanged value fits its place");
  std::memcpy(warp().words[lane()], &value, sizeof(T));
  wait_for_warp();
  auto result = read([](unsigned other) {
    T shown;
    std::memcpy(&shown, warp().words[other], sizeof(T));
    return shown;
  });
  wait_for_warp();
  return result;
}

inline void run_fiber() {
  Block& b = block();
  b.body();
  b.fibers[b.current].is_done = true;
  ++b.num_done;
  yield();
}

// A stack from which a switch goes to the beginning of `run_fiber`: six registers, then where to return to. Of 16 bytes
// the stack pointer is then at the eighth, as after a call.
inline void* new_stack(char* end) {
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(end) / 16 * 16);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(run_fiber);
  std::fill(top - 8, top - 2, nullptr);
  return top - 8;
}

inline void run_block(size_t shared_bytes) {
  Block& b = block();
  const unsigned count = b.size.x * b.size.y * b.size.z;
  if (count == 0 || count > 1024 || count % kWarpSize != 0) throw std::runtime_error("no block has so many threads");
  if (b.num_stacks < count) {
    b.stacks.reset(new char[count * kStackBytes]);
    b.num_stacks = count;
  }
  b.fibers.assign(count, Fiber());
  b.warps.assign(count / kWarpSize, Warp());
  // Not zero: what a kernel does not write must not matter. The pattern is not a number as f32 and as bf16.
  b.shared.assign(shared_bytes + kGuardBytes, 0xff);
  std::fill(b.shared.end() - kGuardBytes, b.shared.end(), kGuard);
  b.arrived = b.num_done = 0;
  for (unsigned i = 0; i < count; ++i) {
    b.fibers[i].stack_pointer = new_stack(b.stacks.get() + (i + 1) * kStackBytes);
  }
  while (b.num_done < count) {
    bool has_run = false;
    for (unsigned i = 0; i < count; ++i) {
      b.current = b.is_reversed ? count - 1 - i : i;
      Fiber& fiber = b.fibers[b.current];
      if (fiber.waits || fiber.is_done) continue;
      has_run = true;
      asyncthink_emulation_switch(&b.scheduler, fiber.stack_pointer);
    }
    if (!has_run) throw std::runtime_error("threads wait at a barrier that others of their block or warp do not reach");
  }
  const bool is_whole = std::all_of(b.shared.end() - kGuardBytes, b.shared.end(), [](auto c) { return c == kGuard; });
  if (!is_whole) throw std::runtime_error("a kernel wrote behind its shared memory");
}

inline unsigned char* dynamic_shared() { return block().shared.data(); }

inline dim3 thread_index() {
  const Block& b = block();
  const unsigned i = b.current;
  return dim3(i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y));
}

}  // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block().index)
#define blockDim (emulation::block().size)
#define gridDim (emulation::block().grid)

#define ASYNCTHINK_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::dynamic_shared())

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp() { emulation::wait_for_warp(); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, [&](auto shown) { return shown(static_cast<unsigned>(source) % 32); });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, [&](auto shown) { return shown(emulation::lane() ^ static_cast<unsigned>(mask)); });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulation::lane();
  return emulation::exchange(value, [&](auto shown) { return shown(lane < delta ? lane : lane - delta); });
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return emulation::exchange(vote, [](auto shown) {
    unsigned votes = 0;
    for (unsigned i = 0; i < emulation::kWarpSize; ++i) votes |= static_cast<unsigned>(shown(i)) << i;
    return votes;
  });
}

template <typename T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place = old + value;
  return old;
}
inline unsigned atomicOr(unsigned* place, unsigned value) {
  const unsigned old = *place;
  *place = old | value;
  return old;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
// Bytes of the eight of (a, b), of which a has the first four, by the four selectors in the low digits.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> 8 * (selectors >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
}

namespace asyncthink {

// The bits of the bf16 nearest to `value`, the even one of two.
inline uint16_t bf16_bits(float value) {
  const unsigned bits = __float_as_uint(value);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, by the layout of fragments in the PTX manual.
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const Fragments own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned lane = emulation::lane(), group = lane / 4, pair = lane % 4;
  const auto half = [](uint32_t word, unsigned high) {
    return __uint_as_float(high != 0 ? word & 0xffff0000u : word << 16);
  };
  struct Sums {
    float values[4];
  };
  const Sums sums = emulation::exchange(own, [&](auto shown) {
    Sums result;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = group + (i >= 2 ? 8 : 0), column = pair * 2 + (i & 1);
      float sum = 0.0f;
      for (unsigned k = 0; k < 16; ++k) {
        // a: words 0 and 1 hold columns below 8 of rows g and g + 8, words 2 and 3 the columns from 8 on.
        const unsigned a_word = (row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0);
        const float left = half(shown(row % 8 * 4 + k % 8 / 2).a[a_word], k % 2);
        const float right = half(shown(column * 4 + k % 8 / 2).b[k >= 8 ? 1 : 0], k % 2);
        sum += left * right;
      }
      result.values[i] = sum;
    }
    return result;
  });
  for (unsigned i = 0; i < 4; ++i) c[i] += sums.values[i];
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t,
            Arguments... arguments) {
  if (shared_bytes > emulation::kMaxSharedBytes) throw std::runtime_error("too much shared memory");
  emulation::Block& block = emulation::block();
  block.grid = grid;
  block.size = threads;
  block.body = [=] { kernel(static_cast<Parameters>(arguments)...); };
  block.is_reversed = !block.is_reversed;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = dim3(x, y, z);
        emulation::run_block(shared_bytes);
      }
    }
  }
}

}  // namespace asyncthink
