// Threads that work through the phases of a step together.
#pragma once

#include <atomic>
#include <cstdint>

namespace asyncthink::cpu {

// Where all threads of a step wait for one another. Phases are microseconds apart, so that a waiting thread spins first; on a
// machine that is busy otherwise it then lets others run.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait();

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// One thread's view of a step. Every phase has a counter of its own from which the threads take work, so that a thread
// that is slow or not scheduled takes less.
class Worker {
 public:
  Worker(int num_threads, Barrier& barrier, std::atomic<int64_t>* counters, int64_t num_counters)
      : num_threads_(num_threads), barrier_(barrier), counters_(counters), num_counters_(num_counters) {}

  int num_threads() const { return num_threads_; }

  // Calls work(item) for the items 0 to count - 1 that this thread gets, then waits for the others.
  template <class Work>
  void share(int64_t count, Work&& work) {
    std::atomic<int64_t>& next = counters_[phase_++ % num_counters_];
    for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < count;
         item = next.fetch_add(1, std::memory_order_relaxed)) {
      work(item);
    }
    barrier_.wait();
  }

 private:
  const int num_threads_;
  Barrier& barrier_;
  std::atomic<int64_t>* counters_;
  int64_t num_counters_;
  int64_t phase_ = 0;
};

}  // namespace asyncthink::cpu
