// Operations of training that tch does not offer.
#include "../shim.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

namespace {

using TensorPointers = const at::Tensor* const*;

std::vector<at::Tensor> tensor_list(TensorPointers tensors, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t index = 0; index < count; ++index) list.push_back(*tensors[index]);
  return list;
}

}  // namespace

extern "C" {

void asyncthink_free(char* message) { std::free(message); }

char* asyncthink_fused_adamw(TensorPointers params, TensorPointers grads, TensorPointers exp_avgs,
                             TensorPointers exp_avg_sqs, size_t count, double step, double learning_rate,
                             double beta1, double beta2, double weight_decay, double eps) {
  return asyncthink::guarded([&] {
    if (count == 0) return;
    c10::NoGradGuard no_grad;
    // The operator only reads the step, so that all parameters can share one.
    at::Tensor shared_step = at::full({}, step, params[0]->options().dtype(at::kFloat).requires_grad(false));
    std::vector<at::Tensor> steps(count, shared_step);
    at::_fused_adamw_(tensor_list(params, count), tensor_list(grads, count), tensor_list(exp_avgs, count),
                      tensor_list(exp_avg_sqs, count), /*max_exp_avg_sqs=*/{}, steps, learning_rate, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

char* asyncthink_global_norm(TensorPointers tensors, size_t count, double* norm) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    *norm = 0.0;
    if (count == 0) return;
    // In double: a sum of squares in float depends on how it is cut into parts, in its sixth digit.
    std::vector<at::Tensor> norms;
    for (const at::Tensor& tensor : tensor_list(tensors, count)) {
      norms.push_back(at::linalg_vector_norm(tensor, 2, std::nullopt, false, at::kDouble));
    }
    *norm = at::linalg_vector_norm(at::stack(norms)).item<double>();
  });
}

char* asyncthink_set_grad(const at::Tensor* tensor, const at::Tensor* grad) {
  return asyncthink::guarded([&] { tensor->mutable_grad() = *grad; });
}

char* asyncthink_scale(TensorPointers tensors, size_t count, double factor) {
  return asyncthink::guarded([&] {
    if (count == 0) return;
    c10::NoGradGuard no_grad;
    at::_foreach_mul_(tensor_list(tensors, count), factor);
  });
}

char* asyncthink_backward(TensorPointers tensors, TensorPointers grads, size_t count, bool retain_graph) {
  return asyncthink::guarded([&] {
    torch::autograd::backward(tensor_list(tensors, count), tensor_list(grads, count), retain_graph);
  });
}

}  // extern "C"
