// Keeps freed memory with the process.
#include <malloc.h>

extern "C" void asyncthink_keep_freed_memory() {
  // Training frees and takes back the same few hundred tensors in every step. By default glibc hands large blocks back
  // to the system and takes a page fault for every 4 KiB of the next one.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc accepts
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
}
