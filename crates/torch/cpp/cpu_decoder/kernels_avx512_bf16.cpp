#define ASYNCTHINK_ISA avx512_bf16
#include "kernels.inc.h"

namespace asyncthink::cpu {
const Kernels* kernels_avx512_bf16() {
  using namespace avx512_bf16;
  static const Kernels native = table<NativeBf16, CacheBf16>("avx512_bf16");
  return &native;
}
}  // namespace asyncthink::cpu
