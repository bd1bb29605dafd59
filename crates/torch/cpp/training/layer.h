// A decoder layer with its gradient, as Rust passes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "attention.h"

namespace asyncthink::training {

// Order of a layer's parameters; a null pointer stands for one that the layer does not have.
enum Parameter : int {
  kInputNorm,
  kQuery,
  kQueryBias,
  kKey,
  kKeyBias,
  kValue,
  kValueBias,
  kQueryNorm,
  kKeyNorm,
  kOutput,
  kOutputBias,
  kPostNorm,
  kGate,
  kGateBias,
  kUp,
  kUpBias,
  kDown,
  kDownBias,
  kNumParameters
};

struct RawLayer {
  const at::Tensor* parameters[kNumParameters];
  const at::Tensor* gradients[kNumParameters];  // null: not trained
  int64_t head_dim;
  double eps;
  const at::Tensor* cos;  // [tokens, head_dim / 2]
  const at::Tensor* sin;
  const int64_t* lens;
  const int64_t* prefixes;  // may be null
  int64_t num_segments;
};

// Activations that the backward pass reads.
struct SavedLayer {
  at::Tensor input, input_rstd, projected, rotated;
  AttentionOutput attended;
  at::Tensor middle, middle_rstd, gate_up;
};

}  // namespace asyncthink::training
