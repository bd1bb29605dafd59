// Shared by all kernels: number types, sums over warps and blocks, and launching.
//
// The same files compile as plain C++ with ASYNCTHINK_EMULATION (see `emulation/`). What a kernel may use is therefore
// what that header has: full warps in shuffles, barriers that all threads reach, blocks of whole warps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef ASYNCTHINK_EMULATION
#include "emulation/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

#include "../cpp/shim.h"

namespace asyncthink {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

struct bf16 {
  uint16_t bits;
};

#ifndef ASYNCTHINK_EMULATION

#define ASYNCTHINK_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

__device__ __forceinline__ uint16_t bf16_bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// c += a b of fragments, rows of 16 x 16 by columns of 16 x 8.
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t stream,
            Arguments... arguments) {
  // Above this a kernel has to ask.
  if (shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check_cuda(cudaGetLastError());
}

#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return bf16{bf16_bits(value)};
}

// Two numbers as the matrix units take them: the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(bf16_bits(low)) | static_cast<uint32_t>(bf16_bits(high)) << 16;
}

// Numbers that are read and written at once, 16 bytes at a time.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T values[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* place) {
  return *reinterpret_cast<const Pack<T, kCount>*>(place);
}

template <typename T, int kCount>
__device__ __forceinline__ void store_pack(T* place, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(place) = pack;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

// The sum over a block, for all of its threads. `scratch` has a place for every warp and is free again afterwards.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  const int warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) scratch[warp] = value;
  __syncthreads();
  T sum = 0;
  for (int i = 0; i < num_warps; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

// Kinds of numbers, as Rust names them.
enum class NumberKind : int32_t { kFloat = 0, kBFloat16 = 1 };

template <typename Body>
void with_kind(int32_t kind, Body&& body) {
  switch (static_cast<NumberKind>(kind)) {
    case NumberKind::kFloat: return body(float{});
    case NumberKind::kBFloat16: return body(bf16{});
  }
  throw std::runtime_error("no kernel for this kind of numbers");
}

inline unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace asyncthink
