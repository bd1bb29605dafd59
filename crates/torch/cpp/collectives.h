// What the C functions of stores and process groups share. They return nullptr or a message, as all of ours do, and say
// in `failure` what kind of failure it was.
#pragma once

#include "shim.h"

#include <c10/util/Exception.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <typeinfo>

namespace asyncthink {

// Handles that Rust owns, each to be freed by its own function.
struct Store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct Group {
  c10::intrusive_ptr<c10d::Backend> backend;
};

// Kinds of failure; the numbers are known to Rust.
enum Failure : int32_t { kOther = 0, kTimeout = 1, kPeerLost = 2 };

inline bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// gloo's exceptions have no header here and c10d wraps some failures in others, so that names and words decide.
inline Failure kind_of(const std::exception& error, const std::string& text) {
  const std::string name = typeid(error).name();
  // What gloo says of a connection that was refused at once.
  if (contains(text, "timed out connecting: SO_ERROR")) return kPeerLost;
  if (dynamic_cast<const c10d::TimeoutError*>(&error) != nullptr || contains(name, "TimeoutException")) return kTimeout;
  for (const char* part : {"Timed out", "timed out", "timeout after", "Timeout", "TIMEOUT"}) {
    if (contains(text, part)) return kTimeout;
  }
  const bool network = dynamic_cast<const c10::DistNetworkError*>(&error) != nullptr || contains(name, "IoException");
  if (network) return kPeerLost;
  for (const char* part : {"onnection closed", "onnection reset", "onnection refused", "roken pipe", "pair closure",
                           "remote process exited", "ailed to recv"}) {
    if (contains(text, part)) return kPeerLost;
  }
  return kOther;
}

// As `guarded`, without the backtraces of libtorch, whose first lines alone may not tell the reason.
template <typename Body>
char* guarded_collective(int32_t* failure, Body&& body) noexcept {
  const auto report = [&](const std::exception& error, const std::string& text) {
    *failure = kind_of(error, text);
    return copy_message(text.c_str());
  };
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const c10::Error& error) {
    return report(error, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return report(error, error.what());
  } catch (...) {
    *failure = kOther;
    return copy_message("unknown C++ exception");
  }
}

inline std::chrono::milliseconds milliseconds(int64_t count) { return std::chrono::milliseconds(count); }

}  // namespace asyncthink
