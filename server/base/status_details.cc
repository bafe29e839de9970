#include "server/base/status_details.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/cord.h"

namespace smt {
namespace {

using Json = nlohmann::json;

// The payload never leaves the process; JSON because it is at hand, and readable where a status is logged.
constexpr char kPayload[] = "smt.serve/details";

std::string Text(const Json& object, const char* key) { return object.value(key, std::string()); }

}  // namespace

bool StatusDetails::empty() const {
  return reason.empty() && metadata.empty() && violations.empty() && !resource && !retry_delay &&
         preconditions.empty() && quotas.empty();
}

absl::Status WithDetails(absl::Status status, const StatusDetails& details) {
  if (status.ok()) return status;
  Json json = {{"reason", details.reason}, {"metadata", details.metadata}};
  for (const auto& v : details.violations) json["violations"].push_back({{"f", v.field}, {"d", v.description}});
  if (details.resource) {
    json["resource"] = {
        {"t", details.resource->type}, {"n", details.resource->name}, {"d", details.resource->description}};
  }
  if (details.retry_delay) json["retry_ms"] = absl::ToInt64Milliseconds(*details.retry_delay);
  for (const auto& p : details.preconditions) {
    json["preconditions"].push_back({{"t", p.type}, {"s", p.subject}, {"d", p.description}});
  }
  for (const auto& q : details.quotas) json["quotas"].push_back({{"s", q.subject}, {"d", q.description}});
  status.SetPayload(kPayload, absl::Cord(json.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return status;
}

StatusDetails GetDetails(const absl::Status& status) {
  StatusDetails details;
  const auto payload = status.GetPayload(kPayload);
  if (!payload) return details;
  const Json json = Json::parse(std::string(*payload), nullptr, false);
  if (!json.is_object()) return details;
  details.reason = Text(json, "reason");
  details.metadata = json.value("metadata", std::map<std::string, std::string>());
  for (const Json& v : json.value("violations", Json::array())) {
    details.violations.push_back({Text(v, "f"), Text(v, "d")});
  }
  if (json.contains("resource")) {
    const Json& r = json["resource"];
    details.resource = StatusDetails::Resource{Text(r, "t"), Text(r, "n"), Text(r, "d")};
  }
  if (json.contains("retry_ms")) details.retry_delay = absl::Milliseconds(json["retry_ms"].get<int64_t>());
  for (const Json& p : json.value("preconditions", Json::array())) {
    details.preconditions.push_back({Text(p, "t"), Text(p, "s"), Text(p, "d")});
  }
  for (const Json& q : json.value("quotas", Json::array())) details.quotas.push_back({Text(q, "s"), Text(q, "d")});
  return details;
}

}  // namespace smt
