// Kernels of training rows on a GPU: functions of the library that is opened at run time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace asyncthink::training {

// Every function returns null, or a message to be freed with `free`. Kinds of numbers: 0 f32, 1 bf16.
struct RowKernels {
  char* (*stream)(int device, void** stream);
  char* (*norm_forward)(int32_t kind, const void* x, const void* weight, void* y, float* rstd, int64_t rows, int64_t width, float eps,
                        void* stream);
  char* (*norm_backward)(int32_t kind, const void* x, const void* weight, const float* rstd, const void* dy, void* dx, float* partial,
                         int64_t parts, int64_t rows, int64_t width, void* stream);
  char* (*rotary)(int32_t kind, const void* x, void* y, const float* dy, const void* cos, const void* sin, const void* q_norm,
                  const void* k_norm, float* partial, int64_t parts, int64_t rows, int64_t x_stride, int64_t y_stride,
                  int64_t dy_stride, int64_t heads, int64_t kv_heads, int64_t head_dim, float eps, void* stream);
  char* (*gate)(int32_t kind, void* gate_up, const void* dact, void* act, int64_t rows, int64_t width, void* stream);
  void (*free)(char* message);
};

// The kernels for a tensor's device: those for GPUs, or on the CPU the emulated ones while a test has set them; else null.
const RowKernels* row_kernels(const at::Tensor& tensor);

}  // namespace asyncthink::training
