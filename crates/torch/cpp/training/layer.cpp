// A decoder layer, forward and backward, without a graph: fused kernels between libtorch's matrix products, gradients
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
#include "row_kernels.h"
#include "rows.h"

namespace asyncthink::training {

namespace {

// Looks the parts of a layer up by name.
class Layer {
 public:
  // Checks what the kernels rely on: they read and write by address.
  Layer(const RawLayer& raw, const at::Tensor& input) : raw_(raw) {
    const auto type = input.scalar_type();
    const bool is_on_gpu = input.is_cuda() && type == at::kBFloat16 && row_kernels(input) != nullptr;
    TORCH_CHECK(is_on_gpu || (input.is_cpu() && (type == at::kFloat || type == at::kBFloat16)),
                "hidden states must be f32 or bf16 on the CPU, or bf16 on a GPU whose kernels are open");
    TORCH_CHECK(input.dim() == 2 && input.is_contiguous(), "hidden states must be contiguous `[tokens, hidden]`");
    const auto check = [&](const at::Tensor& tensor, const char* name) {
      TORCH_CHECK(tensor.device() == input.device() && tensor.scalar_type() == type && tensor.is_contiguous(), name,
                  " must be contiguous, of the type of the hidden states, on their device");
    };
    for (int which = 0; which < kNumParameters; ++which) {
      if (raw.parameters[which] == nullptr) continue;
      check(*raw.parameters[which], "a parameter");
      if (raw.gradients[which] == nullptr) continue;
      const at::Tensor& gradient = *raw.gradients[which];
      TORCH_CHECK(gradient.device() == input.device() && gradient.sizes() == raw.parameters[which]->sizes(), "a gradient must be like its parameter");
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

  // Of the rows of a tile.
  template <class Tile>
  Rotation rotation(const Tile& tile) const {
    return Rotation{tile(*raw_.cos), tile(*raw_.sin), or_none(kQueryNorm), or_none(kKeyNorm), num_heads(), num_kv_heads(), raw_.head_dim, raw_.eps};
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

// Rows that pass through the products of a block together. Where the weights of a layer fit in a core's cache beside some rows, what
// one product writes and the next reads stays there too.
int64_t tile_rows(const Layer& layer, int64_t tokens) {
  constexpr int64_t kWeightBytes = 2 << 20, kRows = 512;
  const at::Tensor& gate = layer.at(kGate);
  const int64_t bytes = 3 * gate.numel() * static_cast<int64_t>(gate.element_size());
  return !gate.is_cpu() || bytes > kWeightBytes || at::get_num_threads() > 1 ? std::max<int64_t>(tokens, 1) : kRows;
}

// Calls `with` for one tile of rows after the other.
template <class With>
void for_tiles(const Layer& layer, int64_t tokens, const With& with) {
  const int64_t rows = tile_rows(layer, tokens);
  for (int64_t first = 0; first < tokens; first += rows) {
    const int64_t count = std::min(rows, tokens - first);
    with([first, count](const at::Tensor& tensor) { return tensor.narrow(0, first, count); });
  }
}

at::Tensor forward(const Layer& layer, const at::Tensor& input, SavedLayer* saved) {
  const int64_t tokens = input.size(0), hidden = input.size(1), width = layer.at(kGate).size(0);
  const int64_t heads = layer.at(kQuery).size(0), kv_heads = layer.at(kKey).size(0);
  const auto options = input.options();
  const auto empty = [&](int64_t columns) { return at::empty({tokens, columns}, options); };
  const at::Tensor input_rstd = at::empty({tokens}, options.dtype(at::kFloat)), middle_rstd = at::empty_like(input_rstd);
  // The backward pass of a norm needs what was normed; a rotation alone is undone.
  const at::Tensor projected = empty(heads + 2 * kv_heads);
  const at::Tensor rotated = layer.has(kQueryNorm) ? empty(heads + kv_heads) : projected;
  const at::Tensor query_key_value = layer.query_key_value();
  for_tiles(layer, tokens, [&](const auto& tile) {
    at::Tensor rows = tile(projected);
    at::mm_out(rows, norm_forward(tile(input), layer.at(kInputNorm), layer.eps(), tile(input_rstd)), query_key_value.t());
    add_bias(rows.narrow(1, 0, heads), layer, kQueryBias);
    add_bias(rows.narrow(1, heads, kv_heads), layer, kKeyBias);
    add_bias(rows.narrow(1, heads + kv_heads, kv_heads), layer, kValueBias);
    rotary_forward(layer.rotation(tile), rows, tile(rotated));
  });
  const Segments segments = layer.segments(tokens);
  const AttentionOutput attended = attention_forward(layer.attended(rotated, projected), segments);
  const at::Tensor middle = empty(hidden), output = empty(hidden);
  // Without a backward pass a tile's gate is not kept.
  const at::Tensor gate_up = saved == nullptr ? at::Tensor() : empty(2 * width);
  for_tiles(layer, tokens, [&](const auto& tile) {
    at::Tensor rows = tile(middle), result = tile(output);
    at::addmm_out(rows, tile(input), tile(attended.out), layer.at(kOutput).t());
    add_bias(rows, layer, kOutputBias);
    const at::Tensor normed = norm_forward(rows, layer.at(kPostNorm), layer.eps(), tile(middle_rstd));
    const at::Tensor both = saved == nullptr ? at::empty({rows.size(0), 2 * width}, options) : tile(gate_up);
    at::Tensor gate = both.narrow(1, 0, width), up = both.narrow(1, width, width);
    at::mm_out(gate, normed, layer.at(kGate).t());
    at::mm_out(up, normed, layer.at(kUp).t());
    add_bias(gate, layer, kGateBias);
    add_bias(up, layer, kUpBias);
    at::addmm_out(result, rows, gate_forward(both), layer.at(kDown).t());
    add_bias(result, layer, kDownBias);
  });
  if (saved != nullptr) {
    *saved = SavedLayer{input, input_rstd, projected, rotated, attended, middle, middle_rstd, gate_up};
  }
  return output;
}

// Gradient of the input; undefined if it is not wanted. What was saved is used up.
at::Tensor backward(const Layer& layer, SavedLayer& saved, const at::Tensor& doutput, bool wants_input) {
  const int64_t tokens = doutput.size(0), width = layer.at(kGate).size(0);
  const int64_t heads = layer.at(kQuery).size(0), kv_heads = layer.at(kKey).size(0);
  // Feed-forward block, down to what attention gave.
  at::Tensor dmiddle = doutput.clone();
  at::Tensor dattended = at::empty_like(saved.attended.out);
  for_tiles(layer, tokens, [&](const auto& tile) {
    const at::Tensor drows = tile(doutput), rows = tile(saved.middle), dgate_up = tile(saved.gate_up), d = tile(dmiddle);
    const at::Tensor act = gate_backward(dgate_up, at::mm(drows, layer.at(kDown)));
    add_weight_gradient(layer.gradient(kDown), drows, act);
    add_bias_gradient(layer.gradient(kDownBias), drows);
    const at::Tensor dgate = dgate_up.narrow(1, 0, width), dup = dgate_up.narrow(1, width, width);
    const at::Tensor dnormed = at::mm(dgate, layer.at(kGate)).addmm_(dup, layer.at(kUp));
    if (layer.gradient(kGate).defined() || layer.gradient(kUp).defined()) {
      const at::Tensor normed = norm_forward(rows, layer.at(kPostNorm), layer.eps(), tile(saved.middle_rstd));
      add_weight_gradient(layer.gradient(kGate), dgate, normed);
      add_weight_gradient(layer.gradient(kUp), dup, normed);
      add_bias_gradient(layer.gradient(kGateBias), dgate);
      add_bias_gradient(layer.gradient(kUpBias), dup);
    }
    norm_backward(rows, layer.at(kPostNorm), tile(saved.middle_rstd), dnormed, d, layer.gradient(kPostNorm));
    add_weight_gradient(layer.gradient(kOutput), d, tile(saved.attended.out));
    add_bias_gradient(layer.gradient(kOutputBias), d);
    at::Tensor result = tile(dattended);
    at::mm_out(result, d, layer.at(kOutput));
  });
  saved.gate_up.reset();
  saved.middle.reset();
  // Attention block.
  at::Tensor dqkv = at::zeros({tokens, heads + 2 * kv_heads}, saved.input_rstd.options());
  attention_backward(layer.attended(saved.rotated, saved.projected), saved.attended, dattended, layer.segments(tokens), dqkv);
  dattended.reset();
  saved.attended = AttentionOutput{};
  const bool is_trained = layer.gradient(kQuery).defined() || layer.gradient(kKey).defined() || layer.gradient(kValue).defined();
  const bool wants_norm = wants_input || layer.gradient(kInputNorm).defined();
  const at::Tensor query_key_value = layer.query_key_value();
  for_tiles(layer, tokens, [&](const auto& tile) {
    const at::Tensor rows = tile(saved.input), projected = tile(saved.projected);
    const at::Tensor dprojected = at::empty_like(projected);
    rotary_backward(layer.rotation(tile), projected, tile(dqkv), dprojected, layer.gradient(kQueryNorm), layer.gradient(kKeyNorm));
    if (is_trained) {
      const at::Tensor normed = norm_forward(rows, layer.at(kInputNorm), layer.eps(), tile(saved.input_rstd));
      const at::Tensor all = at::mm(dprojected.t(), normed);
      int64_t first = 0;
      for (const auto& [weight, bias] : {std::pair{kQuery, kQueryBias}, {kKey, kKeyBias}, {kValue, kValueBias}}) {
        const int64_t columns = layer.at(weight).size(0);
        at::Tensor gradient = layer.gradient(weight);
        if (gradient.defined()) gradient.add_(all.narrow(0, first, columns));
        add_bias_gradient(layer.gradient(bias), dprojected.narrow(1, first, columns));
        first += columns;
      }
    }
    if (wants_norm) {
      const at::Tensor dnormed = at::mm(dprojected, query_key_value);
      norm_backward(rows, layer.at(kInputNorm), tile(saved.input_rstd), dnormed, tile(dmiddle), layer.gradient(kInputNorm));
    }
  });
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
