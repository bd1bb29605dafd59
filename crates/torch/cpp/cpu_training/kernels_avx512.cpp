#define ASYNCTHINK_ISA avx512
#include "attention.inc.h"
#include "rows.inc.h"

namespace asyncthink::cpu_training {
const Kernels* kernels_avx512(bool bf16) {
  static const Kernels f32 = avx512::table<float>("avx512");
  static const Kernels half = avx512::table<uint16_t>("avx512");
  return bf16 ? &half : &f32;
}
}  // namespace asyncthink::cpu_training
