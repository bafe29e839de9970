// ResumeGenerate: a stream that broke off goes on past what its client has.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/service/generation_start.h"

namespace smt {

// What has ended is replayed from the log. What broke off goes on where its log ends, with the stored request and seed;
// if that is before what the client has (the server died before the log was on disk), ids are generated again up to
// there and must be the same. What still runs, its client gone or not, is stopped at a token boundary first: the new
// stream takes it over. Blocks as StartGeneration does.
absl::StatusOr<std::shared_ptr<GenerationEvents>> ResumeGeneration(ServiceContext* context,
                                                                   const v1::ResumeGenerateRequest& request,
                                                                   absl::Time arrival, absl::Time deadline,
                                                                   const std::function<bool()>& abandoned);

}  // namespace smt
