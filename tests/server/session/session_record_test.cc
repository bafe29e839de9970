#include "server/session/session_record.h"

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

SessionHeader Header() {
  SessionHeader h;
  h.revision = 9;
  h.branch = 2;
  h.position = 1000;
  h.durable_position = 990;
  h.turn_open = true;
  h.open_request_id = "r-1";
  h.model_fingerprint = "fp";
  h.create_time = absl::FromUnixSeconds(5);
  h.update_time = absl::FromUnixNanos(6'000'000'007);
  h.ttl = absl::Hours(3);
  h.expire_time = h.update_time + h.ttl;
  h.labels = {{"a", "1"}, {"b", ""}};
  h.before = {{{{"p", 1}, 0, 500}, {{"q", 2}, 3, 900}}, {{{"q", 2}, 3, 896}}};
  h.checkpoints = {{{"turn-2-950", 950, 2, true, "r-0", absl::FromUnixSeconds(4)}, std::nullopt},
                   {{"left", 900, 1, false, "", absl::FromUnixSeconds(3)}, h.before}};
  return h;
}

// How much longer the present version is than the first one.
size_t LineageAndCheckpointsBytes(SessionHeader h) {
  const size_t whole = EncodeHeader(h).size();
  h.before = {};
  h.checkpoints.clear();
  constexpr size_t kThreeCounts = 12;
  return whole - EncodeHeader(h).size() + kThreeCounts;
}

TEST(SessionRecordTest, HeadersReadBackAndEveryCutIsDataLoss) {
  const std::string bytes = EncodeHeader(Header());
  const auto h = DecodeHeader(bytes);
  ASSERT_OK(h);
  EXPECT_EQ(EncodeHeader(*h), bytes);
  EXPECT_EQ(h->labels, Header().labels);
  EXPECT_EQ(h->expire_time, Header().expire_time);
  EXPECT_EQ(h->durable_position, 990);
  SessionHeader forever = Header();
  forever.ttl = absl::InfiniteDuration();
  forever.expire_time = absl::InfiniteFuture();
  EXPECT_EQ(DecodeHeader(EncodeHeader(forever))->expire_time, absl::InfiniteFuture());
  EXPECT_EQ(DecodeHeader(EncodeHeader(forever))->ttl, absl::InfiniteDuration());
  const size_t first_version = bytes.size() - LineageAndCheckpointsBytes(Header());
  for (size_t size = 0; size < bytes.size(); ++size) {
    if (size == first_version) continue;
    EXPECT_THAT(DecodeHeader(bytes.substr(0, size)), StatusIs(StatusCode::kDataLoss, HasSubstr("session record")));
  }
  // What the first version wrote ended before the lineage.
  const auto old = DecodeHeader(bytes.substr(0, first_version));
  ASSERT_OK(old);
  EXPECT_EQ(old->labels, Header().labels);
  EXPECT_EQ(old->before, Lineage());
  EXPECT_EQ(old->checkpoints.size(), 0u);
  EXPECT_EQ(h->before, Header().before);
  ASSERT_EQ(h->checkpoints.size(), 2u);
  EXPECT_EQ(h->checkpoints[1].info.id, "left");
  EXPECT_EQ(h->checkpoints[1].lineage, Header().before);
  EXPECT_TRUE(h->checkpoints[0].info.automatic);
  EXPECT_THAT(DecodeHeader(bytes + "x"), StatusIs(StatusCode::kDataLoss, HasSubstr("")));
}

TEST(SessionRecordTest, RequestsReadBackAndEveryCutIsDataLoss) {
  RequestRecord q;
  q.request_id = "id";
  q.semantic_hash = "hash";
  q.params = std::string("\0\1", 2);
  q.state = RequestState::kInterrupted;
  q.branch = 1;
  q.start_position = 10;
  q.prompt_tokens = 4;
  q.end_position = 20;
  q.seed = UINT64_MAX;
  q.durability = Durability::kToken;
  q.outcome = "outcome";
  q.create_time = absl::FromUnixSeconds(1);
  q.end_time = absl::InfiniteFuture();
  const std::string bytes = EncodeRequest(q);
  const auto back = DecodeRequest(bytes);
  ASSERT_OK(back);
  EXPECT_EQ(EncodeRequest(*back), bytes);
  EXPECT_EQ(back->seed, UINT64_MAX);
  EXPECT_EQ(back->durability, Durability::kToken);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(DecodeRequest(bytes.substr(0, size)), StatusIs(StatusCode::kDataLoss, HasSubstr("")));
  }
}

TEST(SessionRecordTest, SnapshotsReadBackAlignedAndDamageIsDataLoss) {
  const std::string bytes = EncodeSnapshot({1, 77, "fp", "cpu", 0, State(77)});
  const auto s = DecodeSnapshot(bytes);
  ASSERT_OK(s);
  EXPECT_EQ(s->position, 77);
  EXPECT_EQ(PositionIn(*s->state), 77);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(s->state->span().data()) % 64, 0u);
  std::string bad = bytes;
  bad.back() ^= 1;
  EXPECT_THAT(DecodeSnapshot(bad), StatusIs(StatusCode::kDataLoss, HasSubstr("digest")));
  for (size_t size = 0; size < bytes.size(); size += 7) {
    EXPECT_THAT(DecodeSnapshot(bytes.substr(0, size)), StatusIs(StatusCode::kDataLoss, HasSubstr("")));
  }
}

TEST(SessionRecordTest, SessionIdsAreCheckedWithAClearError) {
  for (const char* good : {"a", "0", "a-b_c.d", "s-abcdefghij"}) EXPECT_OK(CheckSessionId(good));
  EXPECT_OK(CheckSessionId(std::string(63, 'a')));
  for (const std::string& bad :
       {std::string(), std::string("A"), std::string("-a"), std::string(".a"), std::string("a b"), std::string("a/b"),
        std::string("sessions/a"), std::string(64, 'a'), std::string("a\0b", 3), std::string("\xc3\xa4"),
        std::string(10000, 'x')}) {
    EXPECT_THAT(CheckSessionId(bad), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1 to 63 characters")));
    EXPECT_LT(CheckSessionId(bad).message().size(), 500u);
  }
  EXPECT_OK(CheckRequestId(""));
  EXPECT_OK(CheckRequestId("3f2c-AB:/x"));
  EXPECT_THAT(CheckRequestId("a b"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("request_id")));
  EXPECT_THAT(CheckRequestId(std::string(129, 'x')), StatusIs(StatusCode::kInvalidArgument, HasSubstr("128")));
}

TEST(SessionRecordTest, StateKeysReadBackAndOthersAreRefused) {
  const auto parsed = ParseSessionStateKey(SessionStateKey({"a.b", 0x1234567890abcdef}, 3));
  ASSERT_OK(parsed);
  EXPECT_EQ(parsed->key, (SessionKey{"a.b", 0x1234567890abcdef}));
  EXPECT_EQ(parsed->branch, 3);
  for (const char* bad : {"", "a", "a@12/0", "a@zzzzzzzzzzzzzzzz/0", "a@0123456789abcdef/", "a@0123456789abcdef"}) {
    EXPECT_THAT(ParseSessionStateKey(bad), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not a session's key")))
        << bad;
  }
}

}  // namespace
}  // namespace smt
