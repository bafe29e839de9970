// Uploads that the host does not wait for: a ring of pinned memory from which the device copies while the host fills in
// what comes next. (A copy from pageable memory is staged, or waited for, by the runtime.)
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>

namespace smt::cuda {

// Uploads are queued on one stream, in order. Not thread-safe; used by the stream's one thread, not while the stream is
// captured. Failures throw (CheckCuda).
class PinnedUploads {
 public:
  static constexpr size_t kDefaultBytes = size_t{1} << 20;

  // `bytes`: of pinned memory; a single upload may take a fourth of it before the ring has to grow.
  explicit PinnedUploads(cudaStream_t stream, size_t bytes = kDefaultBytes);
  ~PinnedUploads();  // waits for the copies
  PinnedUploads(const PinnedUploads&) = delete;
  PinnedUploads& operator=(const PinnedUploads&) = delete;

  // Room for `bytes` >= 0, 16-byte aligned, to be filled in and then uploaded; good until the next Reserve. Waits only
  // where the host is three fourths of the ring ahead of the device, or once for a ring that has to grow.
  void* Reserve(size_t bytes);
  // Queues the copy of the first `bytes` of what Reserve gave last to device memory.
  void Upload(void* to, size_t bytes);
  // All of it: `from` may be reused as soon as this returns. A few bytes go with a kernel instead (StoreBytes).
  void Copy(void* to, const void* from, size_t bytes);

 private:
  // The ring's parts are used in turn. A part's event comes after its copies.
  static constexpr size_t kParts = 4;
  class Event {
   public:
    Event();
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    cudaEvent_t get() const { return event_; }

   private:
    cudaEvent_t event_ = nullptr;
  };
  struct FreePinned {
    void operator()(std::byte* memory) const;
  };

  void Allocate(size_t part_bytes);
  void NextPart();

  const cudaStream_t stream_;
  size_t part_bytes_ = 0;
  std::unique_ptr<std::byte, FreePinned> memory_;  // kParts of part_bytes_
  const std::array<Event, kParts> left_;
  size_t part_ = 0, used_ = 0;  // bytes of the part
  std::byte* reserved_ = nullptr;
};

}  // namespace smt::cuda
