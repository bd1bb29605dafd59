// Helpers of the C functions that Rust calls. Every such function returns nullptr, or a message to be freed with
// `asyncthink_free`; no C++ exception leaves it.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

namespace asyncthink {

inline char* copy_message(const char* text) noexcept {
  char* copy = strdup(text);
  // Out of memory while reporting an error: there is nothing left to report with.
  if (copy == nullptr) std::abort();
  return copy;
}

template <typename Body>
char* guarded(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const std::exception& error) {
    return copy_message(error.what());
  } catch (...) {
    return copy_message("unknown C++ exception");
  }
}

}  // namespace asyncthink
