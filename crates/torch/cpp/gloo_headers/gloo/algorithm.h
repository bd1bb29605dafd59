// Declarations of gloo, which the libtorch wheel contains as code but not as headers. This file and its neighbours hold
// what `ProcessGroupGloo.hpp` names and no more: nothing here is ever made or destroyed by our own code, so that only
// the names have to agree with the gloo inside `libtorch_cpu.so`.
#pragma once
