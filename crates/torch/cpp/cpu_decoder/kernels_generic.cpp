#define ASYNCTHINK_ISA generic
#include "kernels.inc.h"

namespace asyncthink::cpu {
const Kernels* kernels_generic(bool bf16) {
  using namespace generic;
  static const Kernels f32 = table<F32, CacheF32>("generic");
  static const Kernels widened = table<WidenedBf16, CacheBf16>("generic");
  return bf16 ? &widened : &f32;
}
}  // namespace asyncthink::cpu
