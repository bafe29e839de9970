// What is wrong with bytes that do not parse as a request.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string_view>

#include "absl/status/status.h"

namespace smt {

// INVALID_ARGUMENT. Names every field of type `string` whose bytes are no UTF-8, nested ones by their path; where there
// is none, the bytes are no message of this type.
absl::Status MalformedRequest(const google::protobuf::Descriptor& type, std::string_view bytes);

}  // namespace smt
