// Rows of f32 or bf16 in memory, read and written sixteen values at a time.
#pragma once

#include "../cpu_decoder/v16.h"
#include "kernels.h"

namespace asyncthink::cpu_training::ASYNCTHINK_ISA {

using namespace asyncthink::cpu::ASYNCTHINK_ISA;

constexpr int64_t kLanes = 16;

ASYNCTHINK_INLINE V16 read(const float* p) { return load(p); }
ASYNCTHINK_INLINE V16 read(const uint16_t* p) { return load_bf16(p); }
ASYNCTHINK_INLINE void write(float* p, V16 a) { store(p, a); }
ASYNCTHINK_INLINE void write(uint16_t* p, V16 a) { store_bf16(p, a); }

// The first `count` of up to sixteen values, zeros behind.
template <class T>
ASYNCTHINK_INLINE V16 read(const T* p, int64_t count) {
  if (count >= kLanes) return read(p);
  T whole[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
  return read(whole);
}
template <class T>
ASYNCTHINK_INLINE void write(T* p, V16 a, int64_t count) {
  if (count >= kLanes) return write(p, a);
  T whole[kLanes];
  write(whole, a);
  for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
}

ASYNCTHINK_INLINE V16 zero() { return set1(0.0f); }
// 1 / (1 + exp(-x)), with an exponent that cannot overflow; NaN stays.
ASYNCTHINK_INLINE V16 sigmoid(V16 x) {
  return set1(1.0f) / (set1(1.0f) + exp2_of(max(set1(-80.0f), x) * set1(-1.44269504088896341f)));
}

}  // namespace
