#define ASYNCTHINK_ISA generic
#include "attention.inc.h"
#include "rows.inc.h"

namespace asyncthink::cpu_training {
const Kernels* kernels_generic(bool bf16) {
  static const Kernels f32 = generic::table<float>("generic");
  static const Kernels half = generic::table<uint16_t>("generic");
  return bf16 ? &half : &f32;
}
}  // namespace asyncthink::cpu_training
