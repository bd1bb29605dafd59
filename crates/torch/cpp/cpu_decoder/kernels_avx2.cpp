#define ASYNCTHINK_ISA avx2
#include "kernels.inc.h"

namespace asyncthink::cpu {
const Kernels* kernels_avx2(bool bf16) {
  using namespace avx2;
  static const Kernels f32 = table<F32, CacheF32>("avx2");
  static const Kernels widened = table<WidenedBf16, CacheBf16>("avx2");
  return bf16 ? &widened : &f32;
}
}  // namespace asyncthink::cpu
