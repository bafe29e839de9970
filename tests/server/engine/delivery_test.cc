// The delivery thread: order for each sink, and that what piles up goes out together.
#include "server/engine/delivery.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace smt {
namespace {

using ::testing::ElementsAre;

// Remembers the calls: ids of each OnTokens, and -1 for the end. The first call waits until it may go on.
class SlowSink : public GenerationSink {
 public:
  void OnTokens(std::span<const TokenOutput> tokens) override {
    std::vector<int32_t> ids;
    for (const TokenOutput& token : tokens) ids.push_back(token.id);
    calls.push_back(std::move(ids));
    if (calls.size() > 1) return;
    entered.Notify();
    go_on.WaitForNotification();
  }
  void OnFinished(const FinishInfo&) override { calls.push_back({-1}); }

  std::vector<std::vector<int32_t>> calls;
  absl::Notification entered, go_on;
};

void AddToken(Delivery& delivery, GenerationSink* sink, int32_t id) {
  delivery.Add(Event::Kind::kToken, sink).token.id = id;
}

TEST(DeliveryTest, WhatPilesUpWhileASinkIsCalledGoesToEachSinkInOneCall) {
  const Engine::Options options;
  auto slow = std::make_shared<SlowSink>();
  auto other = std::make_shared<SlowSink>();
  other->go_on.Notify();
  Delivery delivery(options, nullptr);
  AddToken(delivery, slow.get(), 1);
  delivery.Flush();
  slow->entered.WaitForNotification();
  for (int32_t id = 2; id <= 4; ++id) {
    AddToken(delivery, slow.get(), id);
    AddToken(delivery, other.get(), 10 * id);
    delivery.Flush();
  }
  delivery.AddRare(Event::Kind::kFinished, slow.get()).sink = slow;  // after all of its tokens
  AddToken(delivery, other.get(), 50);
  delivery.Flush();
  slow->go_on.Notify();
  delivery.Stop();
  EXPECT_THAT(slow->calls, ElementsAre(ElementsAre(1), ElementsAre(2, 3, 4), ElementsAre(-1)));
  EXPECT_THAT(other->calls, ElementsAre(ElementsAre(20, 30, 40, 50)));
}

TEST(DeliveryTest, TheSinksOfABatchAreCalledBetweenTheHooks) {
  std::vector<std::string> calls;
  struct Sink : GenerationSink {
    explicit Sink(std::vector<std::string>* calls) : calls(calls) {}
    void OnTokens(std::span<const TokenOutput> tokens) override { calls->push_back("tokens"); }
    void OnFinished(const FinishInfo&) override { calls->push_back("finished"); }
    std::vector<std::string>* calls;
  };
  Engine::Options options;
  options.before_sinks = [&] { calls.push_back("before"); };
  options.after_sinks = [&] { calls.push_back("after"); };
  auto one = std::make_shared<Sink>(&calls), other = std::make_shared<Sink>(&calls);
  Delivery delivery(options, nullptr);
  AddToken(delivery, one.get(), 1);
  AddToken(delivery, other.get(), 2);
  delivery.AddRare(Event::Kind::kFinished, one.get()).sink = one;
  delivery.Flush();
  delivery.Stop();
  EXPECT_THAT(calls, ElementsAre("before", "tokens", "finished", "tokens", "after"));
}

}  // namespace
}  // namespace smt
