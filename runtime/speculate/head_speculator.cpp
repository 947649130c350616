#include "runtime/speculate/head_speculator.h"

#include <algorithm>
#include <cassert>
#include <chrono>

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
      places_(std::size_t(max_sequences)),
      tokens_(std::size_t(max_sequences)) {
  for (Slot& slot : slots_) {
    slot.values.resize(std::size_t(kHeadWindow * kHeadTaps * hidden));
    slot.scales.resize(std::size_t(kHeadWindow * kHeadTaps));
  }
  for (Lane& lane : lanes_) lane.jobs.reserve(std::size_t(max_sequences));
  starts_.reserve(std::size_t(max_sequences));
  kept_.reserve(std::size_t(max_sequences));
}

void HeadSpeculator::prepare(const DraftHead* served, const DraftHead* canary) {
  const std::array<const DraftHead*, 2> wanted = {served, canary == served ? nullptr : canary};
  const auto is_wanted = [&](const Lane& lane) {
    return std::ranges::any_of(wanted, [&](const DraftHead* h) { return h && h->id() == lane.id; });
  };
  for (const DraftHead* head : wanted) {
    if (!head || std::ranges::find(lanes_, head->id(), &Lane::id) != lanes_.end()) continue;
    Lane& lane = *std::ranges::find_if_not(lanes_, is_wanted);
    lane.head = head;
    lane.id = head->id();
    lane.workspace = head->make_workspace(int(slots_.size()));
    for (Slot& slot : slots_) {
      if (slot.memory.values.size() < head->memory_floats()) {
        slot.memory.forget();
        slot.memory.values.assign(head->memory_floats(), 0.0f);
      }
    }
  }
  for (Lane& lane : lanes_) {
    if (lane.id && !is_wanted(lane)) {
      lane.head = nullptr;
      lane.id = 0;
      lane.workspace.reset();
    }
  }
}

void HeadSpeculator::set_features(int slot, std::int64_t position, const std::uint16_t* values,
                                  const float* scales) {
  Slot& s = slots_[std::size_t(slot)];
  if (position != s.end || s.first == s.end) {
    s.first = position;
    s.memory.forget();  // it is of another past
  }
  s.end = position + 1;
  s.first = std::max(s.first, s.end - kHeadWindow);
  const std::int64_t row = position % kHeadWindow, width = kHeadTaps * hidden_;
  std::copy_n(values, width, &s.values[std::size_t(row * width)]);
  std::copy_n(scales, kHeadTaps, &s.scales[std::size_t(row * kHeadTaps)]);
}

void HeadSpeculator::forget(int slot) {
  Slot& s = slots_[std::size_t(slot)];
  s.first = s.end = 0;
  s.memory.forget();
}

bool HeadSpeculator::ready(const DraftContext& context) const {
  const Slot& s = slots_[std::size_t(context.slot)];
  return context.learned && context.learned->head && s.first < s.end &&
         s.end == std::int64_t(context.tokens.size()) - 1;
}

void HeadSpeculator::begin(std::span<const DraftJob> jobs, std::span<const std::uint8_t> active) {
  const auto started = Clock::now();
  steps_ = 0;
  steps_ms_ = 0;
  for (Lane& lane : lanes_) lane.jobs.clear();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    places_[i] = {};
    if (!active[i]) continue;
    const auto lane = std::ranges::find(lanes_, jobs[i].context.learned->head->id(), &Lane::id);
    assert(lane != lanes_.end() && "a head that prepare() did not see");
    places_[i] = {int(lane - lanes_.begin()), int(lane->jobs.size())};
    lane->jobs.push_back(int(i));
  }
  for (Lane& lane : lanes_) {
    if (lane.jobs.empty()) continue;
    starts_.clear();
    for (const int job : lane.jobs) {
      const DraftContext& context = jobs[std::size_t(job)].context;
      Slot& slot = slots_[std::size_t(context.slot)];
      const FeatureView features{
          slot.values.data(), slot.scales.data(), hidden_, slot.first, slot.end, 0, kHeadWindow};
      starts_.push_back({context.tokens, features, &slot.memory});
    }
    lane.head->begin(starts_, *lane.workspace, pool_);
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
    lane.head->step(std::span(tokens_).first(lane.jobs.size()), *lane.workspace, pool_);
  }
  steps_ms_ += ms_since(started);
}

Proposal HeadSpeculator::choose(int job, const DraftContext& context,
                                const CandidateList& candidates, std::int64_t position) {
  const auto started = Clock::now();
  const Place place = places_[std::size_t(job)];
  Lane& lane = lanes_[std::size_t(place.lane)];
  const Proposal proposal = lane.head->choose(place.row, candidates, *context.sampling, position,
                                              !context.rejection, *lane.workspace);
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
    lane.workspace->keep(kept_);
  }
}

}  // namespace foretoken
