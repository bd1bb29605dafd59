// Which kernels this processor runs.
#include <atomic>

#include "kernels.h"

namespace asyncthink::cpu_training {

namespace {
std::atomic<int> most_isa{-1};
}

const Kernels* choose_kernels(bool bf16) {
  const int most = most_isa.load(std::memory_order_relaxed);
  const auto allowed = [&](int isa) { return most < 0 || isa <= most; };
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && allowed(kAvx512)) {
    return kernels_avx512(bf16);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed(kAvx2)) return kernels_avx2(bf16);
#else
  (void)allowed;
#endif
  return kernels_generic(bf16);
}

}  // namespace asyncthink::cpu_training

// For tests: kernels of at most this instruction set from now on, -1 for any.
extern "C" void asyncthink_limit_training_kernels(int most) { asyncthink::cpu_training::most_isa.store(most); }
