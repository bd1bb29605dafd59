// Norm, gate and rotation of packed rows: work for each thread, and sums over rows in a fixed order.
#include "rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <stdexcept>
#include <string>

#include "../cpu_training/kernels.h"
#include "row_kernels.h"
#include "segments.h"

namespace asyncthink::training {

namespace {

using namespace cpu_training;

const Kernels* kernels_of(const at::Tensor& tensor) { return choose_kernels(tensor.scalar_type() == at::kBFloat16); }

at::TensorOptions f32(const at::Tensor& like) { return like.options().dtype(at::kFloat).requires_grad(false); }

// Cuts rows into as many parts as there are threads; `task` gets a part's number and its rows.
template <class Task>
void parallel_parts(int64_t rows, int64_t parts, const Task& task) {
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) task(part, rows * part / parts, rows * (part + 1) / parts);
  });
}

float* part_of(const at::Tensor& parts, int64_t part) {
  return parts.defined() ? parts.data_ptr<float>() + part * parts.size(1) : nullptr;
}

at::Tensor parts_for(const at::Tensor& gradient, int64_t parts, const at::Tensor& like) {
  return gradient.defined() ? at::zeros({parts, gradient.size(0)}, f32(like)) : at::Tensor();
}

void add_parts(at::Tensor& gradient, const at::Tensor& parts) {
  if (gradient.defined()) gradient.add_(parts.size(0) == 1 ? parts[0] : parts.sum(0));
}

// A call of a GPU's kernel.
class OnGpu {
 public:
  OnGpu(const RowKernels* kernels, const at::Tensor& tensor) : kernels_(kernels), kind_(tensor.scalar_type() == at::kBFloat16) {
    check(kernels->stream(tensor.is_cuda() ? tensor.get_device() : 0, &stream_));
  }

  const RowKernels* operator->() const { return kernels_; }
  int32_t kind() const { return kind_; }
  void* stream() const { return stream_; }

  void check(char* message) const {
    if (message == nullptr) return;
    const std::string text = message;
    kernels_->free(message);
    throw std::runtime_error(text);
  }

 private:
  const RowKernels* kernels_;
  int32_t kind_;
  void* stream_ = nullptr;
};

// Parts of a sum over rows on a GPU: enough to fill one, and few enough to be added at little cost.
constexpr int64_t kGpuParts = 256, kRotaryWarps = 4;

const void* place(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
float* place_f32(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; }

}  // namespace

at::Tensor norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& rstd) {
  const at::Tensor y = at::empty_like(x);
  if (const RowKernels* kernels = row_kernels(x)) {
    const OnGpu gpu(kernels, x);
    gpu.check(gpu->norm_forward(gpu.kind(), place(x), place(weight), y.data_ptr(), rstd.data_ptr<float>(), x.size(0), x.size(1),
                                static_cast<float>(eps), gpu.stream()));
    return y;
  }
  NormArgs args{};
  args.x = x.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.rstd = rstd.data_ptr<float>();
  args.width = x.size(1);
  args.eps = static_cast<float>(eps);
  args.y = y.data_ptr();
  const Kernels* kernels = kernels_of(x);
  parallel_rows(x.size(0), args.width, [&](int64_t begin, int64_t end) { kernels->norm_forward(args, begin, end); });
  return y;
}

void norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd, const at::Tensor& dy, const at::Tensor& dx,
                   at::Tensor dweight) {
  if (const RowKernels* kernels = row_kernels(x)) {
    const OnGpu gpu(kernels, x);
    const int64_t parts = std::max<int64_t>(1, std::min(x.size(0), kGpuParts));
    const at::Tensor sums = parts_for(dweight, parts, x);
    gpu.check(gpu->norm_backward(gpu.kind(), place(x), place(weight), rstd.const_data_ptr<float>(), place(dy), dx.data_ptr(),
                                 place_f32(sums), parts, x.size(0), x.size(1), gpu.stream()));
    add_parts(dweight, sums);
    return;
  }
  NormArgs args{};
  args.x = x.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.rstd = rstd.data_ptr<float>();
  args.width = x.size(1);
  args.dy = dy.const_data_ptr();
  args.dx = dx.data_ptr();
  const Kernels* kernels = kernels_of(x);
  const int64_t parts = at::get_num_threads();
  const at::Tensor sums = parts_for(dweight, parts, x);
  parallel_parts(x.size(0), parts, [&](int64_t part, int64_t begin, int64_t end) {
    NormArgs own = args;
    own.dweight = part_of(sums, part);
    kernels->norm_backward(own, begin, end);
  });
  add_parts(dweight, sums);
}

namespace {

RotaryArgs rotary_arguments(const Rotation& rotation, const at::Tensor& qkv) {
  RotaryArgs args{};
  args.x = qkv.const_data_ptr();
  args.x_stride = qkv.stride(0);
  args.num_heads = rotation.num_heads;
  args.num_kv_heads = rotation.num_kv_heads;
  args.head_dim = rotation.head_dim;
  args.cos = rotation.cos.const_data_ptr();
  args.sin = rotation.sin.const_data_ptr();
  args.query_norm = rotation.query_norm.defined() ? rotation.query_norm.const_data_ptr() : nullptr;
  args.key_norm = rotation.key_norm.defined() ? rotation.key_norm.const_data_ptr() : nullptr;
  args.eps = static_cast<float>(rotation.eps);
  return args;
}

// Backward where `gradient` is defined.
void rotary_on_gpu(const OnGpu& gpu, const Rotation& rotation, const at::Tensor& x, const at::Tensor& y, const at::Tensor& gradient,
                   const at::Tensor& sums) {
  gpu.check(gpu->rotary(gpu.kind(), place(x), y.data_ptr(), static_cast<const float*>(place(gradient)), place(rotation.cos),
                        place(rotation.sin), place(rotation.query_norm), place(rotation.key_norm), place_f32(sums), kGpuParts, x.size(0),
                        x.stride(0), y.stride(0), gradient.defined() ? gradient.stride(0) : 0, rotation.num_heads,
                        rotation.num_kv_heads, rotation.head_dim, static_cast<float>(rotation.eps), gpu.stream()));
}

}  // namespace

void rotary_forward(const Rotation& rotation, const at::Tensor& qkv, const at::Tensor& out) {
  if (const RowKernels* kernels = row_kernels(qkv)) {
    rotary_on_gpu(OnGpu(kernels, qkv), rotation, qkv, out, at::Tensor(), at::Tensor());
    return;
  }
  RotaryArgs args = rotary_arguments(rotation, qkv);
  args.y = out.data_ptr();
  args.y_stride = out.stride(0);
  const Kernels* kernels = kernels_of(qkv);
  parallel_rows(qkv.size(0), qkv.size(1), [&](int64_t begin, int64_t end) { kernels->rotary_forward(args, begin, end); });
}

void rotary_backward(const Rotation& rotation, const at::Tensor& qkv, const at::Tensor& gradient, const at::Tensor& dqkv,
                     at::Tensor dquery_norm, at::Tensor dkey_norm) {
  if (const RowKernels* kernels = row_kernels(qkv)) {
    const bool wants_norms = dquery_norm.defined() || dkey_norm.defined();
    const at::Tensor sums =
        wants_norms ? at::zeros({2, kRotaryWarps * kGpuParts, rotation.head_dim}, gradient.options()) : at::Tensor();
    rotary_on_gpu(OnGpu(kernels, qkv), rotation, qkv, dqkv, gradient, sums);
    if (dquery_norm.defined()) dquery_norm.add_(sums[0].sum(0));
    if (dkey_norm.defined()) dkey_norm.add_(sums[1].sum(0));
    return;
  }
  RotaryArgs args = rotary_arguments(rotation, qkv);
  args.dy = gradient.const_data_ptr<float>();
  args.dy_stride = gradient.stride(0);
  args.dx = dqkv.data_ptr();
  const Kernels* kernels = kernels_of(qkv);
  const int64_t parts = at::get_num_threads();
  const at::Tensor query_sums = parts_for(dquery_norm, parts, qkv), key_sums = parts_for(dkey_norm, parts, qkv);
  parallel_parts(qkv.size(0), parts, [&](int64_t part, int64_t begin, int64_t end) {
    RotaryArgs own = args;
    own.dquery_norm = part_of(query_sums, part);
    own.dkey_norm = part_of(key_sums, part);
    kernels->rotary_backward(own, begin, end);
  });
  add_parts(dquery_norm, query_sums);
  add_parts(dkey_norm, key_sums);
}

at::Tensor gate_forward(const at::Tensor& gate_up) {
  const int64_t width = gate_up.size(1) / 2;
  const at::Tensor act = at::empty({gate_up.size(0), width}, gate_up.options());
  if (const RowKernels* kernels = row_kernels(gate_up)) {
    const OnGpu gpu(kernels, gate_up);
    gpu.check(gpu->gate(gpu.kind(), gate_up.data_ptr(), nullptr, act.data_ptr(), act.size(0), width, gpu.stream()));
    return act;
  }
  GateArgs args{};
  args.gate_up = gate_up.data_ptr();
  args.act = act.data_ptr();
  args.width = width;
  const Kernels* kernels = kernels_of(gate_up);
  parallel_rows(gate_up.size(0), width, [&](int64_t begin, int64_t end) { kernels->gate_forward(args, begin, end); });
  return act;
}

at::Tensor gate_backward(const at::Tensor& gate_up, const at::Tensor& dact) {
  const at::Tensor act = at::empty_like(dact);
  if (const RowKernels* kernels = row_kernels(gate_up)) {
    const OnGpu gpu(kernels, gate_up);
    gpu.check(gpu->gate(gpu.kind(), gate_up.data_ptr(), place(dact), act.data_ptr(), act.size(0), act.size(1), gpu.stream()));
    return act;
  }
  GateArgs args{};
  args.gate_up = gate_up.data_ptr();
  args.act = act.data_ptr();
  args.dact = dact.const_data_ptr();
  args.width = dact.size(1);
  const Kernels* kernels = kernels_of(gate_up);
  parallel_rows(dact.size(0), args.width, [&](int64_t begin, int64_t end) { kernels->gate_backward(args, begin, end); });
  return act;
}

}  // namespace asyncthink::training
