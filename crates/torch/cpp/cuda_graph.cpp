// CUDA graphs: work recorded once and started again as a whole. A library of its own, because it needs the whole CUDA half
// of libtorch to be opened.
#include "shim.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>
#include <optional>

using asyncthink::guarded;

namespace {

struct Graph {
  at::cuda::CUDAGraph graph;
  c10::DeviceIndex device = 0;
  std::optional<c10::cuda::CUDAStream> outside;
};

// One stream for all recordings of a device: libtorch keeps a workspace of the matrix library for every stream.
c10::cuda::CUDAStream recording_stream(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = streams.find(device);
  if (found != streams.end()) return found->second;
  return streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first->second;
}

}  // namespace

extern "C" {

void asyncthink_graph_free(char* message) { std::free(message); }

char* asyncthink_graph_new(int device, void** graph) {
  return guarded([&] {
    auto* made = new Graph;
    made->device = static_cast<c10::DeviceIndex>(device);
    *graph = made;
  });
}
void asyncthink_graph_drop(void* graph) { delete static_cast<Graph*>(graph); }

// From here until `leave`, this thread's work goes to the stream that can be recorded.
char* asyncthink_graph_enter(void* graph) {
  return guarded([&] {
    auto& self = *static_cast<Graph*>(graph);
    c10::cuda::set_device(self.device);
    c10::cuda::device_synchronize();
    self.outside = c10::cuda::getCurrentCUDAStream(self.device);
    c10::cuda::setCurrentCUDAStream(recording_stream(self.device));
  });
}
char* asyncthink_graph_leave(void* graph) {
  return guarded([&] {
    auto& self = *static_cast<Graph*>(graph);
    if (self.outside.has_value()) c10::cuda::setCurrentCUDAStream(*self.outside);
    self.outside.reset();
    c10::cuda::device_synchronize();
  });
}

// `other`, if not null, is a graph whose memory this one may use too: the two then must not run at the same time.
char* asyncthink_graph_begin(void* graph, void* other) {
  return guarded([&] {
    auto& self = *static_cast<Graph*>(graph);
    c10::cuda::device_synchronize();
    const auto pool = other == nullptr ? at::cuda::MempoolId_t{0, 0} : static_cast<Graph*>(other)->graph.pool();
    // Only this thread's mistakes end the recording.
    self.graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  });
}
char* asyncthink_graph_end(void* graph) {
  return guarded([&] { static_cast<Graph*>(graph)->graph.capture_end(); });
}
char* asyncthink_graph_replay(void* graph) {
  return guarded([&] { static_cast<Graph*>(graph)->graph.replay(); });
}

}  // extern "C"
