// Steps that run on while the next ones are queued (model/async_runner.h).
//
// At the end of a stride the id is appended and the write begun by one step, beside the columns of the others; the
// window is refilled and the next id drawn by a later step, among whose rows the refill rides. Only where nothing else
// is to be drawn one step does both. How many strides a step ends is bounded, so that sessions that stand at one phase
// do not hold up the others; it also takes them apart.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "model/cuda/cuda_runner.h"

namespace smt::cuda {
namespace {

// Strides that one step may end, of `active` sessions: what they end on average, rounded up to the rows that a write
// multiplies at once. More would go through a slower kernel, and sessions that wait a step stand at phases of their own
// afterwards.
size_t MostWrites(size_t active, int64_t stride) {
  constexpr size_t kTile = 8;
  const size_t average = (active + static_cast<size_t>(stride) - 1) / static_cast<size_t>(stride);
  return std::clamp<size_t>((average + kTile - 1) / kTile * kTile, kTile, WritePass::kMaxWrites);
}

}  // namespace

void CudaSlotRunner::CheckItems(std::span<const Item> items) const {
  if (last_step_ - taken_step_ >= kQueued) throw std::invalid_argument("too many steps are queued");
  for (const Item& item : items) {
    const Slot& slot = At(item.slot);
    if (item.append >= 0) CheckIds({&item.append, 1});
    if (item.append == Item::kNone && slot.position == 0) {
      throw std::invalid_argument(absl::StrCat("slot ", item.slot, " is empty: it has no logits yet"));
    }
  }
}

// Sets `parts` and `ending_`, the items that end a stride in this step.
void CudaSlotRunner::Divide(std::span<const Item> items, std::span<Part> parts) {
  ending_.clear();
  // A draw that is owed comes after the id that was drawn last.
  const auto appends = [&](const Item& item) {
    return item.append >= 0 || (item.append == Item::kLast && !At(item.slot).owes_draw);
  };
  const auto ends = [&](const Item& item) {
    return appends(item) && (At(item.slot).position + 1) % config_.stride == 0;
  };
  const bool alone = std::all_of(items.begin(), items.end(), ends);
  size_t left = MostWrites(items.size(), config_.stride);
  for (const bool put_off : {true, false}) {  // those that waited come first
    for (size_t i = 0; i < items.size(); ++i) {
      const Item& item = items[i];
      if (At(item.slot).put_off != put_off || parts[i].appended || parts[i].drawn) continue;
      if (!ends(item)) {
        parts[i] = {.appended = appends(item), .drawn = true};
      } else if (left > 0 || item.whole) {
        if (left > 0) --left;
        parts[i] = {.appended = true, .drawn = item.whole || alone};
        ending_.push_back(i);
      }
    }
  }
  for (size_t i = 0; i < items.size(); ++i) {
    Slot& slot = At(items[i].slot);
    slot.put_off = !parts[i].appended && !parts[i].drawn;
    if (!slot.put_off) slot.owes_draw = !parts[i].drawn;
  }
}

void CudaSlotRunner::AppendItem(const Item& item) {
  Slot& slot = At(item.slot);
  const int32_t id = std::max(item.append, -1);
  if (id < 0) ++slot.unknown;
  const bool dropped = slot.tokens.size() == static_cast<size_t>(config_.m_input_tokens) && slot.tokens.front() < 0;
  AppendToTokens(slot, {&id, 1});
  if (dropped) --slot.unknown;
  const auto index = [&](size_t token) {
    const int64_t at = slot.position - static_cast<int64_t>(slot.tokens.size() - token);
    return static_cast<int32_t>(at % rings_.size);
  };
  for (size_t i = slot.ring_valid ? slot.tokens.size() - 1 : 0; i < slot.tokens.size(); ++i) {
    appends_.push_back({item.slot, index(i), slot.tokens[i]});
  }
  slot.ring_valid = true;
}

int64_t CudaSlotRunner::Queue(std::span<const Item> items, std::span<Part> parts) {
  CheckItems(items);
  Begin();
  std::fill(parts.begin(), parts.end(), Part());
  Divide(items, parts);
  QueuedStep& step = steps_[static_cast<size_t>((last_step_ + 1) % static_cast<int64_t>(steps_.size()))];
  step.number = last_step_ + 1;
  step.items = items.size();
  step.resolved = false;
  step.drawn.clear();
  step.results = {};
  if (step.number % kTimedEvery == 0) {
    timing_.step = step.number;
    timing_.window_begun = false;
  }
  appends_.clear();
  for (size_t i = 0; i < items.size(); ++i) {
    if (parts[i].appended) {
      AppendItem(items[i]);
    } else if (parts[i].drawn && !At(items[i].slot).ring_valid) {
      // Its window's ids may be asked for: all of them are known.
      Slot& slot = At(items[i].slot);
      for (size_t token = 0; token < slot.tokens.size(); ++token) {
        const int64_t at = slot.position - static_cast<int64_t>(slot.tokens.size() - token);
        appends_.push_back({items[i].slot, static_cast<int32_t>(at % rings_.size), slot.tokens[token]});
      }
      slot.ring_valid = true;
    }
  }
  step.asks.clear();
  // Columns come before refills: attention has a kernel for few rows of a session, and one for many.
  for (const bool column : {true, false}) {
    for (size_t i = 0; i < items.size(); ++i) {
      const Slot& slot = At(items[i].slot);
      if (!parts[i].drawn || (slot.cached >= 0) != column) continue;
      step.drawn.push_back({i, items[i].slot, slot.epoch, slot.position + 1});
    }
  }
  // One copy: draws, slots, ids to append.
  const size_t draw_bytes = step.drawn.size() * sizeof(cuda::Draw);
  const size_t slots_at = draw_bytes, appends_at = slots_at + step.drawn.size() * sizeof(int32_t);
  host_asked_.resize(appends_at + appends_.size() * sizeof(cuda::Append));
  for (size_t i = 0; i < step.drawn.size(); ++i) {
    const Drawn& drawn = step.drawn[i];
    const SamplingParams& draw = *items[drawn.item].sampling;
    const cuda::Draw how = {.temperature = draw.temperature,
                            .top_p = draw.top_p,
                            .min_p = draw.min_p,
                            .top_k = draw.top_k,
                            .slot = drawn.slot,
                            .seed = draw.seed,
                            .position = drawn.position};
    std::memcpy(host_asked_.data() + i * sizeof(how), &how, sizeof(how));
    std::memcpy(host_asked_.data() + slots_at + i * sizeof(int32_t), &drawn.slot, sizeof(int32_t));
  }
  if (!appends_.empty()) {
    std::memcpy(host_asked_.data() + appends_at, appends_.data(), appends_.size() * sizeof(cuda::Append));
  }
  uploads_.Copy(asked_.data(), host_asked_.data(), host_asked_.size());
  AppendIds(reinterpret_cast<const cuda::Append*>(asked_.as<std::byte>() + appends_at),
            static_cast<int>(appends_.size()), rings_, stream_.get());
  window_busy_ = true;

  size_t with_write = 0;
  for (const size_t i : ending_) with_write += parts[i].drawn ? 1 : 0;
  const bool alone = step.drawn.size() == with_write;  // nothing runs beside the writes
  for (const size_t i : ending_) {
    if (writes_.size() == WritePass::kMaxWrites) FinishWrites(Ids::kOfRing, WritesBeside(ending_.size(), items.size()));
    BeginWrite(items[i].slot, Ids::kOfRing);
  }
  FinishWrites(Ids::kOfRing, alone ? WriteMode() : WritesBeside(ending_.size(), items.size()));
  DrawItems(items, step);
  AwaitWrites(wide_batch_);  // what was ingested before is part of the step: nobody may queue a whole prompt ahead
  step.done.Record(stream_);
  return ++last_step_;
}

void CudaSlotRunner::DrawItems(std::span<const Item> items, QueuedStep& step) {
  if (step.drawn.empty()) return;
  pass_rows_ = 0;
  for (const Drawn& drawn : step.drawn) {
    Slot& slot = At(drawn.slot);
    if (slot.output_at == slot.position) continue;
    if (static_cast<int64_t>(rows_.size()) + config_.window() > TransformerPass::kMaxRows) RunRows();
    AwaitWrites(slot.written);
    AddRows(drawn.slot, Ids::kOfRing);
  }
  RunRows();
  const size_t all = step.drawn.size();
  for (size_t first = 0; first < all; first += TransformerPass::kMaxHeadRows) {
    DrawRows(items, step, first, std::min<size_t>(all, first + TransformerPass::kMaxHeadRows));
  }
  CheckCuda(cudaMemcpyAsync(step.ids.as<int32_t>(), drawn_.data(), all * sizeof(int32_t), cudaMemcpyDeviceToHost,
                            stream_.get()),
            "fetching drawn ids");
  if (Timed()) timing_.end.Record(stream_);
}

// Draws first to end of step.drawn.
void CudaSlotRunner::DrawRows(std::span<const Item> items, QueuedStep& step, size_t first, size_t end) {
  const auto* slots = reinterpret_cast<const int32_t*>(asked_.as<std::byte>() + step.drawn.size() * sizeof(cuda::Draw));
  const int count = static_cast<int>(end - first), vocab = static_cast<int>(config_.vocab_size);
  edits_.Clear();
  asks_.clear();
  for (int row = 0; row < count; ++row) {
    const Drawn& drawn = step.drawn[first + static_cast<size_t>(row)];
    const Item& item = items[drawn.item];
    const bool edited = edits_.Add(row, *item.sampling, *item.penalties, item.behind ? item.slot : -1);
    if (item.sampling->top_logprobs < 0) continue;
    asks_.push_back({.row = row,
                     .top = std::min(item.sampling->top_logprobs, kMaxTopLogprobs),
                     .edits = edited ? static_cast<int32_t>(edits_.rows().size()) - 1 : -1});
  }
  float* const logits = transformer_.Head(slots + first, count, SpareForWrites(), step.drawn[first].slot);
  const int64_t ld = transformer_.logits_stride();
  int32_t* const ids = drawn_.as<int32_t>() + first;
  if (Timed()) timing_.draw.Record(stream_);  // of more rows than the head takes at once: the last ones
  const auto draw = [&] {
    DrawIds(logits, ld, asked_.as<cuda::Draw>() + first, count, vocab, ids, last_ids_.as<int32_t>(), stream_.get());
  };
  if (edits_.rows().empty() && asks_.empty()) return draw();

  // One copy: asks, rows, edits; room for what edited logits were after them.
  const auto rows = edits_.rows();
  const auto edits = edits_.edits();
  const size_t rows_at = asks_.size() * sizeof(LogprobAsk), edits_at = rows_at + rows.size_bytes();
  const size_t bytes = edits_at + edits.size_bytes(), from_at = (bytes + 15) / 16 * 16;
  host_asked_.resize(bytes);
  std::memcpy(host_asked_.data(), asks_.data(), rows_at);
  std::memcpy(host_asked_.data() + rows_at, rows.data(), rows.size_bytes());
  std::memcpy(host_asked_.data() + edits_at, edits.data(), edits.size_bytes());
  const size_t room = from_at + edits.size() * sizeof(EditedFrom);
  if (edit_memory_.bytes() < room) edit_memory_ = DeviceMemory(2 * room);
  uploads_.Copy(edit_memory_.data(), host_asked_.data(), bytes);
  std::byte* const at = edit_memory_.as<std::byte>();
  const auto* const device_asks = reinterpret_cast<const LogprobAsk*>(at);
  const auto* const device_rows = reinterpret_cast<const RowEdits*>(at + rows_at);
  auto* const from = reinterpret_cast<EditedFrom*>(at + from_at);
  const int ask_count = static_cast<int>(asks_.size());
  if (logprobs_.bytes() < asks_.size() * sizeof(RowLogprobs)) {
    logprobs_ = DeviceMemory(2 * asks_.size() * sizeof(RowLogprobs));
  }
  auto* const found = logprobs_.as<RowLogprobs>();
  if (ask_count > 0) ReadLogprobs(logits, ld, device_asks, ask_count, vocab, found, stream_.get());
  if (!rows.empty()) {
    EditLogits(logits, ld, device_rows, static_cast<int>(rows.size()),
               reinterpret_cast<const LogitEdit*>(at + edits_at), last_ids_.as<int32_t>(), vocab,
               ask_count > 0 ? from : nullptr, stream_.get());
  }
  draw();
  if (ask_count == 0) return;
  GatherLogprobs(logits, ld, device_asks, ask_count, rows.empty() ? nullptr : device_rows,
                 rows.empty() ? nullptr : from, ids, found, stream_.get());
  step.logprobs.Reserve(step.drawn.size() * sizeof(RowLogprobs));
  CheckCuda(cudaMemcpyAsync(step.logprobs.as<RowLogprobs>() + step.asks.size(), found,
                            asks_.size() * sizeof(RowLogprobs), cudaMemcpyDeviceToHost, stream_.get()),
            "fetching log-probabilities");
  for (LogprobAsk ask : asks_) {
    ask.row += static_cast<int32_t>(first);
    step.asks.push_back(ask);
  }
}

// The timed step's writes may go on when the step is done.
void CudaSlotRunner::TakeTimes(QueuedStep& step) {
  AsyncRunner::Times& times = step.results.times;
  if (timing_.step == step.number && !step.drawn.empty()) {
    if (timing_.window_begun) times.window = timing_.draw.SecondsSince(timing_.window);
    times.draw = timing_.end.SecondsSince(timing_.draw);
  }
  if (timing_.writes_ended && timing_.end_of_writes.Done()) {
    times.writes = timing_.end_of_writes.SecondsSince(timing_.writes);
    timing_.writes_ended = false;
  }
}

// The device is done with the step: what it drew is known from now on.
void CudaSlotRunner::Resolve(QueuedStep& step) {
  TakeTimes(step);
  step.results.ids.assign(step.items, -1);
  step.resolved = true;
  if (!step.asks.empty()) step.results.logprobs.resize(step.items);
  for (size_t i = 0; i < step.asks.size(); ++i) {
    const RowLogprobs& row = step.logprobs.as<RowLogprobs>()[i];
    TokenLogprobs& logprobs = step.results.logprobs[step.drawn[static_cast<size_t>(step.asks[i].row)].item];
    logprobs.logprob = row.logprob;
    const int64_t top = std::min<int64_t>(step.asks[i].top, config_.vocab_size);
    for (int64_t t = 0; t < top; ++t) logprobs.top.emplace_back(row.ids[t], row.logprobs[t]);
  }
  for (size_t i = 0; i < step.drawn.size(); ++i) {
    const Drawn& drawn = step.drawn[i];
    const int32_t id = step.ids.as<int32_t>()[i];
    step.results.ids[drawn.item] = id;
    Slot& slot = At(drawn.slot);
    const int64_t from_end = slot.position - drawn.position;
    if (slot.epoch != drawn.epoch || from_end < 0 || from_end >= static_cast<int64_t>(slot.tokens.size())) continue;
    int32_t& token = slot.tokens[slot.tokens.size() - 1 - static_cast<size_t>(from_end)];
    if (token >= 0) continue;  // another id was appended
    token = std::max(id, 0);   // as AppendIds takes one that could not be drawn
    --slot.unknown;
  }
}

void CudaSlotRunner::Settle() {
  for (int64_t number = taken_step_ + 1; number <= last_step_; ++number) {
    QueuedStep& step = steps_[static_cast<size_t>(number % static_cast<int64_t>(steps_.size()))];
    if (step.resolved) continue;
    step.done.Wait();
    Resolve(step);
  }
}

bool CudaSlotRunner::Take(int64_t number, bool wait, Results* results) {
  if (number != taken_step_ + 1 || number > last_step_) {
    throw std::invalid_argument(absl::StrCat("step is ", number, "; steps are taken in order, next ", taken_step_ + 1));
  }
  Begin();
  QueuedStep& step = steps_[static_cast<size_t>(number % static_cast<int64_t>(steps_.size()))];
  if (!step.resolved) {
    if (wait) {
      step.done.Wait();
    } else if (!step.done.Done()) {
      return false;
    }
    Resolve(step);
  }
  ++taken_step_;
  *results = std::move(step.results);
  return true;
}

}  // namespace smt::cuda
