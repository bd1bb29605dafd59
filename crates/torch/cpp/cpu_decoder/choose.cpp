// Which kernels this processor runs.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "decoder.h"

namespace asyncthink::cpu {

namespace {

#if defined(__x86_64__)

// Whether processor and kernel let this process use tiles; asks the kernel for the permission.
bool tiles_allowed() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  if ((d & kTile) == 0 || (d & kBf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Whether a product by these kernels is right: a last look before a processor is trusted that no test has seen.
bool multiplies(const Kernels* kernels) {
  constexpr int64_t kRows = 37, kPanels = 2, kDepth = 96, kColumns = kPanels * kLanes;
  std::vector<float> a(kRows * kDepth), b(kColumns * kDepth), c(kRows * kColumns);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(static_cast<int>(i * 7 % 17) - 8) / 8.0f;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(static_cast<int>(i * 5 % 13) - 6) / 4.0f;
  std::vector<char> operand(static_cast<size_t>(kRows * kDepth * kernels->operand_bytes));
  for (int64_t row = 0; row < kRows; ++row) {
    kernels->to_operand(a.data() + row * kDepth, kDepth, operand.data() + row * kDepth * kernels->operand_bytes);
  }
  Packed packed;
  packed.allocate(kPanels, kDepth, true);
  for (int64_t p = 0; p < kPanels; ++p) packed.pack(p, Matrix{b.data(), kColumns, kDepth, false}, p * kLanes);
  GemmArgs args{};
  args.a = operand.data();
  args.lda = kDepth;
  args.b = packed.data();
  args.panel_bytes = packed.panel_bytes();
  args.k = kDepth;
  args.rows = kRows;
  args.num_panels = kPanels;
  args.c = c.data();
  args.ldc = kColumns;
  args.epilogue = Epilogue::kStore;
  kernels->gemm(args);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t column = 0; column < kColumns; ++column) {
      float sum = 0.0f;
      for (int64_t k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[column * kDepth + k];
      // All products and sums are exact in these numbers.
      if (c[row * kColumns + column] != sum) return false;
    }
  }
  return true;
}

const Kernels* best_bf16() {
  if (__builtin_cpu_supports("avx512bf16")) {
    if (tiles_allowed() && multiplies(kernels_amx())) return kernels_amx();
    if (multiplies(kernels_avx512_bf16())) return kernels_avx512_bf16();
  }
  return kernels_avx512(true);
}

#endif

}  // namespace

const Kernels* choose_kernels(int most, bool bf16) {
  const auto allowed = [&](int isa) { return most < 0 || isa <= most; };
  if (most == kTilesEmulated && bf16) return kernels_tiles_emulated();
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (bf16 && allowed(kNativeBf16)) {
      static const Kernels* best = best_bf16();
      return best;
    }
    if (allowed(kAvx512)) return kernels_avx512(bf16);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed(kAvx2)) return kernels_avx2(bf16);
#else
  (void)allowed;
#endif
  return kernels_generic(bf16);
}

}  // namespace asyncthink::cpu
