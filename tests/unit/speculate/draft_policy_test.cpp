#include "runtime/speculate/draft_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "simulated_traffic.h"

namespace foretoken {
namespace {

using simulated::Loop;
using simulated::Source;
using simulated::Totals;

// Sequences whose drafted tokens are accepted with known, honest confidences: what a policy earns
// is then exact, and so is the best any policy could.
struct Known {
  std::function<double(int)> cost;
  int sequences = 1;
  std::vector<std::vector<float>> drafts;  // equally likely confidences of a draft
};

struct Outcome {
  double tokens = 0, ms = 0;
  double rate() const { return tokens / ms; }
};

// Offers drafts of known confidences, whatever was drafted before.
struct KnownOffers : DraftOffers {
  explicit KnownOffers(int sequences)
      : drafts(static_cast<std::size_t>(sequences)), jobs(drafts.size()) {
    for (std::size_t i = 0; i < jobs.size(); ++i) jobs[i] = {.max_tokens = 8, .draft = &drafts[i]};
  }
  OfferList offer_cheap(int job, std::span<const TokenId> drafted) override {
    OfferList list;
    const auto& of = confidences[static_cast<std::size_t>(job)];
    if (drafted.size() < of.size())
      list.push_back({1, of[drafted.size()], of[drafted.size()], SpeculatorKind::kNgram});
    return list;
  }
  std::vector<std::vector<float>> confidences;
  std::vector<DraftTree> drafts;
  std::vector<PolicyJob> jobs;
};

Outcome run_policy(const Known& known, int rounds, double noise, int warm_up) {
  DraftPolicy policy({.max_sequences = known.sequences, .max_draft = 8});
  CostModel costs(known.sequences * 9);
  KnownOffers offers(known.sequences);
  std::mt19937_64 random(11);
  std::normal_distribution<> normal;
  std::uniform_real_distribution<> uniform;
  Outcome outcome;
  for (int i = 0; i < rounds + warm_up; ++i) {
    offers.confidences.clear();
    for (int s = 0; s < known.sequences; ++s)
      offers.confidences.push_back(known.drafts[random() % known.drafts.size()]);
    const bool control = uniform(random) < 0.03;
    if (control) {
      for (DraftTree& draft : offers.drafts) draft.clear();
    } else {
      policy.draft(offers.jobs, 0, 1000, costs.costs(), offers);
    }
    RoundMeasurement m;
    m.sequences = known.sequences;
    m.control = control;
    for (const DraftTree& draft : offers.drafts) {
      m.rows += 1 + static_cast<int>(draft.tokens.size());
      ++m.emitted;
      for (float c : draft.confidences) {
        if (uniform(random) >= static_cast<double>(c)) break;
        ++m.emitted;
      }
    }
    m.verify_ms = known.cost(m.rows) * std::exp(noise * normal(random));
    costs.observe(m);
    policy.observe(m, costs.costs());
    if (control || i < warm_up) continue;
    outcome.tokens += m.emitted;
    outcome.ms += known.cost(m.rows);
  }
  return outcome;
}

// The best long-run rate of any policy that sees the confidences, by Dinkelbach's iteration on the
// truth (one sequence: the best length of each draft; several: the best set of slots of each
// combination, sampled).
double best_rate(const Known& known) {
  std::mt19937_64 random(5);
  std::vector<std::vector<float>> rounds;  // sorted survivals
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> slots;
    for (int s = 0; s < known.sequences; ++s) {
      float survival = 1;
      for (float c : known.drafts[random() % known.drafts.size()]) slots.push_back(survival *= c);
    }
    std::sort(slots.rbegin(), slots.rend());
    rounds.push_back(slots);
  }
  double rate = known.sequences / known.cost(known.sequences);
  for (int iteration = 0; iteration < 30; ++iteration) {
    double tokens = 0, ms = 0;
    for (const auto& slots : rounds) {
      double gain = known.sequences, best_gain = gain, best_cost = known.cost(known.sequences);
      for (std::size_t k = 0; k < slots.size(); ++k) {
        gain += static_cast<double>(slots[k]);
        const double cost = known.cost(known.sequences + static_cast<int>(k) + 1);
        if (gain - rate * cost > best_gain - rate * best_cost) {
          best_gain = gain;
          best_cost = cost;
        }
      }
      tokens += best_gain;
      ms += best_cost;
    }
    rate = tokens / ms;
  }
  return rate;
}

TEST(DraftPolicy, EarnsWithinThreePerCentOfTheBestPolicyOnKnownCurves) {
  const auto flat = [](int rows) { return 10 * (1 + 0.03 * (rows - 1)); };
  const auto steep = [](int rows) { return 10 * (1 + 0.25 * (rows - 1)); };
  const auto ridge = [](int rows) {
    return rows <= 6 ? 10 * (1 + 0.04 * (rows - 1)) : 12 + 1.8 * (rows - 6);
  };
  const std::vector<float> sure(8, 0.9f), fair(8, 0.6f), poor(8, 0.15f), none;
  const Known cases[] = {
      {flat, 1, {sure, fair, poor}},        {steep, 1, {sure, fair, poor}},
      {ridge, 1, {sure, fair, poor, none}}, {ridge, 1, {poor}},
      {ridge, 4, {sure, fair, poor, none}}, {steep, 4, {fair, poor}},
  };
  for (const Known& known : cases) {
    const double best = best_rate(known);
    const double earned = run_policy(known, 20000, 0.1, 3000).rate();
    EXPECT_GT(earned, best * 0.97) << "case " << &known - cases;
    EXPECT_LT(earned, best * 1.02)
        << "case " << &known - cases << ": more than the best is a broken test";
  }
}

TEST(DraftPolicy, GivesSlotsToTheSequencesThatUseThem) {
  DraftPolicy policy({.max_sequences = 2, .max_draft = 8});
  CostModel costs(18);
  for (int i = 0; i < 200; ++i) {
    const int rows = 2 + i % 6;
    const RoundMeasurement m{
        .sequences = 2, .rows = rows, .emitted = 2, .verify_ms = 10 + 1.5 * rows};
    costs.observe(m);
    policy.observe(m, costs.costs());
  }
  KnownOffers offers(2);
  offers.confidences = {std::vector<float>(8, 0.95f), std::vector<float>(8, 0.2f)};
  policy.draft(offers.jobs, 0, 1000, costs.costs(), offers);
  EXPECT_GE(offers.drafts[0].tokens.size(), 5u);
  EXPECT_LE(offers.drafts[1].tokens.size(), 1u);
  policy.draft(offers.jobs, 0, 2, costs.costs(), offers);
  EXPECT_LE(offers.drafts[0].tokens.size() + offers.drafts[1].tokens.size(), 3u)
      << "two, and one to explore";
}

TEST(DraftPolicy, BesidePrefillRowsCostWhatTheyDoInALargeBatch) {
  DraftPolicy policy({.max_sequences = 4, .max_draft = 8});
  CostModel costs(36);
  // Free up to six rows, dear beyond.
  for (int i = 0; i < 600; ++i) {
    const int rows = 1 + i % 20;
    const RoundMeasurement m{.sequences = 1,
                             .rows = rows,
                             .emitted = 1,
                             .verify_ms = rows <= 6 ? 10.0 : 10 + 5.0 * (rows - 6)};
    costs.observe(m);
    policy.observe(m, costs.costs());
  }
  const auto drafted = [&](int prefill_rows) {
    KnownOffers offers(1);
    offers.confidences = {std::vector<float>(5, 0.7f)};
    policy.draft(offers.jobs, prefill_rows, 1000, costs.costs(), offers);
    return offers.drafts[0].tokens.size();
  };
  EXPECT_GE(drafted(0), 4u);
  EXPECT_LT(drafted(128), drafted(0));
}

TEST(DraftPolicy, OnTrafficThatAcceptsNothingCostsUnderOnePerCentAndComesBack) {
  for (int slots : {1, 4}) {
    Loop::Options o;
    o.slots = slots;
    o.noise = 0.1;
    o.control_fraction = 0.03;
    Loop loop(o);
    Source random_text;
    random_text.novelty = 1.0;
    random_text.vocabulary = 400;
    // Law 3 allows 2 % over any 2,000 tokens: from a cold start,
    const Totals cold = loop.serve(random_text, 8 / slots, 100, 250, 0.8f);
    EXPECT_LT(cold.cost_ratio(), 1.01) << slots << " sequences";
    // then quiet: a hundredth of a token a round,
    const Totals quiet = loop.serve(random_text, 8 / slots, 100, 250, 0.8f);
    EXPECT_LT(quiet.cost_ratio(), 1.005);
    EXPECT_LT(quiet.draft_length(), 0.05 * slots);
    // back when traffic becomes predictable, without having probed,
    Source predictable;
    loop.serve(predictable, 40, 100, 200, 0.8f);
    const Totals back = loop.serve(predictable, 10, 100, 200, 0.8f);
    EXPECT_LT(back.cost_ratio(), slots == 1 ? 0.8 : 0.9);
    // and quiet again after a switch.
    const Totals again = loop.serve(random_text, 8 / slots, 100, 250, 0.8f);
    EXPECT_LT(again.cost_ratio(), 1.015);
  }
}

// Negative control of law 3: without the choice of not drafting, the same traffic is slower than
// the law allows.
TEST(DraftPolicy, AFixedLengthOnTrafficThatAcceptsNothingBreaksLaw3) {
  Loop::Options o;
  o.fixed_length = 4;
  Loop loop(o);
  Source random_text;
  random_text.novelty = 1.0;
  random_text.vocabulary = 400;
  EXPECT_GT(loop.serve(random_text, 8, 100, 250, 0.8f).cost_ratio(), 1.02);
}

TEST(DraftPolicy, BeatsEveryFixedLengthOnTrafficItLearned) {
  const Source source;
  double best_fixed = 1e9;
  for (int length = 0; length <= 8; ++length) {
    Loop::Options o;
    o.fixed_length = length;
    Loop loop(o);
    loop.serve(source, 60, 60, 200, 0.0f);
    best_fixed = std::min(best_fixed, loop.serve(source, 20, 60, 200, 0.0f).cost_ratio());
  }
  Loop::Options o;
  o.noise = 0.1;
  Loop loop(o);
  loop.serve(source, 60, 60, 200, 0.0f);
  const Totals adaptive = loop.serve(source, 20, 60, 200, 0.0f);
  EXPECT_LT(adaptive.cost_ratio(), best_fixed * 1.01);
}

// The draft model's side: outcomes of its drafts, costs of its steps, then a plan.
struct ModelPlan : ::testing::Test {
  ModelPlan()
      : sources({.max_sequences = 2, .max_draft = 8, .max_tokens = 256, .store_bytes = 1 << 16}),
        costs(18),
        policy({.max_sequences = 2, .max_draft = 8, .model = true}),
        tokens(50, 7) {
    sampling.temperature = 0;
    context = {
        .slot = 0, .tokens = tokens, .sampling = &sampling, .store = sources.stores().acquire("")};
    sources.open(context);
  }
  void teach(double acceptance, double step_ms, int rounds = 400) {
    std::mt19937 random(1);
    std::uniform_real_distribution<> uniform;
    for (int i = 0; i < rounds; ++i) {
      DraftTree draft;
      std::vector<TokenId> emitted;
      bool alive = true;
      int accepted = 0;
      for (int k = 0; k < 3; ++k) {
        draft.push(1, 0.5f, SpeculatorKind::kModel, 0.5f);
        if (!alive) continue;
        alive = uniform(random) < acceptance;
        emitted.push_back(alive ? 1 : 2);
        accepted += alive ? 1 : 0;
      }
      if (alive) emitted.push_back(2);
      sources.observe({context, &draft, accepted, emitted});
      const int rows = 1 + i % 6;
      observe({.sequences = 1,
               .rows = rows,
               .emitted = 1,
               .verify_ms = 10 + 0.5 * rows,
               .draft_steps = 3,
               .draft_ms = 3 * step_ms});
    }
  }
  void observe(const RoundMeasurement& m) {
    costs.observe(m);
    policy.observe(m, costs.costs());
  }
  // How far the draft model is asked to draft, where nothing else is offered.
  struct Asked : DraftSources {
    using DraftSources::DraftSources;
    float expect_model(int job, int depth) override {
      return expect({SpeculatorKind::kModel}, context(job), depth);
    }
    void draft_model(std::span<const int> lengths) override { length = lengths[0]; }
    int length = 0;
  };
  int plan(std::int64_t lag = 0) {
    DraftJob job;
    job.context = context;
    const PolicyJob of{
        .max_tokens = 8, .n_tokens = std::ssize(tokens), .model_lag = lag, .draft = &job.draft};
    sources.length = 0;
    sources.begin_round(std::span(&job, 1), spec_type("model"));
    policy.draft(std::span(&of, 1), 0, 1000, costs.costs(), sources);
    return sources.length;
  }
  Asked sources;
  CostModel costs;
  DraftPolicy policy;
  std::vector<TokenId> tokens;
  SamplingParams sampling;
  DraftContext context;
};

TEST_F(ModelPlan, ACheapAndGoodModelDraftsFar) {
  teach(0.85, 0.8);
  EXPECT_GE(plan(), 4);
}

TEST_F(ModelPlan, ADearModelDraftsLittleOrNothing) {
  teach(0.85, 9.0);
  int total = 0;
  for (int i = 0; i < 100; ++i) total += plan(200);
  EXPECT_LE(total, 20) << "a rare burst at most";
}

TEST_F(ModelPlan, AModelThatIsNeverRightIsLeftAloneButForAnAffordableProbe) {
  teach(0.0, 3.0);
  int drafting = 0;
  for (int i = 0; i < 2000; ++i) {
    drafting += plan(0) > 0 ? 1 : 0;
    observe({.sequences = 1, .rows = 1, .emitted = 1, .verify_ms = 10.5});
  }
  EXPECT_GT(drafting, 0) << "how else would it hear that the model got better";
  // A probe costs two steps of 3 ms and two rows; 2 % of 2,000 rounds would be 60 of them.
  EXPECT_LE(drafting, 40);
}

TEST_F(ModelPlan, AnUntriedModelIsTriedSoon) {
  for (int i = 0; i < 10; ++i) observe({.sequences = 1, .rows = 1, .emitted = 1, .verify_ms = 10});
  int first = -1;
  for (int i = 0; i < 3000 && first < 0; ++i) {
    if (plan(30) > 0) first = i;
    observe({.sequences = 1, .rows = 1, .emitted = 1, .verify_ms = 10});
  }
  EXPECT_GE(first, 0);
}

}  // namespace
}  // namespace foretoken
