// Operations of a layer besides products and attention: norms, rotary positions, the gate, and the write into the cache.
#include <algorithm>
#include <cmath>

#include "device.cuh"

namespace asyncthink {
namespace {

// residual += x;  out = residual / sqrt(mean(residual^2) + eps) * weight. A block has one row. x may be null.
template <typename T, int kVector>
__global__ void __launch_bounds__(1024)
    add_rms_norm_kernel(const T* x, T* residual, const T* weight, T* out, int hidden, float eps) {
  __shared__ float scratch[kWarp];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * hidden;
  const int step = blockDim.x * kVector;
  float squares = 0.0f;
  for (int i = threadIdx.x * kVector; i < hidden; i += step) {
    auto values = load_pack<kVector>(residual + row + i);
    if (x != nullptr) {
      const auto added = load_pack<kVector>(x + row + i);
      for (int j = 0; j < kVector; ++j) {
        values.values[j] = from_float<T>(to_float(values.values[j]) + to_float(added.values[j]));
      }
      store_pack(residual + row + i, values);
    }
    for (int j = 0; j < kVector; ++j) {
      const float value = to_float(values.values[j]);
      squares += value * value;
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / hidden + eps);
  // Every thread reads again what it has written itself.
  for (int i = threadIdx.x * kVector; i < hidden; i += step) {
    auto values = load_pack<kVector>(residual + row + i);
    const auto weights = load_pack<kVector>(weight + i);
    for (int j = 0; j < kVector; ++j) {
      values.values[j] = from_float<T>(to_float(values.values[j]) * scale * to_float(weights.values[j]));
    }
    store_pack(out + row + i, values);
  }
}

// out[row, i] = silu(gate_up[row, i]) * gate_up[row, width + i].
template <typename T, int kVector>
__global__ void __launch_bounds__(256) silu_mul_kernel(const T* gate_up, T* out, int64_t count, int width) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
  if (first >= count) return;
  const int64_t row = first / width, column = first % width;
  const T* place = gate_up + row * 2 * width + column;
  auto gate = load_pack<kVector>(place);
  const auto up = load_pack<kVector>(place + width);
  for (int j = 0; j < kVector; ++j) {
    const float value = to_float(gate.values[j]);
    gate.values[j] = from_float<T>(value / (1.0f + expf(-value)) * to_float(up.values[j]));
  }
  store_pack(out + first, gate);
}

struct RopeArguments {
  const void* qkv;            // [rows, heads + 2 kv_heads, head_dim]
  const void* q_norm;         // [head_dim], or null
  const void* k_norm;         // [head_dim], or null
  const float* frequencies;   // [head_dim / 2], radians per position
  const int32_t* positions;   // [rows]
  const int32_t* slots;       // [rows]: block * block_size + place in the block; below 0: padding, not written
  void* q_out;                // [rows, heads, head_dim]
  void* k_cache;              // [blocks, block_size, kv_heads, head_dim]
  void* v_cache;
  int64_t rows, num_slots;
  int32_t heads, kv_heads;
  float attention_factor, eps;
};

constexpr int kRopeWarps = 4;

// A warp has one head of one row: normed where the family does, rotated, and written where it belongs.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kRopeWarps* kWarp) rope_and_cache_kernel(RopeArguments arguments) {
  constexpr int kHalf = kHeadDim / 2;
  constexpr int kPairs = (kHalf + kWarp - 1) / kWarp;  // of a lane
  const int lane = threadIdx.x % kWarp;
  const int all_heads = arguments.heads + 2 * arguments.kv_heads;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kRopeWarps + threadIdx.x / kWarp;
  if (item >= arguments.rows * all_heads) return;
  const int64_t row = item / all_heads;
  const int head = static_cast<int>(item % all_heads);
  const bool is_query = head < arguments.heads;
  const bool is_value = head >= arguments.heads + arguments.kv_heads;
  const int kv_head = (head - arguments.heads) % arguments.kv_heads;
  const T* source = static_cast<const T*>(arguments.qkv) + item * kHeadDim;

  float first[kPairs], second[kPairs];
  float squares = 0.0f;
  for (int p = 0; p < kPairs; ++p) {
    const int i = p * kWarp + lane;
    first[p] = i < kHalf ? to_float(source[i]) : 0.0f;
    second[p] = i < kHalf ? to_float(source[i + kHalf]) : 0.0f;
    squares += first[p] * first[p] + second[p] * second[p];
  }
  const T* norm = static_cast<const T*>(is_query ? arguments.q_norm : arguments.k_norm);
  // Uniform across the warp, as the shuffles in the sum need it.
  if (!is_value && norm != nullptr) {
    const float scale = 1.0f / sqrtf(warp_sum(squares) / kHeadDim + arguments.eps);
    for (int p = 0; p < kPairs; ++p) {
      const int i = p * kWarp + lane;
      if (i < kHalf) {
        first[p] *= scale * to_float(norm[i]);
        second[p] *= scale * to_float(norm[i + kHalf]);
      }
    }
  }
  T* target;
  if (is_query) {
    target = static_cast<T*>(arguments.q_out) + (row * arguments.heads + head) * kHeadDim;
  } else {
    const int32_t slot = arguments.slots[row];
    if (slot < 0 || slot >= arguments.num_slots) return;
    target = static_cast<T*>(is_value ? arguments.v_cache : arguments.k_cache) +
             (static_cast<int64_t>(slot) * arguments.kv_heads + kv_head) * kHeadDim;
  }
  const float position = static_cast<float>(arguments.positions[row]);
  for (int p = 0; p < kPairs; ++p) {
    const int i = p * kWarp + lane;
    if (i >= kHalf) continue;
    float left = first[p], right = second[p];
    if (!is_value) {
      const float angle = position * arguments.frequencies[i];
      const float cosine = cosf(angle) * arguments.attention_factor;
      const float sine = sinf(angle) * arguments.attention_factor;
      left = first[p] * cosine - second[p] * sine;
      right = second[p] * cosine + first[p] * sine;
    }
    target[i] = from_float<T>(left);
    target[i + kHalf] = from_float<T>(right);
  }
}

// A block copies a part of one cache block of one plane.
__global__ void __launch_bounds__(256)
    copy_blocks_kernel(uint4* cache, const int32_t* copies, int blocks, int64_t words_per_block) {
  const int from = copies[2 * blockIdx.x], to = copies[2 * blockIdx.x + 1];
  if (from < 0 || from >= blocks || to < 0 || to >= blocks) return;
  uint4* plane = cache + static_cast<int64_t>(blockIdx.y) * blocks * words_per_block;
  const uint4* source = plane + from * words_per_block;
  uint4* target = plane + to * words_per_block;
  for (int64_t i = threadIdx.x; i < words_per_block; i += blockDim.x) target[i] = source[i];
}

template <typename T>
void rope_and_cache(const RopeArguments& arguments, int32_t head_dim, cudaStream_t stream) {
  const int64_t items = arguments.rows * (arguments.heads + 2 * arguments.kv_heads);
  const dim3 grid(ceil_div(items, kRopeWarps)), threads(kRopeWarps * kWarp);
  switch (head_dim) {
    case 16: return launch(rope_and_cache_kernel<T, 16>, grid, threads, 0, stream, arguments);
    case 32: return launch(rope_and_cache_kernel<T, 32>, grid, threads, 0, stream, arguments);
    case 64: return launch(rope_and_cache_kernel<T, 64>, grid, threads, 0, stream, arguments);
    case 128: return launch(rope_and_cache_kernel<T, 128>, grid, threads, 0, stream, arguments);
    default: throw std::runtime_error("no kernel for this head dimension");
  }
}

}  // namespace
}  // namespace asyncthink

using asyncthink::ceil_div;
using asyncthink::guarded;
using asyncthink::launch;

extern "C" {

char* asyncthink_add_rms_norm(int32_t kind, const void* x, void* residual, const void* weight, void* out, int64_t rows,
                              int64_t hidden, float eps, void* stream) {
  return guarded([&] {
    if (rows == 0) return;
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      constexpr int kVector = 16 / sizeof(T);
      const bool is_vector = hidden % kVector == 0;
      const int64_t packs = is_vector ? hidden / kVector : hidden;
      const unsigned threads = std::min<unsigned>(1024, ceil_div(packs, 32) * 32);
      launch(is_vector ? asyncthink::add_rms_norm_kernel<T, kVector> : asyncthink::add_rms_norm_kernel<T, 1>,
             dim3(static_cast<unsigned>(rows)), dim3(threads), 0, static_cast<cudaStream_t>(stream),
             static_cast<const T*>(x), static_cast<T*>(residual), static_cast<const T*>(weight), static_cast<T*>(out),
             static_cast<int>(hidden), eps);
    });
  });
}

char* asyncthink_silu_mul(int32_t kind, const void* gate_up, void* out, int64_t rows, int64_t width, void* stream) {
  return guarded([&] {
    if (rows == 0) return;
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      constexpr int kVector = 16 / sizeof(T);
      const bool is_vector = width % kVector == 0;
      const int64_t count = rows * width;
      const unsigned blocks = ceil_div(is_vector ? count / kVector : count, 256);
      launch(is_vector ? asyncthink::silu_mul_kernel<T, kVector> : asyncthink::silu_mul_kernel<T, 1>, dim3(blocks),
             dim3(256), 0, static_cast<cudaStream_t>(stream), static_cast<const T*>(gate_up), static_cast<T*>(out),
             count, static_cast<int>(width));
    });
  });
}

char* asyncthink_rope_and_cache(int32_t kind, const void* qkv, const void* q_norm, const void* k_norm,
                                const void* frequencies, const void* positions, const void* slots, void* q_out,
                                void* k_cache, void* v_cache, int64_t rows, int64_t heads, int64_t kv_heads,
                                int64_t head_dim, int64_t num_slots, float attention_factor, float eps, void* stream) {
  return guarded([&] {
    if (rows == 0) return;
    const asyncthink::RopeArguments arguments{qkv,
                                              q_norm,
                                              k_norm,
                                              static_cast<const float*>(frequencies),
                                              static_cast<const int32_t*>(positions),
                                              static_cast<const int32_t*>(slots),
                                              q_out,
                                              k_cache,
                                              v_cache,
                                              rows,
                                              num_slots,
                                              static_cast<int32_t>(heads),
                                              static_cast<int32_t>(kv_heads),
                                              attention_factor,
                                              eps};
    asyncthink::with_kind(kind, [&](auto number) {
      asyncthink::rope_and_cache<decltype(number)>(arguments, static_cast<int32_t>(head_dim),
                                                   static_cast<cudaStream_t>(stream));
    });
  });
}

// `cache` is [planes, blocks, block_bytes]; `copies` [count, 2] of i32 on the device: from, to.
char* asyncthink_copy_blocks(void* cache, const void* copies, int64_t count, int64_t planes, int64_t blocks,
                             int64_t block_bytes, void* stream) {
  return guarded([&] {
    if (count == 0 || planes == 0) return;
    const int64_t words = block_bytes / static_cast<int64_t>(sizeof(uint4));
    launch(asyncthink::copy_blocks_kernel, dim3(static_cast<unsigned>(count), static_cast<unsigned>(planes)), dim3(256),
           0, static_cast<cudaStream_t>(stream), static_cast<uint4*>(cache), static_cast<const int32_t*>(copies),
           static_cast<int>(blocks), words);
  });
}

}  // extern "C"
