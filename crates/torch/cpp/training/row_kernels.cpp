// Which kernels of training rows are open.
#include "row_kernels.h"

#include <atomic>

namespace asyncthink::training {

namespace {
std::atomic<const RowKernels*> of_gpus{nullptr}, emulated{nullptr};
}

const RowKernels* row_kernels(const at::Tensor& tensor) { return tensor.is_cuda() ? of_gpus.load() : emulated.load(); }

}  // namespace asyncthink::training

// The table lives as long as the program; null takes it away.
extern "C" void asyncthink_set_row_kernels(const asyncthink::training::RowKernels* kernels, bool is_emulated) {
  (is_emulated ? asyncthink::training::emulated : asyncthink::training::of_gpus).store(kernels);
}
