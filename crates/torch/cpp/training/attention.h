// Attention over segments: by our kernels on the CPU, by libtorch's flash attention on a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "segments.h"

namespace asyncthink::training {

// Queries, keys and values of a packed batch: `[tokens, heads * head_dim]`, rows any distance apart.
struct Attended {
  at::Tensor query, key, value;
  int64_t num_heads, num_kv_heads, head_dim;
};

struct AttentionOutput {
  at::Tensor out;       // [tokens, heads * head_dim]
  at::Tensor log_sums;  // f32 [heads, tokens]
  at::Tensor random_state, unused;  // what flash attention's backward pass asks for besides
};

AttentionOutput attention_forward(const Attended& in, const Segments& segments);
// Adds to f32 gradients `[tokens, (heads + 2 * kv_heads) * head_dim]` of queries, keys and values.
void attention_backward(const Attended& in, const AttentionOutput& attended, const at::Tensor& dout, const Segments& segments,
                        at::Tensor& dqkv);

// The same on a GPU, in bf16.
AttentionOutput flash_forward(const Attended& in, const Segments& segments);
void flash_backward(const Attended& in, const AttentionOutput& attended, const at::Tensor& dout, const Segments& segments,
                    at::Tensor& dqkv);

}  // namespace asyncthink::training
