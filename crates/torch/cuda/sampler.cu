// Sampling on the device: one block of threads a row, several passes over its logits.
//
// Probabilities are sums of integers: e^((logit - largest) / temperature) in units of 2^-40. Such sums do not depend on
// the order in which threads take part, so a row's token is a function of its logits and its parameters alone.
#include "device.cuh"

namespace asyncthink {
namespace {

struct SamplingRow {
  float temperature;  // 0: the likeliest token
  int32_t top_k;      // 0: off
  float top_p;        // 1: off
  float min_p;        // 0: off
  uint64_t seed;
  uint64_t position;
};

struct SampledRow {
  int64_t token;
  float logprob;
  float raw_logprob;
};

using Mass = unsigned long long;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr float kUnit = 1099511627776.0f;  // 2^40
constexpr int kBins = 256;
// Coarse bins of a search: so many for a difference of 1 between logits.
constexpr float kBinsPerUnit = 8.0f;

struct Shared {
  Mass bins[kBins];
  Mass masses[kWarps];
  unsigned ties[kWarps];
  double sums[kWarps];
  float largest[kWarps];
  unsigned flags;
  // Results that one thread or warp shares with the others.
  Mass found_mass, total, target;
  unsigned found, found_ties;
  int first, end;
};

// Order of numbers as order of integers.
__device__ __forceinline__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

template <typename T>
struct Row {
  const T* logits;
  const uint32_t* banned;  // bits; null where nothing is banned
  int vocab;
  float best;  // the largest logit that is not banned
  float temperature;
  float min_weight;  // smallest weight that is kept

  __device__ __forceinline__ float raw(int i) const { return to_float(logits[i]); }
  __device__ __forceinline__ float allowed(int i) const {
    if (banned != nullptr && (banned[i / 32] >> i % 32 & 1) != 0) return -INFINITY;
    return raw(i);
  }
  __device__ __forceinline__ float weight(float value) const { return expf((value - best) / temperature); }
  // 0 where `min_p` drops it.
  __device__ __forceinline__ Mass mass(float value) const {
    const float w = weight(value);
    return w >= min_weight ? static_cast<Mass>(w * kUnit) : 0;
  }
  __device__ __forceinline__ int bin(float value) const {
    return static_cast<int>(fminf((best - value) * kBinsPerUnit, static_cast<float>(kBins - 1)));
  }
};

// The first bin at which the sum of the bins reaches `need`: its number in `found`, what lies before it in `found_mass`.
// Gives false, for all threads, if it is never reached.
__device__ __forceinline__ bool find_bin(Shared& shared, Mass need) {
  constexpr int kOwn = kBins / kWarp;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    Mass own = 0;
    for (int i = 0; i < kOwn; ++i) own += shared.bins[lane * kOwn + i];
    Mass sum = own;
    for (int delta = 1; delta < kWarp; delta *= 2) {
      const Mass below = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane >= delta) sum += below;
    }
    if (lane == kWarp - 1) shared.total = sum;
    Mass before = sum - own;
    if (before < need && sum >= need) {
      int i = lane * kOwn;
      while (before + shared.bins[i] < need) before += shared.bins[i++];
      shared.found = static_cast<unsigned>(i);
      shared.found_mass = before;
    }
  }
  __syncthreads();
  return shared.total >= need;
}

__device__ __forceinline__ void clear_bins(Shared& shared) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
}

struct Threshold {
  uint32_t key = 0;   // 0: none, everything is kept
  Mass above = 0;     // measure of what is larger
};

// The largest key at which the measure of all that is not smaller reaches `need`; the measure is mass, or 1 for each.
// Only what is not smaller than `lowest` counts. First by distance from the largest, where logits spread out, then
// digit by digit within the bin that was found.
template <bool kByMass, typename T>
__device__ Threshold find_threshold(Shared& shared, const Row<T>& row, uint32_t lowest, Mass need) {
  const auto measure = [&](float value) -> Mass {
    if (kByMass) return row.mass(value);
    return value == -INFINITY ? 0 : 1;
  };
  clear_bins(shared);
  for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
    const float value = row.allowed(i);
    if (key_of(value) < lowest) continue;
    const Mass own = measure(value);
    if (own != 0) atomicAdd(&shared.bins[row.bin(value)], own);
  }
  if (!find_bin(shared, need)) return Threshold{};
  const int bin = static_cast<int>(shared.found);
  Mass above = shared.found_mass;
  uint32_t prefix = 0;
  // The lower half of a key is zero in bf16.
  constexpr int kDigits = sizeof(T) == 2 ? 2 : 4;
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = 24 - 8 * digit;
    clear_bins(shared);
    for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
      const float value = row.allowed(i);
      const uint32_t key = key_of(value);
      if (key < lowest || row.bin(value) != bin) continue;
      if (digit > 0 && key >> (shift + 8) != prefix) continue;
      const Mass own = measure(value);
      if (own != 0) atomicAdd(&shared.bins[kBins - 1 - (key >> shift & 255)], own);
    }
    find_bin(shared, need - above);
    above += shared.found_mass;
    prefix = prefix << 8 | (kBins - 1 - shared.found);
  }
  if (kDigits == 2) prefix = prefix << 16 | ((prefix & 0x8000u) != 0 ? 0 : 0xffffu);
  return Threshold{prefix, above};
}

// Philox4x32-10 (Salmon et al. 2011) of the counter (position, 0, 0): its first two words, of which the second is high.
__device__ __forceinline__ uint64_t philox(uint64_t seed, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const T* logits, const SamplingRow* rows, const int32_t* cu_banned, const int32_t* banned,
                  SampledRow* out, int vocab, int num_banned) {
  ASYNCTHINK_DYNAMIC_SHARED(uint32_t, banned_bits);
  __shared__ Shared shared;
  const int sample = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const SamplingRow parameters = rows[sample];
  const bool is_greedy = parameters.temperature == 0.0f;
  const int first_banned = cu_banned[sample] > 0 ? cu_banned[sample] : 0;
  const int end_banned = cu_banned[sample + 1] < num_banned ? cu_banned[sample + 1] : num_banned;
  Row<T> row{logits + static_cast<int64_t>(sample) * vocab,
             end_banned > first_banned ? banned_bits : nullptr,
             vocab,
             0.0f,
             is_greedy ? 1.0f : parameters.temperature,
             0.0f};

  if (end_banned > first_banned) {
    for (int i = threadIdx.x; i < (vocab + 31) / 32; i += kThreads) banned_bits[i] = 0;
    __syncthreads();
    for (int i = first_banned + threadIdx.x; i < end_banned; i += kThreads) {
      const int id = banned[i];
      if (id >= 0 && id < vocab) atomicOr(&banned_bits[id / 32], 1u << id % 32);
    }
  }
  if (threadIdx.x == 0) shared.flags = 0;
  __syncthreads();

  // The largest logit of all, and the first largest that is allowed.
  float raw_largest = -INFINITY;
  Mass best = 0;
  bool is_finite = true;
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    const float raw = row.raw(i), value = row.allowed(i);
    is_finite = is_finite && raw < INFINITY;  // false for what is not a number, too
    raw_largest = fmaxf(raw_largest, raw);
    const Mass candidate = static_cast<Mass>(key_of(value)) << 32 | (0xffffffffu - static_cast<unsigned>(i));
    best = candidate > best ? candidate : best;
  }
  if (!is_finite) atomicOr(&shared.flags, 1u);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    raw_largest = fmaxf(raw_largest, __shfl_xor_sync(kAllLanes, raw_largest, mask));
    const Mass other = __shfl_xor_sync(kAllLanes, best, mask);
    best = other > best ? other : best;
  }
  if (lane == 0) {
    shared.largest[warp] = raw_largest;
    shared.masses[warp] = best;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    raw_largest = fmaxf(raw_largest, shared.largest[w]);
    best = shared.masses[w] > best ? shared.masses[w] : best;
  }
  row.best = value_of(static_cast<uint32_t>(best >> 32));
  const int likeliest = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
  if (shared.flags != 0 || row.best == -INFINITY) {
    if (threadIdx.x == 0) out[sample] = SampledRow{0, NAN, NAN};
    return;
  }

  // Sums over everything, and over what is allowed.
  float raw_own = 0.0f;
  Mass own = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    raw_own += expf(row.raw(i) - raw_largest);
    own += row.mass(row.allowed(i));
  }
  const double raw_sum = block_sum(static_cast<double>(raw_own), shared.sums);
  Mass total = block_sum(own, shared.masses);
  if (is_greedy) {
    if (threadIdx.x == 0) {
      out[sample] = SampledRow{likeliest, static_cast<float>(-log(static_cast<double>(total) / kUnit)),
                               static_cast<float>(static_cast<double>(row.best) - raw_largest - log(raw_sum))};
    }
    return;
  }

  Threshold threshold;
  if (parameters.top_k > 0) {
    threshold.key = find_threshold<false>(shared, row, 0, static_cast<Mass>(parameters.top_k)).key;
  }
  Mass max_ties = vocab;
  if (parameters.top_p < 1.0f) {
    if (threshold.key > 0) {
      own = 0;
      for (int i = threadIdx.x; i < vocab; i += kThreads) {
        const float value = row.allowed(i);
        if (key_of(value) >= threshold.key) own += row.mass(value);
      }
      total = block_sum(own, shared.masses);
    }
    Mass need = static_cast<Mass>(ceil(static_cast<double>(total) * parameters.top_p));
    need = need < 1 ? 1 : need > total ? total : need;
    row.min_weight = parameters.min_p;
    const Threshold head = find_threshold<true>(shared, row, threshold.key, need);
    if (head.key > 0) {
      threshold = head;
      const Mass tie = row.mass(value_of(head.key));
      max_ties = (need - head.above + tie - 1) / tie;
    }
  }
  row.min_weight = parameters.min_p;

  // In ascending order of ids: which of 32 parts holds the token, then which part of that part, down to 32 ids. Equal
  // logits at the threshold count up to `max_ties`, by lower ids first.
  const Mass tie = threshold.key > 0 ? row.mass(value_of(threshold.key)) : 0;
  int first = 0, end = vocab;
  Mass before = 0;
  unsigned ties_before = 0;
  bool is_first_pass = true;
  while (true) {
    const int part = ((end - first + kWarps - 1) / kWarps + kWarp - 1) / kWarp * kWarp;
    const int part_first = first + warp * part;
    const int part_end = part_first + part < end ? part_first + part : end;
    Mass mass = 0;
    unsigned ties = 0;
    for (int i = part_first + lane; i < part_end; i += kWarp) {
      const float value = row.allowed(i);
      const uint32_t key = key_of(value);
      if (key > threshold.key) mass += row.mass(value);
      if (key == threshold.key) ++ties;
    }
    mass = warp_sum(mass);
    ties = warp_sum(ties);
    if (lane == 0) {
      shared.masses[warp] = mass;
      shared.ties[warp] = ties;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (is_first_pass) {
        Mass sum = 0, all_ties = 0;
        for (int w = 0; w < kWarps; ++w) {
          sum += shared.masses[w];
          all_ties += shared.ties[w];
        }
        sum += tie * (all_ties < max_ties ? all_ties : max_ties);
        shared.total = sum;
        // The uniform number has 53 bits.
        const uint64_t bits = philox(parameters.seed, parameters.position) >> 11 << 11;
        shared.target = __umul64hi(bits, sum);
      }
      for (int w = 0; w < kWarps; ++w) {
        const Mass left = ties_before < max_ties ? max_ties - ties_before : 0;
        const Mass own_mass = shared.masses[w] + tie * (shared.ties[w] < left ? shared.ties[w] : left);
        if (before + own_mass > shared.target) {
          shared.first = first + w * part;
          shared.end = shared.first + part < end ? shared.first + part : end;
          break;
        }
        before += own_mass;
        ties_before += shared.ties[w];
      }
      shared.found_mass = before;
      shared.found_ties = ties_before;
    }
    __syncthreads();
    first = shared.first;
    end = shared.end;
    before = shared.found_mass;
    ties_before = shared.found_ties;
    is_first_pass = false;
    if (part == kWarp) break;
    // The next pass overwrites the values that were read above.
    __syncthreads();
  }

  if (warp != 0) return;
  const int id = first + lane;
  const float value = id < end ? row.allowed(id) : -INFINITY;
  const uint32_t key = key_of(value);
  const bool is_tie = id < end && key == threshold.key;
  const unsigned ties = ties_before + __popc(__ballot_sync(kAllLanes, is_tie) & ((1u << lane) - 1));
  Mass sum = 0;
  if (id < end && key > threshold.key) sum = row.mass(value);
  if (is_tie && ties < max_ties) sum = tie;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const Mass below = __shfl_up_sync(kAllLanes, sum, delta);
    if (lane >= delta) sum += below;
  }
  const unsigned beyond = __ballot_sync(kAllLanes, before + sum > shared.target);
  if (lane == __ffs(static_cast<int>(beyond)) - 1) {
    const double scaled = (static_cast<double>(value) - row.best) / row.temperature;
    out[sample] =
        SampledRow{id, static_cast<float>(scaled - log(static_cast<double>(shared.total) / kUnit)),
                   static_cast<float>(static_cast<double>(value) - raw_largest - log(raw_sum))};
  }
}

}  // namespace
}  // namespace asyncthink

extern "C" char* asyncthink_sample(int32_t kind, const void* logits, const void* rows, const void* cu_banned,
                                   const void* banned, void* out, int64_t samples, int64_t vocab, int64_t num_banned,
                                   void* stream) {
  return asyncthink::guarded([&] {
    if (samples == 0) return;
    asyncthink::with_kind(kind, [&](auto number) {
      using T = decltype(number);
      const size_t banned_bytes = static_cast<size_t>(vocab + 31) / 32 * sizeof(uint32_t);
      asyncthink::launch(asyncthink::sample_kernel<T>, dim3(static_cast<unsigned>(samples)), dim3(asyncthink::kThreads),
                         banned_bytes, static_cast<cudaStream_t>(stream), static_cast<const T*>(logits),
                         static_cast<const asyncthink::SamplingRow*>(rows), static_cast<const int32_t*>(cu_banned),
                         static_cast<const int32_t*>(banned), static_cast<asyncthink::SampledRow*>(out),
                         static_cast<int>(vocab), static_cast<int>(num_banned));
    });
  });
}
