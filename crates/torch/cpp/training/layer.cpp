// A decoder layer on the CPU, forward and backward, without a graph: fused kernels between libtorch's matrix products, gradients
// added where the optimizer keeps them.
#include "layer.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include "../shim.h"
#include "attention.h"
#include "rows.h"

namespace asyncthink::training {

namespace {

// Looks the parts of a layer up by name.
class Layer {
 public:
  // Checks what the kernels rely on: they read and write by address.
  Layer(const RawLayer& raw, const at::Tensor& input) : raw_(raw) {
    const auto type = input.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "hidden states must be f32 or bf16");
    TORCH_CHECK(input.is_cpu() && input.dim() == 2 && input.is_contiguous(), "hidden states must be contiguous `[tokens, hidden]` on the CPU");
    const auto check = [&](const at::Tensor& tensor, const char* name) {
      TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.is_contiguous(), name, " must be contiguous, of the type of the hidden states, on the CPU");
    };
    for (int which = 0; which < kNumParameters; ++which) {
      if (raw.parameters[which] == nullptr) continue;
      check(*raw.parameters[which], "a parameter");
      if (raw.gradients[which] == nullptr) continue;
      const at::Tensor& gradient = *raw.gradients[which];
      TORCH_CHECK(gradient.is_cpu() && gradient.sizes() == raw.parameters[which]->sizes(), "a gradient must be like its parameter");
    }
    const int64_t hidden = input.size(1), dim = raw.head_dim, tokens = input.size(0);
    const auto is = [&](Parameter which, c10::IntArrayRef sizes) {
      TORCH_CHECK(!has(which) || at(which).sizes() == sizes, "parameter ", static_cast<int>(which), " has the wrong shape");
    };
    TORCH_CHECK(dim > 0 && dim % 2 == 0 && dim <= 512 && at(kQuery).size(0) % dim == 0 && at(kKey).size(0) % dim == 0,
                "heads must be of even width up to 512");
    TORCH_CHECK(num_kv_heads() > 0 && num_heads() % num_kv_heads() == 0, "query heads must be a multiple of key-value heads");
    const int64_t heads = at(kQuery).size(0), kv_heads = at(kKey).size(0), width = at(kGate).size(0);
    is(kInputNorm, {hidden});
    is(kPostNorm, {hidden});
    is(kQuery, {heads, hidden});
    is(kKey, {kv_heads, hidden});
    is(kValue, {kv_heads, hidden});
    is(kQueryNorm, {dim});
    is(kKeyNorm, {dim});
    is(kOutput, {hidden, heads});
    is(kGate, {width, hidden});
    is(kUp, {width, hidden});
    is(kDown, {hidden, width});
    TORCH_CHECK(has(kQueryNorm) == has(kKeyNorm), "queries and keys are normed together");
    for (const at::Tensor* table : {raw.cos, raw.sin}) {
      check(*table, "a rotation");
      TORCH_CHECK(table->numel() == tokens * dim / 2, "there must be a rotation for every token");
    }
  }

  const at::Tensor& at(Parameter which) const { return *raw_.parameters[which]; }
  bool has(Parameter which) const { return raw_.parameters[which] != nullptr; }
  at::Tensor gradient(Parameter which) const {
    return raw_.gradients[which] == nullptr ? at::Tensor() : *raw_.gradients[which];
  }
  at::Tensor or_none(Parameter which) const { return has(which) ? at(which) : at::Tensor(); }

  int64_t num_heads() const { return at(kQuery).size(0) / raw_.head_dim; }
  int64_t num_kv_heads() const { return at(kKey).size(0) / raw_.head_dim; }

  Rotation rotation() const {
    return Rotation{*raw_.cos, *raw_.sin, or_none(kQueryNorm), or_none(kKeyNorm), num_heads(), num_kv_heads(), raw_.head_dim, raw_.eps};
  }

  // Weights of queries, keys and values as one matrix: one product in place of three, of which two are narrow.
  at::Tensor query_key_value() const { return at::cat({at(kQuery), at(kKey), at(kValue)}); }

  // Views of `[tokens, (heads + 2 * kv_heads) * head_dim]`: what is attended with, and what to.
  Attended attended(const at::Tensor& rotated, const at::Tensor& projected) const {
    const int64_t heads = num_heads() * raw_.head_dim, kv_heads = num_kv_heads() * raw_.head_dim;
    return Attended{rotated.narrow(1, 0, heads), rotated.narrow(1, heads, kv_heads), projected.narrow(1, heads + kv_heads, kv_heads),
                    num_heads(),                 num_kv_heads(),                     raw_.head_dim};
  }

  Segments segments(int64_t tokens) const { return Segments(raw_.lens, raw_.prefixes, raw_.num_segments, tokens); }
  double eps() const { return raw_.eps; }

 private:
  RawLayer raw_;
};

void add_bias(at::Tensor rows, const Layer& layer, Parameter which) {
  if (layer.has(which)) rows.add_(layer.at(which));
}

// gradient += d^T x.
void add_weight_gradient(at::Tensor gradient, const at::Tensor& d, const at::Tensor& x) {
  if (!gradient.defined()) return;
  if (gradient.scalar_type() == d.scalar_type()) {
    gradient.addmm_(d.t(), x);
  } else {
    gradient.add_(at::mm(d.t(), x));
  }
}

void add_bias_gradient(at::Tensor gradient, const at::Tensor& d) {
  if (gradient.defined()) gradient.add_(at::sum(d, 0, false, at::kFloat));
}

at::Tensor forward(const Layer& layer, const at::Tensor& input, SavedLayer* saved) {
  const int64_t tokens = input.size(0);
  auto [normed, input_rstd] = norm_forward(input, layer.at(kInputNorm), layer.eps());
  at::Tensor projected = at::mm(normed, layer.query_key_value().t());
  const int64_t heads = layer.at(kQuery).size(0), kv_heads = layer.at(kKey).size(0);
  add_bias(projected.narrow(1, 0, heads), layer, kQueryBias);
  add_bias(projected.narrow(1, heads, kv_heads), layer, kKeyBias);
  add_bias(projected.narrow(1, heads + kv_heads, kv_heads), layer, kValueBias);
  // The backward pass of a norm needs what was normed; a rotation alone is undone.
  at::Tensor rotated = layer.has(kQueryNorm) ? at::empty({tokens, heads + kv_heads}, projected.options()) : projected;
  rotary_forward(layer.rotation(), projected, rotated);
  const Segments segments = layer.segments(tokens);
  auto [attended, log_sums] = attention_forward(layer.attended(rotated, projected), segments);
  at::Tensor middle = at::addmm(input, attended, layer.at(kOutput).t());
  add_bias(middle, layer, kOutputBias);
  auto [middle_normed, middle_rstd] = norm_forward(middle, layer.at(kPostNorm), layer.eps());
  const int64_t width = layer.at(kGate).size(0);
  at::Tensor gate_up = at::empty({tokens, 2 * width}, input.options());
  at::Tensor gate = gate_up.narrow(1, 0, width), up = gate_up.narrow(1, width, width);
  at::mm_out(gate, middle_normed, layer.at(kGate).t());
  at::mm_out(up, middle_normed, layer.at(kUp).t());
  add_bias(gate, layer, kGateBias);
  add_bias(up, layer, kUpBias);
  at::Tensor output = at::addmm(middle, gate_forward(gate_up), layer.at(kDown).t());
  add_bias(output, layer, kDownBias);
  if (saved != nullptr) {
    *saved = SavedLayer{input, input_rstd, projected, rotated, attended, log_sums, middle, middle_rstd, gate_up};
  }
  return output;
}

// Gradient of the input; undefined if it is not wanted. What was saved is used up.
at::Tensor backward(const Layer& layer, SavedLayer& saved, const at::Tensor& doutput, bool wants_input) {
  // Feed-forward block.
  const int64_t width = layer.at(kGate).size(0);
  at::Tensor dmiddle = doutput.clone();
  {
    const at::Tensor dact = at::mm(doutput, layer.at(kDown));
    const at::Tensor act = gate_backward(saved.gate_up, dact);
    add_weight_gradient(layer.gradient(kDown), doutput, act);
    add_bias_gradient(layer.gradient(kDownBias), doutput);
  }
  {
    const at::Tensor dgate = saved.gate_up.narrow(1, 0, width), dup = saved.gate_up.narrow(1, width, width);
    at::Tensor dnormed = at::mm(dgate, layer.at(kGate)).addmm_(dup, layer.at(kUp));
    if (layer.gradient(kGate).defined() || layer.gradient(kUp).defined()) {
      const at::Tensor normed = norm_forward(saved.middle, layer.at(kPostNorm), layer.eps()).first;
      add_weight_gradient(layer.gradient(kGate), dgate, normed);
      add_weight_gradient(layer.gradient(kUp), dup, normed);
      add_bias_gradient(layer.gradient(kGateBias), dgate);
      add_bias_gradient(layer.gradient(kUpBias), dup);
    }
    norm_backward(saved.middle, layer.at(kPostNorm), saved.middle_rstd, dnormed, dmiddle, layer.gradient(kPostNorm));
  }
  saved.gate_up.reset();
  saved.middle.reset();
  // Attention block.
  const int64_t tokens = doutput.size(0), heads = layer.at(kQuery).size(0), kv_heads = layer.at(kKey).size(0);
  add_weight_gradient(layer.gradient(kOutput), dmiddle, saved.attended);
  add_bias_gradient(layer.gradient(kOutputBias), dmiddle);
  at::Tensor dprojected = at::empty_like(saved.projected);
  {
    const at::Tensor dattended = at::mm(dmiddle, layer.at(kOutput));
    at::Tensor dqkv = at::zeros({tokens, heads + 2 * kv_heads}, saved.log_sums.options());
    attention_backward(layer.attended(saved.rotated, saved.projected), saved.attended, saved.log_sums, dattended,
                       layer.segments(tokens), dqkv);
    rotary_backward(layer.rotation(), saved.projected, dqkv, dprojected, layer.gradient(kQueryNorm), layer.gradient(kKeyNorm));
  }
  const bool is_trained = layer.gradient(kQuery).defined() || layer.gradient(kKey).defined() || layer.gradient(kValue).defined();
  if (is_trained) {
    const at::Tensor normed = norm_forward(saved.input, layer.at(kInputNorm), layer.eps()).first;
    const at::Tensor all = at::mm(dprojected.t(), normed);
    int64_t first = 0;
    for (const auto& [weight, bias] : {std::pair{kQuery, kQueryBias}, {kKey, kKeyBias}, {kValue, kValueBias}}) {
      const int64_t rows = layer.at(weight).size(0);
      at::Tensor gradient = layer.gradient(weight);
      if (gradient.defined()) gradient.add_(all.narrow(0, first, rows));
      add_bias_gradient(layer.gradient(bias), dprojected.narrow(1, first, rows));
      first += rows;
    }
  }
  if (!wants_input && !layer.gradient(kInputNorm).defined()) return at::Tensor();
  const at::Tensor dnormed = at::mm(dprojected, layer.query_key_value());
  norm_backward(saved.input, layer.at(kInputNorm), saved.input_rstd, dnormed, dmiddle, layer.gradient(kInputNorm));
  return wants_input ? dmiddle : at::Tensor();
}

}  // namespace

}  // namespace asyncthink::training

using namespace asyncthink::training;

extern "C" {

// `saved` is null if there is no backward pass.
char* asyncthink_layer_forward(const RawLayer* raw, const at::Tensor* input, at::Tensor** output, SavedLayer** saved) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    auto kept = saved == nullptr ? nullptr : std::make_unique<SavedLayer>();
    *output = new at::Tensor(forward(Layer(*raw, *input), *input, kept.get()));
    if (saved != nullptr) *saved = kept.release();
  });
}

// `dinput` is null if it is not wanted.
char* asyncthink_layer_backward(const RawLayer* raw, SavedLayer* saved, const at::Tensor* doutput, at::Tensor** dinput) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    TORCH_CHECK(doutput->sizes() == saved->input.sizes() && doutput->scalar_type() == saved->input.scalar_type() && doutput->is_contiguous(),
                "the gradient must be like the hidden states");
    const Layer layer(*raw, saved->input);
    at::Tensor gradient = backward(layer, *saved, *doutput, dinput != nullptr);
    if (dinput != nullptr) *dinput = new at::Tensor(std::move(gradient));
  });
}

void asyncthink_layer_free(SavedLayer* saved) { delete saved; }

}  // extern "C"
