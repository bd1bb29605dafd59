// Norm, gate and rotation of packed rows on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace asyncthink::training {

// The normed rows; writes their rstd, f32 `[rows]`.
at::Tensor norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& rstd);
// Adds to `dx`, and to `dweight` where it is defined.
void norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd, const at::Tensor& dy, const at::Tensor& dx,
                   at::Tensor dweight);

struct Rotation {
  at::Tensor cos, sin;  // [tokens, head_dim / 2]
  at::Tensor query_norm, key_norm;  // undefined where the family has none
  int64_t num_heads, num_kv_heads, head_dim;
  double eps;
};

// Rotates queries and keys of `qkv` `[tokens, (heads + 2 * kv_heads) * head_dim]` into `out`, which may be the same.
void rotary_forward(const Rotation& rotation, const at::Tensor& qkv, const at::Tensor& out);
// Turns f32 gradients of what rotary_forward gave into those of `qkv`, written into `dqkv`; `qkv` is read with norms only.
void rotary_backward(const Rotation& rotation, const at::Tensor& qkv, const at::Tensor& gradient, const at::Tensor& dqkv,
                     at::Tensor dquery_norm, at::Tensor dkey_norm);

// silu(gate) * up of `[rows, 2 * width]`.
at::Tensor gate_forward(const at::Tensor& gate_up);
// Replaces `gate_up` by its gradient and returns silu(gate) * up.
at::Tensor gate_backward(const at::Tensor& gate_up, const at::Tensor& dact);

}  // namespace asyncthink::training
