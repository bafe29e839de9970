#include "model/sampling/penalty_state.h"

namespace smt {

void PenaltyState::Bind(const SamplingParams& params, std::span<const int32_t> prior,
                        std::span<const int32_t> generated) {
  tracking_ = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
  generated_total_ = 0;
  entries_.clear();
  index_.clear();
  if (tracking_) {
    for (int32_t id : prior) Find(id);
  }
  for (int32_t id : generated) Add(id);
}

void PenaltyState::Add(int32_t id) {
  ++generated_total_;
  if (tracking_) ++Find(id).generated;
}

PenaltyState::Entry& PenaltyState::Find(int32_t id) {
  auto [it, inserted] = index_.try_emplace(id, static_cast<int32_t>(entries_.size()));
  if (inserted) entries_.push_back({.id = id});
  return entries_[it->second];
}

}  // namespace smt
