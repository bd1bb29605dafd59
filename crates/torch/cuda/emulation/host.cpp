// The host side of `cpp/cuda_stream.cpp` without CUDA: one stream, on which everything is done at once.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "../../cpp/shim.h"

using asyncthink::guarded;

// Changes stacks, as the C library's `swapcontext` does with a system call every time. The calling convention asks for
// these six registers to be kept; signal masks and floating-point modes are the same for all fibers.
asm(R"(
.text
.globl asyncthink_emulation_switch
.type asyncthink_emulation_switch, @function
asyncthink_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size asyncthink_emulation_switch, .-asyncthink_emulation_switch
)");

extern "C" {

void asyncthink_kernels_free(char* message) { std::free(message); }

char* asyncthink_kernels_stream(int, void** stream) {
  *stream = nullptr;
  return nullptr;
}
char* asyncthink_kernels_wait(void*) { return nullptr; }

char* asyncthink_kernels_upload(void* target, const void* source, size_t bytes, void*) {
  std::memcpy(target, source, bytes);
  return nullptr;
}
char* asyncthink_kernels_download(void* target, const void* source, size_t bytes, void*) {
  std::memcpy(target, source, bytes);
  return nullptr;
}

char* asyncthink_kernels_pin(size_t bytes, void** place) {
  return guarded([&] {
    *place = std::malloc(bytes);
    if (*place == nullptr) throw std::bad_alloc();
  });
}
void asyncthink_kernels_unpin(void* place) { std::free(place); }

char* asyncthink_kernels_multiprocessors(int, int32_t* count) {
  *count = 4;
  return nullptr;
}

}  // extern "C"
