// The C functions of the decoder on the CPU.
#include <ATen/core/Tensor.h>

#include <vector>

#include "../shim.h"
#include "decoder.h"

namespace {

namespace cpu = asyncthink::cpu;

// Parameters of a decoder; mirrors `CpuParameter` in Rust.
enum class Part : int32_t {
  kEmbedding,
  kHead,
  kFinalNorm,
  kInputNorm,
  kPostNorm,
  kQueryNorm,
  kKeyNorm,
  kQkv,
  kOutput,
  kGateUp,
  kDown,
  kQkvBias,
  kOutputBias,
  kGateUpBias,
  kDownBias,
};

cpu::Matrix matrix_of(const at::Tensor& tensor, int64_t n, int64_t k) {
  TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() == 2, "a weight must be a contiguous matrix on the CPU");
  TORCH_CHECK(tensor.size(0) == n && tensor.size(1) == k, "a weight has shape ", tensor.sizes(), " in place of [", n, ", ", k, "]");
  const bool bf16 = tensor.scalar_type() == at::kBFloat16;
  TORCH_CHECK(bf16 || tensor.scalar_type() == at::kFloat, "a weight must be f32 or bf16");
  return {tensor.const_data_ptr(), n, k, bf16};
}

std::vector<float> values_of(const at::Tensor& tensor, int64_t n) {
  TORCH_CHECK(tensor.is_cpu() && tensor.numel() == n, "a vector of a layer has ", tensor.numel(), " values in place of ", n);
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  return {data, data + n};
}

// Values at the columns of a product whose rows are padded to two panels.
std::vector<float> padded(std::vector<float> values) {
  values.resize((values.size() + 31) / 32 * 32, 0.0f);
  return values;
}

std::vector<float> joined(const at::Tensor* const* parts, const std::vector<int64_t>& sizes) {
  std::vector<float> all;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const std::vector<float> part = values_of(*parts[i], sizes[i]);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

// Gate and up of 16 columns in turns, as their panels.
std::vector<float> interleaved(const std::vector<float>& gate, const std::vector<float>& up) {
  const std::vector<float> first = padded(gate), second = padded(up);
  std::vector<float> all;
  for (size_t i = 0; i < first.size(); i += cpu::kLanes) {
    all.insert(all.end(), first.begin() + i, first.begin() + i + cpu::kLanes);
    all.insert(all.end(), second.begin() + i, second.begin() + i + cpu::kLanes);
  }
  return all;
}

void set(cpu::Decoder& decoder, Part part, int64_t index, const at::Tensor* const* tensors, int64_t num_tensors) {
  const cpu::Config& c = decoder.config();
  const int64_t hidden = c.hidden_size, inner = c.intermediate_size, query = c.num_heads * c.head_dim,
                key = c.num_kv_heads * c.head_dim;
  TORCH_CHECK(index >= 0 && index < c.num_layers, "layer ", index, " does not exist");
  const auto need = [&](int64_t count) { TORCH_CHECK(num_tensors == count, "a parameter has ", num_tensors, " tensors"); };
  need(part == Part::kQkv || part == Part::kQkvBias ? 3 : part == Part::kGateUp || part == Part::kGateUpBias ? 2 : 1);
  cpu::Layer& layer = decoder.layer(index);
  const at::Tensor& tensor = *tensors[0];
  switch (part) {
    case Part::kEmbedding: return decoder.set_embedding(matrix_of(tensor, c.vocab_size, hidden));
    case Part::kHead: return decoder.set_head(matrix_of(tensor, c.vocab_size, hidden));
    case Part::kFinalNorm: return decoder.set_final_norm(values_of(tensor, hidden));
    case Part::kInputNorm: layer.input_norm = values_of(tensor, hidden); return;
    case Part::kPostNorm: layer.post_norm = values_of(tensor, hidden); return;
    case Part::kQueryNorm: layer.query_norm = values_of(tensor, c.head_dim); return;
    case Part::kKeyNorm: layer.key_norm = values_of(tensor, c.head_dim); return;
    case Part::kQkv:
      return decoder.pack_qkv(index, matrix_of(tensor, query, hidden), matrix_of(*tensors[1], key, hidden),
                              matrix_of(*tensors[2], key, hidden));
    case Part::kOutput: return decoder.pack_matrix(layer.output, matrix_of(tensor, hidden, query));
    case Part::kGateUp:
      return decoder.pack_gate_up(index, matrix_of(tensor, inner, hidden), matrix_of(*tensors[1], inner, hidden));
    case Part::kDown: return decoder.pack_matrix(layer.down, matrix_of(tensor, hidden, inner));
    case Part::kQkvBias: layer.qkv_bias = joined(tensors, {query, key, key}); return;
    case Part::kOutputBias: layer.output_bias = padded(values_of(tensor, hidden)); return;
    case Part::kGateUpBias: layer.gate_up_bias = interleaved(values_of(tensor, inner), values_of(*tensors[1], inner)); return;
    case Part::kDownBias: layer.down_bias = padded(values_of(tensor, hidden)); return;
  }
  TORCH_CHECK(false, "unknown parameter");
}

}  // namespace

extern "C" {

char* asyncthink_cpu_decoder_new(const cpu::Config* config, cpu::Decoder** decoder) {
  return asyncthink::guarded([&] {
    TORCH_CHECK(config->head_dim % cpu::kLanes == 0 && config->head_dim <= 256, "unsupported head_dim ", config->head_dim);
    TORCH_CHECK(config->num_heads / config->num_kv_heads <= cpu::kMaxQueries, "too many query heads per key-value head");
    *decoder = new cpu::Decoder(*config);
  });
}

void asyncthink_cpu_decoder_free(cpu::Decoder* decoder) { delete decoder; }

const char* asyncthink_cpu_decoder_kernels(const cpu::Decoder* decoder) { return decoder->kernels_name(); }

uint64_t asyncthink_cpu_decoder_bytes(const cpu::Decoder* decoder) { return decoder->weight_bytes(); }

char* asyncthink_cpu_decoder_set(cpu::Decoder* decoder, int32_t part, int64_t layer, const at::Tensor* const* tensors,
                                 int64_t num_tensors) {
  return asyncthink::guarded([&] { set(*decoder, static_cast<Part>(part), layer, tensors, num_tensors); });
}

char* asyncthink_cpu_cache_new(const cpu::Config* config, int64_t num_blocks, int64_t block_size, cpu::Cache** cache) {
  return asyncthink::guarded([&] {
    TORCH_CHECK(num_blocks > 0 && block_size > 0 && block_size % cpu::kLanes == 0, "blocks must hold a multiple of 16 tokens");
    *cache = new cpu::Cache(*config, num_blocks, block_size);
  });
}

void asyncthink_cpu_cache_free(cpu::Cache* cache) { delete cache; }

char* asyncthink_cpu_decoder_step(cpu::Decoder* decoder, cpu::Cache* cache, const cpu::Step* step, cpu::SampledRow* out) {
  return asyncthink::guarded([&] { decoder->step(*cache, *step, out); });
}

}  // extern "C"
