// RocksDB's write-ahead log as a file, as far as saying where it is damaged needs it: RocksDB says only which file.
// Blocks of 32 KiB; a record, or a piece of one, is a masked CRC-32C of what follows the length, its length (u16), a
// type (u8) and its bytes, and crosses no block. Up to 6 bytes at the end of a block are left zero. A record is a group
// of writes, and begins with the sequence number (u64) of its first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace smt::store_internal {

struct WalDamage {
  size_t record = 0;                // where the first piece begins that does not read
  size_t zeros = 0, zeros_end = 0;  // the longest run of zeros from there to the end of its block
};

// nullopt: it reads to its end. A torn end is found, too: whether more was written is for the caller to know.
std::optional<WalDamage> FindWalDamage(std::string_view log);

// Where the first group of writes begins whose sequence number is greater; nullopt: there is none, as far as it reads.
std::optional<size_t> FindWalGroupAfter(std::string_view log, uint64_t sequence);

// "at byte N (bytes A to B are zeros)"; empty where there is none.
std::string DescribeWalDamage(std::string_view log);

}  // namespace smt::store_internal
