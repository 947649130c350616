#include "trainer/head/speculator_learner.h"

#include <deque>

#include "runtime/speculate/fusion_bundle.h"
#include "trainer/learner/state_map.h"

namespace foretoken::trainer {
namespace {

std::vector<float> flat(const FusionTable& table) {
  std::vector<float> values(table.bias.begin(), table.bias.end());
  values.push_back(table.other);
  return values;
}

bool unflatten(const std::vector<float>& values, FusionTable& table) {
  if (values.size() != kFusionClasses + 1) return false;
  std::copy_n(values.begin(), kFusionClasses, table.bias.begin());
  table.other = values.back();
  return table.finite();
}

class SpeculatorLearner final : public Learner {
  // (Before their use: the compiler deduces what they return.)
  template <class Head, class Eagle3, class F>
  static auto on(Head& head, Eagle3& eagle3, F& f) {
    using Out = decltype(f(*head));
    if (head) return f(*head);
    if (eagle3) return f(*eagle3);
    return Out();
  }
  // f(head) of whichever head learns; false, or nothing, where none does.
  template <class F>
  auto with_head(F&& f) {
    return on(head_, eagle3_, f);
  }
  template <class F>
  auto with_head(F&& f) const {
    return on(head_, eagle3_, f);
  }

 public:
  SpeculatorLearner(const LearnerOptions& options, const TraceSource& source)
      : options_(options), source_(source), fusion_(options.fusion, FusionTable::initial()) {
    if (options.model && options.eagle3)
      eagle3_.emplace(*options.eagle3, options.model, source);
    else if (options.model)
      head_.emplace(options.head, options.model, source);
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) override {
    const auto positions = fusion_positions(trace);
    group_.insert(group_.end(), positions.begin(), positions.end());
    group_sequences_.push_back(sequence);
    tokens_ += std::int64_t(trace.generated.size());
    ++requests_;
    with_head([&](auto& head) { head.observe(sequence, trace); });
  }

  bool work(std::size_t fresh_waiting) override {
    if (group_.size() < std::size_t(options_.fusion.positions_per_step))
      return with_head([&](auto& head) { return head.work(fresh_waiting); });
    fusion_.train(group_);
    group_.clear();
    group_sequences_.clear();
    return true;
  }

  void judged(std::int64_t trained_tokens, bool gained) override {
    with_head([&](auto& head) { head.judged(trained_tokens, gained); });
  }

  Bundle snapshot() const override {
    Bundle bundle = bundle_of(fusion_.average());
    bundle.trained_tokens = tokens_;
    bundle.trained_requests = requests_;
    bundle.loss = facts().loss;
    with_head([&](auto& head) {
      if (head.trained()) head.add_to(bundle);
    });
    return bundle;
  }

  LearnerFacts facts() const override {
    LearnerFacts facts{fusion_.step(), tokens_, requests_, tokens_, fusion_.loss()};
    with_head([&](auto& head) {
      facts.step += head.step();
      facts.positions = head.chains();
      if (head.trained()) facts.loss = head.loss();
    });
    return facts;
  }

  std::vector<std::byte> state() const override {
    StateMap map;
    const FusionLearnerState state = fusion_.state();
    map.put("fusion.table", flat(state.table));
    map.put("fusion.average", flat(state.average));
    map.put("fusion.first_moment", state.first_moment);
    map.put("fusion.second_moment", state.second_moment);
    map.put_one("fusion.step", state.step);
    map.put_one("fusion.loss", state.loss);
    map.put("fusion.group", group_sequences_);
    map.put_one("tokens", tokens_);
    map.put_one("requests", requests_);
    with_head([&](auto& head) { head.save(map); });
    return map.serialize();
  }

  Status restore(std::span<const std::byte> bytes) override {
    const auto map = StateMap::parse(bytes);
    if (!map) return map.error();
    FusionLearnerState state;
    if (!unflatten(map->get<float>("fusion.table"), state.table) ||
        !unflatten(map->get<float>("fusion.average"), state.average)) {
      return Error{ErrorCode::kInvalidInput,
                   "learner state: a table has the wrong shape or is not finite"};
    }
    Status restored = Ok{};
    with_head([&](auto& head) { restored = head.restore(*map); });
    if (!restored) return restored;
    state.first_moment = map->get<float>("fusion.first_moment");
    state.second_moment = map->get<float>("fusion.second_moment");
    state.step = map->get_one<std::int64_t>("fusion.step", 0);
    state.loss = map->get_one<double>("fusion.loss", 0);
    fusion_.restore(state);
    tokens_ = map->get_one<std::int64_t>("tokens", 0);
    requests_ = map->get_one<std::int64_t>("requests", 0);
    group_.clear();
    group_sequences_.clear();
    for (const std::uint64_t sequence : map->get<std::uint64_t>("fusion.group")) {
      const auto trace = source_.trace(sequence);
      if (!trace) continue;
      const auto positions = fusion_positions(*trace);
      group_.insert(group_.end(), positions.begin(), positions.end());
      group_sequences_.push_back(sequence);
    }
    return Ok{};
  }

 private:
  const LearnerOptions options_;
  const TraceSource& source_;
  FusionLearner fusion_;
  std::optional<HeadLearner> head_;
  std::optional<Eagle3Learner> eagle3_;
  std::vector<FusionPosition> group_;  // observed and not trained on yet
  std::vector<std::uint64_t> group_sequences_;
  std::int64_t tokens_ = 0, requests_ = 0;
};

}  // namespace

LearnerFactory learner_factory(const LearnerOptions& options) {
  return [options](const TraceSource& source) {
    return std::make_unique<SpeculatorLearner>(options, source);
  };
}

}  // namespace foretoken::trainer
