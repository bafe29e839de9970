// Lists that come in pages.
#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"
#include "server/store/record_format.h"

namespace smt {
namespace {

constexpr int32_t kDefaultPage = 50, kMaxPage = 1000;

}  // namespace

// The last id of a page and a check on it: opaque to clients, refused when it is not one of ours.
std::string MakePageToken(std::string_view last_id) {
  std::string raw(last_id);
  AppendBigEndian(&raw, Xxh3(last_id));
  return absl::WebSafeBase64Escape(raw);
}

absl::StatusOr<std::string> ParsePageToken(const std::string& token, std::string_view method) {
  std::string raw;
  if (token.empty()) return raw;
  if (absl::WebSafeBase64Unescape(token, &raw) && raw.size() > 8) {
    const std::string_view id = std::string_view(raw).substr(0, raw.size() - 8);
    if (ReadBigEndian(std::string_view(raw).substr(id.size())) == Xxh3(id)) return std::string(id);
  }
  const std::string why = StrCat("is \"", absl::CHexEscape(token.substr(0, 64)), "\"; allowed are those that ", method,
                                 " gave, or none for the first page");
  return WithDetails(absl::InvalidArgumentError(StrCat("page_token: ", why)), {.violations = {{"page_token", why}}});
}

absl::StatusOr<size_t> PageSize(int32_t page_size) {
  if (page_size >= 0) return static_cast<size_t>(page_size == 0 ? kDefaultPage : std::min(page_size, kMaxPage));
  return absl::InvalidArgumentError(
      StrCat("page_size is ", page_size, ", must be 0 (the default of ", kDefaultPage, ") or more"));
}

absl::StatusOr<SessionManager::Page> SessionManagerImpl::List(int32_t page_size, const std::string& page_token) {
  ASSIGN_OR_RETURN(const size_t size, PageSize(page_size));
  ASSIGN_OR_RETURN(const std::string after, ParsePageToken(page_token, "ListSessions"));
  ASSIGN_OR_RETURN(std::vector<StoredSession> stored, c_.store->List(after, size + 1));
  Page page;
  if (stored.size() > size) {
    stored.resize(size);
    page.next_page_token = MakePageToken(stored.back().key.id);
  }
  for (const StoredSession& s : stored) {
    if (const Entry entry = table_.Peek(s.key.id)) {
      absl::MutexLock lock(&entry->mu);
      if (entry->loaded && entry->key == s.key && !LeaseRanOut(*entry)) {
        if (entry->busy || !Expired(entry->header)) page.sessions.push_back(entry->Info());
        continue;
      }
    }
    auto header = s.header.ok() ? DecodeHeader(*s.header) : absl::StatusOr<SessionHeader>(s.header.status());
    if (!header.ok()) {
      SessionInfo info = MakeInfo(s.key, {});
      info.etag.clear();
      info.damaged = true;
      page.sessions.push_back(std::move(info));
      continue;
    }
    if (Expired(*header)) continue;
    SessionInfo info = MakeInfo(s.key, *header);
    if (header->turn_open) info.position = std::max(info.position, c_.store->LogEnd(s.key, header->branch).value_or(0));
    page.sessions.push_back(std::move(info));
  }
  return page;
}

}  // namespace smt
