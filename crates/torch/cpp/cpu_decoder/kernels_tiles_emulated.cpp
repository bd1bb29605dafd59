// The tile kernel on plain arrays: for tests, on any machine.
#define ASYNCTHINK_ISA tiles_emulated
#include "amx.inc.h"

namespace asyncthink::cpu {

namespace tiles_emulated {

class ArrayTiles {
 public:
  explicit ArrayTiles(const TileConfig& config) : config_(config) {}
  template <int kTile>
  void zero() {
    memset(bytes_[kTile], 0, sizeof bytes_[kTile]);
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    zero<kTile>();
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      memcpy(bytes_[kTile] + row * 64, static_cast<const char*>(from) + row * stride, config_.row_bytes[kTile]);
    }
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      memcpy(static_cast<char*>(to) + row * stride, bytes_[kTile] + row * 64, config_.row_bytes[kTile]);
    }
  }
  template <int kSum, int kRows, int kColumns>
  void multiply() {
    for (int m = 0; m < config_.rows[kSum]; ++m) {
      for (int n = 0; n < 16; ++n) {
        float sum;
        memcpy(&sum, bytes_[kSum] + m * 64 + n * 4, sizeof sum);
        for (int k = 0; k < 32; ++k) {
          sum += at(kRows, m * 32 + k) * at(kColumns, k / 2 * 32 + n * 2 + k % 2);
        }
        memcpy(bytes_[kSum] + m * 64 + n * 4, &sum, sizeof sum);
      }
    }
  }

 private:
  float at(int tile, int index) const {
    uint16_t bits;
    memcpy(&bits, bytes_[tile] + index * 2, sizeof bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  }

  TileConfig config_;
  char bytes_[8][1024];
};

}  // namespace tiles_emulated

const Kernels* kernels_tiles_emulated() {
  static const Kernels tiles = tiles_emulated::tile_table<tiles_emulated::ArrayTiles>("tiles_emulated");
  return &tiles;
}

}  // namespace asyncthink::cpu
