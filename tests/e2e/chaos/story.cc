#include "tests/e2e/chaos/story.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/e2e/chaos/dice.h"

namespace smt::testing {
namespace {

constexpr const char* kWords[] = {"the",    "captain", "looked", "up",    "from",    "his",   "chart", "and",
                                  "said",   "nothing", "of",     "storm", "morning", "they",  "would", "never",
                                  "house",  "upon",    "hill",   "old",   "woman's", "eyes",  "sea",   "—",
                                  "“Why,”", "she",     "cried,", "café",  "\n\n",    "river", "1842.", "said"};

std::string Prompt(Dice& dice) {
  std::vector<std::string> words;
  for (int64_t n = dice.Chance(0.1) ? dice.Between(100, 300) : dice.Between(1, 20); n > 0; --n) {
    words.emplace_back(dice.OneOf(kWords));
  }
  return absl::StrCat(" ", absl::StrJoin(words, " "));
}

void DrawSampling(Dice& dice, v1::SamplingOptions* sampling) {
  if (dice.Chance(0.25)) {
    sampling->set_temperature(0);
    if (dice.Chance(0.5)) sampling->set_repetition_penalty(1.3F);  // else greedy text goes in circles
    return;
  }
  sampling->set_seed(dice.Between(0, int64_t{1} << 40));
  sampling->set_temperature(static_cast<float>(dice.Between(5, 12)) / 10);
  if (dice.Chance(0.3)) sampling->set_top_k(static_cast<int32_t>(dice.Between(5, 200)));
  if (dice.Chance(0.3)) sampling->set_top_p(0.9F);
  if (dice.Chance(0.2)) sampling->set_min_p(0.02F);
  if (dice.Chance(0.5)) {
    sampling->set_repetition_penalty(1.2F);
    sampling->set_presence_penalty(0.3F);
    sampling->set_frequency_penalty(0.1F);
  }
  if (dice.Chance(0.2)) {
    v1::LogitBias* bias = sampling->add_logit_bias();
    bias->set_token_id(static_cast<int32_t>(dice.Between(10, 4000)));
    bias->set_bias(2);
  }
}

Step DrawTurn(const StoryOptions& options, Dice& dice, bool first) {
  Step step;
  v1::GenerationSpec& spec = step.spec;
  if (first || dice.Chance(0.7)) {
    spec.set_text(Prompt(dice));
  } else if (dice.Chance(0.5)) {
    for (int64_t n = dice.Between(1, 30); n > 0; --n) {
      spec.mutable_token_ids()->add_ids(static_cast<int32_t>(dice.Between(1, 4000)));
    }
  }  // else it goes on from where the session stands
  DrawSampling(dice, spec.mutable_sampling());
  const bool is_long = dice.Chance(0.12);
  const int64_t tokens = is_long ? dice.Between(options.longest_turn / 2, options.longest_turn)
                                 : dice.Between(dice.Chance(0.2) ? 0 : 20, 250);
  spec.mutable_stopping()->set_max_tokens(tokens);
  spec.mutable_stopping()->set_ignore_eos(dice.Chance(0.7));
  if (dice.Chance(0.15)) {
    spec.mutable_stopping()->add_stop_strings(dice.Chance(0.5) ? "\" said the" : " morning");
    spec.mutable_stopping()->add_stop_strings("no such text \x01");
    if (dice.Chance(0.5)) spec.mutable_stopping()->set_min_tokens(tokens / 2);
  }
  const int64_t durability = dice.Between(0, 9);
  spec.set_durability(durability < 5   ? v1::DURABILITY_TOKEN
                      : durability < 9 ? v1::DURABILITY_TURN
                                       : v1::DURABILITY_NONE);
  const int64_t policy = dice.Between(0, 9);
  spec.set_on_disconnect(policy < 6   ? v1::DISCONNECT_POLICY_PARK
                         : policy < 8 ? v1::DISCONNECT_POLICY_CONTINUE
                                      : v1::DISCONNECT_POLICY_CANCEL);
  if (dice.Chance(0.06))
    spec.mutable_max_duration()->set_nanos(static_cast<int32_t>(dice.Between(50, 900)) * 1'000'000);
  step.by_library = dice.Chance(0.35);
  if (!step.by_library && tokens > 2) {
    constexpr Whim kWhims[] = {Whim::kVanish,   Whim::kVanish, Whim::kTakeOver,
                               Whim::kTakeOver, Whim::kRewind, Whim::kSlow};
    for (int64_t n = dice.Between(0, is_long ? 6 : 2); n > 0; --n) {
      step.whims[dice.Between(1, tokens - 1)] = dice.OneOf(kWhims);
    }
    if (dice.Chance(0.08)) step.whims[dice.Between(1, tokens - 1)] = Whim::kCancel;
  }
  return step;
}

}  // namespace

Story MakeStory(const StoryOptions& options, int client, int chapter) {
  Dice dice(options.seed, {1, static_cast<uint64_t>(client), static_cast<uint64_t>(chapter)});
  Story story;
  story.begin_anew = dice.Fraction();
  story.delete_at_end = dice.Chance(0.4);
  story.seed = static_cast<uint64_t>(dice.Between(0, INT64_MAX - 1));
  int64_t turns = 0;
  for (int64_t n = dice.Between(2, 5); n > 0; --n) {
    story.steps.push_back(DrawTurn(options, dice, turns == 0));
    ++turns;
    Step other;
    if (dice.Chance(0.25)) {
      other.kind = Step::Kind::kUpdate;
    } else if (n > 1 && dice.Chance(0.08)) {  // a turn follows, which makes it again
      other.kind = Step::Kind::kRecreate;
      turns = 0;
    } else if (options.branching && dice.Chance(0.2)) {
      other.kind = Step::Kind::kFork;
    } else if (options.branching && dice.Chance(0.2)) {
      other.kind = Step::Kind::kRollback;
      other.turns = static_cast<int32_t>(dice.Between(1, turns));
      turns -= other.turns;
    } else {
      continue;
    }
    story.steps.push_back(other);
  }
  return story;
}

std::string Describe(const v1::GenerationSpec& spec) {
  v1::GenerationSpec brief = spec;
  if (brief.has_text() && brief.text().size() > 80) brief.set_text(brief.text().substr(0, 40));
  return brief.ShortDebugString();
}

}  // namespace smt::testing
