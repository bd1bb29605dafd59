// Memory, panels and the cache of a decoder.
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <utility>

#include "decoder.h"

namespace asyncthink::cpu {

LazyMemory::LazyMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  // Fewer misses of the address cache; where the kernel refuses, nothing is lost.
  if (bytes >= (size_t{4} << 20)) (void)madvise(data, bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<char*>(data);
}

LazyMemory::~LazyMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

LazyMemory::LazyMemory(LazyMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

LazyMemory& LazyMemory::operator=(LazyMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

namespace {

float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}

float value_of(const Matrix& matrix, int64_t index) {
  return matrix.bf16 ? widen(static_cast<const uint16_t*>(matrix.data)[index])
                     : static_cast<const float*>(matrix.data)[index];
}

}  // namespace

void Packed::allocate(int64_t num_panels, int64_t k, bool bf16) {
  const int64_t panel_bytes = k * kLanes * (bf16 ? 2 : 4);
  if (memory_.data() == nullptr || num_panels != num_panels_ || panel_bytes != panel_bytes_) {
    memory_ = LazyMemory(static_cast<size_t>(num_panels * panel_bytes));
  }
  num_panels_ = num_panels;
  panel_bytes_ = panel_bytes;
  k_ = k;
  bf16_ = bf16;
}

void Packed::pack(int64_t panel, const Matrix& matrix, int64_t row) {
  char* out = memory_.data() + panel * panel_bytes_;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (row + lane >= matrix.n) break;
    const int64_t start = (row + lane) * matrix.k;
    if (!bf16_) {
      float* to = reinterpret_cast<float*>(out) + lane;
      if (!matrix.bf16) {
        const float* from = static_cast<const float*>(matrix.data) + start;
        for (int64_t i = 0; i < matrix.k; ++i) to[i * kLanes] = from[i];
      } else {
        for (int64_t i = 0; i < matrix.k; ++i) to[i * kLanes] = value_of(matrix, start + i);
      }
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(out) + 2 * lane;
      for (int64_t i = 0; i < matrix.k; ++i) {
        const uint16_t bits = matrix.bf16 ? static_cast<const uint16_t*>(matrix.data)[start + i]
                                          : to_bf16(static_cast<const float*>(matrix.data)[start + i]);
        to[i / 2 * 2 * kLanes + i % 2] = bits;
      }
    }
  }
}

Cache::Cache(const Config& config, int64_t num_blocks, int64_t block_size)
    : num_layers(config.num_layers),
      num_blocks(num_blocks),
      block_size(block_size),
      kv_heads(config.num_kv_heads),
      head_dim(config.head_dim),
      group_bytes(kLanes * config.head_dim * (config.bf16 != 0 ? 2 : 4)),
      block_bytes(block_size / kLanes * config.num_kv_heads * group_bytes),
      memory(static_cast<size_t>(2 * config.num_layers * num_blocks * block_bytes)) {}

char* Cache::group(int64_t layer, int64_t block, int64_t kv_head, int64_t index, bool values) const {
  const int64_t groups = block_size / kLanes;
  return memory.data() + ((layer * num_blocks + block) * 2 + (values ? 1 : 0)) * block_bytes +
         (kv_head * groups + index) * group_bytes;
}

void Cache::copy_block(int64_t from, int64_t to) {
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    std::memcpy(group(layer, to, 0, 0, false), group(layer, from, 0, 0, false), static_cast<size_t>(2 * block_bytes));
  }
}

void Decoder::pack_matrix(Packed& packed, const Matrix& matrix) {
  const int64_t k = (matrix.k + 31) / 32 * 32, panels = (matrix.n + 31) / 32 * 2;
  packed.allocate(panels, k, config_.bf16 != 0);
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) packed.pack(panel, matrix, panel * kLanes);
}

void Decoder::pack_qkv(int64_t layer, const Matrix& query, const Matrix& key, const Matrix& value) {
  Packed& packed = layers_[static_cast<size_t>(layer)].qkv;
  packed.allocate(qkv_columns_ / kLanes, hidden_padded_, config_.bf16 != 0);
  const int64_t query_panels = query.n / kLanes, key_panels = key.n / kLanes, panels = packed.num_panels();
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) {
    if (panel < query_panels) {
      packed.pack(panel, query, panel * kLanes);
    } else if (panel < query_panels + key_panels) {
      packed.pack(panel, key, (panel - query_panels) * kLanes);
    } else {
      packed.pack(panel, value, (panel - query_panels - key_panels) * kLanes);
    }
  }
}

void Decoder::pack_gate_up(int64_t layer, const Matrix& gate, const Matrix& up) {
  Packed& packed = layers_[static_cast<size_t>(layer)].gate_up;
  const int64_t panels = 2 * inner_padded_ / kLanes;
  packed.allocate(panels, hidden_padded_, config_.bf16 != 0);
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) {
    packed.pack(panel, panel % 2 == 0 ? gate : up, panel / 2 * kLanes);
  }
}

void Decoder::set_head(const Matrix& matrix) { pack_matrix(head_, matrix); }

void Decoder::set_embedding(const Matrix& matrix) {
  const int64_t count = matrix.n * matrix.k;
  embedding_bf16_ = config_.bf16 != 0;
  const size_t bytes = static_cast<size_t>(count) * (embedding_bf16_ ? 2 : 4);
  if (embedding_.bytes() != bytes) embedding_ = LazyMemory(bytes);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t i = row * matrix.k; i < (row + 1) * matrix.k; ++i) {
      if (embedding_bf16_) {
        reinterpret_cast<uint16_t*>(embedding_.data())[i] = to_bf16(value_of(matrix, i));
      } else {
        reinterpret_cast<float*>(embedding_.data())[i] = value_of(matrix, i);
      }
    }
  }
}

void Decoder::embed(int64_t row, int64_t id) {
  float* out = hidden_.data() + row * hidden_padded_;
  const int64_t start = id * config_.hidden_size;
  if (!embedding_bf16_) {
    std::memcpy(out, reinterpret_cast<const float*>(embedding_.data()) + start,
                static_cast<size_t>(config_.hidden_size) * sizeof(float));
    return;
  }
  const uint16_t* from = reinterpret_cast<const uint16_t*>(embedding_.data()) + start;
  for (int64_t i = 0; i < config_.hidden_size; ++i) out[i] = widen(from[i]);
}

size_t Decoder::weight_bytes() const {
  size_t bytes = embedding_.bytes() + head_.bytes();
  for (const Layer& layer : layers_) {
    bytes += layer.qkv.bytes() + layer.output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
  }
  return bytes;
}

}  // namespace asyncthink::cpu
