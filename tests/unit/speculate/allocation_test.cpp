// A warm round of speculation allocates nothing: every operator new of this program is counted.
#include <gtest/gtest.h>

#include "simulated_traffic.h"
#include "tests/support/count_allocations.h"

namespace foretoken {
namespace {

TEST(Allocation, AWarmRoundAllocatesNothing) {
  constexpr int kDraft = 8, kSequences = 2;
  DraftSources sources({.max_sequences = kSequences,
                        .max_draft = kDraft,
                        .max_tokens = 2048,
                        .store_bytes = 1 << 20});
  CostModel costs(kSequences * (kDraft + 1));
  DraftPolicy policy({.max_sequences = kSequences, .max_draft = kDraft});
  std::vector<PolicyJob> policy_jobs(kSequences);
  const simulated::Source source;
  SamplingParams sampling;
  sampling.temperature = 0.8f;
  sampling.seed = 3;
  std::vector<TokenId> text = source.text(1, 1500, sampling);
  std::vector<DraftJob> jobs(kSequences);
  for (int s = 0; s < kSequences; ++s) {
    auto& job = jobs[static_cast<std::size_t>(s)];
    job.context = {.slot = s,
                   .tokens = std::span(text).first(100),
                   .sampling = &sampling,
                   .store = sources.stores().acquire("")};
    sources.open(job.context);
  }
  std::int64_t before = 0, drafted = 0;
  for (std::size_t at = 100; at < 1400; ++at) {
    if (at == 200) before = allocations;
    for (std::size_t s = 0; s < jobs.size(); ++s) {
      jobs[s].context.tokens = std::span(text).first(at);
      policy_jobs[s] = {
          .max_tokens = kDraft, .n_tokens = std::int64_t(at), .draft = &jobs[s].draft};
    }
    sources.begin_round(jobs, spec_type("auto"));
    policy.draft(policy_jobs, 0, 100, costs.costs(), sources);
    RoundMeasurement m{.sequences = kSequences, .verify_ms = 10};
    for (auto& job : jobs) {
      drafted += static_cast<std::int64_t>(job.draft.tokens.size());
      m.rows += 1 + static_cast<int>(job.draft.tokens.size());
      m.emitted += 1;
      sources.commit(job.context, std::span(text).subspan(at, 1));
    }
    costs.observe(m);
    policy.observe(m, costs.costs());
  }
  EXPECT_EQ(allocations - before, 0);
  EXPECT_GT(drafted, 100) << "the test would prove nothing if no draft was made";
}

TEST(DraftTree, ARoundAllocatesNothing) {
  DraftTree draft, other;
  const std::int64_t before = allocations;
  for (int round = 0; round < 3; ++round) {
    draft.clear();
    for (int i = 0; i < kMaxDraft; ++i) draft.push(i, 0.5f, SpeculatorKind::kNgram, 0.5f);
    std::swap(draft, other);
  }
  EXPECT_EQ(allocations, before);
}

}  // namespace
}  // namespace foretoken
