// One decode step of attention over slot caches on the CPU, in f32.
//
// Each row adds one key and one value to its slot and reads all of that slot up to itself; the work is a stream over the
// cache. One work item is one (row, key-value head): its group of query heads reads each cache line once.
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

#define ASYNCTHINK_INLINE __attribute__((always_inline)) inline

struct Item {
  const float* query;   // [group, head_dim]
  const float* keys;    // [length, head_dim]
  const float* values;  // [length, head_dim]
  float* output;        // [group, head_dim]
  float* scores;        // [group, length], scratch
  int64_t group;
  int64_t length;
  int64_t head_dim;
  float scale;
};

// exp of x <= 0 to about 2 units in the last place, in a form that the compiler turns into vector code; libm's is a
// call per element. Range reduction by a multiple of ln 2 in two parts, then a polynomial of degree 6.
ASYNCTHINK_INLINE float exp_of_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float n = (x * 1.44269504088896341f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// kHeadDim is the head dimension where it is known at compile time, else 0.
template <int kHeadDim>
ASYNCTHINK_INLINE void attend_sized(const Item& item) {
  const int64_t head_dim = kHeadDim > 0 ? kHeadDim : item.head_dim;
  const int64_t length = item.length;
  for (int64_t t = 0; t < length; ++t) {
    const float* key = item.keys + t * head_dim;
    for (int64_t g = 0; g < item.group; ++g) {
      const float* query = item.query + g * head_dim;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < head_dim; ++d) sum += query[d] * key[d];
      item.scores[g * length + t] = sum * item.scale;
    }
  }
  for (int64_t g = 0; g < item.group; ++g) {
    float* scores = item.scores + g * length;
    float* output = item.output + g * head_dim;
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t t = 0; t < length; ++t) largest = scores[t] > largest ? scores[t] : largest;
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < length; ++t) {
      scores[t] = exp_of_nonpositive(scores[t] - largest);
      total += scores[t];
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int64_t t = 0; t < length; ++t) scores[t] *= inverse;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) output[d] = 0.0f;
  }
  for (int64_t t = 0; t < length; ++t) {
    const float* value = item.values + t * head_dim;
    for (int64_t g = 0; g < item.group; ++g) {
      const float weight = item.scores[g * length + t];
      float* output = item.output + g * head_dim;
#pragma omp simd
      for (int64_t d = 0; d < head_dim; ++d) output[d] += weight * value[d];
    }
  }
}

ASYNCTHINK_INLINE void attend_inline(const Item& item) {
  switch (item.head_dim) {
    case 16: return attend_sized<16>(item);
    case 32: return attend_sized<32>(item);
    case 64: return attend_sized<64>(item);
    case 128: return attend_sized<128>(item);
    default: return attend_sized<0>(item);
  }
}

void attend_baseline(const Item& item) { attend_inline(item); }

#if defined(__x86_64__)
// target_clones cannot name two features at once, and AVX2 without FMA loses half of the speed.
__attribute__((target("avx2,fma"))) void attend_avx2(const Item& item) { attend_inline(item); }
__attribute__((target("avx512f,avx2,fma"))) void attend_avx512(const Item& item) { attend_inline(item); }
#endif

using Attend = void (*)(const Item&);

Attend choose_attend() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return attend_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return attend_avx2;
#endif
  return attend_baseline;
}

// Shapes and kinds are checked by the caller; the values of `slots` and `positions` are checked here.
void check_places(const int64_t* slots, const int64_t* positions, int64_t batch, int64_t num_slots,
                  int64_t max_len) {
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK(slots[b] >= 0 && slots[b] < num_slots, "slot ", slots[b], " of row ", b,
                " is outside a cache of ", num_slots, " slots");
    TORCH_CHECK(positions[b] >= 0 && positions[b] < max_len, "position ", positions[b], " of row ", b,
                " is outside a cache of ", max_len, " positions");
  }
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_new, const at::Tensor& v_new,
                            const at::Tensor& k_cache, const at::Tensor& v_cache, const at::Tensor& slots,
                            const at::Tensor& positions) {
  static const Attend attend = choose_attend();
  const int64_t batch = q.size(0), heads = q.size(1), head_dim = q.size(2);
  const int64_t num_slots = k_cache.size(0), kv_heads = k_cache.size(1), max_len = k_cache.size(2);
  const int64_t group = heads / kv_heads;
  const int64_t* slot_of = slots.const_data_ptr<int64_t>();
  const int64_t* position_of = positions.const_data_ptr<int64_t>();
  check_places(slot_of, position_of, batch, num_slots, max_len);

  at::Tensor output = at::empty({batch, heads, head_dim}, q.options());
  const float* query = q.const_data_ptr<float>();
  const float* key_new = k_new.const_data_ptr<float>();
  const float* value_new = v_new.const_data_ptr<float>();
  float* keys = k_cache.mutable_data_ptr<float>();
  float* values = v_cache.mutable_data_ptr<float>();
  float* out = output.mutable_data_ptr<float>();
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  // All rows are written before any is read: a sequence may bring several rows (its prompt), and a later row attends
  // to the earlier ones of this very call.
  const size_t row_bytes = static_cast<size_t>(head_dim) * sizeof(float);
  for (int64_t index = 0; index < batch * kv_heads; ++index) {
    const int64_t b = index / kv_heads, head = index % kv_heads;
    const int64_t row = (slot_of[b] * kv_heads + head) * max_len + position_of[b];
    std::memcpy(keys + row * head_dim, key_new + index * head_dim, row_bytes);
    std::memcpy(values + row * head_dim, value_new + index * head_dim, row_bytes);
  }

  // Rows differ in length, so workers take items from a counter; each item is computed alone, so that the
  // result does not depend on who takes it.
  const int64_t num_items = batch * kv_heads;
  int64_t num_positions = 0;
  for (int64_t b = 0; b < batch; ++b) num_positions += position_of[b] + 1;
  // Below this many multiply-adds, starting the other threads costs more than it saves.
  constexpr int64_t kSerialWork = 1 << 15;
  const int64_t work = num_positions * heads * head_dim * 2;
  const int64_t num_workers =
      work < kSerialWork ? 1 : std::min<int64_t>(at::get_num_threads(), num_items);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, num_workers, 1, [&](int64_t, int64_t) {
    std::vector<float> scores;
    for (int64_t index = next.fetch_add(1); index < num_items; index = next.fetch_add(1)) {
      const int64_t b = index / kv_heads, head = index % kv_heads;
      const int64_t position = position_of[b];
      const int64_t start = (slot_of[b] * kv_heads + head) * max_len * head_dim;
      scores.resize(static_cast<size_t>(group * (position + 1)));
      const int64_t first_query = (b * heads + head * group) * head_dim;
      attend(Item{query + first_query, keys + start, values + start, out + first_query, scores.data(), group,
                  position + 1, head_dim, scale});
    }
  });
  return output;
}

}  // namespace

extern "C" char* asyncthink_decode_attention(const at::Tensor* q, const at::Tensor* k_new, const at::Tensor* v_new,
                                             const at::Tensor* k_cache, const at::Tensor* v_cache,
                                             const at::Tensor* slots, const at::Tensor* positions,
                                             at::Tensor** output) {
  return asyncthink::guarded([&] {
    c10::NoGradGuard no_grad;
    *output = new at::Tensor(decode_attention(*q, *k_new, *v_new, *k_cache, *v_cache, *slots, *positions));
  });
}
