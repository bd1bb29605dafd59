#define ASYNCTHINK_ISA avx512
#include "kernels.inc.h"

namespace asyncthink::cpu {
const Kernels* kernels_avx512(bool bf16) {
  using namespace avx512;
  static const Kernels f32 = table<F32, CacheF32>("avx512");
  static const Kernels widened = table<WidenedBf16, CacheBf16>("avx512");
  return bf16 ? &widened : &f32;
}
}  // namespace asyncthink::cpu
