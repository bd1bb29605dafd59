// The kernels, compiled once for each instruction set by a file that defines ASYNCTHINK_ISA.
#pragma once

#include "kernels.h"
#include "v16.h"

namespace asyncthink::cpu::ASYNCTHINK_ISA {

#if defined(__AVX512F__)
// Rows times panels whose sums fit in the registers beside the operands.
constexpr int kTileRows = 12, kTilePanels = 2;
#else
constexpr int kTileRows = 4, kTilePanels = 1;
#endif

// ---- number types of a product ----

struct F32 {
  using A = float;
  using B = float;
  static constexpr int64_t kStep = 1;  // values of k a step
  template <int kRows, int kPanels>
  ASYNCTHINK_INLINE void multiply(const float* a, int64_t lda, const float* b, int64_t panel, int64_t k,
                                  V16 (&sum)[kRows][kPanels]) {
    for (int64_t i = 0; i < k; ++i) {
      V16 column[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) column[p] = load(b + p * panel + i * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const V16 row = set1(a[m * lda + i]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) sum[m][p] = fma(row, column[p], sum[m][p]);
      }
    }
  }
  ASYNCTHINK_INLINE void store_operand(float* out, V16 x) { store(out, x); }
};

// bf16 weights, and activations rounded to bf16, multiplied in f32: exact products, f32 sums.
struct WidenedBf16 {
  using A = float;
  using B = uint16_t;
  static constexpr int64_t kStep = 2;
  template <int kRows, int kPanels>
  ASYNCTHINK_INLINE void multiply(const float* a, int64_t lda, const uint16_t* b, int64_t panel, int64_t k,
                                  V16 (&sum)[kRows][kPanels]) {
    for (int64_t i = 0; i < k; i += 2) {
      V16 even[kPanels], odd[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const Pairs pairs = load_pairs(b + p * panel + i * kLanes);
        even[p] = first(pairs);
        odd[p] = second(pairs);
      }
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const V16 row = set1(a[m * lda + i]), next = set1(a[m * lda + i + 1]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) sum[m][p] = fma(row, even[p], sum[m][p]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) sum[m][p] = fma(next, odd[p], sum[m][p]);
      }
    }
  }
  ASYNCTHINK_INLINE void store_operand(float* out, V16 x) { store(out, round_bf16(x)); }
};

#if defined(__AVX512BF16__)
// bf16 products by the processor's own instruction.
struct NativeBf16 {
  using A = uint16_t;
  using B = uint16_t;
  static constexpr int64_t kStep = 2;
  template <int kRows, int kPanels>
  ASYNCTHINK_INLINE void multiply(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t panel, int64_t k,
                                  V16 (&sum)[kRows][kPanels]) {
    for (int64_t i = 0; i < k; i += 2) {
      __m512bh column[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) column[p] = (__m512bh)load_pairs(b + p * panel + i * kLanes).v;
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        int32_t pair;
        memcpy(&pair, a + m * lda + i, sizeof pair);
        const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) sum[m][p].v = _mm512_dpbf16_ps(sum[m][p].v, row, column[p]);
      }
    }
  }
  ASYNCTHINK_INLINE void store_operand(uint16_t* out, V16 x) { store_bf16(out, x); }
};
#endif

// ---- products ----

ASYNCTHINK_INLINE V16 silu(V16 x) {
  // 1 / (1 + exp(-x)), with an exponent that cannot overflow.
  const V16 decay = exp_of(zero_below(x, -80.0f, set1(0.0f) - x) + (set1(80.0f) - zero_below(x, -80.0f, set1(80.0f))));
  return x / (set1(1.0f) + decay);
}

// Writes the sums of rows m and panels p that begin at `panel`.
template <class T, int kRows, int kPanels>
ASYNCTHINK_INLINE void finish(const GemmArgs& g, int64_t row, int64_t panel, V16 (&sum)[kRows][kPanels]) {
  if (g.bias != nullptr) {
    for (int p = 0; p < kPanels; ++p) {
      const V16 bias = load(g.bias + (panel + p) * kLanes);
      for (int m = 0; m < kRows; ++m) sum[m][p] = sum[m][p] + bias;
    }
  }
  switch (g.epilogue) {
    case Epilogue::kStore:
      for (int m = 0; m < kRows; ++m) {
        for (int p = 0; p < kPanels; ++p) {
          store(static_cast<float*>(g.c) + (row + m) * g.ldc + (panel + p) * kLanes, sum[m][p]);
        }
      }
      break;
    case Epilogue::kAdd:
      for (int m = 0; m < kRows; ++m) {
        for (int p = 0; p < kPanels; ++p) {
          float* c = static_cast<float*>(g.c) + (row + m) * g.ldc + (panel + p) * kLanes;
          store(c, load(c) + sum[m][p]);
        }
      }
      break;
    case Epilogue::kSwiGlu:
      if constexpr (kPanels % 2 == 0) {
        for (int m = 0; m < kRows; ++m) {
          for (int p = 0; p < kPanels; p += 2) {
            using A = typename T::A;
            A* c = static_cast<A*>(g.c) + (row + m) * g.ldc + (panel + p) / 2 * kLanes;
            T::store_operand(c, silu(sum[m][p]) * sum[m][p + 1]);
          }
        }
      }
      break;
  }
}

template <class T, int kRows, int kPanels>
__attribute__((noinline)) static void tile(const GemmArgs& g, int64_t row, int64_t panel) {
  V16 sum[kRows][kPanels];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sum[m][p] = set1(0.0f);
  }
  const auto* a = static_cast<const typename T::A*>(g.a) + row * g.lda;
  const auto* b = reinterpret_cast<const typename T::B*>(static_cast<const char*>(g.b) + panel * g.panel_bytes);
  T::template multiply<kRows, kPanels>(a, g.lda, b, g.panel_bytes / static_cast<int64_t>(sizeof(typename T::B)), g.k, sum);
  finish<T, kRows, kPanels>(g, row, panel, sum);
}

template <class T, int kPanels>
static void tile_rows(const GemmArgs& g, int64_t row, int64_t rows, int64_t panel) {
  switch (rows) {
    case 1: return tile<T, 1, kPanels>(g, row, panel);
    case 2: return tile<T, 2, kPanels>(g, row, panel);
    case 3: return tile<T, 3, kPanels>(g, row, panel);
    case 4: return tile<T, 4, kPanels>(g, row, panel);
    default: break;
  }
  if constexpr (kPanels <= kTilePanels && kTileRows > 4) {
    switch (rows) {
      case 5: return tile<T, 5, kPanels>(g, row, panel);
      case 6: return tile<T, 6, kPanels>(g, row, panel);
      case 7: return tile<T, 7, kPanels>(g, row, panel);
      case 8: return tile<T, 8, kPanels>(g, row, panel);
      case 9: return tile<T, 9, kPanels>(g, row, panel);
      case 10: return tile<T, 10, kPanels>(g, row, panel);
      case 11: return tile<T, 11, kPanels>(g, row, panel);
      case 12: return tile<T, 12, kPanels>(g, row, panel);
      default: break;
    }
  }
}

template <class T>
static void gemm_of(const GemmArgs& g) {
  const int64_t end = g.first_panel + g.num_panels;
  int64_t panel = g.first_panel;
  if (g.rows <= 4) {
    // Few rows read weights as fast as memory gives them: four panels are four streams.
    for (; panel + 4 <= end; panel += 4) tile_rows<T, 4>(g, 0, g.rows, panel);
  }
  // Tiles of almost equal height.
  const int64_t max_rows = kTileRows;
  const int64_t num_tiles = (g.rows + max_rows - 1) / max_rows;
  const auto rows_from = [&](int64_t index) { return g.rows * index / num_tiles; };
  const bool pairs = g.epilogue == Epilogue::kSwiGlu;
  for (; panel + 2 <= end && (kTilePanels >= 2 || pairs); panel += 2) {
    for (int64_t t = 0; t < num_tiles; ++t) tile_rows<T, 2>(g, rows_from(t), rows_from(t + 1) - rows_from(t), panel);
  }
  for (; panel < end; ++panel) {
    for (int64_t t = 0; t < num_tiles; ++t) tile_rows<T, 1>(g, rows_from(t), rows_from(t + 1) - rows_from(t), panel);
  }
}

// ---- rows ----

template <class T>
static void norm_of(const float* x, const float* weight, float eps, int64_t n, int64_t padded, void* out) {
  auto* o = static_cast<typename T::A*>(out);
  V16 squares = set1(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  float sum = sum_of(squares);
  for (int64_t j = i; j < n; ++j) sum += x[j] * x[j];
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) T::store_operand(o + i, load(x + i) * set1(scale) * load(weight + i));
  float tail[kLanes];
  for (; i < padded; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) tail[j] = i + j < n ? x[i + j] * scale * weight[i + j] : 0.0f;
    T::store_operand(o + i, load(tail));
  }
}

template <class T>
static void to_operand_of(const float* x, int64_t n, void* out) {
  auto* o = static_cast<typename T::A*>(out);
  for (int64_t i = 0; i < n; i += kLanes) T::store_operand(o + i, load(x + i));
}

static void rotate(float* x, const float* norm, float eps, const float* cos, const float* sin, int64_t head_dim) {
  if (norm != nullptr) {
    float sum = 0.0f;
    for (int64_t i = 0; i < head_dim; ++i) sum += x[i] * x[i];
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(head_dim) + eps);
    for (int64_t i = 0; i < head_dim; ++i) x[i] = x[i] * scale * norm[i];
  }
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float one = x[i], other = x[i + half];
    x[i] = one * cos[i] - other * sin[i];
    x[i + half] = other * cos[i] + one * sin[i];
  }
}

// ---- attention ----

struct CacheF32 {
  using Value = float;
  template <int kQueries, int kGroups>
  ASYNCTHINK_INLINE void scores(const float* q, int64_t head_dim, const void* const* keys, const void* const* fetch,
                                V16 (&sum)[kQueries][kGroups]) {
    for (int64_t d = 0; d < head_dim; ++d) {
      V16 key[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) __builtin_prefetch(static_cast<const float*>(fetch[g]) + d * kLanes);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) key[g] = load(static_cast<const float*>(keys[g]) + d * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        const V16 query = set1(q[i * head_dim + d]);
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) sum[i][g] = fma(query, key[g], sum[i][g]);
      }
    }
  }
  // sum[i][p] += weight[i][t] * values[t][dims of p], for 16 positions.
  template <int kQueries, int kVectors>
  ASYNCTHINK_INLINE void accumulate(const float* weight, int64_t stride, const void* values, int64_t head_dim, int64_t dim,
                                    V16 (&sum)[kQueries][kVectors]) {
    const float* value = static_cast<const float*>(values) + dim;
    for (int64_t t = 0; t < kLanes; ++t) {
#pragma GCC unroll 4
      for (int p = 0; p < kVectors; ++p) {
        const V16 v = load(value + t * head_dim + p * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kQueries; ++i) sum[i][p] = fma(set1(weight[i * stride + t]), v, sum[i][p]);
      }
    }
  }
};

struct CacheBf16 {
  using Value = uint16_t;
  template <int kQueries, int kGroups>
  ASYNCTHINK_INLINE void scores(const float* q, int64_t head_dim, const void* const* keys, const void* const* fetch,
                                V16 (&sum)[kQueries][kGroups]) {
    for (int64_t d = 0; d < head_dim; d += 2) {
      V16 even[kGroups], odd[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) __builtin_prefetch(static_cast<const uint16_t*>(fetch[g]) + d * kLanes);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const Pairs pairs = load_pairs(static_cast<const uint16_t*>(keys[g]) + d * kLanes);
        even[g] = first(pairs);
        odd[g] = second(pairs);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        const V16 query = set1(q[i * head_dim + d]), next = set1(q[i * head_dim + d + 1]);
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) sum[i][g] = fma(query, even[g], sum[i][g]);
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) sum[i][g] = fma(next, odd[g], sum[i][g]);
      }
    }
  }
  template <int kQueries, int kVectors>
  ASYNCTHINK_INLINE void accumulate(const float* weight, int64_t stride, const void* values, int64_t head_dim, int64_t dim,
                                    V16 (&sum)[kQueries][kVectors]) {
    const uint16_t* value = static_cast<const uint16_t*>(values) + 2 * dim;
    for (int64_t t = 0; t < kLanes; t += 2) {
#pragma GCC unroll 4
      for (int p = 0; p < kVectors; ++p) {
        const Pairs pairs = load_pairs(value + t * head_dim + 2 * p * kLanes);
        const V16 even = first(pairs), odd = second(pairs);
#pragma GCC unroll 8
        for (int i = 0; i < kQueries; ++i) {
          sum[i][p] = fma(set1(weight[i * stride + t]), even, sum[i][p]);
          sum[i][p] = fma(set1(weight[i * stride + t + 1]), odd, sum[i][p]);
        }
      }
    }
  }
};

template <class C, int kQueries, int kGroups>
__attribute__((noinline)) static void scores_of(const float* q, int64_t head_dim, const void* const* keys, const void* const* fetch, float* out) {
  V16 sum[kQueries][kGroups];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sum[i][g] = set1(0.0f);
  }
  C::template scores<kQueries, kGroups>(q, head_dim, keys, fetch, sum);
  for (int i = 0; i < kQueries; ++i) {
    for (int g = 0; g < kGroups; ++g) store(out + i * kChunkTokens + g * kLanes, sum[i][g]);
  }
}

template <class C, int kQueries>
static void scores_of_groups(const AttendArgs& args, int64_t from, float* out) {
  const float* q = args.query + from * args.head_dim;
  // Values are read once the scores are known: they are fetched meanwhile.
  const void* const* fetch = args.values;
  if (args.num_groups == kChunkGroups) {
    return scores_of<C, kQueries, kChunkGroups>(q, args.head_dim, args.keys, fetch, out);
  }
  int64_t g = 0;
  for (; g + 2 <= args.num_groups; g += 2) {
    scores_of<C, kQueries, 2>(q, args.head_dim, args.keys + g, fetch + g, out + g * kLanes);
  }
  for (; g < args.num_groups; ++g) {
    scores_of<C, kQueries, 1>(q, args.head_dim, args.keys + g, fetch + g, out + g * kLanes);
  }
}

// sum [queries][head_dim] = sum * decay + weights * values, kVectors registers of the head's dimensions at a time.
template <class C, int kQueries, int kVectors>
__attribute__((noinline)) static void values_of(const float* weight, const float* decay, const void* const* values,
                                                const void* const* next_keys, int64_t num_groups, int64_t head_dim,
                                                int64_t dim, float* out) {
  V16 sum[kQueries][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < kVectors; ++p) sum[i][p] = load(out + i * head_dim + dim + p * kLanes) * set1(decay[i]);
  }
  const int64_t bytes = kLanes * kVectors * kLanes * static_cast<int64_t>(sizeof(typename C::Value));
  for (int64_t g = 0; g < num_groups; ++g) {
    C::template accumulate<kQueries, kVectors>(weight + g * kLanes, kChunkTokens, values[g], head_dim, dim, sum);
    if (next_keys[g] != nullptr) {
      const char* next = static_cast<const char*>(next_keys[g]) + dim / kLanes / kVectors * bytes;
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(next + at);
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int p = 0; p < kVectors; ++p) store(out + i * head_dim + dim + p * kLanes, sum[i][p]);
  }
}

template <class C, int kQueries>
static void attend_queries(const AttendArgs& args, int64_t from) {
  const int64_t head_dim = args.head_dim;
  const int64_t num_tokens = args.num_groups * kLanes;
  float weight[kQueries * kChunkTokens];
  float decay[kQueries];
  scores_of_groups<C, kQueries>(args, from, weight);
  for (int i = 0; i < kQueries; ++i) {
    float* row = weight + i * kChunkTokens;
    const int64_t limit = args.limits[from + i];
    for (int64_t t = limit; t < num_tokens; ++t) row[t] = -__builtin_inff();
    V16 high = load(row);
    for (int64_t t = kLanes; t < num_tokens; t += kLanes) high = max(high, load(row + t));
    const float before = args.largest[from + i];
    const float chunk = max_of(high);
    const float largest = chunk > before ? chunk : before;
    V16 sum = set1(0.0f);
    for (int64_t t = 0; t < num_tokens; t += kLanes) {
      const V16 p = exp_of(load(row + t) - set1(largest));
      store(row + t, p);
      sum = sum + p;
    }
    float scale[kLanes];
    store(scale, exp_of(set1(before - largest)));
    decay[i] = scale[0];
    args.largest[from + i] = largest;
    args.total[from + i] = args.total[from + i] * scale[0] + sum_of(sum);
  }
  float* out = args.sum + from * head_dim;
  int64_t dim = 0;
  if constexpr (kQueries <= 6) {
    for (; dim + 4 * kLanes <= head_dim; dim += 4 * kLanes) {
      values_of<C, kQueries, 4>(weight, decay, args.values, args.next_keys, args.num_groups, head_dim, dim, out);
    }
  }
  for (; dim + 2 * kLanes <= head_dim; dim += 2 * kLanes) {
    values_of<C, kQueries, 2>(weight, decay, args.values, args.next_keys, args.num_groups, head_dim, dim, out);
  }
  for (; dim < head_dim; dim += kLanes) {
    values_of<C, kQueries, 1>(weight, decay, args.values, args.next_keys, args.num_groups, head_dim, dim, out);
  }
}

template <class C>
static void attend_of(const AttendArgs& args) {
  int64_t i = 0;
  for (; i + 6 <= args.num_queries; i += 6) attend_queries<C, 6>(args, i);
  switch (args.num_queries - i) {
    case 1: return attend_queries<C, 1>(args, i);
    case 2: return attend_queries<C, 2>(args, i);
    case 3: return attend_queries<C, 3>(args, i);
    case 4: return attend_queries<C, 4>(args, i);
    case 5: return attend_queries<C, 5>(args, i);
    default: return;
  }
}

// ---- sampling ----

static bool largest_of(const float* x, int64_t n, float* largest) {
  V16 high = set1(-__builtin_inff()), zero = set1(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V16 value = load(x + i);
    high = max(high, value);
    // 0 times a number is 0, times an infinity or NaN it is NaN.
    zero = fma(value, set1(0.0f), zero);
  }
  float top = max_of(high), check = sum_of(zero);
  for (; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    check += x[i] * 0.0f;
  }
  *largest = top;
  return check == 0.0f;
}

static void exp_run(const float* x, int64_t n, float largest, float scale, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, exp_of((load(x + i) - set1(largest)) * set1(scale)));
  if (i < n) {
    float tail[kLanes] = {};
    for (int64_t j = i; j < n; ++j) tail[j - i] = x[j];
    store(tail, exp_of((load(tail) - set1(largest)) * set1(scale)));
    for (int64_t j = i; j < n; ++j) out[j] = tail[j - i];
  }
}

static double sum_exp(const float* x, int64_t n, float largest, float scale, double* runs) {
  double total = 0.0;
  float run[kSumRun];
  for (int64_t from = 0; from < n; from += kSumRun) {
    const int64_t len = n - from < kSumRun ? n - from : kSumRun;
    exp_run(x + from, len, largest, scale, run);
    V16 sum = set1(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= len; i += kLanes) sum = sum + load(run + i);
    double part = sum_of(sum);
    for (; i < len; ++i) part += run[i];
    if (runs != nullptr) runs[from / kSumRun] = part;
    total += part;
  }
  return total;
}

template <class T, class C>
static constexpr Kernels table(const char* name) {
  return Kernels{name,       sizeof(typename T::A), norm_of<T>, to_operand_of<T>, gemm_of<T>,
                 attend_of<C>, rotate,              largest_of, sum_exp,          exp_run};
}

}  // namespace asyncthink::cpu::ASYNCTHINK_ISA
