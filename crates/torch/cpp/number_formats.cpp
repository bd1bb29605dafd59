// Switches of libtorch for number formats that tch does not offer.
#include "shim.h"

#include <ATen/Context.h>

extern "C" char* asyncthink_set_tf32(bool is_allowed) {
  return asyncthink::guarded([&] {
    at::globalContext().setFloat32MatmulPrecision(is_allowed ? "high" : "highest");
  });
}
