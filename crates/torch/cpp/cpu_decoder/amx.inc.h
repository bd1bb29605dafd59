// Products of bf16 by tiles: 32 rows by two panels of 16 columns at a time, four tiles of sums.
//
// Written over a class of tile operations, so that the same code runs on the processor's tiles (AMX) and on plain arrays, by
// which it is tested on every machine.
#pragma once

#include "kernels.inc.h"

namespace asyncthink::cpu::ASYNCTHINK_ISA {

// Rows and bytes of a row of the eight tiles, in the form that the processor loads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Operands of products: rows of bf16.
struct TileOperand {
  using A = uint16_t;
  ASYNCTHINK_INLINE void store_operand(uint16_t* out, V16 x) { store_bf16(out, x); }
};

constexpr int64_t kTileHeight = 16;
constexpr int64_t kTileDepth = 32;  // bf16 values of a row of a tile

// Tiles 0 to 3 are sums (rows 0 to 15 and 16 to 31, first and second panel), 4 and 5 rows, 6 and 7 panels.
template <class Tiles>
static void tile_block(const GemmArgs& g, int64_t row, int64_t rows, int64_t panel) {
  const int64_t upper = rows < kTileHeight ? rows : kTileHeight, lower = rows - upper;
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    const int64_t height = t >= 6 ? kTileHeight : (t == 0 || t == 1 || t == 4) ? upper : lower;
    config.rows[t] = static_cast<uint8_t>(height > 0 ? height : 1);
  }
  Tiles tiles(config);
  tiles.template zero<0>();
  tiles.template zero<1>();
  tiles.template zero<2>();
  tiles.template zero<3>();
  const uint16_t* a = static_cast<const uint16_t*>(g.a) + row * g.lda;
  const char* b = static_cast<const char*>(g.b) + panel * g.panel_bytes;
  for (int64_t k = 0; k < g.k; k += kTileDepth) {
    tiles.template load<6>(b + k * kLanes * 2, 64);
    tiles.template load<7>(b + g.panel_bytes + k * kLanes * 2, 64);
    tiles.template load<4>(a + k, g.lda * 2);
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    if (lower > 0) {
      tiles.template load<5>(a + kTileHeight * g.lda + k, g.lda * 2);
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
    }
  }
  alignas(64) float sums[2 * kTileHeight][2 * kLanes];
  constexpr int64_t kStride = sizeof sums[0];
  tiles.template store<0>(&sums[0][0], kStride);
  tiles.template store<1>(&sums[0][kLanes], kStride);
  if (lower > 0) {
    tiles.template store<2>(&sums[kTileHeight][0], kStride);
    tiles.template store<3>(&sums[kTileHeight][kLanes], kStride);
  }
  for (int64_t m = 0; m < rows; ++m) {
    V16 sum[1][2] = {{load(&sums[m][0]), load(&sums[m][kLanes])}};
    finish<TileOperand, 1, 2>(g, row + m, panel, sum);
  }
}

// `num_panels` is even: matrices are padded to two panels.
template <class Tiles>
static void gemm_by_tiles(const GemmArgs& g) {
  constexpr int64_t kBlock = 2 * kTileHeight;
  for (int64_t panel = g.first_panel; panel < g.first_panel + g.num_panels; panel += 2) {
    for (int64_t row = 0; row < g.rows; row += kBlock) {
      tile_block<Tiles>(g, row, g.rows - row < kBlock ? g.rows - row : kBlock, panel);
    }
  }
}

template <class Tiles>
static constexpr Kernels tile_table(const char* name) {
  return Kernels{name,       sizeof(TileOperand::A), norm_of<TileOperand>, to_operand_of<TileOperand>,
                 gemm_by_tiles<Tiles>, attend_of<CacheBf16>,   rotate,               largest_of,
                 sum_exp,    exp_run};
}

}  // namespace asyncthink::cpu::ASYNCTHINK_ISA
