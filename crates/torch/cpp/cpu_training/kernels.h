// Kernels of training on the CPU: what lies between the matrix products of a decoder layer, forward and backward, attention over
// segments, and the softmax of the output head. One table for each instruction set and storage type; all arithmetic is f32.
//
// A kernel handles a range of rows or one item of work and uses no thread of its own. Rows lie `stride` elements apart. `T` below is
// the storage type of the table: f32 or bf16.
#pragma once

#include <cstdint>

namespace asyncthink::cpu_training {

// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps).
struct NormArgs {
  const void* x;       // T [rows][width]
  const void* weight;  // T [width]
  float* rstd;         // [rows]
  int64_t width;
  float eps;
  void* y;             // T [rows][width]; forward
  const void* dy;      // T [rows][width]; backward
  void* dx;            // T [rows][width]; backward adds to it
  float* dweight;      // [width]; backward adds to it; null if not wanted
};

// Queries and keys of a row, normed where the family does, then rotated: (a, b) to (a cos - b sin, b cos + a sin) for a of the
// first half of a head and b of the second.
struct RotaryArgs {
  const void* x;            // T, queries then keys, head after head
  int64_t x_stride;
  void* y;                  // T; may be x
  int64_t y_stride;
  int64_t num_heads, num_kv_heads, head_dim;
  const void* cos;          // T [rows][head_dim / 2]
  const void* sin;
  const void* query_norm;   // T [head_dim] or null
  const void* key_norm;
  float eps;
  const float* dy;          // backward: gradient of queries, keys and values, dy_stride apart
  int64_t dy_stride;
  void* dx;                 // T, queries, keys and values, x_stride apart
  float* dquery_norm;       // [head_dim], added to; null if not wanted
  float* dkey_norm;
};

// act = silu(gate) * up of rows that hold gate, then up.
struct GateArgs {
  void* gate_up;     // T [rows][2 * width]; backward replaces it by its gradient
  void* act;         // T [rows][width]; backward reads the gradient of act from `dact` and writes act here
  const void* dact;  // T [rows][width]
  int64_t width;
};

// Causal attention over segments. The keys of a segment are those of its prefix (a segment before it, with that one's own
// prefix, ...), all of which its rows see, then its own up to the row.
struct AttentionArgs {
  const void *query, *key, *value;  // T, head after head
  int64_t query_stride, key_stride, value_stride;
  void* out;                        // T [tokens][heads * head_dim]
  float* log_sums;                  // [heads][tokens], of the exponentials of the scaled scores
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;
  const int64_t* starts;            // [segments]
  const int64_t* lens;
  const int64_t* prefixes;          // -1 for none
  const int64_t* num_keys;          // keys of each segment, prefixes included
  const void* dout;                 // T as out
  float *dquery, *dkey, *dvalue;    // backward adds to them; rows dqkv_stride apart
  int64_t dqkv_stride;
};

// Softmax of logits in the output head.
struct HeadArgs {
  float* logits;           // [rows][vocab]; forward divides them by the temperature
  int64_t vocab;
  float inverse_temperature;
  const int64_t* targets;  // [rows]
  float* log_sum;          // [rows]
  float* logp;             // [rows]
  float* entropy;          // [rows] or null
  const float* dlogp;      // [rows]; backward
  const float* dentropy;   // [rows] or null
  void* dlogits;           // T [rows][vocab]; may be the logits in f32
};

struct Kernels {
  void (*norm_forward)(const NormArgs&, int64_t begin, int64_t end);
  void (*norm_backward)(const NormArgs&, int64_t begin, int64_t end);
  void (*rotary_forward)(const RotaryArgs&, int64_t begin, int64_t end);
  void (*rotary_backward)(const RotaryArgs&, int64_t begin, int64_t end);
  void (*gate_forward)(const GateArgs&, int64_t begin, int64_t end);
  void (*gate_backward)(const GateArgs&, int64_t begin, int64_t end);
  // One segment and key-value head; `scratch` holds attention_scratch floats.
  void (*attention_forward)(const AttentionArgs&, int64_t segment, int64_t kv_head, float* scratch);
  void (*attention_backward)(const AttentionArgs&, int64_t segment, int64_t kv_head, float* scratch);
  void (*head_forward)(const HeadArgs&, int64_t begin, int64_t end);
  void (*head_backward)(const HeadArgs&, int64_t begin, int64_t end);
  const char* name;
};

// Instruction sets, each with those before it.
enum Isa : int { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

// The best of this processor.
const Kernels* choose_kernels(bool bf16);
const Kernels* kernels_generic(bool bf16);
const Kernels* kernels_avx2(bool bf16);
const Kernels* kernels_avx512(bool bf16);

constexpr int64_t kPanelKeys = 64;   // keys of a block
constexpr int64_t kBlockRows = 48;   // queries of a block

// Floats of scratch for a segment of `rows` queries and `keys` keys.
inline int64_t attention_scratch(int64_t rows, int64_t keys, int64_t head_dim) {
  const int64_t width = (head_dim + 15) / 16 * 16;
  const int64_t padded_keys = (keys + kPanelKeys - 1) / kPanelKeys * kPanelKeys;
  const int64_t padded_rows = (rows + kBlockRows - 1) / kBlockRows * kBlockRows;
  return 5 * padded_keys * width + 3 * padded_rows * width + 3 * kBlockRows * kPanelKeys + 4 * padded_rows + 64;
}

}  // namespace asyncthink::cpu_training
