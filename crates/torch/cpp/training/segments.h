// Segments of a packed batch, and loops over them.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace asyncthink::training {

// Segments as Rust passes them: lengths, and the segment before it that each continues, or -1.
struct Segments {
  std::vector<int64_t> starts, lens, prefixes, num_keys, roots;

  Segments(const int64_t* lengths, const int64_t* prefix_of, int64_t count, int64_t num_tokens) {
    int64_t start = 0;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t prefix = prefix_of == nullptr ? -1 : prefix_of[s];
      TORCH_CHECK(lengths[s] >= 0 && prefix >= -1 && prefix < s, "segment ", s, " is not after its prefix");
      starts.push_back(start);
      lens.push_back(lengths[s]);
      prefixes.push_back(prefix);
      num_keys.push_back(lengths[s] + (prefix < 0 ? 0 : num_keys[prefix]));
      roots.push_back(prefix < 0 ? s : roots[prefix]);
      start += lengths[s];
    }
    TORCH_CHECK(start == num_tokens, "the segments have ", start, " tokens, the batch ", num_tokens);
  }

  int64_t size() const { return static_cast<int64_t>(lens.size()); }

  // Segments that share no key with others' segments, each list in order.
  std::vector<std::vector<int64_t>> trees() const {
    std::vector<std::vector<int64_t>> all(lens.size());
    for (int64_t s = 0; s < size(); ++s) all[roots[s]].push_back(s);
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& tree) { return tree.empty(); }), all.end());
    return all;
  }
};

// Calls `task` for every number below `count`, each once, by whichever thread is free. A task's result must not depend on who runs it.
template <class Task>
void parallel_tasks(int64_t count, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t index = next++; index < count; index = next++) task(index);
    }
  });
}

// Rows in portions that are worth a thread.
template <class Task>
void parallel_rows(int64_t rows, int64_t width, const Task& task) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), task);
}

}  // namespace asyncthink::training
