// Attention over segments: items of work on the CPU, and the differentiable operation.
#include "attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../cpu_training/kernels.h"
#include "../shim.h"

namespace asyncthink::training {

namespace {

using cpu_training::AttentionArgs;
using cpu_training::Kernels;

const Kernels* kernels_of(const at::Tensor& tensor) {
  return cpu_training::choose_kernels(tensor.scalar_type() == at::kBFloat16);
}

AttentionArgs arguments(const Attended& in, const at::Tensor& out, const at::Tensor& log_sums, const Segments& segments) {
  AttentionArgs args{};
  args.query = in.query.const_data_ptr();
  args.key = in.key.const_data_ptr();
  args.value = in.value.const_data_ptr();
  args.query_stride = in.query.stride(0);
  args.key_stride = in.key.stride(0);
  args.value_stride = in.value.stride(0);
  args.out = out.data_ptr();
  args.log_sums = log_sums.data_ptr<float>();
  args.num_tokens = in.query.size(0);
  args.num_heads = in.num_heads;
  args.num_kv_heads = in.num_kv_heads;
  args.head_dim = in.head_dim;
  args.starts = segments.starts.data();
  args.lens = segments.lens.data();
  args.prefixes = segments.prefixes.data();
  args.num_keys = segments.num_keys.data();
  return args;
}

float* scratch_of(const AttentionArgs& args, int64_t segment) {
  static thread_local std::vector<float> scratch;
  const int64_t floats = cpu_training::attention_scratch(args.lens[segment], args.num_keys[segment], args.head_dim);
  if (static_cast<int64_t>(scratch.size()) < floats) scratch.resize(static_cast<size_t>(floats));
  return scratch.data();
}

}  // namespace

AttentionOutput attention_forward(const Attended& in, const Segments& segments) {
  if (in.query.is_cuda()) return flash_forward(in, segments);
  const int64_t tokens = in.query.size(0);
  const at::Tensor out = at::empty({tokens, in.num_heads * in.head_dim}, in.query.options().requires_grad(false));
  const at::Tensor log_sums = at::empty({in.num_heads, tokens}, out.options().dtype(at::kFloat));
  const AttentionArgs args = arguments(in, out, log_sums, segments);
  const Kernels* kernels = kernels_of(in.query);
  parallel_tasks(segments.size() * in.num_kv_heads, [&](int64_t task) {
    const int64_t segment = task / in.num_kv_heads;
    kernels->attention_forward(args, segment, task % in.num_kv_heads, scratch_of(args, segment));
  });
  return AttentionOutput{out, log_sums, {}, {}};
}

void attention_backward(const Attended& in, const AttentionOutput& attended, const at::Tensor& dout, const Segments& segments,
                        at::Tensor& dqkv) {
  if (in.query.is_cuda()) return flash_backward(in, attended, dout, segments, dqkv);
  AttentionArgs args = arguments(in, attended.out, attended.log_sums, segments);
  args.dout = dout.const_data_ptr();
  args.dquery = dqkv.data_ptr<float>();
  args.dkey = args.dquery + in.num_heads * in.head_dim;
  args.dvalue = args.dkey + in.num_kv_heads * in.head_dim;
  args.dqkv_stride = dqkv.stride(0);
  const Kernels* kernels = kernels_of(in.query);
  const auto trees = segments.trees();
  // Segments of a tree add to the gradients of the same keys: one thread after the other, in a fixed order.
  parallel_tasks(static_cast<int64_t>(trees.size()) * in.num_kv_heads, [&](int64_t task) {
    for (const int64_t segment : trees[task / in.num_kv_heads]) {
      kernels->attention_backward(args, segment, task % in.num_kv_heads, scratch_of(args, segment));
    }
  });
}

namespace {

at::Tensor rows_of(const at::Tensor& heads) { return heads.contiguous().flatten(1, 2); }

// The differentiable operation, for layers that are computed by libtorch's graph.
struct SegmentAttention : torch::autograd::Function<SegmentAttention> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, std::vector<int64_t> lens, std::vector<int64_t> prefixes) {
    const Attended in{rows_of(query), rows_of(key), rows_of(value), query.size(1), key.size(1), query.size(2)};
    const Segments segments(lens.data(), prefixes.data(), static_cast<int64_t>(lens.size()), query.size(0));
    const AttentionOutput attended = attention_forward(in, segments);
    context->save_for_backward({in.query, in.key, in.value, attended.out, attended.log_sums, attended.random_state, attended.unused});
    context->saved_data["lens"] = lens;
    context->saved_data["prefixes"] = prefixes;
    context->saved_data["head_dim"] = in.head_dim;
    return attended.out.view({query.size(0), query.size(1), query.size(2)});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto lens = context->saved_data["lens"].toIntVector(), prefixes = context->saved_data["prefixes"].toIntVector();
    const int64_t head_dim = context->saved_data["head_dim"].toInt();
    const int64_t tokens = saved[0].size(0), heads = saved[0].size(1) / head_dim, kv_heads = saved[1].size(1) / head_dim;
    const Attended in{saved[0], saved[1], saved[2], heads, kv_heads, head_dim};
    const Segments segments(lens.data(), prefixes.data(), static_cast<int64_t>(lens.size()), tokens);
    at::Tensor dqkv = at::zeros({tokens, heads + 2 * kv_heads, head_dim}, saved[0].options().dtype(at::kFloat));
    at::Tensor rows = dqkv.flatten(1, 2);
    attention_backward(in, AttentionOutput{saved[3], saved[4], saved[5], saved[6]}, rows_of(grads[0]), segments, rows);
    const auto part = [&](int64_t first, int64_t count) { return dqkv.narrow(1, first, count).to(saved[0].scalar_type()); };
    return {part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

}  // namespace asyncthink::training

extern "C" char* asyncthink_segment_attention(const at::Tensor* query, const at::Tensor* key, const at::Tensor* value,
                                              const int64_t* lens, const int64_t* prefixes, int64_t num_segments, at::Tensor** out) {
  return asyncthink::guarded([&] {
    const std::vector<int64_t> all(lens, lens + num_segments);
    const std::vector<int64_t> before = prefixes == nullptr ? std::vector<int64_t>(static_cast<size_t>(num_segments), -1)
                                                            : std::vector<int64_t>(prefixes, prefixes + num_segments);
    *out = new at::Tensor(asyncthink::training::SegmentAttention::apply(*query, *key, *value, all, before));
  });
}
