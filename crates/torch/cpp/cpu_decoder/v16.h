// Sixteen floats, in the registers of the instruction set that this file is compiled for.
//
// Every translation unit includes it inside a namespace of its own (`ASYNCTHINK_ISA`) and uses nothing from the standard library
// that has a body: a function compiled for AVX-512 must never be the one that the linker keeps for all.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ASYNCTHINK_INLINE __attribute__((always_inline)) static inline

namespace asyncthink::cpu::ASYNCTHINK_ISA {

#if defined(__AVX512F__)

struct V16 {
  __m512 v;
};
ASYNCTHINK_INLINE V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
ASYNCTHINK_INLINE void store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
ASYNCTHINK_INLINE V16 set1(float a) { return {_mm512_set1_ps(a)}; }
ASYNCTHINK_INLINE V16 fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
ASYNCTHINK_INLINE V16 operator+(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
ASYNCTHINK_INLINE V16 operator-(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
ASYNCTHINK_INLINE V16 operator*(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
ASYNCTHINK_INLINE V16 operator/(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
ASYNCTHINK_INLINE V16 max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
// 2^n for whole n of -126 to 127.
ASYNCTHINK_INLINE V16 power_of_two(V16 n) {
  const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_castsi512_ps(bits)};
}
// p * 2^n for whole n; 0 and infinity beyond the range.
ASYNCTHINK_INLINE V16 times_power_of_two(V16 p, V16 n) { return {_mm512_scalef_ps(p.v, n.v)}; }
ASYNCTHINK_INLINE V16 nearest(V16 x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// `a`, and 0 where `x` is below `limit`.
ASYNCTHINK_INLINE V16 zero_below(V16 x, float limit, V16 a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}
// Two rows of bf16 interleaved in pairs: the first of each pair, and the second.
struct Pairs {
  __m512i v;
};
ASYNCTHINK_INLINE Pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
ASYNCTHINK_INLINE V16 first(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
ASYNCTHINK_INLINE V16 second(Pairs a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
ASYNCTHINK_INLINE V16 round_bf16(V16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return {_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
ASYNCTHINK_INLINE V16 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
ASYNCTHINK_INLINE void store_bf16(uint16_t* p, V16 a) {
  const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(round_bf16(a).v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
}

#elif defined(__AVX2__) && defined(__FMA__)

struct V16 {
  __m256 a, b;
};
ASYNCTHINK_INLINE V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ASYNCTHINK_INLINE void store(float* p, V16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
ASYNCTHINK_INLINE V16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ASYNCTHINK_INLINE V16 fma(V16 x, V16 y, V16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
ASYNCTHINK_INLINE V16 operator+(V16 x, V16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
ASYNCTHINK_INLINE V16 operator-(V16 x, V16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
ASYNCTHINK_INLINE V16 operator*(V16 x, V16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
ASYNCTHINK_INLINE V16 operator/(V16 x, V16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
ASYNCTHINK_INLINE V16 max(V16 x, V16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
ASYNCTHINK_INLINE __m256 power_of_two_half(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
ASYNCTHINK_INLINE V16 power_of_two(V16 n) { return {power_of_two_half(n.a), power_of_two_half(n.b)}; }
ASYNCTHINK_INLINE V16 zero_below(V16 x, float limit, V16 a) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, bound, _CMP_NLT_UQ), a.a), _mm256_and_ps(_mm256_cmp_ps(x.b, bound, _CMP_NLT_UQ), a.b)};
}
struct Pairs {
  __m256i a, b;
};
ASYNCTHINK_INLINE Pairs load_pairs(const uint16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
ASYNCTHINK_INLINE V16 first(Pairs x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
ASYNCTHINK_INLINE V16 second(Pairs x) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(x.a, high)), _mm256_castsi256_ps(_mm256_and_si256(x.b, high))};
}
ASYNCTHINK_INLINE __m256 round_half(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
ASYNCTHINK_INLINE V16 round_bf16(V16 x) { return {round_half(x.a), round_half(x.b)}; }
ASYNCTHINK_INLINE __m256 load_bf16_half(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
ASYNCTHINK_INLINE V16 load_bf16(const uint16_t* p) { return {load_bf16_half(p), load_bf16_half(p + 8)}; }
ASYNCTHINK_INLINE void store_bf16(uint16_t* p, V16 x) {
  alignas(32) uint32_t bits[16];
  const V16 rounded = round_bf16(x);
  memcpy(bits, &rounded, sizeof bits);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(bits[i] >> 16);
}

#else

struct V16 {
  float v[16];
};
#define ASYNCTHINK_LANES for (int i = 0; i < 16; ++i)
ASYNCTHINK_INLINE V16 load(const float* p) {
  V16 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
ASYNCTHINK_INLINE void store(float* p, V16 a) { memcpy(p, a.v, sizeof a.v); }
ASYNCTHINK_INLINE V16 set1(float a) {
  V16 r;
  ASYNCTHINK_LANES r.v[i] = a;
  return r;
}
ASYNCTHINK_INLINE V16 fma(V16 a, V16 b, V16 c) {
  ASYNCTHINK_LANES c.v[i] += a.v[i] * b.v[i];
  return c;
}
ASYNCTHINK_INLINE V16 operator+(V16 a, V16 b) {
  ASYNCTHINK_LANES a.v[i] += b.v[i];
  return a;
}
ASYNCTHINK_INLINE V16 operator-(V16 a, V16 b) {
  ASYNCTHINK_LANES a.v[i] -= b.v[i];
  return a;
}
ASYNCTHINK_INLINE V16 operator*(V16 a, V16 b) {
  ASYNCTHINK_LANES a.v[i] *= b.v[i];
  return a;
}
ASYNCTHINK_INLINE V16 operator/(V16 a, V16 b) {
  ASYNCTHINK_LANES a.v[i] /= b.v[i];
  return a;
}
ASYNCTHINK_INLINE V16 max(V16 a, V16 b) {
  ASYNCTHINK_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
ASYNCTHINK_INLINE V16 power_of_two(V16 n) {
  ASYNCTHINK_LANES {
    const int32_t bits = (static_cast<int32_t>(n.v[i]) + 127) << 23;
    memcpy(&n.v[i], &bits, sizeof bits);
  }
  return n;
}
ASYNCTHINK_INLINE V16 zero_below(V16 x, float limit, V16 a) {
  ASYNCTHINK_LANES a.v[i] = x.v[i] < limit ? 0.0f : a.v[i];
  return a;
}
struct Pairs {
  uint32_t v[16];
};
ASYNCTHINK_INLINE Pairs load_pairs(const uint16_t* p) {
  Pairs r;
  ASYNCTHINK_LANES r.v[i] = p[2 * i] | static_cast<uint32_t>(p[2 * i + 1]) << 16;
  return r;
}
ASYNCTHINK_INLINE V16 first(Pairs a) {
  V16 r;
  ASYNCTHINK_LANES {
    const uint32_t bits = a.v[i] << 16;
    memcpy(&r.v[i], &bits, sizeof bits);
  }
  return r;
}
ASYNCTHINK_INLINE V16 second(Pairs a) {
  V16 r;
  ASYNCTHINK_LANES {
    const uint32_t bits = a.v[i] & 0xffff0000u;
    memcpy(&r.v[i], &bits, sizeof bits);
  }
  return r;
}
ASYNCTHINK_INLINE V16 round_bf16(V16 a) {
  ASYNCTHINK_LANES {
    uint32_t bits;
    memcpy(&bits, &a.v[i], sizeof bits);
    bits = (bits + ((bits >> 16) & 1) + 0x7fff) & 0xffff0000u;
    memcpy(&a.v[i], &bits, sizeof bits);
  }
  return a;
}
ASYNCTHINK_INLINE V16 load_bf16(const uint16_t* p) {
  V16 r;
  ASYNCTHINK_LANES {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    memcpy(&r.v[i], &bits, sizeof bits);
  }
  return r;
}
ASYNCTHINK_INLINE void store_bf16(uint16_t* p, V16 a) {
  const V16 rounded = round_bf16(a);
  ASYNCTHINK_LANES {
    uint32_t bits;
    memcpy(&bits, &rounded.v[i], sizeof bits);
    p[i] = static_cast<uint16_t>(bits >> 16);
  }
}
#undef ASYNCTHINK_LANES

#endif

// Sums and maxima in one order on every machine.
ASYNCTHINK_INLINE float sum_of(V16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}
ASYNCTHINK_INLINE float max_of(V16 a) {
  float v[16];
  store(v, a);
  float largest = v[0];
  for (int i = 1; i < 16; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// exp of x <= 88 to about 2 units in the last place; 0 below -87. Range reduction by a multiple of ln 2 in two parts, then a
// polynomial of degree 6.
ASYNCTHINK_INLINE V16 exp_of(V16 x) {
  const V16 round = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const V16 given = x;
  x = max(x, set1(-87.0f));
  const V16 n = (x * set1(1.44269504088896341f) + round) - round;
  const V16 r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  V16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p * r, r, r + set1(1.0f));
  return zero_below(given, -87.0f, p * power_of_two(n));
}

// 2^x to about 2 units in the last place for x that is a finite number or NaN; 0 below -126, infinity from 128 on.
ASYNCTHINK_INLINE V16 exp2_of(V16 x) {
#if defined(__AVX512F__)
  const V16 n = nearest(x);
#else
  const V16 given = x, round = set1(12582912.0f);
  // NaN is the first operand, and comparisons with it are false: it stays.
  x = max(set1(-127.0f), x);
  x = set1(0.0f) - max(set1(-128.0f), set1(0.0f) - x);
  const V16 n = (x + round) - round;
#endif
  const V16 r = x - n;
  V16 p = set1(1.326472708e-3f);
  p = fma(p, r, set1(9.671512862e-3f));
  p = fma(p, r, set1(5.550733746e-2f));
  p = fma(p, r, set1(2.402224208e-1f));
  p = fma(p, r, set1(6.931469776e-1f));
  p = fma(p, r, set1(1.0f));
#if defined(__AVX512F__)
  return times_power_of_two(p, n);
#else
  return zero_below(given, -126.0f, p * power_of_two(n));
#endif
}

}  // namespace
