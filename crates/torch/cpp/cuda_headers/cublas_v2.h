// Stands in for the header of this name where the package that brings it is not installed, as its neighbours do:
// libtorch's headers declare functions on these types, none of which we call.
#pragma once

typedef struct cublasContext* cublasHandle_t;
enum cublasStatus_t : int;
