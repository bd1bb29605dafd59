// A decoder of the Llama and Qwen families on the CPU: packed weights, a paged cache, one call a step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace asyncthink::cpu {

// Mirrors `CpuDecoderConfig` in Rust.
struct Config {
  int64_t num_layers;
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t vocab_size;
  double eps;
  int32_t bf16;
  int32_t most_isa;  // see `choose_kernels`
};

// A weight matrix `[n, k]`, row by row, of f32 or bf16.
struct Matrix {
  const void* data;
  int64_t n, k;
  bool bf16;
};

// Zeroed memory whose pages exist once they are touched.
class LazyMemory {
 public:
  LazyMemory() = default;
  explicit LazyMemory(size_t bytes);
  ~LazyMemory();
  LazyMemory(LazyMemory&& other) noexcept;
  LazyMemory& operator=(LazyMemory&& other) noexcept;
  LazyMemory(const LazyMemory&) = delete;
  LazyMemory& operator=(const LazyMemory&) = delete;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

// One or more weight matrices side by side, in panels of 16 columns of the product.
class Packed {
 public:
  // Makes room for `num_panels` panels of depth k.
  void allocate(int64_t num_panels, int64_t k, bool bf16);
  // Puts 16 rows of `matrix` from `row` into a panel, zeros beyond its end.
  void pack(int64_t panel, const Matrix& matrix, int64_t row);
  const void* data() const { return memory_.data(); }
  int64_t num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t k() const { return k_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  LazyMemory memory_;
  int64_t num_panels_ = 0, panel_bytes_ = 0, k_ = 0;
  bool bf16_ = false;
};

struct Layer {
  std::vector<float> input_norm, post_norm, query_norm, key_norm;
  std::vector<float> qkv_bias, output_bias, gate_up_bias, down_bias;
  Packed qkv, output, gate_up, down;
};

struct Cache {
  Cache(const Config& config, int64_t num_blocks, int64_t block_size);
  // Keys or values of 16 positions of a block for one head.
  char* group(int64_t layer, int64_t block, int64_t kv_head, int64_t index, bool values) const;
  void copy_block(int64_t from, int64_t to);

  int64_t num_layers, num_blocks, block_size, kv_heads, head_dim;
  int64_t group_bytes;  // of 16 positions of one head
  int64_t block_bytes;  // of keys or of values in one layer
  LazyMemory memory;
};

// Mirrors `CpuSampling` in Rust.
struct SamplingRow {
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  uint64_t seed;
  uint64_t position;
};

// Mirrors `SampledRow` in Rust.
struct SampledRow {
  int64_t token;
  float logprob;
  float raw_logprob;
};

// Mirrors `CpuStep` in Rust.
struct Step {
  const int64_t* ids;
  const int32_t* cu_rows;
  const int32_t* first_positions;
  const int32_t* cu_blocks;
  const int32_t* blocks;
  const int32_t* block_copies;  // pairs
  const int32_t* sample_rows;
  const SamplingRow* sampling;
  const int32_t* cu_banned;
  const int64_t* banned;
  const float* cos;  // [positions, head_dim / 2]
  const float* sin;
  int64_t num_positions;
  int64_t num_sequences;
  int64_t num_block_copies;
  int64_t num_samples;
  int32_t num_threads;
  float* logits;  // [samples, vocab] if they are wanted, else null
};

// Draws a token from logits `[vocab]` (see `sampling.rs` for the definition).
SampledRow sample(const Kernels& kernels, const float* logits, int64_t vocab, const SamplingRow& how, const int64_t* banned,
                  int64_t num_banned);

// Instruction sets, each with all before it. Mirrors `CpuKernels` in Rust.
enum Isa : int { kGeneric, kAvx2, kAvx512, kNativeBf16, kTilesEmulated };

// The best kernels that this processor has, of those up to `most` (-1: all), for a number type.
const Kernels* choose_kernels(int most, bool bf16);

class Decoder {
 public:
  explicit Decoder(const Config& config);

  // Parameters in any order; all must be given before a step. `embedding` is read in place where it is of the decoder's own type.
  void set_embedding(const Matrix& matrix);
  void set_head(const Matrix& matrix);
  void set_final_norm(std::vector<float> weight) { final_norm_ = std::move(weight); }
  Layer& layer(int64_t index) { return layers_[static_cast<size_t>(index)]; }
  void pack_qkv(int64_t layer, const Matrix& query, const Matrix& key, const Matrix& value);
  void pack_gate_up(int64_t layer, const Matrix& gate, const Matrix& up);
  void pack_matrix(Packed& packed, const Matrix& matrix);

  void step(Cache& cache, const Step& step, SampledRow* out);

  const Config& config() const { return config_; }
  const char* kernels_name() const { return kernels_->name; }
  size_t weight_bytes() const;

 private:
  // Rows are in an order of their own: sequences with equal heads of their block tables lie together.
  struct Row {
    int32_t sequence;
    int32_t position;
    int32_t given;  // index in the step
  };
  // Rows that one item of attention handles, and how many chunks they all have in common.
  struct Tile {
    int32_t first, count, common_chunks;
  };

  bool has_weights() const;
  void plan(const Cache& cache, const Step& step);
  // Threads that a step is worth: meeting at a barrier takes as long as a small step.
  int32_t threads_for(const Step& step) const;
  void run(Worker& worker, Cache& cache, const Step& step, SampledRow* out);
  void run_layer(Worker& worker, Cache& cache, const Step& step, int64_t index);
  void embed(int64_t row, int64_t id);
  void plan_rows(const Step& step);
  void plan_tiles(const Cache& cache, const Step& step);
  void plan_samples(const Step& step);
  void gemm(Worker& worker, const Packed& b, const void* a, int64_t lda, int64_t rows, const float* bias, void* c,
            int64_t ldc, Epilogue epilogue);
  void write_cache(Cache& cache, const Step& step, int64_t layer, int64_t row);
  void attend(const Cache& cache, const Step& step, int64_t layer, const Tile& tile, int64_t kv_head);

  Config config_;
  const Kernels* kernels_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  LazyMemory embedding_;
  bool embedding_bf16_ = false;
  Packed head_;
  int64_t qkv_columns_, hidden_padded_, inner_padded_, attention_padded_;

  // State of the present step.
  std::vector<Row> rows_;
  std::vector<int32_t> row_of_given_;
  std::vector<Tile> tiles_;
  std::vector<float> hidden_, qkv_, logits_;
  std::vector<char> operand_, attention_operand_, inner_operand_;
  std::vector<int32_t> unique_rows_;       // rows whose logits are wanted, once each
  std::vector<int32_t> samples_;           // samples in the order of those rows
  std::vector<int32_t> sample_starts_;     // [unique rows + 1]
};

}  // namespace asyncthink::cpu
