// One step of a decoder: phases that all threads share, a barrier between them.
#include "decoder.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace asyncthink::cpu {

namespace {

// Rows of a product that are handled together: their operands stay in the second-level cache while weights pass by.
constexpr int64_t kRowBlock = 16 * kMaxTileRows;
// Bytes of a weight matrix that a thread may read as a whole.
constexpr int64_t kSmallWeights = 2 << 20;
constexpr int64_t kItemsPerThread = 6;
// Multiplications that a thread must have to be worth waiting for.
constexpr int64_t kThreadWork = 1 << 19;
// Rows of logits that exist at a time.
constexpr int64_t kLogitRows = 8 * kMaxTileRows;

int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

}  // namespace

Decoder::Decoder(const Config& config)
    : config_(config),
      kernels_(choose_kernels(config.most_isa, config.bf16 != 0)),
      layers_(static_cast<size_t>(config.num_layers)),
      qkv_columns_((config.num_heads + 2 * config.num_kv_heads) * config.head_dim),
      hidden_padded_(padded(config.hidden_size)),
      inner_padded_(padded(config.intermediate_size)),
      attention_padded_(padded(config.num_heads * config.head_dim)) {}

void Decoder::plan_rows(const Step& step) {
  std::vector<int32_t> sequences(static_cast<size_t>(step.num_sequences));
  std::iota(sequences.begin(), sequences.end(), 0);
  std::stable_sort(sequences.begin(), sequences.end(), [&](int32_t a, int32_t b) {
    return std::lexicographical_compare(step.blocks + step.cu_blocks[a], step.blocks + step.cu_blocks[a + 1],
                                        step.blocks + step.cu_blocks[b], step.blocks + step.cu_blocks[b + 1]);
  });
  rows_.clear();
  row_of_given_.resize(static_cast<size_t>(step.cu_rows[step.num_sequences]));
  for (int32_t sequence : sequences) {
    const int32_t first = step.cu_rows[sequence];
    for (int32_t given = first; given < step.cu_rows[sequence + 1]; ++given) {
      row_of_given_[static_cast<size_t>(given)] = static_cast<int32_t>(rows_.size());
      rows_.push_back({sequence, step.first_positions[sequence] + given - first, given});
    }
  }
}

void Decoder::plan_tiles(const Cache& cache, const Step& step) {
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  const auto num_rows = static_cast<int64_t>(rows_.size());
  const auto in_common = [&](int32_t a, int32_t b) {
    const int32_t* first = step.blocks + step.cu_blocks[a];
    const int32_t* second = step.blocks + step.cu_blocks[b];
    const int32_t most = std::min(step.cu_blocks[a + 1] - step.cu_blocks[a], step.cu_blocks[b + 1] - step.cu_blocks[b]);
    int32_t count = 0;
    while (count < most && first[count] == second[count]) ++count;
    return count;
  };
  const int64_t enough_items = 4 * step.num_threads;
  const int64_t wanted = std::max<int64_t>(1, num_rows * config_.num_kv_heads / enough_items);
  const int64_t max_rows = std::min(std::max<int64_t>(1, kMaxQueries / group), wanted);
  tiles_.clear();
  for (int64_t first = 0; first < num_rows;) {
    const Row& head = rows_[static_cast<size_t>(first)];
    const int64_t count = std::min(max_rows, num_rows - first);
    int64_t tokens = head.position + 1;
    bool single = true;
    for (int64_t i = 1; i < count; ++i) {
      const Row& row = rows_[static_cast<size_t>(first + i)];
      if (row.sequence == head.sequence) {
        tokens = std::max(tokens, static_cast<int64_t>(row.position) + 1);
      } else {
        tokens = std::min<int64_t>(tokens, in_common(head.sequence, row.sequence) * cache.block_size);
        single = false;
      }
    }
    // Rows of one sequence have all chunks in common: each sees what lies before it.
    const int64_t chunks = single ? (tokens + kChunkTokens - 1) / kChunkTokens : tokens / kChunkTokens;
    tiles_.push_back({static_cast<int32_t>(first), static_cast<int32_t>(count), static_cast<int32_t>(chunks)});
    first += count;
  }
}

void Decoder::plan_samples(const Step& step) {
  unique_rows_.assign(step.sample_rows, step.sample_rows + step.num_samples);  // as given
  std::sort(unique_rows_.begin(), unique_rows_.end());
  unique_rows_.erase(std::unique(unique_rows_.begin(), unique_rows_.end()), unique_rows_.end());
  samples_.resize(static_cast<size_t>(step.num_samples));
  std::iota(samples_.begin(), samples_.end(), 0);
  std::stable_sort(samples_.begin(), samples_.end(),
                   [&](int32_t a, int32_t b) { return step.sample_rows[a] < step.sample_rows[b]; });
  sample_starts_.clear();
  for (size_t i = 0; i < samples_.size(); ++i) {
    if (i == 0 || step.sample_rows[samples_[i]] != step.sample_rows[samples_[i - 1]]) {
      sample_starts_.push_back(static_cast<int32_t>(i));
    }
  }
  sample_starts_.push_back(static_cast<int32_t>(samples_.size()));
}

bool Decoder::has_weights() const {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  return embedding_.data() != nullptr && head_.data() != nullptr && final_norm_.size() == hidden &&
         std::all_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
           return layer.input_norm.size() == hidden && layer.post_norm.size() == hidden && layer.qkv.data() != nullptr &&
                  layer.output.data() != nullptr && layer.gate_up.data() != nullptr && layer.down.data() != nullptr;
         });
}

void Decoder::plan(const Cache& cache, const Step& step) {
  if (!has_weights()) throw std::invalid_argument("weights are missing");
  if (cache.num_layers != config_.num_layers || cache.kv_heads != config_.num_kv_heads ||
      cache.head_dim != config_.head_dim || cache.group_bytes != kLanes * config_.head_dim * (config_.bf16 != 0 ? 2 : 4)) {
    throw std::invalid_argument("the cache is that of another decoder");
  }
  for (int64_t s = 0; s < step.num_sequences; ++s) {
    const int32_t num_rows = step.cu_rows[s + 1] - step.cu_rows[s];
    const int64_t num_tokens = int64_t{step.first_positions[s]} + num_rows;
    const int64_t num_blocks = step.cu_blocks[s + 1] - step.cu_blocks[s];
    if (step.first_positions[s] < 0 || num_tokens > num_blocks * cache.block_size || num_tokens > step.num_positions) {
      throw std::invalid_argument("a sequence has more tokens than its blocks or the rotary table");
    }
    for (int32_t b = step.cu_blocks[s]; b < step.cu_blocks[s + 1]; ++b) {
      if (step.blocks[b] < 0 || step.blocks[b] >= cache.num_blocks) throw std::invalid_argument("a block is outside the cache");
    }
  }
  plan_rows(step);
  const auto num_rows = static_cast<int64_t>(rows_.size());
  for (int64_t row = 0; row < num_rows; ++row) {
    if (step.ids[row] < 0 || step.ids[row] >= config_.vocab_size) throw std::invalid_argument("an id is outside the vocabulary");
  }
  for (int64_t i = 0; i < step.num_samples; ++i) {
    if (step.sample_rows[i] < 0 || step.sample_rows[i] >= num_rows) throw std::invalid_argument("a sampled row does not exist");
  }
  for (int64_t i = 0; i < 2 * step.num_block_copies; ++i) {
    if (step.block_copies[i] < 0 || step.block_copies[i] >= cache.num_blocks) {
      throw std::invalid_argument("a copied block is outside the cache");
    }
  }
  plan_tiles(cache, step);
  plan_samples(step);
  const auto room = [&](auto& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
  };
  const int64_t bytes = kernels_->operand_bytes;
  const int64_t logit_rows = std::min<int64_t>(kLogitRows, static_cast<int64_t>(unique_rows_.size()));
  room(hidden_, num_rows * hidden_padded_);
  room(qkv_, num_rows * qkv_columns_);
  room(logits_, logit_rows * head_.num_panels() * kLanes);
  room(operand_, std::max(num_rows, logit_rows) * hidden_padded_ * bytes);
  room(attention_operand_, num_rows * attention_padded_ * bytes);
  room(inner_operand_, num_rows * inner_padded_ * bytes);
}

void Decoder::gemm(Worker& worker, const Packed& b, const void* a, int64_t lda, int64_t rows, const float* bias, void* c,
                   int64_t ldc, Epilogue epilogue) {
  const int64_t panels = b.num_panels(), threads = worker.num_threads();
  // Small weights pass through every thread's cache, each with rows of its own; large ones are shared out by columns.
  int64_t row_items = (rows + kRowBlock - 1) / kRowBlock;
  if (panels * b.panel_bytes() <= kSmallWeights && rows >= 2 * kMaxTileRows * threads) {
    row_items = (row_items + threads - 1) / threads * threads;
  }
  // Enough items for threads that do not run all of the time, none smaller than what a tile reads at once.
  const int64_t wanted = std::max<int64_t>(1, kItemsPerThread * threads / row_items);
  const int64_t step = std::max<int64_t>(rows <= 4 ? 4 : 2, (panels + wanted - 1) / wanted / 2 * 2);
  const int64_t column_items = (panels + step - 1) / step;
  const int64_t c_bytes = epilogue == Epilogue::kSwiGlu ? kernels_->operand_bytes : static_cast<int64_t>(sizeof(float));
  worker.share(column_items * row_items, [&](int64_t item) {
    const int64_t block = item / column_items, panel = item % column_items * step;
    const int64_t row = rows * block / row_items, end = rows * (block + 1) / row_items;
    GemmArgs args{};
    args.a = static_cast<const char*>(a) + row * lda * kernels_->operand_bytes;
    args.lda = lda;
    args.b = b.data();
    args.panel_bytes = b.panel_bytes();
    args.k = b.k();
    args.rows = end - row;
    args.first_panel = panel;
    args.num_panels = std::min(step, panels - panel);
    args.bias = bias;
    args.c = static_cast<char*>(c) + row * ldc * c_bytes;
    args.ldc = ldc;
    args.epilogue = epilogue;
    kernels_->gemm(args);
  });
}

void Decoder::write_cache(Cache& cache, const Step& step, int64_t layer, int64_t row) {
  const Row& at = rows_[static_cast<size_t>(row)];
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const int64_t head_dim = config_.head_dim;
  const float* cos = step.cos + at.position * (head_dim / 2);
  const float* sin = step.sin + at.position * (head_dim / 2);
  const auto eps = static_cast<float>(config_.eps);
  const auto norm = [](const std::vector<float>& weight) { return weight.empty() ? nullptr : weight.data(); };
  float* query = qkv_.data() + row * qkv_columns_;
  for (int64_t h = 0; h < config_.num_heads; ++h) {
    kernels_->rotate(query + h * head_dim, norm(weights.query_norm), eps, cos, sin, head_dim);
  }
  const int64_t block = step.blocks[step.cu_blocks[at.sequence] + at.position / cache.block_size];
  const int64_t offset = at.position % cache.block_size, lane = offset % kLanes;
  for (int64_t h = 0; h < config_.num_kv_heads; ++h) {
    float* key = query + (config_.num_heads + h) * head_dim;
    const float* value = query + (config_.num_heads + config_.num_kv_heads + h) * head_dim;
    kernels_->rotate(key, norm(weights.key_norm), eps, cos, sin, head_dim);
    char* keys = cache.group(layer, block, h, offset / kLanes, false);
    char* values = cache.group(layer, block, h, offset / kLanes, true);
    if (config_.bf16 == 0) {
      auto* k = reinterpret_cast<float*>(keys) + lane;
      for (int64_t d = 0; d < head_dim; ++d) k[d * kLanes] = key[d];
      std::memcpy(reinterpret_cast<float*>(values) + lane * head_dim, value, static_cast<size_t>(head_dim) * sizeof(float));
      continue;
    }
    const auto narrow = [](float x) {
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      return static_cast<uint16_t>((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
    };
    auto* k = reinterpret_cast<uint16_t*>(keys) + 2 * lane;
    auto* v = reinterpret_cast<uint16_t*>(values) + lane / 2 * 2 * head_dim + lane % 2;
    for (int64_t d = 0; d < head_dim; ++d) {
      k[d / 2 * 2 * kLanes + d % 2] = narrow(key[d]);
      v[2 * d] = narrow(value[d]);
    }
  }
}

void Decoder::attend(const Cache& cache, const Step& step, int64_t layer, const Tile& tile, int64_t kv_head) {
  const int64_t head_dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
  const int64_t num_queries = tile.count * group;
  constexpr int64_t kMaxHeadDim = 256;
  alignas(64) float query[kMaxQueries * kMaxHeadDim];
  alignas(64) float sum[kMaxQueries * kMaxHeadDim];
  float largest[kMaxQueries], total[kMaxQueries];
  int32_t limits[kMaxQueries];
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const auto row_of = [&](int64_t index) { return tile.first + index; };
  for (int64_t i = 0; i < tile.count; ++i) {
    const float* from = qkv_.data() + row_of(i) * qkv_columns_ + kv_head * group * head_dim;
    for (int64_t d = 0; d < group * head_dim; ++d) query[i * group * head_dim + d] = from[d] * scale;
  }
  std::fill(sum, sum + num_queries * head_dim, 0.0f);
  std::fill(largest, largest + num_queries, -std::numeric_limits<float>::infinity());
  std::fill(total, total + num_queries, 0.0f);

  const auto groups_of = [&](int64_t index, int32_t sequence, int64_t num_tokens, bool values, const void** out) {
    const int64_t start = index * kChunkTokens;
    const int64_t count = std::min(kChunkGroups, (num_tokens - start + kLanes - 1) / kLanes);
    const int32_t* blocks = step.blocks + step.cu_blocks[sequence];
    for (int64_t g = 0; g < count; ++g) {
      const int64_t position = start + g * kLanes;
      const int64_t block = blocks[position / cache.block_size], part = position % cache.block_size / kLanes;
      out[g] = cache.group(layer, block, kv_head, part, values);
    }
    return count;
  };
  // Queries [first, first + count) attend to one chunk of a sequence.
  const auto chunk = [&](int64_t index, int32_t sequence, int64_t num_tokens, int64_t first, int64_t count, const Row* next) {
    AttendArgs args{};
    args.num_groups = groups_of(index, sequence, num_tokens, false, args.keys);
    groups_of(index, sequence, num_tokens, true, args.values);
    if ((index + 1) * kChunkTokens < num_tokens) {
      groups_of(index + 1, sequence, num_tokens, false, args.next_keys);
    } else if (next != nullptr) {
      groups_of(tile.common_chunks, next->sequence, next->position + 1, false, args.next_keys);
    }
    args.query = query + first * head_dim;
    args.num_queries = count;
    args.head_dim = head_dim;
    args.limits = limits + first;
    args.largest = largest + first;
    args.total = total + first;
    args.sum = sum + first * head_dim;
    kernels_->attend(args);
  };
  const auto set_limits = [&](int64_t index, int64_t row, int64_t position) {
    const int64_t limit = std::min<int64_t>(kChunkTokens, position + 1 - index * kChunkTokens);
    for (int64_t j = 0; j < group; ++j) limits[row * group + j] = static_cast<int32_t>(limit);
  };
  const Row& head = rows_[static_cast<size_t>(row_of(0))];
  for (int64_t c = 0; c < tile.common_chunks; ++c) {
    // Later rows of a sequence see more; those that do not reach this chunk come first.
    int64_t from = 0, last = 0;
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t position = rows_[static_cast<size_t>(row_of(i))].position;
      if (position < c * kChunkTokens) {
        from = i + 1;
      } else {
        set_limits(c, i, position);
        last = std::max(last, position + 1);
      }
    }
    const int64_t end = c + 1 < tile.common_chunks ? last : std::min(last, (c + 1) * kChunkTokens);
    chunk(c, head.sequence, end, from * group, (tile.count - from) * group, &head);
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    const Row& row = rows_[static_cast<size_t>(row_of(i))];
    for (int64_t c = tile.common_chunks; c * kChunkTokens <= row.position; ++c) {
      set_limits(c, i, row.position);
      const Row* next = i + 1 < tile.count ? &rows_[static_cast<size_t>(row_of(i + 1))] : nullptr;
      chunk(c, row.sequence, row.position + 1, i * group, group, next);
    }
    for (int64_t j = 0; j < group; ++j) {
      float* values = sum + (i * group + j) * head_dim;
      const float inverse = 1.0f / total[i * group + j];
      for (int64_t d = 0; d < head_dim; ++d) values[d] *= inverse;
    }
    char* out = attention_operand_.data() +
                (row_of(i) * attention_padded_ + kv_head * group * head_dim) * kernels_->operand_bytes;
    kernels_->to_operand(sum + i * group * head_dim, group * head_dim, out);
  }
}

void Decoder::run_layer(Worker& worker, Cache& cache, const Step& step, int64_t index) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const auto num_rows = static_cast<int64_t>(rows_.size());
  const auto eps = static_cast<float>(config_.eps);
  const int64_t bytes = kernels_->operand_bytes;
  const auto bias = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  // Rows are cheap to norm: a few at a time, or fetching the next item would cost as much.
  const auto norm = [&](const std::vector<float>& weight) {
    constexpr int64_t kRows = 8;
    worker.share((num_rows + kRows - 1) / kRows, [&](int64_t item) {
      for (int64_t row = item * kRows; row < std::min(num_rows, (item + 1) * kRows); ++row) {
        kernels_->norm(hidden_.data() + row * hidden_padded_, weight.data(), eps, config_.hidden_size, hidden_padded_,
                       operand_.data() + row * hidden_padded_ * bytes);
      }
    });
  };
  norm(layer.input_norm);
  gemm(worker, layer.qkv, operand_.data(), hidden_padded_, num_rows, bias(layer.qkv_bias), qkv_.data(), qkv_columns_,
       Epilogue::kStore);
  worker.share(num_rows, [&](int64_t row) { write_cache(cache, step, index, row); });
  const auto num_tiles = static_cast<int64_t>(tiles_.size());
  worker.share(num_tiles * config_.num_kv_heads, [&](int64_t item) {
    attend(cache, step, index, tiles_[static_cast<size_t>(item / config_.num_kv_heads)], item % config_.num_kv_heads);
  });
  gemm(worker, layer.output, attention_operand_.data(), attention_padded_, num_rows, bias(layer.output_bias),
       hidden_.data(), hidden_padded_, Epilogue::kAdd);
  norm(layer.post_norm);
  gemm(worker, layer.gate_up, operand_.data(), hidden_padded_, num_rows, bias(layer.gate_up_bias), inner_operand_.data(),
       inner_padded_, Epilogue::kSwiGlu);
  gemm(worker, layer.down, inner_operand_.data(), inner_padded_, num_rows, bias(layer.down_bias), hidden_.data(),
       hidden_padded_, Epilogue::kAdd);
}

void Decoder::run(Worker& worker, Cache& cache, const Step& step, SampledRow* out) {
  if (step.num_block_copies > 0) {
    worker.share(step.num_block_copies, [&](int64_t item) {
      cache.copy_block(step.block_copies[2 * item], step.block_copies[2 * item + 1]);
    });
  }
  const auto num_rows = static_cast<int64_t>(rows_.size());
  worker.share(num_rows, [&](int64_t row) { embed(row, step.ids[rows_[static_cast<size_t>(row)].given]); });
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) run_layer(worker, cache, step, layer);

  const auto num_unique = static_cast<int64_t>(unique_rows_.size());
  const int64_t columns = head_.num_panels() * kLanes, bytes = kernels_->operand_bytes;
  for (int64_t from = 0; from < num_unique; from += kLogitRows) {
    const int64_t count = std::min(kLogitRows, num_unique - from);
    worker.share(count, [&](int64_t i) {
      const int32_t row = row_of_given_[static_cast<size_t>(unique_rows_[static_cast<size_t>(from + i)])];
      kernels_->norm(hidden_.data() + row * hidden_padded_, final_norm_.data(),
                     static_cast<float>(config_.eps), config_.hidden_size, hidden_padded_,
                     operand_.data() + i * hidden_padded_ * bytes);
    });
    gemm(worker, head_, operand_.data(), hidden_padded_, count, nullptr, logits_.data(), columns, Epilogue::kStore);
    const int64_t first = sample_starts_[static_cast<size_t>(from)];
    const int64_t last = sample_starts_[static_cast<size_t>(from + count)];
    worker.share(last - first, [&](int64_t i) {
      const int64_t index = samples_[static_cast<size_t>(first + i)];
      const auto unique = std::lower_bound(unique_rows_.begin(), unique_rows_.end(), step.sample_rows[index]);
      const float* logits = logits_.data() + (unique - unique_rows_.begin() - from) * columns;
      const int64_t banned = step.cu_banned == nullptr ? 0 : step.cu_banned[index];
      const int64_t num_banned = step.cu_banned == nullptr ? 0 : step.cu_banned[index + 1] - banned;
      out[index] = sample(*kernels_, logits, config_.vocab_size, step.sampling[index], step.banned + banned, num_banned);
      if (step.logits != nullptr) {
        std::memcpy(step.logits + index * config_.vocab_size, logits,
                    static_cast<size_t>(config_.vocab_size) * sizeof(float));
      }
    });
  }
}

int32_t Decoder::threads_for(const Step& step) const {
  const int64_t layer = hidden_padded_ * (qkv_columns_ + attention_padded_ + 3 * inner_padded_);
  const auto rows = static_cast<int64_t>(rows_.size()), logit_rows = static_cast<int64_t>(unique_rows_.size());
  const int64_t work = rows * layer * config_.num_layers + logit_rows * hidden_padded_ * config_.vocab_size;
  return static_cast<int32_t>(std::clamp<int64_t>(work / kThreadWork, 1, step.num_threads));
}

void Decoder::step(Cache& cache, const Step& step, SampledRow* out) {
  plan(cache, step);
  if (rows_.empty()) return;
  const int32_t num_threads = threads_for(step);
  // Phases: eight a layer, three for each part of the logits, and two before.
  const int64_t num_phases = 2 + 8 * config_.num_layers +
                             3 * ((static_cast<int64_t>(unique_rows_.size()) + kLogitRows - 1) / kLogitRows);
  std::vector<Taken> taken(static_cast<size_t>(num_phases * num_threads));
  std::unique_ptr<Barrier> barrier;
#pragma omp parallel num_threads(num_threads)
  {
    // OpenMP may give fewer threads than were asked for.
#pragma omp single
    barrier = std::make_unique<Barrier>(omp_get_num_threads());
    Worker worker(omp_get_thread_num(), omp_get_num_threads(), *barrier, taken.data());
    run(worker, cache, step, out);
  }
}

}  // namespace asyncthink::cpu
