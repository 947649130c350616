#include "runtime/speculate/head_speculator.h"

#include <algorithm>
#include <cassert>

namespace foretoken {

HeadSpeculator::HeadSpeculator(int max_sequences, const Model* target, const FeatureRows& features,
                               kernels::ThreadPool& pool, const Clock& clock)
    : target_(target),
      features_(features),
      pool_(pool),
      clock_(clock),
      slots_(std::size_t(max_sequences)),
      places_(std::size_t(max_sequences)),
      tokens_(std::size_t(max_sequences)) {
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
    lane.id = head->id();
    const int n = int(slots_.size());
    if (target_)
      lane.workspace = target_->make_head_workspace(*head, n);
    else
      lane.workspace = head->make_workspace(n);
    for (Slot& slot : slots_) lane.workspace->reserve(slot.memory);
  }
  for (Lane& lane : lanes_) {
    if (lane.id && !is_wanted(lane)) {
      lane.id = 0;
      lane.workspace.reset();
    }
  }
}

bool HeadSpeculator::ready(const DraftContext& context) const {
  const FeatureView ring = features_.ring(context.slot);
  return context.learned && context.learned->head && ring.first < ring.end &&
         ring.end == std::int64_t(context.tokens.size()) - 1;
}

void HeadSpeculator::begin(std::span<const DraftJob> jobs, std::span<const std::uint8_t> active) {
  const auto started = clock_.monotonic();
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
      if (const std::uint64_t now = features_.history(context.slot); slot.history != now) {
        slot.memory.forget();  // it is of another past
        slot.history = now;
      }
      starts_.push_back({context.tokens, features_.ring(context.slot), &slot.memory});
    }
    lane.workspace->begin(starts_, pool_);
  }
  begin_ms_ = ms_of(clock_.monotonic() - started);
}

void HeadSpeculator::step(std::span<const TokenId> tokens) {
  const auto started = clock_.monotonic();
  ++steps_;
  for (Lane& lane : lanes_) {
    if (lane.jobs.empty()) continue;
    for (std::size_t row = 0; row < lane.jobs.size(); ++row)
      tokens_[row] = tokens[std::size_t(lane.jobs[row])];
    lane.workspace->step(std::span(tokens_).first(lane.jobs.size()), pool_);
  }
  steps_ms_ += ms_of(clock_.monotonic() - started);
}

Proposal HeadSpeculator::choose(int job, const DraftContext& context,
                                const CandidateList& candidates, std::int64_t position) {
  const auto started = clock_.monotonic();
  const Place place = places_[std::size_t(job)];
  const Proposal proposal = lanes_[std::size_t(place.lane)].workspace->choose(
      place.row, candidates, *context.sampling, position, !context.rejection);
  steps_ms_ += ms_of(clock_.monotonic() - started);
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
