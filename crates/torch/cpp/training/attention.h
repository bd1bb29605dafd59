// Attention over segments on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "segments.h"

namespace asyncthink::training {

// Queries, keys and values of a packed batch: `[tokens, heads * head_dim]`, rows any distance apart.
struct Attended {
  at::Tensor query, key, value;
  int64_t num_heads, num_kv_heads, head_dim;
};

// Returns `[tokens, heads * head_dim]` and the logarithms of the sums, f32 `[heads, tokens]`.
std::pair<at::Tensor, at::Tensor> attention_forward(const Attended& in, const Segments& segments);
// Adds to f32 gradients `[tokens, (heads + 2 * kv_heads) * head_dim]` of queries, keys and values.
void attention_backward(const Attended& in, const at::Tensor& out, const at::Tensor& log_sums, const at::Tensor& dout,
                        const Segments& segments, at::Tensor& dqkv);

}  // namespace asyncthink::training
