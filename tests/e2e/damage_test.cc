// Bytes that changed on the disk of a server that was down: told when it serves again, and what a person can do then.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/smt_command.h"

namespace smt::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr char kOpening[] = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals";
// Of more than 32 ids, so that they are a piece of the log by themselves, whatever comes with them.
constexpr char kSecond[] =
    " The captain looked up from his chart and said that the wind had gone round to the north since the morning, that "
    "the ship would not see the land again before Sunday, and that whoever was afraid of the sea had better go below";
constexpr char kThird[] = " Nobody had expected";
constexpr int kDamaged = 6;  // exit status of smt

std::string Read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void Write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
std::vector<fs::path> FilesOf(const std::string& store_dir, std::string_view extension) {
  std::vector<fs::path> out;
  for (const auto& e : fs::directory_iterator(store_dir + "/rocksdb")) {
    if (e.path().extension() == extension) out.push_back(e.path());
  }
  return out;
}
std::string BigEndian(uint64_t number) {
  std::string out;
  for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<char>(number >> shift));
  return out;
}

// The eight bytes of the session's uid, which stand behind its id in the key of its header.
std::string UidOf(const std::string& store_dir, const std::string& id) {
  const std::string key = id + std::string(1, '\0');
  for (const fs::path& table : FilesOf(store_dir, ".sst")) {
    const std::string bytes = Read(table);
    for (size_t at = bytes.find(key); at != std::string::npos; at = bytes.find(key, at + 1)) {
      // Followed by the uid, 8 bytes of RocksDB's and the header.
      if (bytes.compare(at + key.size() + 16, 4, "SMTH") == 0) return bytes.substr(at + key.size(), 8);
    }
  }
  ADD_FAILURE() << "no header of " << id;
  return "";
}

// Flips a bit in the payload of each record of this magic whose key, `gap` bytes before it, begins so. How many.
int FlipBits(const std::string& store_dir, std::string_view extension, std::string_view magic, const std::string& key,
             size_t gap) {
  int flipped = 0;
  for (const fs::path& file : FilesOf(store_dir, extension)) {
    std::string bytes = Read(file);
    const int before = flipped;
    for (size_t at = bytes.find(magic); at != std::string::npos; at = bytes.find(magic, at + 1)) {
      if (at < gap || bytes.compare(at - gap, key.size(), key) != 0) continue;
      bytes[at + 40] = static_cast<char>(bytes[at + 40] ^ 8);
      ++flipped;
    }
    if (flipped > before) Write(file, bytes);
  }
  return flipped;
}
constexpr size_t kKey = 24;            // of log and snapshots: uid, branch, position
constexpr size_t kInTable = kKey + 8;  // with RocksDB's number behind it

TEST(DamageTest, FlippedBitsAreToldWithTheLastGoodCheckpointAndRepairGoesBackThere) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  const Outcome first = Generate(*client, Spec("story", kOpening, 90));
  const Outcome second = Generate(*client, Spec("story", kSecond, 90));
  const Outcome third = Generate(*client, Spec("story", kThird, 90));
  ASSERT_TRUE(third.error.ok()) << third.error.message;
  const Outcome other = Generate(*client, Spec("other", kOpening, 90));
  ASSERT_TRUE(other.error.ok()) << other.error.message;
  const int64_t good = first.finished.position();
  const std::string checkpoint = absl::StrCat("sessions/story/checkpoints/turn-0-", good);
  client.reset();
  ASSERT_EQ(*server.Terminate(), 0);

  const std::string uid = UidOf(server.store_dir(), "story");
  // The second turn's prompt, and every state, so that the log is needed from its beginning.
  EXPECT_EQ(FlipBits(server.store_dir(), ".sst", "SMTL", uid + BigEndian(0) + BigEndian(static_cast<uint64_t>(good)),
                     kInTable),
            1);
  EXPECT_GT(FlipBits(server.store_dir(), ".blob", "SMTS", uid, kKey), 0);

  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  client = server.NewClient();
  const Outcome damaged = Generate(*client, Spec("story", " And so", 10));
  EXPECT_EQ(damaged.error.code, grpc::StatusCode::DATA_LOSS) << damaged.error.message;
  EXPECT_THAT(damaged.error.message, HasSubstr(absl::StrCat("up to position ", good)));
  EXPECT_THAT(damaged.error.message, HasSubstr(checkpoint));
  const Outcome others = Generate(*client, Spec("other", kSecond, 90));
  EXPECT_TRUE(others.error.ok()) << others.error.message;
  EXPECT_THAT(others.ids, ElementsAreArray(second.ids)) << "another session goes on as if nothing had happened";

  Result repair = RunSmt(server.address(), {"session", "repair", "story"});
  EXPECT_EQ(repair.code, kDamaged);
  EXPECT_THAT(repair.err, HasSubstr(checkpoint));
  EXPECT_THAT(repair.err, HasSubstr("Nothing was changed"));
  repair = RunSmt(server.address(), {"session", "repair", "story", "--yes"});
  EXPECT_EQ(repair.code, 0) << repair.err;
  v1::Session session;
  ASSERT_TRUE(client->GetSession("sessions/story", &session).ok());
  EXPECT_EQ(session.position(), good);
  EXPECT_EQ(RunSmt(server.address(), {"session", "verify", "story"}).code, 0);
  const Outcome again = Generate(*client, Spec("story", kSecond, 90));
  ASSERT_TRUE(again.error.ok()) << again.error.message;
  EXPECT_THAT(again.ids, ElementsAreArray(second.ids));
  EXPECT_THAT(RunSmt(server.address(), {"session", "repair", "story"}).err, HasSubstr("nothing to repair"));
}

TEST(DamageTest, AFlippedSnapshotCostsTimeOnly) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const Outcome first = Generate(*server.NewClient(), Spec("story", kOpening, 90));
  const Outcome other = Generate(*server.NewClient(), Spec("other", kOpening, 90));
  ASSERT_TRUE(other.error.ok()) << other.error.message;
  const Outcome want = Generate(*server.NewClient(), Spec("other", kSecond, 90));
  ASSERT_EQ(*server.Terminate(), 0);
  EXPECT_GT(FlipBits(server.store_dir(), ".blob", "SMTS", UidOf(server.store_dir(), "story"), kKey), 0);
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const Outcome got = Generate(*server.NewClient(), Spec("story", kSecond, 90));
  ASSERT_TRUE(got.error.ok()) << got.error.message;
  EXPECT_THAT(got.ids, ElementsAreArray(want.ids));
}

TEST(DamageTest, AStoreThatIsRefusedSaysHowToRepairItAndThatWorks) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const Outcome first = Generate(*server.NewClient(), Spec("story", kOpening, 90));
  ASSERT_TRUE(first.error.ok()) << first.error.message;
  const Outcome want = Generate(*server.NewClient(), Spec("story", kSecond, 90));
  ASSERT_EQ(*server.Terminate(), 0);
  for (const auto& e : fs::directory_iterator(server.store_dir() + "/rocksdb")) {
    if (e.path().filename().string().starts_with("MANIFEST")) Write(e.path(), "damaged");
  }
  ASSERT_FALSE(server.Start().ok());
  EXPECT_EQ(*server.WaitForExit(absl::Seconds(10)), 3);
  EXPECT_THAT(server.Stderr(), HasSubstr("--repair_store"));
  EXPECT_THAT(server.Stderr(), HasSubstr(server.store_dir()));

  const TempDir dir;
  auto repair =
      Process::Start({.argv = {BinDir() + "/smt_server", "--repair_store", "--store_dir=" + server.store_dir()},
                      .output_dir = dir.path(),
                      .name = "repair"});
  ASSERT_TRUE(repair.ok());
  EXPECT_EQ(*repair->Wait(absl::Seconds(30)), 0) << repair->Stderr();
  EXPECT_THAT(repair->Stderr(), HasSubstr("\"sessions\":1"));
  EXPECT_TRUE(fs::exists(server.store_dir() + "/rocksdb.damaged"));

  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  v1::Session session;
  ASSERT_TRUE(client->GetSession("sessions/story", &session).ok());
  EXPECT_EQ(session.position(), want.finished.position());
  v1::RollbackSessionRequest back;
  back.set_name("sessions/story");
  back.set_turns(1);
  ASSERT_TRUE(client->RollbackSession(back, &session).ok());
  EXPECT_THAT(Generate(*client, Spec("story", kSecond, 90)).ids, ElementsAreArray(want.ids));
}

}  // namespace
}  // namespace smt::testing
