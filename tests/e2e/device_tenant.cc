// Takes memory of the first GPU and keeps it, as another process of the machine may, until it is ended. Prints one line
// of JSON once it has it. Exit code 77: there is no GPU.
//
//   smt_device_tenant --leave_bytes=N    all but so much of what is free
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
  constexpr char kFlag[] = "--leave_bytes=";
  if (argc != 2 || std::strncmp(argv[1], kFlag, sizeof(kFlag) - 1) != 0) {
    std::fprintf(stderr, "usage: %s --leave_bytes=N (or --help, for this)\n", argv[0]);
    return 2;
  }
  const int64_t leave = std::atoll(argv[1] + sizeof(kFlag) - 1);
  size_t available = 0, total = 0;
  if (const cudaError_t error = cudaMemGetInfo(&available, &total); error != cudaSuccess) {
    std::fprintf(stderr, "no GPU: %s\n", cudaGetErrorString(error));
    return 77;
  }
  const int64_t taken = static_cast<int64_t>(available) - leave;
  void* memory = nullptr;
  if (taken <= 0 || cudaMalloc(&memory, static_cast<size_t>(taken)) != cudaSuccess) {
    std::fprintf(stderr, "cannot take %" PRId64 " bytes of %zu\n", taken, available);
    return 1;
  }
  cudaMemGetInfo(&available, &total);
  std::printf("{\"taken_bytes\":%" PRId64 ",\"free_bytes\":%zu,\"total_bytes\":%zu}\n", taken, available, total);
  std::fflush(stdout);
  while (true) pause();
}
