#include "trainer/head/speculator_learner.h"

#include <deque>

#include "runtime/speculate/fusion_bundle.h"
#include "trainer/learner/state_map.h"

namespace foretoken::trainer {
namespace {

class SpeculatorLearner final : public Learner {
 public:
  SpeculatorLearner(const LearnerOptions& options, const TraceSource& source)
      : options_(options),
        source_(source),
        fusion_(options.fusion, FusionTable::initial()),
        head_(make_head()) {}

  void observe(std::uint64_t sequence, const RequestTrace& trace) override {
    add_to_group(sequence, trace);
    tokens_ += std::int64_t(trace.generated.size());
    ++requests_;
    if (!head_) return;
    if (!head_->goes_on_with(trace)) head_ = make_head();
    head_->observe(sequence, trace);
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
    fusion_.save(map);
    map.put("fusion.group", group_sequences_);
    map.put_one("tokens", tokens_);
    map.put_one("requests", requests_);
    if (head_) head_->save(map);
    return map.serialize();
  }

  Status restore(std::span<const std::byte> bytes) override {
    const auto map = StateMap::parse(bytes);
    if (!map) return map.error();
    auto head = make_head();
    if (head) {
      if (Status restored = head->restore(*map); !restored) return restored;
    }
    if (Status restored = fusion_.restore(*map); !restored) return restored;
    head_ = std::move(head);
    tokens_ = map->get_one<std::int64_t>("tokens", 0);
    requests_ = map->get_one<std::int64_t>("requests", 0);
    group_.clear();
    group_sequences_.clear();
    for (const std::uint64_t sequence : map->get<std::uint64_t>("fusion.group")) {
      if (const auto trace = source_.trace(sequence)) add_to_group(sequence, *trace);
    }
    return Ok{};
  }

 private:
  std::unique_ptr<HeadTrainer> make_head() const {
    if (!options_.model) return nullptr;
    return options_.eagle3 ? make_eagle3_learner(*options_.eagle3, options_.model, source_)
                           : make_head_learner(options_.head, options_.model, source_);
  }
  void add_to_group(std::uint64_t sequence, const RequestTrace& trace) {
    const auto positions = fusion_positions(trace);
    group_.insert(group_.end(), positions.begin(), positions.end());
    group_sequences_.push_back(sequence);
  }

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
