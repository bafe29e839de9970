#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/io/atomic_file.h"
#include "model/io/mapped_file.h"

namespace smt {
namespace {

using ::testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/file_test.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  int FilesInDir() const {
    int count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir_)) ++count;
    return count;
  }
  static std::string Read(const std::string& path) {
    absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    return file.ok() ? std::string(file->bytes()) : std::string(file.status().message());
  }

  std::string dir_;
};

TEST_F(FileTest, MapsWhatWasWrittenAndAnEmptyFile) {
  const std::string bytes("a\0b", 3);
  ASSERT_TRUE(WriteFileAtomically(Path("a"), bytes).ok());
  EXPECT_EQ(Read(Path("a")), bytes);
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "").ok());
  EXPECT_EQ(Read(Path("a")), "");
}

TEST_F(FileTest, MappingOutlivesTheFilesNameAndMoves) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  absl::StatusOr<MappedFile> file = MappedFile::Open(Path("a"));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "new").ok());
  const MappedFile moved = *std::move(file);
  EXPECT_EQ(moved.bytes(), "old");
}

TEST_F(FileTest, OpenErrorsNameThePath) {
  const absl::Status missing = MappedFile::Open(Path("none")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(Path("none") + ": cannot open"));
  EXPECT_EQ(MappedFile::Open(dir_).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);  // has no writer: opening it must not wait
  EXPECT_EQ(MappedFile::Open(Path("fifo")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FileTest, UncommittedFileLeavesTheOldOneAndNothingElse) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  {
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(Path("a"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->Append("half of the n").ok());
    EXPECT_EQ(FilesInDir(), 2);
  }
  EXPECT_EQ(Read(Path("a")), "old");
  EXPECT_EQ(FilesInDir(), 1);
}

TEST_F(FileTest, CommittedFileReplacesTheOldOneAndHasTheUsualMode) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "new").ok());
  EXPECT_EQ(Read(Path("a")), "new");
  EXPECT_EQ(FilesInDir(), 1);
  struct stat ours, usual;
  std::ofstream(Path("b")) << "b";
  ASSERT_EQ(stat(Path("a").c_str(), &ours), 0);
  ASSERT_EQ(stat(Path("b").c_str(), &usual), 0);
  EXPECT_EQ(ours.st_mode, usual.st_mode);
}

TEST_F(FileTest, FailedWritesNameThePathAndLeaveNothing) {
  const absl::Status missing = WriteFileAtomically(Path("none/a"), "x");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(Path("none/a")));
  ASSERT_EQ(mkdir(Path("dir").c_str(), 0700), 0);
  EXPECT_FALSE(WriteFileAtomically(Path("dir"), "x").ok());  // a folder is not replaced by a file
  EXPECT_EQ(FilesInDir(), 1);
}

}  // namespace
}  // namespace smt
