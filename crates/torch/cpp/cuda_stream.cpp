// The stream that libtorch uses now, copies on it, and memory of the host that such copies need. Linked with the CUDA
// kernels into a library of its own.
#include "shim.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdint>

using asyncthink::guarded;

extern "C" {

void asyncthink_kernels_free(char* message) { std::free(message); }

// Also makes the device the current one of this thread, as a launch on its stream needs.
char* asyncthink_kernels_stream(int device, void** stream) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    *stream = c10::cuda::getCurrentCUDAStream(index).stream();
  });
}

char* asyncthink_kernels_wait(void* stream) {
  return guarded([&] { C10_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); });
}

// From pinned memory, so that the host goes on at once.
char* asyncthink_kernels_upload(void* target, const void* source, size_t bytes, void* stream) {
  return guarded([&] {
    C10_CUDA_CHECK(
        cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
  });
}

// Into pinned memory, and waits for it and for all before it.
char* asyncthink_kernels_download(void* target, const void* source, size_t bytes, void* stream) {
  return guarded([&] {
    const auto on = static_cast<cudaStream_t>(stream);
    C10_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, on));
    C10_CUDA_CHECK(cudaStreamSynchronize(on));
  });
}

char* asyncthink_kernels_pin(size_t bytes, void** place) {
  return guarded([&] { C10_CUDA_CHECK(cudaHostAlloc(place, bytes, cudaHostAllocDefault)); });
}
void asyncthink_kernels_unpin(void* place) {
  // Nobody is left to hear of a failure, which would be one of an earlier kernel.
  static_cast<void>(cudaFreeHost(place));
}

char* asyncthink_kernels_multiprocessors(int device, int32_t* count) {
  return guarded([&] {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
    *count = value;
  });
}

}  // extern "C"
