// The offline loop: a prompt in, ids out, one session, no server.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/sampling/sampling_params.h"
#include "model/slot_runner.h"

namespace smt {

struct GenerateOptions {
  SamplingParams sampling = {};                   // temperature, top_k, top_p, seed, ...; docs/sampling.md
  int64_t max_tokens = 64;                        // >= 0; 0 absorbs the prompt only
  std::vector<int32_t> stop_ids = {};             // the id that stops is the last of the result
  std::function<bool(int32_t id)> on_token = {};  // called with each id as it is drawn; false stops after it
};

// Absorbs `prompt` into the slot, then draws ids and absorbs each but the last, as a server does. The slot may hold a
// session already; prompt may be empty if it does. Greedy ties and random numbers are those of the server's.
// INVALID_ARGUMENT: nothing to go on from (t = 0), max_tokens < 0, or a prompt id outside the vocabulary, naming it.
absl::StatusOr<std::vector<int32_t>> Generate(SlotRunner& runner, int32_t slot, std::span<const int32_t> prompt,
                                              const GenerateOptions& options);

}  // namespace smt
