// RocksDB's write-ahead log, looked through for damage: the input's bytes by themselves, and behind a block or a part
// of one that RocksDB wrote, as the input says which and how much of it.
#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <memory>

#include "server/store/rocksdb_wal.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

using store_internal::FindWalDamage;
using store_internal::WalDamage;

constexpr size_t kBlock = 32768;

// As RocksDB writes it, with records of the given sizes.
std::string WrittenLog(std::span<const size_t> sizes) {
  const std::unique_ptr<rocksdb::Env> env(rocksdb::NewMemEnv(rocksdb::Env::Default()));
  rocksdb::Options options;
  options.env = env.get();
  options.create_if_missing = true;
  rocksdb::DB* opened = nullptr;
  FUZZ_CHECK(rocksdb::DB::Open(options, "/wal", &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  for (const size_t size : sizes) {
    FUZZ_CHECK(db->Put({}, "key", std::string(size, static_cast<char>('a' + size % 26))).ok());
  }
  std::vector<std::string> names;
  std::string log;
  FUZZ_CHECK(env->GetChildren("/wal", &names).ok());
  for (const std::string& name : names) {
    if (name.ends_with(".log")) FUZZ_CHECK(rocksdb::ReadFileToString(env.get(), "/wal/" + name, &log).ok());
  }
  FUZZ_CHECK(!log.empty());
  return log;
}

const std::string& LongLog() {
  static constexpr size_t kSizes[] = {10, 500, 20'000, 40'000, 0, 12'000, 100, 100, 30'000, 7};
  static const auto* const log = new std::string(WrittenLog(kSizes));
  return *log;
}

void Look(std::string_view log) {
  const std::optional<WalDamage> damage = FindWalDamage(log);
  FUZZ_CHECK(store_internal::DescribeWalDamage(log).empty() == !damage);
  FUZZ_CHECK(store_internal::FindWalGroupAfter(log, log.size()).value_or(0) <= log.size());
  if (!damage) return;
  FUZZ_CHECK(damage->record < log.size() && !FindWalDamage(log.substr(0, damage->record)));
  if (damage->zeros == damage->zeros_end) return;
  FUZZ_CHECK(damage->record <= damage->zeros && damage->zeros < damage->zeros_end && damage->zeros_end <= log.size());
  FUZZ_CHECK(damage->zeros / kBlock == damage->record / kBlock &&
             (damage->zeros_end - 1) / kBlock == damage->record / kBlock);
  FUZZ_CHECK(log.substr(damage->zeros, damage->zeros_end - damage->zeros).find_first_not_of('\0') == log.npos);
}

void Run(std::string_view bytes) {
  Look(bytes);
  Input input(bytes);
  const size_t cut = (input.Number() | static_cast<size_t>(input.Byte()) << 16) % (LongLog().size() + 1);
  const size_t block = cut / kBlock * kBlock;
  Look(LongLog().substr(block, cut - block).append(input.Rest()));
}

std::vector<std::string> Seeds() {
  FUZZ_CHECK(!FindWalDamage(LongLog()));
  static constexpr size_t kFew[] = {3, 0, 200};
  const std::string few = WrittenLog(kFew), zeros(600, '\0');
  const std::string at_block_end = {'\x00', '\x80', '\x00'}, near_block_end = {'\xfb', '\x7f', '\x00'};
  return {few, few + zeros, few.substr(0, few.size() - 5), at_block_end + few, near_block_end + zeros};
}

}  // namespace

extern const FuzzTarget wal_target;
const FuzzTarget wal_target = {"wal", Run, Seeds};

}  // namespace smt::fuzz
