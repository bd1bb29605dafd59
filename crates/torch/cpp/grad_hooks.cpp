// Calls back when the gradient of a leaf has been accumulated, which tch lacks.
#include "shim.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// Calls Rust with a tensor that it takes over. False means a failure, whose reason is then in `reason`, a std::string.
using Callback = bool (*)(const void* context, at::Tensor* leaf, void* reason);
using Release = void (*)(const void* context);

// All callbacks of one leaf. It stays with the leaf once it is there: the engine reads the leaf's hook without a lock,
// so that taking it away could meet a backward of another thread.
class GradReady : public torch::autograd::PostAccumulateGradHook {
 public:
  void operator()(const at::Tensor& leaf) override {
    std::vector<Entry> entries;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      entries = entries_;
    }
    for (const auto& [id, callback, context] : entries) {
      std::string reason;
      if (!callback(context.get(), new at::Tensor(leaf), &reason)) throw std::runtime_error(reason);
    }
  }

  uint64_t add(Callback callback, std::shared_ptr<const void> context) {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_back({next_id_, callback, std::move(context)});
    return next_id_++;
  }

  void remove(uint64_t id) {
    std::vector<Entry> removed;  // released after the lock, because that runs code of Rust
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->id == id) {
        removed.push_back(std::move(*entry));
        entries_.erase(entry);
        return;
      }
    }
  }

 private:
  struct Entry {
    uint64_t id;
    Callback callback;
    std::shared_ptr<const void> context;
  };

  std::mutex mutex_;
  std::vector<Entry> entries_;
  uint64_t next_id_ = 0;
};

GradReady* find(const at::Tensor& leaf) {
  return dynamic_cast<GradReady*>(torch::autograd::impl::post_acc_grad_hooks(leaf).get());
}

}  // namespace

extern "C" {

void asyncthink_hook_reason(void* reason, const char* text, size_t size) {
  static_cast<std::string*>(reason)->assign(text, size);
}

// Takes `context` over, also when it fails.
char* asyncthink_on_grad_ready(const at::Tensor* leaf, Callback callback, const void* context, Release release,
                               uint64_t* id) {
  return asyncthink::guarded([&] {
    std::shared_ptr<const void> owned(context, release);
    TORCH_CHECK(leaf->is_leaf() && leaf->requires_grad(), "only a leaf that requires a gradient accumulates one");
    if (torch::autograd::impl::post_acc_grad_hooks(*leaf) == nullptr) {
      torch::autograd::impl::set_post_acc_grad_hooks(*leaf, std::make_unique<GradReady>());
    }
    GradReady* hook = find(*leaf);
    TORCH_CHECK(hook != nullptr, "the leaf has a hook of another kind");
    *id = hook->add(callback, std::move(owned));
  });
}

char* asyncthink_remove_grad_hook(const at::Tensor* leaf, uint64_t id) {
  return asyncthink::guarded([&] {
    if (GradReady* hook = find(*leaf)) hook->remove(id);
  });
}

}  // extern "C"
