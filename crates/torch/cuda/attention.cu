// Attention over paged caches, for every kind of numbers: each query row by itself, on the plain arithmetic units.
#include "attention.cuh"

namespace asyncthink {
namespace {

constexpr int kWarps = 4;
// Dimensions of a key that a lane has.
constexpr int kLaneDims = 8;

// A block of threads has kGroup query heads of one row, which share a key-value head, and one part of its context.
// A warp reads several keys at once, each by head_dim / 8 lanes.
template <typename T, int kHeadDim, int kGroup>
__global__ void __launch_bounds__(kWarps* kWarp) attention_kernel(AttentionArguments arguments) {
  constexpr int kLanesPerKey = kHeadDim / kLaneDims;
  constexpr int kKeysPerWarp = kWarp / kLanesPerKey;
  __shared__ float shared_out[kWarps][kGroup][kHeadDim];
  __shared__ float shared_max[kWarps][kGroup], shared_sum[kWarps][kGroup];

  const int row = blockIdx.y, part = blockIdx.z;
  const int chunks = gridDim.x / arguments.kv_heads;  // of the heads that share a key-value head
  const int kv_head = blockIdx.x / chunks;
  const int first_in_group = blockIdx.x % chunks * kGroup;
  const int num_heads = min_of(kGroup, arguments.group - first_in_group);
  const int first_head = kv_head * arguments.group + first_in_group;
  const int context = context_of(arguments, row);
  const int length = part_length(context, arguments.splits);
  const int parts = num_parts(context, arguments.splits);
  // Part 0 of an empty context writes zeros.
  if (part >= max_of(parts, 1)) return;

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int key_lane = lane / kLanesPerKey, first_dim = lane % kLanesPerKey * kLaneDims;
  const T* q = static_cast<const T*>(arguments.q) + (static_cast<int64_t>(row) * arguments.heads + first_head) * kHeadDim;
  const T* keys = static_cast<const T*>(arguments.k_cache) + kv_head * kHeadDim + first_dim;
  const T* values = static_cast<const T*>(arguments.v_cache) + kv_head * kHeadDim + first_dim;
  const int32_t* table = table_of(arguments, row);

  float query[kGroup][kLaneDims], out[kGroup][kLaneDims], largest[kGroup], sum[kGroup];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    largest[g] = -INFINITY;
    sum[g] = 0.0f;
    Pack<T, kLaneDims> pack{};
    if (g < num_heads) pack = load_pack<kLaneDims>(q + g * kHeadDim + first_dim);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      query[g][i] = to_float(pack.values[i]) * arguments.scale;
      out[g][i] = 0.0f;
    }
  }

  const int end = min_of(context, (part + 1) * length);
  for (int first = part * length + warp * kKeysPerWarp; first < end; first += kWarps * kKeysPerWarp) {
    const int key = first + key_lane;
    const bool is_there = key < end;
    Pack<T, kLaneDims> k{}, v{};
    if (is_there) {
      const int64_t slot = first_slot(arguments, table, key / arguments.block_size) + key % arguments.block_size;
      const int64_t place = slot * arguments.kv_heads * kHeadDim;
      k = load_pack<kLaneDims>(keys + place);
      v = load_pack<kLaneDims>(values + place);
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) score += query[g][i] * to_float(k.values[i]);
      for (int mask = kLanesPerKey / 2; mask > 0; mask /= 2) score += __shfl_xor_sync(kAllLanes, score, mask);
      if (is_there) {
        const float new_largest = fmaxf(largest[g], score);
        const float kept = exp2_difference(largest[g], new_largest);
        const float weight = exp2f(score - new_largest);
        largest[g] = new_largest;
        sum[g] = sum[g] * kept + weight;
#pragma unroll
        for (int i = 0; i < kLaneDims; ++i) out[g][i] = out[g][i] * kept + weight * to_float(v.values[i]);
      }
    }
  }

  // Lanes that had other keys of the same dimensions.
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    float all = largest[g];
    for (int mask = kWarp / 2; mask >= kLanesPerKey; mask /= 2) all = fmaxf(all, __shfl_xor_sync(kAllLanes, all, mask));
    const float kept = exp2_difference(largest[g], all);
    sum[g] *= kept;
    for (int mask = kWarp / 2; mask >= kLanesPerKey; mask /= 2) sum[g] += __shfl_xor_sync(kAllLanes, sum[g], mask);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      out[g][i] *= kept;
      for (int mask = kWarp / 2; mask >= kLanesPerKey; mask /= 2) {
        out[g][i] += __shfl_xor_sync(kAllLanes, out[g][i], mask);
      }
      if (key_lane == 0) shared_out[warp][g][first_dim + i] = out[g][i];
    }
    if (lane == 0) {
      shared_max[warp][g] = all;
      shared_sum[warp][g] = sum[g];
    }
  }
  __syncthreads();

  for (int item = threadIdx.x; item < num_heads * kHeadDim; item += kWarps * kWarp) {
    const int g = item / kHeadDim, dim = item % kHeadDim;
    float all = -INFINITY, total = 0.0f, value = 0.0f;
    for (int w = 0; w < kWarps; ++w) all = fmaxf(all, shared_max[w][g]);
    for (int w = 0; w < kWarps; ++w) {
      const float kept = exp2_difference(shared_max[w][g], all);
      total += shared_sum[w][g] * kept;
      value += shared_out[w][g][dim] * kept;
    }
    value = total > 0.0f ? value / total : 0.0f;
    const int64_t head = static_cast<int64_t>(row) * arguments.heads + first_head + g;
    if (parts <= 1) {
      static_cast<T*>(arguments.out)[head * kHeadDim + dim] = from_float<T>(value);
    } else {
      const int64_t place = head * arguments.splits + part;
      arguments.partial[place * kHeadDim + dim] = value;
      if (dim == 0) arguments.partial_lse[place] = all + log2f(total);
    }
  }
}

// Joins the parts; a block of threads has one head of the rows of a tile.
template <typename T>
__global__ void __launch_bounds__(128) combine_kernel(AttentionArguments arguments, int head_dim) {
  const Tile tile = tile_of(arguments, blockIdx.y);
  const int parts = num_parts(context_of(arguments, tile), arguments.splits);
  if (parts <= 1) return;
  for (int row = tile.first_row; row < tile.first_row + tile.num_rows; ++row) {
    const int64_t head = static_cast<int64_t>(row) * arguments.heads + blockIdx.x;
    const float* lse = arguments.partial_lse + head * arguments.splits;
    float largest = -INFINITY, total = 0.0f;
    for (int part = 0; part < parts; ++part) largest = fmaxf(largest, lse[part]);
    for (int part = 0; part < parts; ++part) total += exp2_difference(lse[part], largest);
    const float* partial = arguments.partial + head * arguments.splits * head_dim;
    for (int dim = threadIdx.x; dim < head_dim; dim += blockDim.x) {
      float value = 0.0f;
      for (int part = 0; part < parts; ++part) {
        value += partial[static_cast<int64_t>(part) * head_dim + dim] * exp2_difference(lse[part], largest);
      }
      static_cast<T*>(arguments.out)[head * head_dim + dim] = from_float<T>(total > 0.0f ? value / total : 0.0f);
    }
  }
}

template <typename T, int kHeadDim>
void attention_by_row(const AttentionArguments& arguments, cudaStream_t stream) {
  const auto start = [&](auto kernel, int heads_at_once) {
    const unsigned chunks = ceil_div(arguments.group, heads_at_once);
    const dim3 grid(arguments.kv_heads * chunks, arguments.rows, arguments.splits);
    launch(kernel, grid, dim3(kWarps * kWarp), 0, stream, arguments);
  };
  if (arguments.group == 1) return start(attention_kernel<T, kHeadDim, 1>, 1);
  if (arguments.group == 2) return start(attention_kernel<T, kHeadDim, 2>, 2);
  return start(attention_kernel<T, kHeadDim, 4>, 4);
}

template <typename T>
void attention(AttentionArguments arguments, int64_t head_dim, bool with_mma, bool warps_share_keys,
               cudaStream_t stream) {
  if (with_mma) {
    attention_mma(arguments, head_dim, warps_share_keys, stream);
  } else {
    // Every row by itself: tiles have nothing to say.
    arguments.tiles = nullptr;
    arguments.num_tiles = arguments.rows;
    switch (head_dim) {
      case 16: attention_by_row<T, 16>(arguments, stream); break;
      case 32: attention_by_row<T, 32>(arguments, stream); break;
      case 64: attention_by_row<T, 64>(arguments, stream); break;
      case 128: attention_by_row<T, 128>(arguments, stream); break;
      default: throw std::runtime_error("no kernel for this head dimension");
    }
  }
  const bool is_split = arguments.splits > 1 && !(with_mma && !warps_share_keys);
  if (is_split) {
    launch(combine_kernel<T>, dim3(arguments.heads, arguments.num_tiles), dim3(128), 0, stream, arguments,
           static_cast<int>(head_dim));
  }
}

}  // namespace
}  // namespace asyncthink

extern "C" {

// How a launch shares out its rows: `kByRow` for all kinds of numbers, the others where the matrix units can be used.
enum AsyncthinkAttentionPath : int32_t {
  kByRow = 0,
  // Blocks of threads have a tile each, and its warps share out the keys: for decoding, with splits.
  kWarpsShareKeys = 1,
  // Warps have a tile each: for prompts.
  kWarpsShareTiles = 2,
};

int32_t asyncthink_attention_has_mma(int32_t kind, int64_t head_dim, int64_t group) {
  return asyncthink::mma_supports(kind, head_dim, group) ? 1 : 0;
}

char* asyncthink_paged_attention(int32_t kind, int32_t path, const void* q, const void* k_cache, const void* v_cache,
                                 const void* tables, const void* row_sequences, const void* context_lens,
                                 const void* tiles, void* out, void* partial, void* partial_lse, int64_t num_tiles,
                                 int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t block_size,
                                 int64_t num_blocks, int64_t num_sequences, int64_t max_blocks, int64_t splits,
                                 void* stream) {
  return asyncthink::guarded([&] {
    if (rows == 0 || num_tiles == 0) return;
    asyncthink::AttentionArguments arguments{};
    arguments.q = q;
    arguments.k_cache = k_cache;
    arguments.v_cache = v_cache;
    arguments.tables = static_cast<const int32_t*>(tables);
    arguments.row_sequences = static_cast<const int32_t*>(row_sequences);
    arguments.context_lens = static_cast<const int32_t*>(context_lens);
    arguments.tiles = static_cast<const int32_t*>(tiles);
    arguments.out = out;
    arguments.partial = static_cast<float*>(partial);
    arguments.partial_lse = static_cast<float*>(partial_lse);
    arguments.num_tiles = static_cast<int32_t>(num_tiles);
    arguments.rows = static_cast<int32_t>(rows);
    arguments.heads = static_cast<int32_t>(heads);
    arguments.kv_heads = static_cast<int32_t>(kv_heads);
    arguments.group = static_cast<int32_t>(heads / kv_heads);
    arguments.block_size = static_cast<int32_t>(block_size);
    arguments.num_blocks = static_cast<int32_t>(num_blocks);
    arguments.num_sequences = static_cast<int32_t>(num_sequences);
    arguments.max_blocks = static_cast<int32_t>(max_blocks);
    arguments.splits = static_cast<int32_t>(splits);
    arguments.scale = static_cast<float>(1.44269504088896340736 / std::sqrt(static_cast<double>(head_dim)));
    asyncthink::with_kind(kind, [&](auto number) {
      asyncthink::attention<decltype(number)>(arguments, head_dim, path != kByRow, path == kWarpsShareKeys,
                                              static_cast<cudaStream_t>(stream));
    });
  });
}

}  // extern "C"
