#include "server/store/redis_address.h"

#include <gmock/gmock.h>

#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

RedisEndpoint Host(std::string host, int port) { return {.socket_path = "", .host = std::move(host), .port = port}; }

TEST(RedisAddressTest, ReadsEveryForm) {
  EXPECT_THAT(ParseRedisAddress("cache:6380")->endpoints, ElementsAre(Host("cache", 6380)));
  EXPECT_THAT(ParseRedisAddress("[::1]:6380")->endpoints, ElementsAre(Host("::1", 6380)));
  for (const char* text : {"/run/redis.sock", "unix:/run/redis.sock", "unix:///run/redis.sock"}) {
    EXPECT_EQ(ParseRedisAddress(text)->endpoints.at(0).socket_path, "/run/redis.sock") << text;
  }
  const auto plain = *ParseRedisAddress("redis://cache");
  EXPECT_THAT(plain.endpoints, ElementsAre(Host("cache", 6379)));
  EXPECT_FALSE(plain.tls);
  const auto full = *ParseRedisAddress("rediss://smt:p%40s%3As@cache.example:6380/3");
  EXPECT_TRUE(full.tls);
  EXPECT_EQ(full.user, "smt");
  EXPECT_EQ(full.password, "p@s:s");
  EXPECT_EQ(full.database, 3);
  EXPECT_THAT(full.endpoints, ElementsAre(Host("cache.example", 6380)));
  EXPECT_EQ(ParseRedisAddress("redis://:pw@h")->password, "pw");
  EXPECT_THAT(ParseRedisAddress("redis://a:1,[::2]:2,c/0")->endpoints,
              ElementsAre(Host("a", 1), Host("::2", 2), Host("c", 6379)));
}

TEST(RedisAddressTest, IsWrittenAsItIsRead) {
  for (const char* text : {"cache:6380", "[::1]:6380", "/run/redis.sock"}) {
    EXPECT_EQ(ToString(ParseRedisAddress(text)->endpoints[0]), text);
  }
}

TEST(RedisAddressTest, SaysWhatIsWrongWithoutThePassword) {
  for (const char* text :
       {"", "cache", "cache:", "cache:0", "cache:70000", "cache:1x", ":6379", "[::1", "[::1]x", "redis://",
        "redis://h:x", "redis://h/x", "redis://secret@h", "redis://u:secret%4@h", "redis://u:secret@h,,i"}) {
    EXPECT_THAT(ParseRedisAddress(text), StatusIs(absl::StatusCode::kInvalidArgument, Not(HasSubstr("secret"))))
        << text;
  }
  EXPECT_THAT(ParseRedisAddress("http://cache"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'http://'")));
}

}  // namespace
}  // namespace smt
