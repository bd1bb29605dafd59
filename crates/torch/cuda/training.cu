// What lies between the products of a layer in training: norm, rotation and gate, forward and backward.
//
// Sums over rows, for the gradients of norm weights, are made by a fixed number of blocks in a fixed order, so that a step repeats bit
// for bit.
#include <algorithm>
#include <cmath>

#include "device.cuh"

namespace asyncthink {
namespace {

// y = x * rstd * weight; rstd = 1 / sqrt(mean(x^2) + eps). A block has one row.
template <typename T>
__global__ void __launch_bounds__(1024)
    norm_forward_kernel(const T* x, const T* weight, T* y, float* rstd, int width, float eps) {
  __shared__ float scratch[kWarp];
  const T* row = x + static_cast<int64_t>(blockIdx.x) * width;
  T* out = y + static_cast<int64_t>(blockIdx.x) * width;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float value = to_float(row[i]);
    squares += value * value;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    out[i] = from_float<T>(to_float(row[i]) * scale * to_float(weight[i]));
  }
}

// Columns of a thread, and with them the largest width of a row.
constexpr int kNormColumns = 16;

// dx += rstd * (weight dy - x rstd^2 mean(x weight dy)); partial[block] = sum over its rows of x rstd dy. A block has every
// gridDim.x-th row.
template <typename T>
__global__ void __launch_bounds__(1024) norm_backward_kernel(const T* x, const T* weight, const float* rstd, const T* dy, T* dx,
                                                             float* partial, int64_t rows, int width) {
  __shared__ float scratch[kWarp];
  float sums[kNormColumns];
  for (int c = 0; c < kNormColumns; ++c) sums[c] = 0.0f;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t first = row * width;
    float dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      dot += to_float(x[first + i]) * to_float(weight[i]) * to_float(dy[first + i]);
    }
    const float scale = rstd[row];
    const float back = block_sum(dot, scratch) / width * scale * scale * scale;
    for (int c = 0; c < kNormColumns; ++c) {
      const int i = c * blockDim.x + threadIdx.x;
      if (i >= width) break;
      const float value = to_float(x[first + i]), d = to_float(dy[first + i]);
      sums[c] += value * scale * d;
      dx[first + i] = from_float<T>(to_float(dx[first + i]) + d * to_float(weight[i]) * scale - value * back);
    }
  }
  if (partial == nullptr) return;
  for (int c = 0; c < kNormColumns; ++c) {
    const int i = c * blockDim.x + threadIdx.x;
    if (i < width) partial[static_cast<int64_t>(blockIdx.x) * width + i] = sums[c];
  }
}

struct RotaryArguments {
  const void* x;       // queries, keys (and values behind them), x_stride apart
  void* y;             // of the forward pass; of the backward pass the gradient of x
  const float* dy;     // of the backward pass: gradients of queries, keys and values
  const void* cos;     // [rows, head_dim / 2]
  const void* sin;
  const void* q_norm;  // [head_dim], or null
  const void* k_norm;
  float* partial;      // [2, blocks * warps, head_dim] sums for the norms, or null
  int64_t rows, x_stride, y_stride, dy_stride;
  int32_t heads, kv_heads;
  float eps;
};

constexpr int kRotaryWarps = 4;

// A warp has one head of a row, then that of a row further on.
template <typename T, int kHeadDim, bool kBackward>
__global__ void __launch_bounds__(kRotaryWarps* kWarp) rotary_kernel(RotaryArguments arguments) {
  constexpr int kHalf = kHeadDim / 2;
  constexpr int kPairs = (kHalf + kWarp - 1) / kWarp;  // of a lane
  const int lane = threadIdx.x % kWarp;
  const int num_rotated = arguments.heads + arguments.kv_heads;
  // Values have a gradient to be written, and nothing to be rotated.
  const int all_heads = kBackward ? num_rotated + arguments.kv_heads : num_rotated;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRotaryWarps + threadIdx.x / kWarp;
  const int64_t num_warps = static_cast<int64_t>(gridDim.x) * kRotaryWarps;
  float of_q[2 * kPairs], of_k[2 * kPairs];
  for (int p = 0; p < 2 * kPairs; ++p) of_q[p] = of_k[p] = 0.0f;
  for (int64_t item = warp; item < arguments.rows * all_heads; item += num_warps) {
    const int64_t row = item / all_heads;
    const int head = static_cast<int>(item % all_heads);
    const bool is_query = head < arguments.heads, is_value = head >= num_rotated;
    const T* x = static_cast<const T*>(arguments.x) + row * arguments.x_stride + head * kHeadDim;
    T* y = static_cast<T*>(arguments.y) + row * arguments.y_stride + head * kHeadDim;
    const T* norm = is_value ? nullptr : static_cast<const T*>(is_query ? arguments.q_norm : arguments.k_norm);
    float first[kPairs], second[kPairs], cosine[kPairs], sine[kPairs];
    float squares = 0.0f;
    for (int p = 0; p < kPairs; ++p) {
      const int i = p * kWarp + lane;
      const bool is_in = i < kHalf;
      first[p] = is_in && !(kBackward && norm == nullptr) ? to_float(x[i]) : 0.0f;
      second[p] = is_in && !(kBackward && norm == nullptr) ? to_float(x[i + kHalf]) : 0.0f;
      squares += first[p] * first[p] + second[p] * second[p];
      const bool is_turned = is_in && !is_value;
      cosine[p] = is_turned ? to_float(static_cast<const T*>(arguments.cos)[row * kHalf + i]) : 1.0f;
      sine[p] = is_turned ? to_float(static_cast<const T*>(arguments.sin)[row * kHalf + i]) : 0.0f;
    }
    // Uniform across the warp, as the shuffles in the sums need it.
    float scale = 1.0f;
    if (norm != nullptr) scale = 1.0f / sqrtf(warp_sum(squares) / kHeadDim + arguments.eps);
    if constexpr (!kBackward) {
      for (int p = 0; p < kPairs; ++p) {
        const int i = p * kWarp + lane;
        if (i >= kHalf) continue;
        const float a = first[p] * scale * (norm != nullptr ? to_float(norm[i]) : 1.0f);
        const float b = second[p] * scale * (norm != nullptr ? to_float(norm[i + kHalf]) : 1.0f);
        y[i] = from_float<T>(a * cosine[p] - b * sine[p]);
        y[i + kHalf] = from_float<T>(b * cosine[p] + a * sine[p]);
      }
    } else {
      const float* dy = arguments.dy + row * arguments.dy_stride + head * kHeadDim;
      float da[kPairs], db[kPairs];
      float dot = 0.0f;
      for (int p = 0; p < kPairs; ++p) {
        const int i = p * kWarp + lane;
        da[p] = db[p] = 0.0f;
        if (i >= kHalf) continue;
        const float left = dy[i], right = dy[i + kHalf];
        da[p] = left * cosine[p] + right * sine[p];
        db[p] = right * cosine[p] - left * sine[p];
        if (norm != nullptr) {
          dot += first[p] * to_float(norm[i]) * da[p] + second[p] * to_float(norm[i + kHalf]) * db[p];
        }
      }
      float back = 0.0f;
      if (norm != nullptr) back = warp_sum(dot) / kHeadDim * scale * scale * scale;
      for (int p = 0; p < kPairs; ++p) {
        const int i = p * kWarp + lane;
        if (i >= kHalf) continue;
        if (norm != nullptr) {
          const float of_first = first[p] * scale * da[p], of_second = second[p] * scale * db[p];
          of_q[2 * p] += is_query ? of_first : 0.0f;
          of_q[2 * p + 1] += is_query ? of_second : 0.0f;
          of_k[2 * p] += is_query ? 0.0f : of_first;
          of_k[2 * p + 1] += is_query ? 0.0f : of_second;
          da[p] = da[p] * to_float(norm[i]) * scale - first[p] * back;
          db[p] = db[p] * to_float(norm[i + kHalf]) * scale - second[p] * back;
        }
        y[i] = from_float<T>(da[p]);
        y[i + kHalf] = from_float<T>(db[p]);
      }
    }
  }
  if constexpr (kBackward) {
    if (arguments.partial == nullptr) return;
    float* q = arguments.partial + warp * kHeadDim;
    float* k = q + num_warps * kHeadDim;
    for (int p = 0; p < kPairs; ++p) {
      const int i = p * kWarp + lane;
      if (i >= kHalf) continue;
      q[i] = of_q[2 * p];
      q[i + kHalf] = of_q[2 * p + 1];
      k[i] = of_k[2 * p];
      k[i + kHalf] = of_k[2 * p + 1];
    }
  }
}

// act = silu(gate) * up.
template <typename T>
__global__ void __launch_bounds__(256) gate_forward_kernel(const T* gate_up, T* act, int64_t count, int width) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const T* place = gate_up + index / width * 2 * width + index % width;
  const float gate = to_float(place[0]);
  act[index] = from_float<T>(gate / (1.0f + expf(-gate)) * to_float(place[width]));
}

// Replaces gate and up by their gradients, and writes act.
template <typename T>
__global__ void __launch_bounds__(256) gate_backward_kernel(T* gate_up, const T* dact, T* act, int64_t count, int width) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  T* place = gate_up + index / width * 2 * width + index % width;
  const float gate = to_float(place[0]), up = to_float(place[width]), d = to_float(dact[index]);
  const float sigmoid = 1.0f / (1.0f + expf(-gate)), silu = gate * sigmoid;
  act[index] = from_float<T>(silu * up);
  place[0] = from_float<T>(d * up * (sigmoid + silu * (1.0f - sigmoid)));
  place[width] = from_float<T>(d * silu);
}

template <typename T, bool kBackward>
void rotary(const RotaryArguments& arguments, int32_t head_dim, unsigned blocks, cudaStream_t stream) {
  const dim3 grid(blocks), threads(kRotaryWarps * kWarp);
  switch (head_dim) {
    case 16: return launch(rotary_kernel<T, 16, kBackward>, grid, threads, 0, stream, arguments);
    case 32: return launch(rotary_kernel<T, 32, kBackward>, grid, threads, 0, stream, arguments);
    case 64: return launch(rotary_kernel<T, 64, kBackward>, grid, threads, 0, stream, arguments);
    case 128: return launch(rotary_kernel<T, 128, kBackward>, grid, threads, 0, stream, arguments);
    default: throw std::runtime_error("no kernel for this head dimension");
  }
}

unsigned norm_threads(int64_t width) { return std::min<unsigned>(1024, ceil_div(width, kWarp) * kWarp); }

}  // namespace
}  // namespace asyncthink

using asyncthink::ceil_div;
using asyncthink::guarded;
using asyncthink::launch;

extern "C" {

char* asyncthink_training_norm_forward(int32_t kind, const void* x, const void* weight, void* y, float* rstd, int64_t rows,
                                       int64_t width, float eps, void* stream) {
  return guarded([&] {
    if (rows == 0) return;
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      launch(asyncthink::norm_forward_kernel<T>, dim3(static_cast<unsigned>(rows)), dim3(asyncthink::norm_threads(width)), 0,
             static_cast<cudaStream_t>(stream), static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(y), rstd,
             static_cast<int>(width), eps);
    });
  });
}

// `partial` f32 `[parts, width]`, or null.
char* asyncthink_training_norm_backward(int32_t kind, const void* x, const void* weight, const float* rstd, const void* dy, void* dx,
                                        float* partial, int64_t parts, int64_t rows, int64_t width, void* stream) {
  return guarded([&] {
    if (width > 1024 * asyncthink::kNormColumns) throw std::runtime_error("no kernel for rows of this width");
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      launch(asyncthink::norm_backward_kernel<T>, dim3(static_cast<unsigned>(parts)), dim3(asyncthink::norm_threads(width)), 0,
             static_cast<cudaStream_t>(stream), static_cast<const T*>(x), static_cast<const T*>(weight), rstd,
             static_cast<const T*>(dy), static_cast<T*>(dx), partial, rows, static_cast<int>(width));
    });
  });
}

// Backward if `dy` is given; then `partial` is f32 `[2, 4 * parts, head_dim]`, or null.
char* asyncthink_training_rotary(int32_t kind, const void* x, void* y, const float* dy, const void* cos, const void* sin,
                                 const void* q_norm, const void* k_norm, float* partial, int64_t parts, int64_t rows, int64_t x_stride,
                                 int64_t y_stride, int64_t dy_stride, int64_t heads, int64_t kv_heads, int64_t head_dim, float eps,
                                 void* stream) {
  return guarded([&] {
    const asyncthink::RotaryArguments arguments{x,    y,        dy,       cos,       sin,
                                                q_norm, k_norm, partial,  rows,      x_stride,
                                                y_stride, dy_stride, static_cast<int32_t>(heads), static_cast<int32_t>(kv_heads), eps};
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      const auto on = static_cast<cudaStream_t>(stream);
      const auto dim = static_cast<int32_t>(head_dim);
      const auto blocks = static_cast<unsigned>(parts);
      dy == nullptr ? asyncthink::rotary<T, false>(arguments, dim, blocks, on) : asyncthink::rotary<T, true>(arguments, dim, blocks, on);
    });
  });
}

// Backward if `dact` is given.
char* asyncthink_training_gate(int32_t kind, void* gate_up, const void* dact, void* act, int64_t rows, int64_t width, void* stream) {
  return guarded([&] {
    if (rows == 0) return;
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      const int64_t count = rows * width;
      const dim3 grid(static_cast<unsigned>(ceil_div(count, 256))), threads(256);
      const auto on = static_cast<cudaStream_t>(stream);
      if (dact == nullptr) {
        launch(asyncthink::gate_forward_kernel<T>, grid, threads, 0, on, static_cast<const T*>(gate_up), static_cast<T*>(act), count,
               static_cast<int>(width));
      } else {
        launch(asyncthink::gate_backward_kernel<T>, grid, threads, 0, on, static_cast<T*>(gate_up), static_cast<const T*>(dact),
               static_cast<T*>(act), count, static_cast<int>(width));
      }
    });
  });
}

}  // extern "C"
