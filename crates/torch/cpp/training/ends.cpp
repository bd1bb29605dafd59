// What comes before the first layer and after the last, with gradients: embedding, final norm, output head.
//
// The head works on a chunk of tokens: logits, softmax and their gradient take one buffer `[tokens, vocab]` on the CPU.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include "../cpu_training/kernels.h"
#include "../shim.h"
#include "rows.h"
#include "segments.h"

namespace asyncthink::training {

namespace {

bool is_fused(const at::Tensor& tensor) {
  return tensor.is_cpu() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

using cpu_training::HeadArgs;

// Part of `dlogits` of each softmax: the gradient of the logits, in the type of `hidden`.
at::Tensor logits_gradient(const at::Tensor& hidden, at::Tensor logits, const at::Tensor& targets, const at::Tensor& log_sum,
                           const at::Tensor* entropy, const at::Tensor& dlogp, const at::Tensor* dentropy, double temperature) {
  if (is_fused(hidden)) {
    const bool is_f32 = hidden.scalar_type() == at::kFloat;
    at::Tensor dlogits = is_f32 ? logits : at::empty(logits.sizes(), hidden.options());
    HeadArgs args{};
    args.logits = logits.data_ptr<float>();
    args.vocab = logits.size(1);
    args.inverse_temperature = static_cast<float>(1.0 / temperature);
    args.targets = targets.const_data_ptr<int64_t>();
    args.log_sum = log_sum.data_ptr<float>();
    args.entropy = entropy == nullptr ? nullptr : entropy->data_ptr<float>();
    args.dlogp = dlogp.const_data_ptr<float>();
    args.dentropy = dentropy == nullptr ? nullptr : dentropy->const_data_ptr<float>();
    args.dlogits = dlogits.data_ptr();
    const auto* kernels = cpu_training::choose_kernels(!is_f32);
    parallel_rows(logits.size(0), args.vocab, [&](int64_t begin, int64_t end) { kernels->head_backward(args, begin, end); });
    return dlogits;
  }
  const at::Tensor logp = logits.sub_(log_sum.unsqueeze(1)), p = logp.exp();
  at::Tensor gradient = dentropy == nullptr ? at::Tensor() : logp.add_(entropy->unsqueeze(1)).mul_(p).mul_(-dentropy->unsqueeze(1));
  at::Tensor of_logp = at::mul(p, -dlogp.unsqueeze(1));
  of_logp.scatter_add_(1, targets.unsqueeze(1), dlogp.unsqueeze(1));
  if (gradient.defined()) of_logp.add_(gradient);
  return of_logp.div_(temperature).to(hidden.scalar_type());
}

void softmax(const at::Tensor& hidden, at::Tensor& logits, const at::Tensor& targets, double temperature, bool wants_entropy,
             at::Tensor& logp, at::Tensor& log_sum, at::Tensor& entropy) {
  // Quotients by a small temperature may leave the range of f32. A softmax does not change where all logits of a row move together,
  // and probabilities of what ends at the bound are 0.
  constexpr double kSmall = 1e-6, kLowest = -1e38;
  if (temperature < kSmall) {
    logits.sub_(logits.amax(1, true)).div_(temperature).clamp_min_(kLowest);
    temperature = 1.0;
  }
  if (is_fused(hidden)) {
    const auto options = logits.options();
    logp = at::empty({logits.size(0)}, options);
    log_sum = at::empty({logits.size(0)}, options);
    if (wants_entropy) entropy = at::empty({logits.size(0)}, options);
    HeadArgs args{};
    args.logits = logits.data_ptr<float>();
    args.vocab = logits.size(1);
    args.inverse_temperature = static_cast<float>(1.0 / temperature);
    args.targets = targets.const_data_ptr<int64_t>();
    args.log_sum = log_sum.data_ptr<float>();
    args.logp = logp.data_ptr<float>();
    args.entropy = wants_entropy ? entropy.data_ptr<float>() : nullptr;
    const auto* kernels = cpu_training::choose_kernels(false);
    parallel_rows(logits.size(0), args.vocab, [&](int64_t begin, int64_t end) { kernels->head_forward(args, begin, end); });
    return;
  }
  logits.div_(temperature);
  log_sum = at::logsumexp(logits, 1);
  logp = logits.gather(1, targets.unsqueeze(1)).squeeze(1).sub_(log_sum);
  if (wants_entropy) {
    const at::Tensor all = logits - log_sum.unsqueeze(1);
    entropy = all.exp().mul_(all).sum(1).neg_();
  }
}

void check_targets(const at::Tensor& targets, int64_t vocab) {
  if (!targets.is_cpu()) return;
  const int64_t* ids = targets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.numel(); ++i) {
    TORCH_CHECK(ids[i] >= 0 && ids[i] < vocab, "token id ", ids[i], " is not in the vocabulary of ", vocab);
  }
}

}  // namespace

}  // namespace asyncthink::training

using namespace asyncthink::training;

extern "C" {

// Logits f32 `[n, vocab]` at the temperature, and f32 `[n]` each: log-probabilities of the targets, logarithms of the sums, and
// entropies (null if not wanted).
char* asyncthink_head_forward(const at::Tensor* hidden, const at::Tensor* weight, const at::Tensor* targets, double temperature,
                              at::Tensor** logits, at::Tensor** logp, at::Tensor** log_sum, at::Tensor** entropy) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    check_targets(*targets, weight->size(0));
    at::Tensor all = at::mm(*hidden, weight->t());
    if (all.scalar_type() != at::kFloat && all.scalar_type() != at::kDouble) all = all.to(at::kFloat);
    at::Tensor of_targets, sums, entropies;
    softmax(*hidden, all, *targets, temperature, entropy != nullptr, of_targets, sums, entropies);
    *logits = new at::Tensor(all);
    *logp = new at::Tensor(of_targets);
    *log_sum = new at::Tensor(sums);
    if (entropy != nullptr) *entropy = new at::Tensor(entropies);
  });
}

// The gradient of `hidden`; adds that of `weight` to `dweight` unless it is null. The logits are used up.
char* asyncthink_head_backward(const at::Tensor* hidden, const at::Tensor* weight, const at::Tensor* logits, const at::Tensor* targets,
                               const at::Tensor* log_sum, const at::Tensor* entropy, const at::Tensor* dlogp,
                               const at::Tensor* dentropy, double temperature, const at::Tensor* dweight, at::Tensor** dhidden) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    check_targets(*targets, weight->size(0));
    TORCH_CHECK(dentropy == nullptr || entropy != nullptr, "the gradient of an entropy needs the entropy");
    const at::Tensor dlogits = logits_gradient(*hidden, *logits, *targets, *log_sum, entropy, *dlogp, dentropy, temperature);
    if (dweight != nullptr) {
      at::Tensor sum = *dweight;
      if (sum.scalar_type() == dlogits.scalar_type()) {
        sum.addmm_(dlogits.t(), *hidden);
      } else {
        // The product is of the other type before it is added: of a part of the vocabulary at a time.
        constexpr int64_t kPartValues = int64_t{1} << 25;
        const int64_t vocab = sum.size(0), rows = std::max<int64_t>(1, kPartValues / std::max<int64_t>(1, sum.size(1)));
        for (int64_t first = 0; first < vocab; first += rows) {
          const int64_t count = std::min(rows, vocab - first);
          sum.narrow(0, first, count).add_(at::mm(dlogits.narrow(1, first, count).t(), *hidden));
        }
      }
    }
    *dhidden = new at::Tensor(at::mm(dlogits, *weight));
  });
}

// The normed rows of `x` `[rows, width]`, and what the backward pass needs.
char* asyncthink_norm_forward(const at::Tensor* x, const at::Tensor* weight, double eps, at::Tensor** y, at::Tensor** rstd) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    if (is_fused(*x)) {
      const at::Tensor inverse = at::empty({x->size(0)}, x->options().dtype(at::kFloat));
      *y = new at::Tensor(norm_forward(x->contiguous(), *weight, eps, inverse));
      *rstd = new at::Tensor(inverse);
      return;
    }
    const auto kind = x->scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor wide = x->to(kind), inverse = wide.square().mean(1).add_(eps).rsqrt_();
    *y = new at::Tensor((wide * inverse.unsqueeze(1)).mul_(*weight).to(x->scalar_type()));
    *rstd = new at::Tensor(inverse);
  });
}

// The gradient of `x`; adds that of `weight` to `dweight` unless it is null.
char* asyncthink_norm_backward(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* rstd, const at::Tensor* dy,
                               const at::Tensor* dweight, at::Tensor** dx) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    at::Tensor sum = dweight == nullptr ? at::Tensor() : *dweight;
    if (is_fused(*x)) {
      at::Tensor gradient = at::zeros_like(*x);
      norm_backward(x->contiguous(), *weight, *rstd, dy->contiguous(), gradient, sum);
      *dx = new at::Tensor(gradient);
      return;
    }
    const at::Tensor scale = rstd->unsqueeze(1), unit = x->to(rstd->scalar_type()) * scale, d = dy->to(rstd->scalar_type());
    if (sum.defined()) sum.add_((unit * d).sum(0));
    const at::Tensor weighted = d * *weight;
    const at::Tensor mean = (weighted * unit).mean(1, true);
    *dx = new at::Tensor((weighted - unit * mean).mul_(scale).to(x->scalar_type()));
  });
}

// Adds rows `d` `[tokens, width]` to rows `ids` of `dweight`, in the order of the tokens.
char* asyncthink_embedding_backward(const at::Tensor* ids, const at::Tensor* d, const at::Tensor* dweight) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    at::Tensor sum = *dweight;
    if (!is_fused(*d) || sum.scalar_type() != at::kFloat || !sum.is_contiguous()) {
      sum.add_(at::embedding_dense_backward(*d, *ids, sum.size(0), -1, false));
      return;
    }
    check_targets(*ids, sum.size(0));
    const at::Tensor rows = d->to(at::kFloat).contiguous();
    const int64_t* id = ids->const_data_ptr<int64_t>();
    const float* from = rows.const_data_ptr<float>();
    float* to = sum.data_ptr<float>();
    const int64_t width = sum.size(1), tokens = rows.size(0), threads = at::get_num_threads();
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        for (int64_t token = 0; token < tokens; ++token) {
          if (id[token] % threads != thread) continue;
          float* row = to + id[token] * width;
          const float* part = from + token * width;
          for (int64_t i = 0; i < width; ++i) row[i] += part[i];
        }
      }
    });
  });
}

}  // extern "C"
