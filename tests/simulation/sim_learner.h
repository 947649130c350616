// What learns in a simulation: a table that knows one lesson more (sim_traffic.h) with every
// five requests, at no cost. Its state names every request it was shown, so that one shown twice is
// noticed.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>

#include "runtime/speculate/fusion_bundle.h"
#include "tests/simulation/sim_traffic.h"
#include "trainer/learner/learner.h"

namespace foretoken::simulation {

class SimLearner final : public trainer::Learner {
 public:
  using OnRepeat = std::function<void(std::uint64_t request)>;
  explicit SimLearner(OnRepeat on_repeat) : on_repeat_(std::move(on_repeat)) {}

  void observe(std::uint64_t, const RequestTrace& trace) override {
    // A simulation numbers its requests across all runs of the server.
    if (!seen_.insert(trace.request.value).second) on_repeat_(trace.request.value);
    // Two histories never give the same table.
    history_ = history_ * 0x9e3779b97f4a7c15ull + trace.request.value;
    tokens_ += std::int64_t(trace.generated.size());
  }
  bool work(std::size_t) override {
    if (trained_ >= seen_.size()) return false;
    ++trained_;
    return true;
  }
  void judged(std::int64_t, bool) override {}
  Bundle snapshot() const override {
    const int lessons = std::min(kLessons, 1 + int(trained_ / 4));
    FusionTable table = table_of(lessons);
    table.bias[0] += 1e-3f * float(history_ >> 40) / float(1 << 24);
    Bundle bundle = bundle_of(table);
    bundle.trained_tokens = tokens_;
    bundle.trained_requests = std::int64_t(trained_);
    bundle.loss = 1 - double(lessons) / kLessons;
    return bundle;
  }
  trainer::LearnerFacts facts() const override {
    trainer::LearnerFacts facts;
    facts.step = facts.trained_requests = std::int64_t(trained_);
    facts.trained_tokens = tokens_;
    facts.loss = 1 / (1 + double(trained_) / 30);
    return facts;
  }

  std::vector<std::byte> state() const override {
    std::vector<std::uint64_t> words = {trained_, history_, std::uint64_t(tokens_)};
    words.insert(words.end(), seen_.begin(), seen_.end());
    const auto bytes = std::as_bytes(std::span(words));
    return {bytes.begin(), bytes.end()};
  }
  Status restore(std::span<const std::byte> state) override {
    std::vector<std::uint64_t> words(state.size() / 8);
    if (!words.empty()) std::memcpy(words.data(), state.data(), words.size() * 8);
    if (words.size() < 3) return Error{ErrorCode::kInvalidInput, "learner: truncated"};
    trained_ = words[0];
    history_ = words[1];
    tokens_ = std::int64_t(words[2]);
    seen_ = {words.begin() + 3, words.end()};
    return Ok{};
  }

 private:
  OnRepeat on_repeat_;
  std::uint64_t trained_ = 0, history_ = 0;
  std::int64_t tokens_ = 0;
  std::set<std::uint64_t> seen_;
};

}  // namespace foretoken::simulation
