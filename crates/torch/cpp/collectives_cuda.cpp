// Process groups of GPUs: c10d's NCCL. Built into a library of its own, which the program opens after
// `libtorch_cuda.so`. What a group does once it is made is in `collectives.cpp`, for both kinds.
#include "collectives.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" {

void asyncthink_nccl_free(char* message) { std::free(message); }

char* asyncthink_group_nccl(const asyncthink::Store* store, int32_t rank, int32_t world_size, int64_t timeout_ms,
                            asyncthink::Group** output, int32_t* failure) {
  return asyncthink::guarded_collective(failure, [&] {
    using Nccl = c10d::ProcessGroupNCCL;
    auto options = Nccl::Options::create();
    // c10d's own watchdog ends the process with no word about step and phase when this time is over; it is the net
    // below ours.
    options->timeout = asyncthink::milliseconds(timeout_ms);
    *output = new asyncthink::Group{c10::make_intrusive<Nccl>(store->store, rank, world_size, std::move(options))};
  });
}

}  // extern "C"
