// Attention over paged caches on the matrix units, for bf16.
//
// A tile is up to 16 rows of a product: query rows of one sequence that follow one another, times the query heads that
// share a key-value head. Queries stay in registers. Keys and values go from global memory straight into the fragments
// of `mma.m16n8k16`, 16 bytes a lane: the sums over dimensions and keys may be taken in any order, so a lane's places in
// a fragment stand for dimensions that lie side by side in memory.
//
// Lanes of a warp: `g = lane / 4` is a row of a tile, a key of eight, or a column of the output; `t = lane % 4` counts
// pairs.
#include "attention.cuh"

namespace asyncthink {
namespace {

constexpr int kWarps = 4;
constexpr int kTileRows = 16;
// Keys of a step: they lie in one block of the cache, whose size is a multiple.
constexpr int kStep = 16;

// kHalves is 1 where at most 8 rows of a tile are used: the lower half of the product is then left out of registers.
template <int kHeadDim, int kHalves>
struct TileState {
  uint32_t query[kHeadDim / 32][4][kHalves];  // of 32 dimensions, a lane has t * 8 .. t * 8 + 7
  float out[kHeadDim / 8][2 * kHalves];       // column block jb * 8 + jj is dimension jb * 64 + column * 8 + jj
  float largest[kHalves], sum[kHalves];       // `sum` is of this lane's keys only
  int limit[kHalves];                         // keys that the row sees
  int64_t head[kHalves];                      // row * heads + head, or -1 where the tile has no such row
};

template <int kHeadDim, int kHalves>
__device__ __forceinline__ void attend(TileState<kHeadDim, kHalves>& state, const AttentionArguments& arguments,
                                       const int32_t* table, int kv_head, int first, int end, int step, int lane) {
  const int g = lane / 4, t = lane % 4;
  const int64_t key_width = static_cast<int64_t>(arguments.kv_heads) * kHeadDim;
  const bf16* k_cache = static_cast<const bf16*>(arguments.k_cache) + kv_head * kHeadDim;
  const bf16* v_cache = static_cast<const bf16*>(arguments.v_cache) + kv_head * kHeadDim;
  for (int base = first; base < end; base += step) {
    const int block = base / arguments.block_size;
    const int64_t place =
        (first_slot(arguments, table, block) + (base - block * arguments.block_size)) * key_width;

    uint4 keys[2][kHeadDim / 32];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int d = 0; d < kHeadDim / 32; ++d) {
        // Behind `end` the block holds what was there before: any number, masked below.
        keys[n][d] = *reinterpret_cast<const uint4*>(k_cache + place + (n * 8 + g) * key_width + d * 32 + t * 8);
      }
    }
    // The keys of a lane are 2t, 2t + 1, 2t + 8, 2t + 9: places of a product's inner dimension.
    uint4 values[4][kHeadDim / 64];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 2 * t + i % 2 + i / 2 * 8;
#pragma unroll
      for (int jb = 0; jb < kHeadDim / 64; ++jb) {
        values[i][jb] = uint4{0, 0, 0, 0};
        // A weight of 0 does not undo what is not a number.
        if (base + key < end) {
          values[i][jb] = *reinterpret_cast<const uint4*>(v_cache + place + key * key_width + jb * 64 + g * 8);
        }
      }
    }

    float scores[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
#pragma unroll
      for (int d = 0; d < kHeadDim / 32; ++d) {
        const uint4 key = keys[n][d];
        const uint32_t words[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const uint32_t a[4] = {state.query[d][2 * k][0], kHalves == 2 ? state.query[d][2 * k][kHalves - 1] : 0,
                                 state.query[d][2 * k + 1][0],
                                 kHalves == 2 ? state.query[d][2 * k + 1][kHalves - 1] : 0};
          const uint32_t b[2] = {words[2 * k], words[2 * k + 1]};
          mma_m16n8k16(scores[n], a, b);
        }
      }
    }

    uint32_t weights[4] = {0, 0, 0, 0};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      float step_largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[n][2 * h + i];
          score = base + n * 8 + 2 * t + i < state.limit[h] ? score * arguments.scale : -INFINITY;
          step_largest = fmaxf(step_largest, score);
        }
      }
      step_largest = fmaxf(step_largest, __shfl_xor_sync(kAllLanes, step_largest, 1));
      step_largest = fmaxf(step_largest, __shfl_xor_sync(kAllLanes, step_largest, 2));
      const float largest = fmaxf(state.largest[h], step_largest);
      const float kept = exp2_difference(state.largest[h], largest);
      state.largest[h] = largest;
      float weight[2][2], sum = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          weight[n][i] = exp2_difference(scores[n][2 * h + i], largest);
          sum += weight[n][i];
        }
      }
      state.sum[h] = state.sum[h] * kept + sum;
      weights[h] = pack_bf16(weight[0][0], weight[0][1]);
      weights[2 + h] = pack_bf16(weight[1][0], weight[1][1]);
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        state.out[j][2 * h] *= kept;
        state.out[j][2 * h + 1] *= kept;
      }
    }

#pragma unroll
    for (int jb = 0; jb < kHeadDim / 64; ++jb) {
#pragma unroll
      for (int jj = 0; jj < 8; ++jj) {
        const auto word = [&](int i) {
          const uint4 v = values[i][jb];
          return jj / 2 == 0 ? v.x : jj / 2 == 1 ? v.y : jj / 2 == 2 ? v.z : v.w;
        };
        // Dimension jj of two keys: the low or the high halves of two words.
        const unsigned selectors = jj % 2 == 0 ? 0x5410 : 0x7632;
        const uint32_t b[2] = {__byte_perm(word(0), word(1), selectors), __byte_perm(word(2), word(3), selectors)};
        float(&out)[2 * kHalves] = state.out[jb * 8 + jj];
        float c[4] = {out[0], out[1], kHalves == 2 ? out[2 * kHalves - 2] : 0.0f,
                      kHalves == 2 ? out[2 * kHalves - 1] : 0.0f};
        mma_m16n8k16(c, weights, b);
#pragma unroll
        for (int i = 0; i < 2 * kHalves; ++i) out[i] = c[i];
      }
    }
  }
  // The sums of a row over its four lanes.
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    state.sum[h] += __shfl_xor_sync(kAllLanes, state.sum[h], 1);
    state.sum[h] += __shfl_xor_sync(kAllLanes, state.sum[h], 2);
  }
}

// Reads the queries of a tile.
template <int kHeadDim, int kHalves>
__device__ __forceinline__ void start_tile(TileState<kHeadDim, kHalves>& state, const AttentionArguments& arguments,
                                           Tile tile, int kv_head, int padded_group, int lane) {
  const int g = lane / 4, t = lane % 4;
  const bf16* q = static_cast<const bf16*>(arguments.q);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const int tile_row = g + 8 * h;
    const int row = tile_row / padded_group, in_group = tile_row % padded_group;
    const bool is_there = row < tile.num_rows && in_group < arguments.group;
    state.head[h] =
        is_there ? static_cast<int64_t>(tile.first_row + row) * arguments.heads + kv_head * arguments.group + in_group : -1;
    state.limit[h] = is_there ? context_of(arguments, tile.first_row + row) : 0;
    state.largest[h] = -INFINITY;
    state.sum[h] = 0.0f;
#pragma unroll
    for (int d = 0; d < kHeadDim / 32; ++d) {
      uint4 words{0, 0, 0, 0};
      if (is_there) words = *reinterpret_cast<const uint4*>(q + state.head[h] * kHeadDim + d * 32 + t * 8);
      state.query[d][0][h] = words.x;
      state.query[d][1][h] = words.y;
      state.query[d][2][h] = words.z;
      state.query[d][3][h] = words.w;
    }
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) state.out[j][2 * h] = state.out[j][2 * h + 1] = 0.0f;
  }
}

// A block of threads has one tile, its warps share out the keys.
template <int kHeadDim, int kHalves>
__global__ void __launch_bounds__(kWarps* kWarp) shared_keys_kernel(AttentionArguments arguments, int padded_group) {
  constexpr int kRows = 8 * kHalves;
  __shared__ float shared_out[kWarps][kRows][kHeadDim];
  __shared__ float shared_max[kWarps][kRows], shared_sum[kWarps][kRows];
  __shared__ int64_t shared_head[kRows];
  const int kv_head = blockIdx.x, part = blockIdx.z;
  const Tile tile = tile_of(arguments, blockIdx.y);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;

  const int context = context_of(arguments, tile);
  const int length = part_length(context, arguments.splits);
  const int parts = num_parts(context, arguments.splits);
  if (part >= max_of(parts, 1)) return;

  TileState<kHeadDim, kHalves> state;
  start_tile(state, arguments, tile, kv_head, padded_group, lane);
  const int end = min_of(context, (part + 1) * length);
  attend(state, arguments, table_of(arguments, tile.first_row), kv_head, part * length + warp * kStep, end, kWarps * kStep, lane);

#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const int row = g + 8 * h;
#pragma unroll
    for (int jb = 0; jb < kHeadDim / 64; ++jb) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int jj = 0; jj < 8; ++jj) {
          shared_out[warp][row][jb * 64 + (2 * t + i) * 8 + jj] = state.out[jb * 8 + jj][2 * h + i];
        }
      }
    }
    if (t == 0) {
      shared_max[warp][row] = state.largest[h];
      shared_sum[warp][row] = state.sum[h];
      if (warp == 0) shared_head[row] = state.head[h];
    }
  }
  __syncthreads();

  for (int item = threadIdx.x; item < kRows * kHeadDim; item += kWarps * kWarp) {
    const int row = item / kHeadDim, dim = item % kHeadDim;
    const int64_t head = shared_head[row];
    if (head < 0) continue;
    float all = -INFINITY, total = 0.0f, value = 0.0f;
    for (int w = 0; w < kWarps; ++w) all = fmaxf(all, shared_max[w][row]);
    for (int w = 0; w < kWarps; ++w) {
      const float kept = exp2_difference(shared_max[w][row], all);
      total += shared_sum[w][row] * kept;
      value += shared_out[w][row][dim] * kept;
    }
    value = total > 0.0f ? value / total : 0.0f;
    if (parts <= 1) {
      static_cast<bf16*>(arguments.out)[head * kHeadDim + dim] = from_float<bf16>(value);
    } else {
      const int64_t place = head * arguments.splits + part;
      arguments.partial[place * kHeadDim + dim] = value;
      // Minus infinity where a row of the tile sees no key of this part.
      if (dim == 0) arguments.partial_lse[place] = total > 0.0f ? all + log2f(total) : -INFINITY;
    }
  }
}

// Every warp has a tile; those of a block follow one another, and find in the cache what the others have read.
template <int kHeadDim, int kHalves>
__global__ void __launch_bounds__(kWarps* kWarp) shared_tiles_kernel(AttentionArguments arguments, int padded_group) {
  const int kv_head = blockIdx.x, lane = threadIdx.x % kWarp, t = lane % 4;
  const int index = blockIdx.y * kWarps + threadIdx.x / kWarp;
  if (index >= arguments.num_tiles) return;
  const Tile tile = tile_of(arguments, index);

  TileState<kHeadDim, kHalves> state;
  start_tile(state, arguments, tile, kv_head, padded_group, lane);
  attend(state, arguments, table_of(arguments, tile.first_row), kv_head, 0, context_of(arguments, tile), kStep, lane);

  bf16* out = static_cast<bf16*>(arguments.out);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const float inverse = state.sum[h] > 0.0f ? 1.0f / state.sum[h] : 0.0f;
    if (state.head[h] < 0) continue;
#pragma unroll
    for (int jb = 0; jb < kHeadDim / 64; ++jb) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Pack<bf16, 8> pack;
#pragma unroll
        for (int jj = 0; jj < 8; ++jj) {
          pack.values[jj] = from_float<bf16>(state.out[jb * 8 + jj][2 * h + i] * inverse);
        }
        store_pack(out + state.head[h] * kHeadDim + jb * 64 + (2 * t + i) * 8, pack);
      }
    }
  }
}

template <int kHeadDim>
void attention_sized(const AttentionArguments& arguments, bool warps_share_keys, cudaStream_t stream) {
  int padded_group = 1;
  while (padded_group < arguments.group) padded_group *= 2;
  const dim3 threads(kWarps * kWarp);
  if (warps_share_keys) {
    const dim3 grid(arguments.kv_heads, arguments.num_tiles, arguments.splits);
    // Without tiles a tile is one row.
    if (arguments.tiles == nullptr && padded_group <= 8) {
      return launch(shared_keys_kernel<kHeadDim, 1>, grid, threads, 0, stream, arguments, padded_group);
    }
    return launch(shared_keys_kernel<kHeadDim, 2>, grid, threads, 0, stream, arguments, padded_group);
  }
  const dim3 grid(arguments.kv_heads, ceil_div(arguments.num_tiles, kWarps));
  launch(shared_tiles_kernel<kHeadDim, 2>, grid, threads, 0, stream, arguments, padded_group);
}

}  // namespace

bool mma_supports(int32_t kind, int64_t head_dim, int64_t group) {
  return kind == static_cast<int32_t>(NumberKind::kBFloat16) && (head_dim == 64 || head_dim == 128) &&
         group <= kTileRows;
}

void attention_mma(const AttentionArguments& arguments, int64_t head_dim, bool warps_share_keys, cudaStream_t stream) {
  switch (head_dim) {
    case 64: return attention_sized<64>(arguments, warps_share_keys, stream);
    case 128: return attention_sized<128>(arguments, warps_share_keys, stream);
    default: throw std::runtime_error("no matrix kernel for this head dimension");
  }
}

}  // namespace asyncthink
