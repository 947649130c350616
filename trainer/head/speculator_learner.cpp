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
 public:
  SpeculatorLearner(const LearnerOptions& options, const TraceSource& source)
      : options_(options), source_(source), fusion_(options.fusion, FusionTable::initial()) {
    if (options.model && options.eagle3)
      head_ = std::make_unique<Eagle3Learner>(*options.eagle3, options.model, source);
    else if (options.model)
      head_ = std::make_unique<HeadLearner>(options.head, options.model, source);
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) override {
    const auto positions = fusion_positions(trace);
    group_.insert(group_.end(), positions.begin(), positions.end());
    group_sequences_.push_back(sequence);
    tokens_ += std::int64_t(trace.generated.size());
    ++requests_;
    if (head_) head_->observe(sequence, trace);
  }

  bool work(std::size_t fresh_waiting) override {
    if (group_.size() < std::size_t(options_.fusion.positions_per_step))
      return head_ && head_->work(fresh_waiting);
    fusion_.train(group_);
    group_.clear();
    group_sequences_.clear();
    return true;
  }

  void judged(std::int64_t trained_tokens, bool gained) override {
    if (head_) head_->judged(trained_tokens, gained);
  }

  Bundle snapshot() const override {
    Bundle bundle = bundle_of(fusion_.average());
    bundle.trained_tokens = tokens_;
    bundle.trained_requests = requests_;
    bundle.loss = facts().loss;
    if (head_ && head_->trained()) head_->add_to(bundle);
    return bundle;
  }

  LearnerFacts facts() const override {
    LearnerFacts facts{fusion_.step(), tokens_, requests_, tokens_, fusion_.loss()};
    if (!head_) return facts;
    facts.step += head_->step();
    facts.positions = head_->chains();
    if (head_->trained()) facts.loss = head_->loss();
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
    if (head_) head_->save(map);
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
    if (head_)
      if (Status restored = head_->restore(*map); !restored) return restored;
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
  std::unique_ptr<HeadTrainer> head_;  // null: the fusion table alone
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
