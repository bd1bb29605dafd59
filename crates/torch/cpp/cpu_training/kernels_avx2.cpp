#define ASYNCTHINK_ISA avx2
#include "attention.inc.h"
#include "rows.inc.h"

namespace asyncthink::cpu_training {
const Kernels* kernels_avx2(bool bf16) {
  static const Kernels f32 = avx2::table<float>("avx2");
  static const Kernels half = avx2::table<uint16_t>("avx2");
  return bf16 ? &half : &f32;
}
}  // namespace asyncthink::cpu_training
