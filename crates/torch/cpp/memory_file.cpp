// A file that lives in memory, from which the dynamic linker can open a library that the program carries as bytes.
#include "shim.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <stdexcept>
#include <string>

extern "C" char* asyncthink_memory_file(const char* name, const unsigned char* bytes, size_t size, int* descriptor) {
  return asyncthink::guarded([&] {
    int file = memfd_create(name, MFD_CLOEXEC);
    if (file < 0) throw std::runtime_error(std::string("memfd_create: ") + std::strerror(errno));
    size_t written = 0;
    while (written < size) {
      ssize_t count = write(file, bytes + written, size - written);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        std::string reason = std::strerror(errno);
        close(file);
        throw std::runtime_error("write: " + reason);
      }
      written += static_cast<size_t>(count);
    }
    *descriptor = file;
  });
}
