// Attention over paged caches: what its kernels share.
//
// A query row sees the first `context_lens[row]` keys of its sequence, whose blocks `tables[row_sequences[row]]` names.
// All rows of a step are in the cache before any attends, so a prompt's rows are rows like others, each with a context
// that ends with itself.
//
// Long contexts are split: up to `splits` blocks of threads take a part each, write a partial result, and
// `combine_kernel` joins them. How many parts a row really has follows from its length alone, on the device, so that
// one captured launch serves all lengths.
#pragma once

#include "device.cuh"

namespace asyncthink {

// A part has at least so many keys, and a multiple of them: also a multiple of what a block of threads takes at once.
constexpr int kMinPart = 128;

struct AttentionArguments {
  const void* q;                 // [rows, heads, head_dim]
  const void* k_cache;           // [blocks, block_size, kv_heads, head_dim]
  const void* v_cache;
  const int32_t* tables;         // [sequences, max_blocks]
  const int32_t* row_sequences;  // [rows]
  const int32_t* context_lens;   // [rows]; 0: the row is padding, and its result is 0
  const int32_t* tiles;          // [tiles, 2]: first row, number of rows; or null: every row is a tile
  void* out;                     // [rows, heads, head_dim]
  float* partial;                // [rows, heads, splits, head_dim]
  float* partial_lse;            // [rows, heads, splits]: log2 of the sum of exponentials
  int32_t num_tiles, rows;
  int32_t heads, kv_heads, group;
  int32_t block_size, num_blocks, num_sequences, max_blocks, splits;
  float scale;  // log2(e) / sqrt(head_dim)
};

__device__ __forceinline__ int min_of(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int max_of(int a, int b) { return a > b ? a : b; }

// Indices that are on the device cannot be checked by the host: they are clamped into range, so that a wrong one
// gives a wrong result and nothing else.
__device__ __forceinline__ int context_of(const AttentionArguments& arguments, int row) {
  return min_of(max_of(arguments.context_lens[row], 0), arguments.max_blocks * arguments.block_size);
}
__device__ __forceinline__ const int32_t* table_of(const AttentionArguments& arguments, int row) {
  const int sequence = min_of(max_of(arguments.row_sequences[row], 0), arguments.num_sequences - 1);
  return arguments.tables + static_cast<int64_t>(sequence) * arguments.max_blocks;
}
// The number, in the whole cache, of the first key of a block.
__device__ __forceinline__ int64_t first_slot(const AttentionArguments& arguments, const int32_t* table, int index) {
  const int block = min_of(max_of(table[index], 0), arguments.num_blocks - 1);
  return static_cast<int64_t>(block) * arguments.block_size;
}
struct Tile {
  int first_row, num_rows;
};
__device__ __forceinline__ Tile tile_of(const AttentionArguments& arguments, int index) {
  if (arguments.tiles == nullptr) return Tile{index, 1};
  const int first = min_of(max_of(arguments.tiles[2 * index], 0), arguments.rows - 1);
  return Tile{first, min_of(arguments.tiles[2 * index + 1], arguments.rows - first)};
}
__device__ __forceinline__ int context_of(const AttentionArguments& arguments, Tile tile) {
  int context = 0;
  for (int i = 0; i < tile.num_rows; ++i) context = max_of(context, context_of(arguments, tile.first_row + i));
  return context;
}

// Keys of a part of a context, the last of which may be shorter.
__device__ __forceinline__ int part_length(int context, int splits) {
  const int even = (context + splits - 1) / splits;
  return max_of(kMinPart, (even + kMinPart - 1) / kMinPart * kMinPart);
}

__device__ __forceinline__ int num_parts(int context, int splits) {
  const int length = part_length(context, splits);
  return (context + length - 1) / length;
}

// 2^(x - y) where x may be minus infinity, and y only if x is.
__device__ __forceinline__ float exp2_difference(float x, float y) {
  return x == -INFINITY ? 0.0f : exp2f(x - y);
}

// The tensor-core kernel, for bf16 of head dimension 64 or 128 and groups of up to 16 heads.
bool mma_supports(int32_t kind, int64_t head_dim, int64_t group);
void attention_mma(const AttentionArguments& arguments, int64_t head_dim, bool warps_share_keys, cudaStream_t stream);

}  // namespace asyncthink
