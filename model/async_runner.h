// AsyncRunner: a SlotRunner whose steps run on while the caller prepares the next ones. What a step appends may be an
// id that the device has drawn and that the host does not know yet.
//
// Order: work takes effect in the order it was queued. SlotRunner's own calls may be mixed in; those that need an id
// that the host does not know yet wait for it.
// Threads: one drives it, as any SlotRunner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/sampling/penalty_state.h"
#include "model/sampling/sampling_params.h"
#include "model/slot_runner.h"

namespace smt {

class AsyncRunner : public SlotRunner {
 public:
  // One slot's part in a step: append one id or none, then draw the next one.
  struct Item {
    static constexpr int32_t kNone = -1, kLast = -2;

    int32_t slot = 0;
    int32_t append = kNone;  // an id, or kLast: the one drawn last, or kNone: nothing
    bool whole = false;      // not to be put off or divided
    // How it is drawn, and what penalties count: what was drawn before, but for the latest id with `behind`, which only
    // the device knows. Read by Queue alone.
    const SamplingParams* sampling = nullptr;
    const PenaltyState* penalties = nullptr;
    bool behind = false;
  };
  // What a step does of an item. At the end of a stride an id may be appended by one step and the next one drawn by a
  // later one, since there is a write between; and where many slots end a stride together some are put off.
  struct Part {
    bool appended = false;
    bool drawn = false;
  };
  // Seconds that the device took: for the window's rows and the head, for writes, which run beside it, and for drawing.
  struct Times {
    double window = 0, writes = 0, draw = 0;
  };
  struct Results {
    std::vector<int32_t> ids;  // of the step's items; -1 where none was, or could be, drawn
    // Of the step's items; empty where none asked for any.
    std::vector<TokenLogprobs> logprobs;
    // All zeros in most steps: only some are measured. `writes` may be of an earlier step that was.
    Times times;
  };

  // Queues a step of at most one item a slot and says what it will do of each. At most max_queued() may be queued and
  // not taken. An item with kLast needs an id drawn by the slot's latest step that drew. std::invalid_argument: unknown
  // slots or ids, or an empty slot that is to draw.
  virtual int64_t Queue(std::span<const Item> items, std::span<Part> parts) = 0;
  virtual int32_t max_queued() const = 0;
  // False if the step is not done, which is never so with `wait`. Steps are taken in order.
  virtual bool Take(int64_t step, bool wait, Results* results) = 0;

  // As Save and Load, but the copy goes on in the background. `state` stays valid until TakeTransfer says true.
  virtual int64_t QueueSave(int32_t slot, std::span<std::byte> state) = 0;
  virtual bool TakeTransfer(int64_t transfer, bool wait) = 0;
};

}  // namespace smt
