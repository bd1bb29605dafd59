// From logits to a token.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "decoder.h"

namespace asyncthink::cpu {

namespace {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): 53 random bits of (seed, position).
double uniform(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t{counter[1]} << 32 | counter[0]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

int64_t first_largest(const float* x, int64_t n, float largest) {
  return std::find(x, x + n, largest) - x;
}

// The first id whose cumulative probability exceeds `target`, of probabilities known by runs.
int64_t invert(const Kernels& kernels, const float* x, int64_t n, float largest, float scale, const double* runs,
               double target) {
  double cumulative = 0.0;
  float run[kSumRun];
  for (int64_t from = 0; from < n; from += kSumRun) {
    const double end = cumulative + runs[from / kSumRun];
    if (target < end) {
      const int64_t len = std::min(kSumRun, n - from);
      kernels.exp_run(x + from, len, largest, scale, run);
      for (int64_t i = 0; i < len; ++i) {
        cumulative += static_cast<double>(run[i]);
        if (run[i] > 0.0f && target < cumulative) return from + i;
      }
    }
    cumulative = end;
  }
  // Rounding can leave the sum just below 1.
  return first_largest(x, n, largest);
}

struct Restricted {
  std::vector<int64_t> ids;  // ascending
  std::vector<double> weights;
  double total = 0.0;
};

// Candidates that top-k, min-p and top-p leave, with their weights exp((x - largest) * scale).
Restricted restrict_to(const Kernels& kernels, const float* x, int64_t n, float largest, float scale, const SamplingRow& how) {
  Restricted kept;
  float floor = -std::numeric_limits<float>::infinity();
  if (how.top_k > 0 && how.top_k < n) {
    std::vector<float> sorted(x, x + n);
    std::nth_element(sorted.begin(), sorted.begin() + (how.top_k - 1), sorted.end(), std::greater<float>());
    floor = sorted[static_cast<size_t>(how.top_k - 1)];
  }
  std::vector<float> weights(static_cast<size_t>(n));
  kernels.exp_run(x, n, largest, scale, weights.data());
  double mass = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] < floor || weights[static_cast<size_t>(i)] <= 0.0f) continue;
    const double weight = static_cast<double>(weights[static_cast<size_t>(i)]);
    mass += weight;
    if (weight < static_cast<double>(how.min_p)) continue;
    kept.ids.push_back(i);
    kept.weights.push_back(weight);
  }
  if (how.top_p < 1.0f) {
    std::vector<size_t> by_weight(kept.ids.size());
    for (size_t i = 0; i < by_weight.size(); ++i) by_weight[i] = i;
    std::stable_sort(by_weight.begin(), by_weight.end(),
                     [&](size_t a, size_t b) { return kept.weights[a] > kept.weights[b]; });
    double head = 0.0;
    size_t count = 0;
    while (count < by_weight.size() && head < static_cast<double>(how.top_p) * mass) {
      head += kept.weights[by_weight[count++]];
    }
    by_weight.resize(std::max<size_t>(count, 1));
    std::sort(by_weight.begin(), by_weight.end());
    Restricted head_only;
    for (size_t index : by_weight) {
      head_only.ids.push_back(kept.ids[index]);
      head_only.weights.push_back(kept.weights[index]);
    }
    kept = std::move(head_only);
  }
  for (double weight : kept.weights) kept.total += weight;
  return kept;
}

}  // namespace

SampledRow sample(const Kernels& kernels, const float* logits, int64_t vocab, const SamplingRow& how, const int64_t* banned,
                  int64_t num_banned) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  float raw_largest;
  if (!kernels.largest(logits, vocab, &raw_largest)) return {0, nan, nan};
  const float* x = logits;
  float largest = raw_largest;
  std::vector<float> allowed;
  if (num_banned > 0) {
    allowed.assign(logits, logits + vocab);
    for (int64_t i = 0; i < num_banned; ++i) {
      if (banned[i] >= 0 && banned[i] < vocab) {
        allowed[static_cast<size_t>(banned[i])] = -std::numeric_limits<float>::infinity();
      }
    }
    x = allowed.data();
    kernels.largest(x, vocab, &largest);
    if (!std::isfinite(largest)) return {0, nan, nan};
  }
  const auto raw_logprob = [&](int64_t token, double total) {
    return static_cast<float>(static_cast<double>(logits[token] - raw_largest) - std::log(total));
  };
  std::vector<double> runs(static_cast<size_t>((vocab + kSumRun - 1) / kSumRun));
  const bool greedy = how.temperature == 0.0f;
  const float scale = greedy ? 1.0f : 1.0f / how.temperature;
  const bool restricted = !greedy && ((how.top_k > 0 && how.top_k < vocab) || how.min_p > 0.0f || how.top_p < 1.0f);
  SampledRow out{};
  double total;
  if (restricted) {
    const Restricted kept = restrict_to(kernels, x, vocab, largest, scale, how);
    const double target = uniform(how.seed, how.position) * kept.total;
    double cumulative = 0.0;
    size_t chosen = std::max_element(kept.weights.begin(), kept.weights.end()) - kept.weights.begin();
    for (size_t i = 0; i < kept.ids.size(); ++i) {
      cumulative += kept.weights[i];
      if (target < cumulative) {
        chosen = i;
        break;
      }
    }
    out.token = kept.ids[chosen];
    out.logprob = static_cast<float>(static_cast<double>((x[out.token] - largest) * scale) - std::log(kept.total));
    total = kernels.sum_exp(logits, vocab, raw_largest, 1.0f, nullptr);
  } else {
    total = kernels.sum_exp(x, vocab, largest, scale, runs.data());
    out.token = greedy ? first_largest(x, vocab, largest)
                       : invert(kernels, x, vocab, largest, scale, runs.data(), uniform(how.seed, how.position) * total);
    out.logprob = static_cast<float>(static_cast<double>((x[out.token] - largest) * scale) - std::log(total));
    if (scale != 1.0f || num_banned > 0) total = kernels.sum_exp(logits, vocab, raw_largest, 1.0f, nullptr);
  }
  out.raw_logprob = raw_logprob(out.token, total);
  return out;
}

}  // namespace asyncthink::cpu
