#include "server/service/malformed_request.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <cstdint>
#include <map>
#include <string>

#include "model/base/strings.h"
#include "server/service/utf8.h"
#include "server/service/violations.h"

namespace smt {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Reads as far as the bytes make sense. Only fields of the schema are entered, so its depth bounds the recursion.
void FindInvalidText(const Descriptor& type, const std::string& prefix, std::string_view bytes,
                     Violations* violations) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
  std::map<int, int> seen;  // entries of repeated fields, by field number
  while (const uint32_t tag = in.ReadTag()) {
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    const bool enter =
        field != nullptr && WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED &&
        (field->type() == FieldDescriptor::TYPE_STRING || field->type() == FieldDescriptor::TYPE_MESSAGE);
    if (!enter) {
      if (!WireFormatLite::SkipField(&in, tag)) return;
      continue;
    }
    uint32_t size = 0;
    if (!in.ReadVarint32(&size)) return;
    const int begin = in.CurrentPosition();
    if (size > bytes.size() - begin) return;
    const std::string_view value = bytes.substr(begin, size);
    if (!in.Skip(static_cast<int>(size))) return;
    std::string path = prefix + field->name();
    if (field->is_repeated()) path += StrCat("[", seen[field->number()]++, "]");
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      FindInvalidText(*field->message_type(), path + ".", value, violations);
    } else if (!IsValidUtf8(value)) {
      const bool has_bytes = field->name() == "text" && type.FindFieldByName("text_bytes") != nullptr;
      violations->Add(path, StrCat("is ", ShowValue(value), ", which is not UTF-8; allowed is UTF-8",
                                   has_bytes ? " (bytes of any kind go into text_bytes)" : ""));
    }
  }
}

}  // namespace

absl::Status MalformedRequest(const Descriptor& type, std::string_view bytes) {
  Violations violations;
  FindInvalidText(type, "", bytes, &violations);
  if (!violations.empty()) return violations.ToStatus();
  return absl::InvalidArgumentError(StrCat("the request's bytes are no ", type.full_name()));
}

}  // namespace smt
