// The key-value store by which ranks find each other: c10d's TCPStore.
#include "collectives.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <vector>

namespace {

using asyncthink::guarded_collective;
using asyncthink::Store;

std::vector<uint8_t> bytes(const uint8_t* data, size_t size) { return std::vector<uint8_t>(data, data + size); }

std::vector<std::string> strings(const char* const* items, size_t count) {
  return std::vector<std::string>(items, items + count);
}

// Hands bytes over; freed with `asyncthink_free`.
void hand_over(const std::vector<uint8_t>& value, char** data, size_t* size) {
  // One byte at least, so that a null pointer always means that there is no memory.
  auto* copy = static_cast<char*>(std::malloc(value.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::copy(value.begin(), value.end(), copy);
  *data = copy;
  *size = value.size();
}

}  // namespace

extern "C" {

char* asyncthink_store_tcp(const char* host, uint16_t port, bool is_server, size_t num_workers, bool wait_for_workers,
                           int64_t timeout_ms, Store** output, uint16_t* bound_port, int32_t* failure) {
  return guarded_collective(failure, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server;
    if (num_workers > 0) options.numWorkers = num_workers;
    options.waitWorkers = wait_for_workers;
    options.timeout = asyncthink::milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *bound_port = store->getPort();
    *output = new Store{std::move(store)};
  });
}

char* asyncthink_store_prefix(const Store* store, const char* prefix, Store** output, int32_t* failure) {
  return guarded_collective(
      failure, [&] { *output = new Store{c10::make_intrusive<c10d::PrefixStore>(prefix, store->store)}; });
}

char* asyncthink_store_clone(const Store* store, Store** output, int32_t* failure) {
  return guarded_collective(failure, [&] { *output = new Store{store->store->clone()}; });
}

char* asyncthink_store_set(const Store* store, const char* key, const uint8_t* value, size_t size, int32_t* failure) {
  return guarded_collective(failure, [&] { store->store->set(key, bytes(value, size)); });
}

char* asyncthink_store_get(const Store* store, const char* key, char** value, size_t* size, int32_t* failure) {
  return guarded_collective(failure, [&] { hand_over(store->store->get(key), value, size); });
}

char* asyncthink_store_add(const Store* store, const char* key, int64_t amount, int64_t* sum, int32_t* failure) {
  return guarded_collective(failure, [&] { *sum = store->store->add(key, amount); });
}

char* asyncthink_store_wait(const Store* store, const char* const* keys, size_t count, int64_t timeout_ms,
                            int32_t* failure) {
  return guarded_collective(
      failure, [&] { store->store->wait(strings(keys, count), asyncthink::milliseconds(timeout_ms)); });
}

char* asyncthink_store_has(const Store* store, const char* const* keys, size_t count, bool* has, int32_t* failure) {
  return guarded_collective(failure, [&] { *has = store->store->check(strings(keys, count)); });
}

char* asyncthink_store_compare_set(const Store* store, const char* key, const uint8_t* expected, size_t expected_size,
                                   const uint8_t* desired, size_t desired_size, char** value, size_t* size,
                                   int32_t* failure) {
  return guarded_collective(failure, [&] {
    hand_over(store->store->compareSet(key, bytes(expected, expected_size), bytes(desired, desired_size)), value,
              size);
  });
}

char* asyncthink_store_delete(const Store* store, const char* key, bool* existed, int32_t* failure) {
  return guarded_collective(failure, [&] { *existed = store->store->deleteKey(key); });
}

void asyncthink_store_free(Store* store) { delete store; }

}  // extern "C"
