// Attention over segments on a GPU, by libtorch's variable-length flash attention.
//
// Its mask is aligned to the last key, so a segment with a prefix is one whose keys are those of the prefix and its own. These lie
// apart in the batch and are gathered; gradients of keys that several segments see are added.
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/tensor.h>

#include "attention.h"

namespace asyncthink::training {

namespace {

struct Lengths {
  at::Tensor queries, keys;  // i32 [segments + 1] on the device
  int64_t max_queries = 0, max_keys = 0;
  // Tokens of the keys of all segments, i64; undefined where every segment's keys are its own.
  at::Tensor key_tokens;

  Lengths(const Segments& segments, const at::Device& device) {
    std::vector<int32_t> query_ends{0}, key_ends{0};
    bool has_prefix = false;
    for (int64_t s = 0; s < segments.size(); ++s) {
      query_ends.push_back(query_ends.back() + static_cast<int32_t>(segments.lens[s]));
      key_ends.push_back(key_ends.back() + static_cast<int32_t>(segments.num_keys[s]));
      max_queries = std::max(max_queries, segments.lens[s]);
      max_keys = std::max(max_keys, segments.num_keys[s]);
      has_prefix |= segments.prefixes[s] >= 0;
    }
    queries = at::tensor(query_ends, at::kInt).to(device);
    keys = has_prefix ? at::tensor(key_ends, at::kInt).to(device) : queries;
    if (!has_prefix) return;
    std::vector<int64_t> tokens(static_cast<size_t>(key_ends.back()));
    for (int64_t s = 0; s < segments.size(); ++s) {
      for (int64_t run = s; run >= 0; run = segments.prefixes[run]) {
        const int64_t first = key_ends[s] + segments.num_keys[run] - segments.lens[run];
        for (int64_t i = 0; i < segments.lens[run]; ++i) tokens[first + i] = segments.starts[run] + i;
      }
    }
    key_tokens = at::tensor(tokens, at::kLong).to(device);
  }

  at::Tensor gathered(const at::Tensor& rows) const { return key_tokens.defined() ? rows.index_select(0, key_tokens) : rows; }
};

at::Tensor heads_of(const at::Tensor& rows, int64_t head_dim) { return rows.unflatten(1, {-1, head_dim}); }

}  // namespace

AttentionOutput flash_forward(const Attended& in, const Segments& segments) {
  const Lengths lengths(segments, in.query.device());
  auto [out, log_sums, random_state, unused, mask] = at::_flash_attention_forward(
      heads_of(in.query, in.head_dim), heads_of(lengths.gathered(in.key), in.head_dim), heads_of(lengths.gathered(in.value), in.head_dim),
      lengths.queries, lengths.keys, lengths.max_queries, lengths.max_keys, /*dropout_p=*/0.0, /*is_causal=*/true,
      /*return_debug_mask=*/false);
  return AttentionOutput{out.contiguous().flatten(1, 2), log_sums, random_state, unused};
}

void flash_backward(const Attended& in, const AttentionOutput& attended, const at::Tensor& dout, const Segments& segments,
                    at::Tensor& dqkv) {
  const Lengths lengths(segments, in.query.device());
  const auto [dquery, dkey, dvalue] = at::_flash_attention_backward(
      heads_of(dout, in.head_dim), heads_of(in.query, in.head_dim), heads_of(lengths.gathered(in.key), in.head_dim),
      heads_of(lengths.gathered(in.value), in.head_dim), heads_of(attended.out, in.head_dim), attended.log_sums, lengths.queries,
      lengths.keys, lengths.max_queries, lengths.max_keys, /*dropout_p=*/0.0, /*is_causal=*/true, attended.random_state,
      attended.unused);
  at::Tensor all = heads_of(dqkv, in.head_dim);
  all.narrow(1, 0, in.num_heads).add_(dquery);
  const auto add = [&](int64_t first, const at::Tensor& gradient) {
    at::Tensor part = all.narrow(1, first, in.num_kv_heads);
    if (lengths.key_tokens.defined()) {
      part.index_add_(0, lengths.key_tokens, gradient.to(at::kFloat));
    } else {
      part.add_(gradient);
    }
  };
  add(in.num_heads, dkey);
  add(in.num_heads + in.num_kv_heads, dvalue);
}

}  // namespace asyncthink::training
