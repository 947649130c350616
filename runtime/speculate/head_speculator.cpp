#include "runtime/speculate/head_speculator.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#include "runtime/speculate/head/features.h"

namespace foretoken {
namespace {

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

}  // namespace

HeadSpeculator::HeadSpeculator(int max_sequences, std::int64_t hidden, kernels::ThreadPool& pool)
    : hidden_(hidden),
      pool_(pool),
      slots_(std::size_t(max_sequences)),
      lanes_{Lane{nullptr, HeadWorkspace(max_sequences, hidden), {}},
             Lane{nullptr, HeadWorkspace(max_sequences, hidden), {}}},
      places_(std::size_t(max_sequences)),
      features_(std::size_t(max_sequences * kHeadTaps * hidden)),
      tokens_(std::size_t(max_sequences)) {
  for (Slot& slot : slots_) slot.features.resize(std::size_t(kHeadTaps * hidden));
  for (Lane& lane : lanes_) lane.jobs.reserve(std::size_t(max_sequences));
  kept_.reserve(std::size_t(max_sequences));
}

void HeadSpeculator::set_features(int slot, std::int64_t position, const std::uint16_t* values,
                                  const float* scales) {
  Slot& s = slots_[std::size_t(slot)];
  s.position = position;
  decode_features(values, scales, hidden_, s.features.data());
}

bool HeadSpeculator::ready(const DraftContext& context) const {
  return context.learned && context.learned->head &&
         slots_[std::size_t(context.slot)].position == std::int64_t(context.tokens.size()) - 2;
}

void HeadSpeculator::begin(std::span<const DraftJob> jobs, std::span<const std::uint8_t> active) {
  const auto started = Clock::now();
  steps_ = 0;
  steps_ms_ = 0;
  for (Lane& lane : lanes_) {
    lane.head = nullptr;
    lane.jobs.clear();
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    places_[i] = {};
    if (!active[i]) continue;
    const RecurrentHead* head = jobs[i].context.learned->head.get();
    const auto lane = std::ranges::find_if(
        lanes_, [&](const Lane& l) { return l.head == nullptr || l.head == head; });
    assert(lane != lanes_.end() && "the engine serves two heads at most");
    lane->head = head;
    places_[i] = {int(lane - lanes_.begin()), int(lane->jobs.size())};
    lane->jobs.push_back(int(i));
  }
  const auto width = std::size_t(kHeadTaps * hidden_);
  for (Lane& lane : lanes_) {
    if (lane.jobs.empty()) continue;
    for (std::size_t row = 0; row < lane.jobs.size(); ++row) {
      const DraftContext& context = jobs[std::size_t(lane.jobs[row])].context;
      std::ranges::copy(slots_[std::size_t(context.slot)].features,
                        features_.begin() + std::ptrdiff_t(row * width));
    }
    lane.head->begin(features_.data(), int(lane.jobs.size()), lane.workspace, pool_);
  }
  begin_ms_ = ms_since(started);
}

void HeadSpeculator::step(std::span<const TokenId> tokens) {
  const auto started = Clock::now();
  ++steps_;
  for (Lane& lane : lanes_) {
    if (lane.jobs.empty()) continue;
    for (std::size_t row = 0; row < lane.jobs.size(); ++row)
      tokens_[row] = tokens[std::size_t(lane.jobs[row])];
    lane.head->step(std::span(tokens_).first(lane.jobs.size()), lane.workspace, pool_);
  }
  steps_ms_ += ms_since(started);
}

Proposal HeadSpeculator::choose(int job, const DraftContext& context,
                                const CandidateList& candidates, std::int64_t position) {
  const auto started = Clock::now();
  const Place place = places_[std::size_t(job)];
  Lane& lane = lanes_[std::size_t(place.lane)];
  const Proposal proposal = lane.head->choose(place.row, candidates, *context.sampling, position,
                                              !context.rejection, lane.workspace);
  steps_ms_ += ms_since(started);
  return proposal;
}

void HeadSpeculator::keep(std::span<const std::uint8_t> active) {
  for (Lane& lane : lanes_) {
    kept_.clear();
    std::size_t n = 0;
    for (std::size_t row = 0; row < lane.jobs.size(); ++row) {
      const int job = lane.jobs[row];
      if (!active[std::size_t(job)]) continue;
      kept_.push_back(int(row));
      places_[std::size_t(job)].row = int(n);
      lane.jobs[n++] = job;
    }
    if (n == lane.jobs.size()) continue;
    lane.jobs.resize(n);
    lane.workspace.keep(kept_);
  }
}

}  // namespace foretoken
