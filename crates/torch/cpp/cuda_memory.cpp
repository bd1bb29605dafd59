// Memory of one GPU as libtorch's caching allocator counts it. Built into a library of its own, which the program
// opens after `libtorch_cuda.so`, so that the program itself does not need CUDA.
#include "shim.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace allocator = c10::cuda::CUDACachingAllocator;
using c10::CachingAllocator::StatType;

extern "C" {

void asyncthink_cuda_free(char* message) { std::free(message); }

char* asyncthink_cuda_memory(int device, uint64_t* current_bytes, uint64_t* peak_bytes, uint64_t* reserved_bytes) {
  return asyncthink::guarded([&] {
    const auto stats = allocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    constexpr auto kAll = static_cast<size_t>(StatType::AGGREGATE);
    *current_bytes = static_cast<uint64_t>(stats.allocated_bytes[kAll].current);
    *peak_bytes = static_cast<uint64_t>(stats.allocated_bytes[kAll].peak);
    *reserved_bytes = static_cast<uint64_t>(stats.reserved_bytes[kAll].current);
  });
}

// Memory that the driver has left, and that libtorch holds unused.
char* asyncthink_cuda_free_memory(int device, uint64_t* bytes) {
  return asyncthink::guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    size_t free = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    const auto stats = allocator::getDeviceStats(index);
    constexpr auto kAll = static_cast<size_t>(StatType::AGGREGATE);
    const auto unused = stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
    *bytes = static_cast<uint64_t>(free) + static_cast<uint64_t>(std::max<int64_t>(unused, 0));
  });
}

char* asyncthink_cuda_reset_peak(int device) {
  return asyncthink::guarded([&] { allocator::resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

char* asyncthink_cuda_empty_cache() {
  return asyncthink::guarded([] { allocator::emptyCache(); });
}

}  // extern "C"
