// KEYS[1] of every script about a session is its `m`, from which the names of its other keys follow (redis_keys.h).
// Numbers pass as decimal text and are compared as such, so that Lua's doubles never round one.
#include "server/store/redis_scripts.h"

#include <array>
#include <string>

namespace smt::store_internal {
namespace {

// What the scripts below share: removal of everything that no other session refers to.
constexpr char kCollect[] = R"lua(
local base = string.sub(KEYS[1], 1, -2)
local function unlink(keys)
  for i = 1, #keys, 500 do redis.call('UNLINK', unpack(keys, i, math.min(i + 499, #keys))) end
end
-- Branches of the log and snapshots ('branch:position') that others refer to.
local function referenced()
  local logs, snapshots = {}, {}
  for _, member in ipairs(redis.call('HKEYS', base .. 'r')) do
    local kind, branch, position = string.match(member, '^%x+:(%u):(%d+):(%d+)$')
    if kind == 'L' then logs[branch] = true end
    if kind == 'S' then snapshots[branch .. ':' .. position] = true end
  end
  return logs, snapshots
end
-- Of branches below one, what lies past `ends` (by branch) and nobody refers to.
local function trim(below, ends)
  for _, member in ipairs(redis.call('HKEYS', base .. 'r')) do
    local kind, branch, position = string.match(member, '^%x+:(%u):(%d+):(%d+)$')
    if kind == 'L' then ends[branch] = math.max(ends[branch] or 0, tonumber(position)) end
  end
  for _, branch in ipairs(redis.call('HKEYS', base .. 'e')) do
    if string.sub(branch, 1, 1) ~= 't' and tonumber(branch) < below then
      local index, keys = base .. 'i:' .. branch, {}
      local starts = redis.call('ZRANGEBYSCORE', index, ends[branch] or 0, '+inf')
      for _, start in ipairs(starts) do keys[#keys + 1] = base .. 'l:' .. branch .. ':' .. start end
      unlink(keys)
      if #starts > 0 then redis.call('ZREMRANGEBYSCORE', index, ends[branch] or 0, '+inf') end
      if redis.call('EXISTS', index) == 0 then
        redis.call('HDEL', base .. 'e', branch, 't' .. branch)
      elseif #starts > 0 then
        redis.call('HSET', base .. 'e', branch, starts[1])
      end
    end
  end
end
local function collect()
  local logs, snapshots = referenced()
  for _, branch in ipairs(redis.call('HKEYS', base .. 'e')) do
    if string.sub(branch, 1, 1) ~= 't' and not logs[branch] then
      local index, keys = base .. 'i:' .. branch, {}
      for _, start in ipairs(redis.call('ZRANGE', index, 0, -1)) do
        keys[#keys + 1] = base .. 'l:' .. branch .. ':' .. start
      end
      keys[#keys + 1] = index
      unlink(keys)
      redis.call('HDEL', base .. 'e', branch, 't' .. branch)
    end
  end
  for _, name in ipairs(redis.call('SMEMBERS', base .. 'S')) do
    if not snapshots[name] then
      redis.call('UNLINK', base .. 's:' .. name)
      redis.call('SREM', base .. 'S', name)
    end
  end
end
)lua";

// KEYS m h o e q f; ARGV id, instance, sequence number, number of writes, then the writes. Gives back the writes'
// outcomes joined by newlines, branches whose log ends in many short segments, and references to be dropped.
//
// The last sequence number and its outcomes are kept, so that a sender that does not know whether it was heard sends
// the same again and is told what came of it.
constexpr char kCommit[] = R"lua(
local m, h, o, e, q, f = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, instance, sequence, writes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local kept = redis.call('HMGET', m, 'id', 'wi', 'ws', 'wr')
if kept[2] == instance then
  if kept[3] == sequence then
    local freed = {}
    local states = redis.call('HGETALL', f)
    for i = 1, #states, 2 do
      if states[i + 1] == 'd' or not kept[1] then freed[#freed + 1] = states[i] end
    end
    return {kept[4], {}, freed}
  end
  if tonumber(kept[3]) > tonumber(sequence) then return {'STALE', {}, {}} end
end
local alive = kept[1] == id
local at = 4
local function take()
  at = at + 1
  return ARGV[at]
end
local marked = false
-- Before anything else is written: the first write alone is refused for want of memory.
local function mark()
  if not marked then redis.call('HSET', m, 'wi', instance, 'ws', sequence) end
  marked = true
end
local outcomes, long_tails, freed = {}, {}, {}
for w = 1, writes do
  local kind, lease, has_header, header = take(), take(), take(), take()
  local position, branch, begin, stop = take(), take(), take(), take()
  local segments = tonumber(take())
  local segments_at = at
  at = at + 2 * segments
  local requests = tonumber(take())
  local requests_at = at
  at = at + 2 * requests
  local references = tonumber(take())
  local references_at = at
  if references > 0 then at = at + references end
  local below, kept_logs = tonumber(take()), {}
  for _ = 1, tonumber(take()) do
    local kept_branch = take()
    kept_logs[kept_branch] = tonumber(take())
  end

  local outcome = 'OK'
  if kind == 'C' then
    if alive then outcome = 'EXISTS' end
  elseif not alive then
    outcome = 'GONE'
  end
  if outcome == 'OK' and lease ~= '' then
    local present = redis.call('GET', o)
    if present ~= lease then outcome = 'LEASE ' .. (present or '') end
  end
  if outcome == 'OK' and position ~= '' then
    local stored = redis.call('HGET', e, branch) or begin
    if stored ~= position then outcome = 'END ' .. stored end
  end
  if outcome == 'OK' and (segments > 0 or requests > 0) then  -- fails here if something foreign has these names
    redis.call('ZCARD', base .. 'i:' .. branch)
    redis.call('HLEN', q)
  end

  if outcome == 'OK' and kind == 'R' then
    redis.call('HDEL', m, 'id')  -- allowed without memory to spare, and so is all that follows it
    redis.call('UNLINK', h, q, o)
    collect()
    for _, member in ipairs(redis.call('HKEYS', f)) do freed[#freed + 1] = member end
    mark()
    redis.call('EXPIRE', m, 3600)
    alive = false
  elseif outcome == 'OK' then
    mark()
    if kind == 'C' then
      redis.call('HSET', m, 'id', id)
      redis.call('PERSIST', m)
      alive = true
    end
    if has_header == '1' then redis.call('SET', h, header) end
    for i = 1, segments do
      local start, bytes = ARGV[segments_at + 2 * i - 1], ARGV[segments_at + 2 * i]
      redis.call('SET', base .. 'l:' .. branch .. ':' .. start, bytes)
      redis.call('ZADD', base .. 'i:' .. branch, start, start)
    end
    if segments > 0 then
      redis.call('HSET', e, branch, stop)
      local short = (tonumber(stop) - tonumber(position)) % 4096 == 0 and 0 or 1
      if redis.call('HINCRBY', e, 't' .. branch, short) >= 64 then long_tails[#long_tails + 1] = branch end
    end
    for i = 1, requests do
      redis.call('HSET', q, ARGV[requests_at + 2 * i - 1], ARGV[requests_at + 2 * i])
    end
    if below > 0 then trim(below, kept_logs) end
    if references >= 0 then
      local wanted = {}
      for i = 1, references do wanted[ARGV[references_at + i]] = true end
      for _, member in ipairs(redis.call('HKEYS', f)) do
        if not wanted[member] then
          redis.call('HSET', f, member, 'd')
          freed[#freed + 1] = member
        end
      end
      for member in pairs(wanted) do redis.call('HSET', f, member, 'c') end
    end
  end
  outcomes[w] = outcome
end
local result = table.concat(outcomes, '\n')
if marked then redis.call('HSET', m, 'wr', result) end
return {result, long_tails, freed}
)lua";

// KEYS m h o q f. Gives back what it referred to. Its sequence number stays: what is still on its way is refused.
constexpr char kPurge[] = R"lua(
redis.call('HDEL', KEYS[1], 'id')
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
collect()
redis.call('EXPIRE', KEYS[1], 3600)
return redis.call('HKEYS', KEYS[5])
)lua";

// KEYS name; ARGV record, a former one that may be replaced (or empty). 'OK', or the record that is there.
constexpr char kClaim[] = R"lua(
local present = redis.call('GET', KEYS[1])
if present == ARGV[1] then return 'OK' end
if present and present ~= ARGV[2] then return present end
redis.call('SET', KEYS[1], ARGV[1])
return 'OK'
)lua";

// KEYS name; ARGV record. 'OK', or the record that is there instead.
constexpr char kUnname[] = R"lua(
local present = redis.call('GET', KEYS[1])
if present and present ~= ARGV[1] then return present end
redis.call('DEL', KEYS[1])
return 'OK'
)lua";

// KEYS m o S; ARGV id, lease, name, bytes, names to drop.
constexpr char kPutSnapshot[] = R"lua(
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 'GONE' end
if ARGV[2] ~= '' then
  local present = redis.call('GET', KEYS[2])
  if present ~= ARGV[2] then return 'LEASE ' .. (present or '') end
end
redis.call('SCARD', KEYS[3])
redis.call('SET', base .. 's:' .. ARGV[3], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[3])
if #ARGV > 4 then
  local _, snapshots = referenced()
  for i = 5, #ARGV do
    if ARGV[i] ~= ARGV[3] and not snapshots[ARGV[i]] then
      redis.call('UNLINK', base .. 's:' .. ARGV[i])
      redis.call('SREM', KEYS[3], ARGV[i])
    end
  end
end
return 'OK'
)lua";

// KEYS m e; ARGV branch, most segments, most bytes. The end or nil, then start and bytes of each, last first.
constexpr char kTail[] = R"lua(
local out, bytes = {redis.call('HGET', KEYS[2], ARGV[1])}, 0
for _, start in ipairs(redis.call('ZREVRANGE', base .. 'i:' .. ARGV[1], 0, tonumber(ARGV[2]) - 1)) do
  local record = redis.call('GET', base .. 'l:' .. ARGV[1] .. ':' .. start)
  bytes = bytes + #(record or '') - 24
  if #out > 1 and bytes > tonumber(ARGV[3]) then break end
  out[#out + 1] = start
  out[#out + 1] = record
end
return out
)lua";

// KEYS m; ARGV branch, first position, last position, most segments. Start and bytes of each, in order.
constexpr char kReadLog[] = R"lua(
local index, out = base .. 'i:' .. ARGV[1], {}
local from = redis.call('ZREVRANGEBYSCORE', index, '(' .. ARGV[2], '-inf', 'LIMIT', 0, 1)[1]
if not from then return out end
for _, start in ipairs(redis.call('ZRANGEBYSCORE', index, from, '(' .. ARGV[3], 'LIMIT', 0, ARGV[4])) do
  out[#out + 1] = start
  out[#out + 1] = redis.call('GET', base .. 'l:' .. ARGV[1] .. ':' .. start)
end
return out
)lua";

// KEYS m e; ARGV branch, bytes of the joined segment, then start and length of each that it replaces, in order. Does
// nothing unless they are as they were read. Without any, there is nothing to join for a while.
constexpr char kJoin[] = R"lua(
if #ARGV == 2 then
  if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], 't' .. ARGV[1], 0) end
  return 0
end
local index, log = base .. 'i:' .. ARGV[1], base .. 'l:' .. ARGV[1] .. ':'
for i = 3, #ARGV, 2 do
  if redis.call('STRLEN', log .. ARGV[i]) ~= tonumber(ARGV[i + 1]) then return 0 end
end
redis.call('SET', log .. ARGV[3], ARGV[2])
for i = 5, #ARGV, 2 do
  redis.call('UNLINK', log .. ARGV[i])
  redis.call('ZREM', index, ARGV[i])
end
redis.call('HSET', KEYS[2], 't' .. ARGV[1], 1)
return 1
)lua";

// KEYS m f; ARGV id (empty: the session is being made), members.
constexpr char kBeginRefs[] = R"lua(
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 'GONE' end
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= 'c' then redis.call('HSET', KEYS[2], ARGV[i], 'p') end
end
return 'OK'
)lua";

// KEYS m r e S; ARGV members 'child:kind:branch:position'. 0, or the number of the first that is not there.
constexpr char kAddRefs[] = R"lua(
for i = 1, #ARGV do
  local kind, branch, position = string.match(ARGV[i], '^%x+:(%u):(%d+):(%d+)$')
  if kind == 'L' then
    local stop = redis.call('HGET', KEYS[3], branch)
    if not stop or tonumber(stop) < tonumber(position) then return i end
  elseif redis.call('SISMEMBER', KEYS[4], branch .. ':' .. position) == 0 then
    return i
  end
end
for i = 1, #ARGV do redis.call('HSET', KEYS[2], ARGV[i], '') end
return 0
)lua";

// KEYS m r; ARGV members.
constexpr char kDropRefs[] = R"lua(
for i = 1, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
if redis.call('HEXISTS', KEYS[1], 'id') == 0 then collect() end
return 0
)lua";

// KEYS m f; ARGV members.
constexpr char kEndRefs[] = R"lua(
local alive = redis.call('HEXISTS', KEYS[1], 'id') == 1
for i = 1, #ARGV do
  if not alive or redis.call('HGET', KEYS[2], ARGV[i]) ~= 'c' then redis.call('HDEL', KEYS[2], ARGV[i]) end
end
return 0
)lua";

// KEYS q; ARGV request id, record.
constexpr char kDropRequest[] = R"lua(
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
)lua";

// KEYS m o; ARGV incarnation, owner, milliseconds, instance, number. Whether it was acquired, the token, milliseconds
// left. The number, as in kCommit: one that is carried out twice must not end the token it gave the first time.
constexpr char kAcquire[] = R"lua(
local present = redis.call('GET', KEYS[2])
local own = present and string.match(present, '^%x+:%d+:(.*)$') == ARGV[2]
local last = redis.call('HMGET', KEYS[1], 'ai', 'an')
local again = last[1] == ARGV[4] and tonumber(last[2]) >= tonumber(ARGV[5])
if again and own and last[2] == ARGV[5] then return {1, present, redis.call('PTTL', KEYS[2])} end
if again or (present and not own) then return {0, present or '', present and redis.call('PTTL', KEYS[2]) or 0} end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'ai', ARGV[4], 'an', ARGV[5])
if redis.call('HEXISTS', KEYS[1], 'id') == 0 then redis.call('EXPIRE', KEYS[1], 3600) end
local token = ARGV[1] .. ':' .. epoch .. ':' .. ARGV[2]
redis.call('SET', KEYS[2], token, 'PX', ARGV[3])
return {1, token, tonumber(ARGV[3])}
)lua";

// KEYS o; ARGV token, milliseconds. 1, or the token that is there.
constexpr char kRenew[] = R"lua(
local present = redis.call('GET', KEYS[1])
if present ~= ARGV[1] then return present or '' end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
)lua";

// KEYS o; ARGV token.
constexpr char kRelease[] = R"lua(
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
)lua";

// KEYS format; ARGV the record that is to be there, the new one. Gives back the one that is there then.
constexpr char kReplace[] = R"lua(
local present = redis.call('GET', KEYS[1])
if present ~= ARGV[1] then return present end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
)lua";

}  // namespace

const char* RedisScriptText(RedisScript script) {
  static const auto* texts = new std::array<std::string, kRedisScripts>{
      std::string(kCollect) + kCommit,
      std::string(kCollect) + kPurge,
      kClaim,
      kUnname,
      std::string(kCollect) + kPutSnapshot,
      std::string(kCollect) + kTail,
      std::string(kCollect) + kReadLog,
      std::string(kCollect) + kJoin,
      kBeginRefs,
      kAddRefs,
      std::string(kCollect) + kDropRefs,
      kEndRefs,
      kDropRequest,
      kAcquire,
      kRenew,
      kRelease,
      kReplace,
  };
  return (*texts)[static_cast<size_t>(script)].c_str();
}

}  // namespace smt::store_internal
