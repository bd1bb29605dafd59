// Threads that work through the phases of a step together.
#pragma once

#include <atomic>
#include <cstdint>

namespace asyncthink::cpu {

// Where all threads of a step wait for one another. Phases are microseconds apart, so that a waiting thread spins first; it
// sleeps when that takes too long, as it does where another process has the core that it waits for.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait();

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

// Items of one thread's range that were taken.
struct alignas(64) Taken {
  std::atomic<int64_t> count{0};
};

// One thread's view of a step. Each phase cuts its items into a range a thread, so that a thread finds in its own cache what it wrote
// in the phase before; one that is done helps the others, so that a thread that is slow or not scheduled does less.
class Worker {
 public:
  // `taken`: a row of `num_threads` for every phase.
  Worker(int index, int num_threads, Barrier& barrier, Taken* taken)
      : index_(index), num_threads_(num_threads), barrier_(barrier), taken_(taken) {}

  int64_t num_threads() const { return num_threads_; }

  // Calls work(item) for the items 0 to count - 1 that this thread gets, then waits for the others.
  template <class Work>
  void share(int64_t count, Work&& work) {
    for (int64_t i = 0; i < num_threads_; ++i) {
      const int64_t owner = (index_ + i) % num_threads_;
      const int64_t first = count * owner / num_threads_, end = count * (owner + 1) / num_threads_;
      std::atomic<int64_t>& taken = taken_[owner].count;
      for (int64_t item = first + taken.fetch_add(1, std::memory_order_relaxed); item < end;
           item = first + taken.fetch_add(1, std::memory_order_relaxed)) {
        work(item);
      }
    }
    taken_ += num_threads_;
    barrier_.wait();
  }

 private:
  const int64_t index_, num_threads_;
  Barrier& barrier_;
  Taken* taken_;
};

}  // namespace asyncthink::cpu
