// Requests while the disk fills up, at every operation on it (tests/server/store/crash_file_system.h).
#include "absl/strings/str_cat.h"
#include "server/store/rocksdb_store.h"
#include "tests/server/service/service_testing.h"
#include "tests/server/store/crash_file_system.h"
#include "tests/server/store/rocksdb_testing.h"

namespace smt {
namespace {

class GenerationFullDiskTest : public ServiceTest {
 protected:
  ~GenerationFullDiskTest() override { StopServer(); }  // before its disk goes

  // A server on an empty disk.
  void StartAnew() {
    StopServer();
    folder_ = std::make_unique<TempDir>();
    disk_ = std::make_unique<CrashDisk>();
    env_ = disk_->NewEnv();
    RocksDbStoreOptions options;
    options.dir = folder_->path();
    options.min_free_bytes = 0;
    options.env = env_.get();
    auto store = OpenRocksDbStore(options);
    ASSERT_OK(store);
    other_store_ = *std::move(store);
    StartServer();
  }

  std::unique_ptr<TempDir> folder_;  // of what is not done through the Env
  std::unique_ptr<CrashDisk> disk_;
  std::unique_ptr<rocksdb::Env> env_;
};

TEST_F(GenerationFullDiskTest, ARefusedRequestLeavesNoSessionBehind) {
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  spec.set_create_session(true);
  spec.set_request_id("r");
  for (const v1::Durability durability : {v1::DURABILITY_NONE, v1::DURABILITY_TURN, v1::DURABILITY_TOKEN}) {
    spec.set_durability(durability);
    int refused = 0;
    bool struck = true;
    for (int64_t at = 1; struck; ++at) {
      SCOPED_TRACE(absl::StrCat(v1::Durability_Name(durability), ", full from operation ", at));
      StartAnew();
      disk_->Inject(CrashDisk::Fault::kFull, disk_->operations() + at);
      const Streamed out = Stream(spec);
      struck = disk_->struck_at() > 0;
      disk_->Heal();
      if (struck && !out.status.ok()) {
        EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << out.status.error_message();
      } else {
        EXPECT_TRUE(out.status.ok()) << out.status.error_message();
      }
      const absl::StatusOr<SessionInfo> found = session_manager_->Get("s");
      if (out.events.empty()) {
        ++refused;
        EXPECT_TRUE(absl::IsNotFound(found.status())) << found.status();
        const Streamed again = Stream(spec);
        EXPECT_TRUE(again.status.ok()) << again.status.error_message();
        EXPECT_EQ(again.started.start_position(), 0);
      } else {
        ASSERT_OK(found);
        EXPECT_GE(found->position, 5);
      }
    }
    EXPECT_GT(refused, 0);
  }
}

}  // namespace
}  // namespace smt
