// Kernels of a decoding step on the CPU, one table for each instruction set and number type.
//
// Layouts. A panel holds 16 columns of a product's weight matrix: f32 `[k][16]`, bf16 `[k / 2][16][2]`, so that one load
// brings 16 columns. Rows of activations are f32; what a product reads is an operand: f32, or the nearest bf16 (kept in f32 where
// the processor multiplies no bf16). Every output value is one sum in the order of k, so that a row's result does not depend on the other
// rows, on how rows and columns are cut into tiles, or on who computes them.
#pragma once

#include <cstdint>

namespace asyncthink::cpu {

constexpr int64_t kLanes = 16;
// Rows of a tile at the most; also what an item of work is cut into.
constexpr int64_t kMaxTileRows = 12;
// Positions that attention handles at a time. A row's sums are made chunk by chunk from position 0, whatever the blocks are.
constexpr int64_t kChunkTokens = 64;
constexpr int64_t kChunkGroups = kChunkTokens / kLanes;
// Queries of one item of attention at the most.
constexpr int64_t kMaxQueries = 64;

enum class Epilogue : int {
  kStore,     // c = a b (+ bias)
  kAdd,       // c += a b (+ bias)
  kSwiGlu,    // panels come in pairs, gate and up: operand c = silu(gate) * up
};

struct GemmArgs {
  const void* a;          // operand [rows][k], `lda` elements apart
  int64_t lda;
  const void* b;          // packed panels
  int64_t panel_bytes;
  int64_t k;              // padded
  int64_t rows;
  int64_t first_panel;    // of this call
  int64_t num_panels;
  const float* bias;      // [columns] or null
  void* c;                // f32 [rows][columns], of kSwiGlu operand [rows][columns / 2]
  int64_t ldc;
  Epilogue epilogue;
};

// One chunk of at most kChunkTokens positions for `num_queries` queries of one key-value head.
struct AttendArgs {
  const float* query;     // [queries][head_dim], scaled
  int64_t num_queries;
  int64_t head_dim;
  int64_t num_groups;     // groups of 16 positions
  const void* keys[kChunkGroups];    // f32 [head_dim][16], bf16 [head_dim / 2][16][2]
  const void* values[kChunkGroups];  // f32 [16][head_dim], bf16 [8][head_dim][2]
  // Keys of the next chunk, prefetched meanwhile; null beyond its end.
  const void* next_keys[kChunkGroups];
  const int32_t* limits;  // [queries] positions of this chunk that a query sees, 1 to kChunkTokens
  float* largest;         // [queries] running maximum
  float* total;           // [queries] running sum
  float* sum;             // [queries][head_dim] running sum of values
};

struct Kernels {
  const char* name;
  int64_t operand_bytes;
  // x [n] * weight / rms(x) to an operand, the padding up to `padded` zeroed.
  void (*norm)(const float* x, const float* weight, float eps, int64_t n, int64_t padded, void* out);
  // f32 to an operand.
  void (*to_operand)(const float* x, int64_t n, void* out);
  void (*gemm)(const GemmArgs&);
  void (*attend)(const AttendArgs&);
  // Rotates one head: x [head_dim], cos and sin [head_dim / 2]; norms it first if `norm` is given.
  void (*rotate)(float* x, const float* norm, float eps, const float* cos, const float* sin, int64_t head_dim);
  // Largest of x [n], and whether all are finite.
  bool (*largest)(const float* x, int64_t n, float* largest);
  // Sum of exp((x - largest) * scale) for each run of kSumRun values, and the sum of those.
  double (*sum_exp)(const float* x, int64_t n, float largest, float scale, double* runs);
  // exp((x - largest) * scale) of one run.
  void (*exp_run)(const float* x, int64_t n, float largest, float scale, float* out);
};

constexpr int64_t kSumRun = 512;

const Kernels* kernels_generic(bool bf16);
const Kernels* kernels_tiles_emulated();
#if defined(__x86_64__)
const Kernels* kernels_avx2(bool bf16);
const Kernels* kernels_avx512(bool bf16);
const Kernels* kernels_avx512_bf16();
const Kernels* kernels_amx();
#endif

}  // namespace asyncthink::cpu
