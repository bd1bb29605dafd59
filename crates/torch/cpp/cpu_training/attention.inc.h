// Attention over segments, forward and backward, in blocks that stay in the first caches.
//
// Every product is C (+)= A B with rows of B and C contiguous: keys and values that are summed over are packed transposed, in
// panels of kPanelKeys columns. Scores are never stored beyond a block; the backward pass makes them again from the logarithms of
// their sums (FlashAttention, arXiv 2205.14135).
#pragma once

#include "storage.inc.h"

namespace asyncthink::cpu_training::ASYNCTHINK_ISA {

// Scores are in units of ln 2, so that their exponentials are powers of two.
constexpr float kLog2E = 1.44269504088896341f;

constexpr int kTileRows = 6;
#if defined(__AVX512F__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 1;
#endif

// C[kRows][kVectors * 16] (+)= A B over `depth`; A's values are row_stride and depth_stride apart.
template <int kRows, int kVectors, bool kAdd>
ASYNCTHINK_INLINE void tile(const float* a, int64_t row_stride, int64_t depth_stride, const float* b, int64_t b_stride, int64_t depth,
                            float* c, int64_t c_stride) {
  V16 sum[kRows][kVectors];
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sum[m][n] = kAdd ? load(c + m * c_stride + n * kLanes) : zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    V16 row[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) row[n] = load(b + k * b_stride + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const V16 value = set1(a[m * row_stride + k * depth_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = fma(value, row[n], sum[m][n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) store(c + m * c_stride + n * kLanes, sum[m][n]);
  }
}

// Columns of a tile of kRows rows: `vectors` times sixteen.
template <int kRows, bool kAdd>
static void columns(int64_t vectors, const float* a, int64_t row_stride, int64_t depth_stride, const float* b, int64_t b_stride,
                    int64_t depth, float* c, int64_t c_stride) {
  while (vectors >= kTileVectors) {
    tile<kRows, kTileVectors, kAdd>(a, row_stride, depth_stride, b, b_stride, depth, c, c_stride);
    vectors -= kTileVectors;
    b += kTileVectors * kLanes;
    c += kTileVectors * kLanes;
  }
  if constexpr (kTileVectors > 1) {
    switch (vectors) {
      case 3: tile<kRows, 3, kAdd>(a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
      case 2: tile<kRows, 2, kAdd>(a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
      case 1: tile<kRows, 1, kAdd>(a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
      default: break;
    }
  }
}

// At most kTileRows rows.
template <bool kAdd>
ASYNCTHINK_INLINE void product(int64_t rows, int64_t vectors, const float* a, int64_t row_stride, int64_t depth_stride, const float* b,
                               int64_t b_stride, int64_t depth, float* c, int64_t c_stride) {
  switch (rows) {
    case 6: columns<6, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    case 5: columns<5, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    case 4: columns<4, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    case 3: columns<3, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    case 2: columns<2, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    case 1: columns<1, kAdd>(vectors, a, row_stride, depth_stride, b, b_stride, depth, c, c_stride); break;
    default: break;
  }
}

ASYNCTHINK_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
ASYNCTHINK_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
ASYNCTHINK_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// The tokens of a segment's keys: its prefixes from the outermost on, then its own. Calls `with(token, place, count)`.
template <class With>
ASYNCTHINK_INLINE void for_runs(const AttentionArgs& g, int64_t segment, With with) {
  for (int64_t s = segment; s >= 0; s = g.prefixes[s]) with(g.starts[s], g.num_keys[s] - g.lens[s], g.lens[s]);
}

// Rows [rows][width] in f32, times `scale`, zeros behind the head; `count` rows from `token` on.
template <class T>
ASYNCTHINK_INLINE void pack_rows(const T* from, int64_t stride, int64_t count, int64_t dim, int64_t width, float scale, float* to) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < width; i += kLanes) {
      store(to + row * width + i, read(from + row * stride + i, at_least(dim - i, 0)) * set1(scale));
    }
  }
}

// Columns `place`... of panels [keys / kPanelKeys][dim][kPanelKeys].
template <class T>
ASYNCTHINK_INLINE void pack_panels(const T* from, int64_t stride, int64_t count, int64_t place, int64_t dim, float* to) {
  float row[16];
  for (int64_t key = 0; key < count; ++key) {
    const int64_t column = place + key;
    float* panel = to + column / kPanelKeys * dim * kPanelKeys + column % kPanelKeys;
    for (int64_t i = 0; i < dim; i += kLanes) {
      const int64_t values = at_most(dim - i, kLanes);
      store(row, read(from + key * stride + i, values));
      for (int64_t j = 0; j < values; ++j) panel[(i + j) * kPanelKeys] = row[j];
    }
  }
}

ASYNCTHINK_INLINE void clear(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = 0.0f;
}

template <class T>
void attention_forward(const AttentionArgs& g, int64_t segment, int64_t kv_head, float* scratch) {
  const int64_t dim = g.head_dim, width = round_up(dim, kLanes), vectors = width / kLanes;
  const int64_t rows = g.lens[segment], num_keys = g.num_keys[segment], before = num_keys - rows;
  const int64_t padded = round_up(num_keys, kPanelKeys);
  const int64_t group = g.num_heads / g.num_kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim)), query_scale = scale * kLog2E;
  float* keys = scratch;                              // panels [padded / kPanelKeys][dim][kPanelKeys]
  float* values = keys + padded * width;              // [padded][width]
  float* query = values + padded * width;             // [kBlockRows][width]
  float* sum = query + kBlockRows * width;            // [kBlockRows][width]
  float* scores = sum + kBlockRows * width;           // [kBlockRows][kPanelKeys]
  float* largest = scores + kBlockRows * kPanelKeys;  // [kBlockRows]
  float* total = largest + kBlockRows;                // [kBlockRows]
  // What is never written is multiplied by zero, and must be a number.
  for (int64_t d = 0; d < dim; ++d) {
    clear(keys + (padded - kPanelKeys) * dim + d * kPanelKeys, kPanelKeys);
  }
  for_runs(g, segment, [&](int64_t token, int64_t place, int64_t count) __attribute__((always_inline)) {
    pack_panels(static_cast<const T*>(g.key) + token * g.key_stride + kv_head * dim, g.key_stride, count, place, dim, keys);
    pack_rows(static_cast<const T*>(g.value) + token * g.value_stride + kv_head * dim, g.value_stride, count, dim, width, 1.0f,
              values + place * width);
  });
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t first = 0; first < rows; first += kBlockRows) {
      const int64_t block = at_most(rows - first, kBlockRows);
      const int64_t token = g.starts[segment] + first;
      pack_rows(static_cast<const T*>(g.query) + token * g.query_stride + head * dim, g.query_stride, block, dim, width, query_scale, query);
      clear(sum, block * width);
      for (int64_t row = 0; row < block; ++row) {
        largest[row] = -__builtin_inff();
        total[row] = 0.0f;
      }
      for (int64_t key = 0; key < before + first + block; key += kPanelKeys) {
        const float* panel = keys + key * dim;
        for (int64_t row = 0; row < block; row += kTileRows) {
          const int64_t in_tile = at_most(block - row, kTileRows);
          const int64_t seen_by_last = at_most(before + first + row + in_tile - key, kPanelKeys);
          if (seen_by_last <= 0) continue;
          const int64_t score_vectors = (seen_by_last + kLanes - 1) / kLanes;
          float* tile_scores = scores + row * kPanelKeys;
          product<false>(in_tile, score_vectors, query + row * width, width, 1, panel, kPanelKeys, dim, tile_scores, kPanelKeys);
          for (int64_t m = 0; m < in_tile; ++m) {
            float* s = tile_scores + m * kPanelKeys;
            const int64_t seen = at_most(before + first + row + m + 1 - key, kPanelKeys);
            for (int64_t j = at_least(seen, 0); j < score_vectors * kLanes; ++j) s[j] = -1e30f;
            if (seen <= 0) {
              clear(s, score_vectors * kLanes);
              continue;
            }
            V16 top = load(s);
            for (int64_t j = 1; j < score_vectors; ++j) top = max(top, load(s + j * kLanes));
            const float old = largest[row + m], now = max_of(top) > old ? max_of(top) : old;
            V16 parts = zero();
            for (int64_t j = 0; j < score_vectors; ++j) {
              const V16 p = exp2_of(load(s + j * kLanes) - set1(now));
              store(s + j * kLanes, p);
              parts = parts + p;
            }
            if (now > old && old > -__builtin_inff()) {
              const V16 factor = exp2_of(set1(old - now));
              float lanes[kLanes];
              store(lanes, factor);
              total[row + m] *= lanes[0];
              float* o = sum + (row + m) * width;
              for (int64_t i = 0; i < width; i += kLanes) store(o + i, load(o + i) * factor);
            }
            largest[row + m] = now;
            total[row + m] += sum_of(parts);
          }
          product<true>(in_tile, vectors, tile_scores, kPanelKeys, 1, values + key * width, width, seen_by_last, sum + row * width, width);
        }
      }
      for (int64_t row = 0; row < block; ++row) {
        T* out = static_cast<T*>(g.out) + (token + row) * g.num_heads * dim + head * dim;
        const V16 inverse = set1(1.0f / total[row]);
        for (int64_t i = 0; i < dim; i += kLanes) write(out + i, load(sum + row * width + i) * inverse, dim - i);
        g.log_sums[head * g.num_tokens + token + row] = largest[row] / kLog2E + __builtin_logf(total[row]);
      }
    }
  }
}

// Adds rows [count][width] to f32 rows `stride` apart.
ASYNCTHINK_INLINE void add_rows(const float* from, int64_t width, int64_t count, int64_t dim, float scale, float* to, int64_t stride) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < dim; i += kLanes) {
      float* p = to + row * stride + i;
      write(p, fma(read(from + row * width + i), set1(scale), read(p, dim - i)), dim - i);
    }
  }
}

template <class T>
void attention_backward(const AttentionArgs& g, int64_t segment, int64_t kv_head, float* scratch) {
  const int64_t dim = g.head_dim, width = round_up(dim, kLanes), vectors = width / kLanes;
  const int64_t rows = g.lens[segment], num_keys = g.num_keys[segment], before = num_keys - rows;
  const int64_t padded = round_up(num_keys, kPanelKeys), padded_rows = round_up(rows, kBlockRows);
  const int64_t group = g.num_heads / g.num_kv_heads, start = g.starts[segment];
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim)), query_scale = scale * kLog2E;
  float* key_panels = scratch;
  float* value_panels = key_panels + padded * width;
  float* keys = value_panels + padded * width;  // [padded][width]
  float* dkeys = keys + padded * width;
  float* dvalues = dkeys + padded * width;
  float* query = dvalues + padded * width;  // [padded_rows][width]
  float* dout = query + padded_rows * width;
  float* dquery = dout + padded_rows * width;
  float* scores = dquery + padded_rows * width;  // [kBlockRows][kPanelKeys]
  float* dscores = scores + kBlockRows * kPanelKeys;
  float* delta = dscores + kBlockRows * kPanelKeys;  // [rows]
  for (int64_t d = 0; d < dim; ++d) {
    clear(key_panels + (padded - kPanelKeys) * dim + d * kPanelKeys, kPanelKeys);
    clear(value_panels + (padded - kPanelKeys) * dim + d * kPanelKeys, kPanelKeys);
  }
  clear(dkeys, padded * width);
  clear(dvalues, padded * width);
  clear(keys + num_keys * width, (padded - num_keys) * width);
  for_runs(g, segment, [&](int64_t token, int64_t place, int64_t count) __attribute__((always_inline)) {
    const T* key = static_cast<const T*>(g.key) + token * g.key_stride + kv_head * dim;
    const T* value = static_cast<const T*>(g.value) + token * g.value_stride + kv_head * dim;
    pack_panels(key, g.key_stride, count, place, dim, key_panels);
    pack_rows(key, g.key_stride, count, dim, width, 1.0f, keys + place * width);
    pack_panels(value, g.value_stride, count, place, dim, value_panels);
  });
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const int64_t out_stride = g.num_heads * dim;
    const T* out = static_cast<const T*>(g.out) + start * out_stride + head * dim;
    const T* douts = static_cast<const T*>(g.dout) + start * out_stride + head * dim;
    const float* log_sums = g.log_sums + head * g.num_tokens + start;
    pack_rows(static_cast<const T*>(g.query) + start * g.query_stride + head * dim, g.query_stride, rows, dim, width, query_scale, query);
    pack_rows(douts, out_stride, rows, dim, width, 1.0f, dout);
    clear(dquery, rows * width);
    for (int64_t row = 0; row < rows; ++row) {
      V16 dot = zero();
      for (int64_t i = 0; i < dim; i += kLanes) {
        dot = fma(read(out + row * out_stride + i, dim - i), load(dout + row * width + i), dot);
      }
      delta[row] = sum_of(dot);
    }
    for (int64_t key = 0; key < num_keys; key += kPanelKeys) {
      const int64_t in_panel = at_most(num_keys - key, kPanelKeys);
      const float* key_panel = key_panels + key * dim;
      const float* value_panel = value_panels + key * dim;
      for (int64_t first = at_least(key - before, 0) / kTileRows * kTileRows; first < rows; first += kBlockRows) {
        const int64_t block = at_most(rows - first, kBlockRows);
        for (int64_t row = 0; row < block; row += kTileRows) {
          const int64_t in_tile = at_most(block - row, kTileRows);
          const int64_t seen_by_last = at_most(before + first + row + in_tile - key, in_panel);
          float* s = scores + row * kPanelKeys;
          float* ds = dscores + row * kPanelKeys;
          const int64_t score_vectors = seen_by_last <= 0 ? 0 : (seen_by_last + kLanes - 1) / kLanes;
          if (score_vectors > 0) {
            product<false>(in_tile, score_vectors, query + (first + row) * width, width, 1, key_panel, kPanelKeys, dim, s, kPanelKeys);
            product<false>(in_tile, score_vectors, dout + (first + row) * width, width, 1, value_panel, kPanelKeys, dim, ds, kPanelKeys);
          }
          for (int64_t m = 0; m < in_tile; ++m) {
            float* p = s + m * kPanelKeys;
            float* dp = ds + m * kPanelKeys;
            const int64_t seen = at_least(at_most(before + first + row + m + 1 - key, in_panel), 0);
            for (int64_t j = seen; j < score_vectors * kLanes; ++j) p[j] = -1e30f;
            const V16 log_sum = set1(log_sums[first + row + m] * kLog2E), d = set1(delta[first + row + m]);
            for (int64_t j = 0; j < score_vectors * kLanes; j += kLanes) {
              const V16 probability = exp2_of(load(p + j) - log_sum);
              store(p + j, probability);
              store(dp + j, probability * (load(dp + j) - d));
            }
            // Rows of a key's product begin at its own row of a tile; what they pass over there is zero.
            clear(p + score_vectors * kLanes, kPanelKeys - score_vectors * kLanes);
            clear(dp + score_vectors * kLanes, kPanelKeys - score_vectors * kLanes);
          }
          if (score_vectors > 0) {
            product<true>(in_tile, vectors, ds, kPanelKeys, 1, keys + key * width, width, seen_by_last, dquery + (first + row) * width,
                          width);
          }
        }
        for (int64_t column = 0; column < in_panel; column += kTileRows) {
          const int64_t in_tile = at_most(in_panel - column, kTileRows);
          // The first row of the block that sees one of these keys.
          const int64_t skipped = at_most(at_least(key + column - before - first, 0), block);
          const float* p = scores + skipped * kPanelKeys + column;
          const float* ds = dscores + skipped * kPanelKeys + column;
          const int64_t at = (first + skipped) * width;
          product<true>(in_tile, vectors, p, 1, kPanelKeys, dout + at, width, block - skipped, dvalues + (key + column) * width, width);
          product<true>(in_tile, vectors, ds, 1, kPanelKeys, query + at, width, block - skipped, dkeys + (key + column) * width, width);
        }
      }
    }
    add_rows(dquery, width, rows, dim, scale, g.dquery + start * g.dqkv_stride + head * dim, g.dqkv_stride);
  }
  for_runs(g, segment, [&](int64_t token, int64_t place, int64_t count) __attribute__((always_inline)) {
    const int64_t at = token * g.dqkv_stride + kv_head * dim;
    add_rows(dkeys + place * width, width, count, dim, 1.0f / kLog2E, g.dkey + at, g.dqkv_stride);
    add_rows(dvalues + place * width, width, count, dim, 1.0f, g.dvalue + at, g.dqkv_stride);
  });
}

}  // namespace
