// Process groups and their collectives: c10d's own, gloo's here and NCCL's made by `collectives_cuda.cpp`.
#include "collectives.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <algorithm>
#include <functional>
#include <thread>
#include <vector>

namespace {

using asyncthink::Group;
using asyncthink::guarded_collective;
using asyncthink::milliseconds;
using asyncthink::Store;

// A collective under way. `finish` moves what it gave to where it was wanted, once, after it is done.
struct Work {
  c10::intrusive_ptr<c10d::Work> work;
  std::function<void()> finish;
};

// Tensors between two ranks are matched in order.
constexpr int kTag = 0;

// The same memory without a graph: collectives write into parameters and gradients alike.
at::Tensor plain(const at::Tensor* tensor) { return tensor->detach(); }

c10d::ReduceOp reduction(int32_t code) {
  switch (code) {
    case 0:
      return c10d::ReduceOp::SUM;
    case 1:
      return c10d::ReduceOp::MAX;
    case 2:
      return c10d::ReduceOp::MIN;
    default:
      TORCH_CHECK(false, "no reduction has the code ", code);
  }
}

template <typename Options>
Options with_timeout(int64_t timeout_ms) {
  Options options;
  options.timeout = milliseconds(timeout_ms);
  return options;
}

void start(Work** output, c10::intrusive_ptr<c10d::Work> work, std::function<void()> finish = nullptr) {
  *output = new Work{std::move(work), std::move(finish)};
}

void poll_until_done(c10d::Work& work, std::chrono::milliseconds timeout) {
  const auto start = std::chrono::steady_clock::now();
  constexpr auto kLongest = std::chrono::microseconds(1000);
  auto pause = std::chrono::microseconds(20);
  while (!work.isCompleted()) {
    if (std::chrono::steady_clock::now() - start > timeout) {
      C10D_THROW_ERROR(TimeoutError, "Timed out waiting ", timeout.count(), "ms for the operation to complete");
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongest);
  }
}

}  // namespace

extern "C" {

char* asyncthink_group_gloo(const Store* store, int32_t rank, int32_t world_size, int64_t timeout_ms,
                            const char* address, Group** output, int32_t* failure) {
  return guarded_collective(failure, [&] {
    using Gloo = c10d::ProcessGroupGloo;
    c10::intrusive_ptr<Gloo::Options> options;
    if (address == nullptr) {
      options = Gloo::Options::create_default(milliseconds(timeout_ms));
    } else {
      options = Gloo::Options::create(milliseconds(timeout_ms));
      options->devices.push_back(Gloo::createDeviceForHostname(address));
    }
    *output = new Group{c10::make_intrusive<Gloo>(store->store, rank, world_size, std::move(options))};
  });
}

char* asyncthink_group_abort(const Group* group, int32_t* failure) {
  return guarded_collective(failure, [&] { group->backend->abort(); });
}

void asyncthink_group_free(Group* group, int32_t* failure) {
  std::free(guarded_collective(failure, [&] { delete group; }));
}

char* asyncthink_all_reduce(const Group* group, const at::Tensor* const* tensors, size_t count, int32_t code,
                            int64_t timeout_ms, Work** output, int32_t* failure) {
  return guarded_collective(failure, [&] {
    std::vector<at::Tensor> list;
    for (size_t index = 0; index < count; ++index) list.push_back(plain(tensors[index]));
    if (count == 1) {
      auto options = with_timeout<c10d::AllreduceOptions>(timeout_ms);
      options.reduceOp = reduction(code);
      start(output, group->backend->allreduce(list, options));
    } else {
      auto options = with_timeout<c10d::AllreduceCoalescedOptions>(timeout_ms);
      options.reduceOp = reduction(code);
      start(output, group->backend->allreduce_coalesced(list, options));
    }
  });
}

char* asyncthink_broadcast(const Group* group, const at::Tensor* tensor, int32_t root, int64_t timeout_ms,
                           Work** output, int32_t* failure) {
  return guarded_collective(failure, [&] {
    std::vector<at::Tensor> list{plain(tensor)};
    auto options = with_timeout<c10d::BroadcastOptions>(timeout_ms);
    options.rootRank = root;
    start(output, group->backend->broadcast(list, options));
  });
}

char* asyncthink_reduce_scatter(const Group* group, const at::Tensor* input, const at::Tensor* target, int32_t code,
                                int64_t timeout_ms, bool native, Work** output, int32_t* failure) {
  return guarded_collective(failure, [&] {
    at::Tensor from = plain(input), to = plain(target);
    if (native) {
      auto options = with_timeout<c10d::ReduceScatterOptions>(timeout_ms);
      options.reduceOp = reduction(code);
      start(output, group->backend->_reduce_scatter_base(to, from, options));
      return;
    }
    // gloo has no reduce-scatter. c10d's own stand-in is the same as this one, an all-reduce of a copy, but its work
    // neither tells when it is done nor heeds a timeout.
    at::Tensor copy = from.clone();
    std::vector<at::Tensor> list{copy};
    auto options = with_timeout<c10d::AllreduceOptions>(timeout_ms);
    options.reduceOp = reduction(code);
    auto part = copy.view({group->backend->getSize(), -1}).select(0, group->backend->getRank());
    start(output, group->backend->allreduce(list, options),
          [to, part]() mutable { to.copy_(part.view(to.sizes())); });
  });
}

char* asyncthink_all_gather(const Group* group, const at::Tensor* input, const at::Tensor* target, int64_t timeout_ms,
                            Work** output, int32_t* failure) {
  return guarded_collective(failure, [&] {
    // Flat, because gloo cuts the output along its first dimension, which a scalar does not have.
    at::Tensor from = plain(input).view({-1}), to = plain(target).view({-1});
    start(output, group->backend->_allgather_base(to, from, with_timeout<c10d::AllgatherOptions>(timeout_ms)));
  });
}

char* asyncthink_barrier(const Group* group, int64_t timeout_ms, int32_t cuda_device, Work** output,
                         int32_t* failure) {
  return guarded_collective(failure, [&] {
    auto options = with_timeout<c10d::BarrierOptions>(timeout_ms);
    if (cuda_device >= 0) options.device_ids.push_back(cuda_device);
    start(output, group->backend->barrier(options));
  });
}

char* asyncthink_send(const Group* group, const at::Tensor* tensor, int32_t to, Work** output,
                      int32_t* failure) {
  return guarded_collective(failure, [&] {
    std::vector<at::Tensor> list{plain(tensor)};
    start(output, group->backend->send(list, to, kTag));
  });
}

char* asyncthink_recv(const Group* group, const at::Tensor* tensor, int32_t from, Work** output,
                      int32_t* failure) {
  return guarded_collective(failure, [&] {
    std::vector<at::Tensor> list{plain(tensor)};
    start(output, group->backend->recv(list, from, kTag));
  });
}

// With `poll`, asks until it is done: a wait of NCCL's work that runs out of time lets c10d's watchdog end the process.
char* asyncthink_work_wait(Work* work, int64_t timeout_ms, bool poll, int32_t* failure) {
  return guarded_collective(failure, [&] {
    if (poll) {
      poll_until_done(*work->work, milliseconds(timeout_ms));
      timeout_ms = 0;
    }
    TORCH_CHECK(work->work->wait(milliseconds(timeout_ms)), "the operation was aborted");
    if (work->finish) {
      work->finish();
      work->finish = nullptr;
    }
  });
}

char* asyncthink_work_is_completed(const Work* work, bool* is_completed, int32_t* failure) {
  return guarded_collective(failure, [&] { *is_completed = work->work->isCompleted(); });
}

void asyncthink_work_free(Work* work) { delete work; }

}  // extern "C"
