#define ASYNCTHINK_ISA amx
#include "amx.inc.h"

namespace asyncthink::cpu {

namespace amx {

// The compiler's tile operations take digits, not constants.
#define ASYNCTHINK_FOR_TILE(operation)                                                     \
  if constexpr (kTile == 0) operation(0);                                                  \
  if constexpr (kTile == 1) operation(1);                                                  \
  if constexpr (kTile == 2) operation(2);                                                  \
  if constexpr (kTile == 3) operation(3);                                                  \
  if constexpr (kTile == 4) operation(4);                                                  \
  if constexpr (kTile == 5) operation(5);                                                  \
  if constexpr (kTile == 6) operation(6);                                                  \
  if constexpr (kTile == 7) operation(7)
// They do not tell the compiler what memory they read and write.
#define ASYNCTHINK_MEMORY __asm__ volatile("" ::: "memory")
#define ASYNCTHINK_LOAD(tile) _tile_loadd(tile, from, stride)
#define ASYNCTHINK_STORE(tile) _tile_stored(tile, to, stride)

struct ProcessorTiles {
  explicit ProcessorTiles(const TileConfig& config) {
    ASYNCTHINK_MEMORY;
    _tile_loadconfig(&config);
  }
  ~ProcessorTiles() { _tile_release(); }
  template <int kTile>
  void zero() {
    ASYNCTHINK_FOR_TILE(_tile_zero);
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    ASYNCTHINK_MEMORY;
    ASYNCTHINK_FOR_TILE(ASYNCTHINK_LOAD);
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    ASYNCTHINK_FOR_TILE(ASYNCTHINK_STORE);
    ASYNCTHINK_MEMORY;
  }
  template <int kSum, int kRows, int kColumns>
  void multiply() {
    static_assert(kRows == 4 + kSum / 2 && kColumns == 6 + kSum % 2);
    if constexpr (kSum == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kSum == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kSum == 3) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace amx

const Kernels* kernels_amx() {
  static const Kernels tiles = amx::tile_table<amx::ProcessorTiles>("amx_bf16");
  return &tiles;
}

}  // namespace asyncthink::cpu
