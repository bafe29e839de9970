// What requests may ask for. Set from flags, shown by GetModel, checked by the validators.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace smt {

struct RequestLimits {
  int32_t vocab_size = 0;
  int64_t max_prompt_bytes = int64_t{16} << 20;
  int64_t max_prompt_tokens = int64_t{4} << 20;
  int64_t max_tokens = 1 << 20;
  int64_t default_max_tokens = 256;
  int64_t max_score_entries = int64_t{4} << 20;  // scored ids x (1 + top_logprobs): they wait in memory for the reader
  // Of a session file that is imported, and of all that are on their way in and out.
  int64_t max_session_file_bytes = int64_t{1} << 30;
  int32_t max_stop_strings = 16;
  int32_t max_stop_string_bytes = 256;
  int32_t max_stop_token_ids = 64;
  int32_t max_logit_bias = 1024;
  int32_t max_top_logprobs = 20;
  int32_t max_labels = 64;
};

}  // namespace smt
