// A stand-in for target and traffic in the tests of speculation: a source whose next-token
// distribution is known, sampled as the engine samples (argmax at T = 0, the request's own Gumbel
// noise above), and a round loop that drafts, verifies, commits and charges a known cost. No model,
// no clock: tests of behaviour.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "foretoken/kernels/sampling.h"
#include "foretoken/kernels/splitmix64.h"
#include "runtime/speculate/cost_model.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/draft_sources.h"

namespace foretoken::simulated {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  return kernels::splitmix64(a * kernels::kSplitMixStep + b + 0x632be59bd9b4e019u);
}

// A domain's text: given the last two tokens, four continuations with falling logits; at a share of
// the positions a token of this request alone ("novel"), which nothing can predict.
struct Source {
  std::uint64_t domain = 1;
  double novelty = 0.3;
  int vocabulary = 60;
  std::vector<float> logits = {3.0f, 1.0f, 0.0f, -1.0f};

  TokenId next(std::uint64_t request, std::span<const TokenId> tokens,
               const SamplingParams& sampling) const {
    const std::uint64_t position = tokens.size();
    const std::uint64_t own = mix(mix(request, 77), position);
    if (static_cast<double>(own % 10007) < novelty * 10007) {
      return static_cast<TokenId>(mix(own, 5) % static_cast<std::uint64_t>(vocabulary));
    }
    const std::uint64_t context =
        mix(mix(domain, static_cast<std::uint64_t>(tokens[tokens.size() - 1])),
            static_cast<std::uint64_t>(tokens[tokens.size() - 2]));
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      ids.push_back(
          static_cast<std::int32_t>(mix(context, i) % static_cast<std::uint64_t>(vocabulary)));
    }
    const float inv = sampling.temperature > 0 ? 1.0f / sampling.temperature : 0.0f;
    return kernels::sample_subset(logits.data(), ids.data(), static_cast<std::int64_t>(ids.size()),
                                  inv, sampling.seed, position);
  }

  std::vector<TokenId> text(std::uint64_t request, int n, const SamplingParams& sampling) const {
    std::vector<TokenId> tokens = {
        static_cast<TokenId>(mix(request, 1) % static_cast<std::uint64_t>(vocabulary)),
        static_cast<TokenId>(mix(request, 2) % static_cast<std::uint64_t>(vocabulary))};
    while (static_cast<int>(tokens.size()) < n) tokens.push_back(next(request, tokens, sampling));
    return tokens;
  }
};

inline constexpr SpecType kNgram = spec_type("ngram"), kFusion = spec_type("head"),
                          kBoth{"ngram and fusion", kNgram.kinds | kFusion.kinds};

// The cheap kinds' drafts by themselves: as long as they go.
inline void propose(DraftSources& sources, SpecType kinds, std::span<DraftJob> jobs) {
  sources.begin_round(jobs, kinds);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].draft.clear();
    DraftPolicy::extend(sources, static_cast<int>(i), jobs[i].max_tokens, 0, 1, jobs[i].draft);
  }
}

struct Totals {
  std::int64_t rounds = 0, emitted = 0, drafted = 0, accepted = 0, drafting_rounds = 0;
  double cost = 0;        // by the known curve
  double plain_cost = 0;  // of the same tokens without speculation
  double acceptance_length() const {
    return 1.0 + static_cast<double>(accepted) /
                     std::max<double>(1.0, static_cast<double>(drafting_rounds));
  }
  double draft_length() const { return static_cast<double>(drafted) / static_cast<double>(rounds); }
  double cost_ratio() const { return cost / plain_cost; }
};

// One engine with `slots` sequences in lockstep.
class Loop {
 public:
  struct Options {
    int slots = 1, max_draft = 8;
    SpecType kinds = kBoth;
    int fixed_length = -1;  // >= 0: not by cost
    std::function<double(int rows)> cost = [](int rows) { return 10.0 * (1 + 0.08 * (rows - 1)); };
    double noise = 0;  // of one round's time, log-normal
    double control_fraction = 0;
    std::size_t store_bytes = std::size_t{4} << 20;
  };
  explicit Loop(const Options& options)
      : options_(options),
        sources_({.max_sequences = options.slots,
                  .max_draft = options.max_draft,
                  .max_tokens = 4096,
                  .store_bytes = options.store_bytes,
                  .max_stores = options.slots + 1,
                  .kinds = options.kinds}),
        costs_(options.slots * (options.max_draft + 1)),
        policy_({.max_sequences = options.slots,
                 .max_draft = options.max_draft,
                 .n_fixed = options.fixed_length}),
        policy_jobs_(static_cast<std::size_t>(options.slots)),
        jobs_(static_cast<std::size_t>(options.slots)),
        tokens_(static_cast<std::size_t>(options.slots)),
        requests_(static_cast<std::size_t>(options.slots)),
        samplings_(static_cast<std::size_t>(options.slots)) {}

  DraftSources& sources() { return sources_; }
  std::mt19937_64& random() { return random_; }

  // Serves `batches` batches of `slots` requests, each a prompt and `n_output` tokens of `source`.
  Totals serve(const Source& source, int batches, int n_prompt, int n_output, float temperature,
               bool add_to_store = true) {
    Totals totals;
    for (int batch = 0; batch < batches; ++batch) {
      for (std::size_t s = 0; s < jobs_.size(); ++s) {
        requests_[s] = ++next_request_;
        samplings_[s] = SamplingParams{};
        samplings_[s].temperature = temperature;
        samplings_[s].seed = mix(requests_[s], 99);
        tokens_[s] = source.text(requests_[s], n_prompt, samplings_[s]);
        jobs_[s].context = context(s);
        jobs_[s].context.store = sources_.stores().acquire("");
        sources_.open(jobs_[s].context);
      }
      const auto done = static_cast<std::size_t>(n_prompt + n_output);
      while (tokens_[0].size() < done) round(source, totals);
      for (std::size_t s = 0; s < jobs_.size(); ++s) {
        sources_.close(static_cast<int>(s), add_to_store);
        sources_.stores().release(jobs_[s].context.store);
      }
    }
    return totals;
  }

 private:
  DraftContext context(std::size_t s) const {
    DraftContext c = jobs_[s].context;
    c.slot = static_cast<int>(s);
    c.tokens = tokens_[s];
    c.sampling = &samplings_[s];
    return c;
  }

  void round(const Source& source, Totals& totals) {
    const bool control = std::uniform_real_distribution<>()(random_) < options_.control_fraction;
    for (std::size_t s = 0; s < jobs_.size(); ++s) {
      jobs_[s].context = context(s);
      jobs_[s].max_tokens = options_.max_draft;
      jobs_[s].draft.clear();
      policy_jobs_[s] = {.max_tokens = options_.max_draft,
                         .n_tokens = std::ssize(tokens_[s]),
                         .draft = &jobs_[s].draft};
    }
    if (!control) {
      sources_.begin_round(jobs_, options_.kinds);
      policy_.draft(policy_jobs_, 0, 1000, costs_.costs(), sources_);
    }
    RoundMeasurement measured;
    measured.sequences = static_cast<int>(jobs_.size());
    measured.control = control;
    for (std::size_t s = 0; s < jobs_.size(); ++s) {
      const DraftTree& draft = jobs_[s].draft;
      std::vector<TokenId> sequence = tokens_[s], emitted;
      int accepted = 0;
      while (true) {
        const TokenId token = source.next(requests_[s], sequence, samplings_[s]);
        emitted.push_back(token);
        sequence.push_back(token);
        if (accepted == static_cast<int>(draft.tokens.size()) ||
            draft.tokens[static_cast<std::size_t>(accepted)] != token) {
          break;
        }
        ++accepted;
      }
      sources_.commit(jobs_[s].context, emitted);
      measured.rows += 1 + static_cast<int>(draft.tokens.size());
      measured.emitted += static_cast<int>(emitted.size());
      totals.drafted += static_cast<std::int64_t>(draft.tokens.size());
      totals.accepted += accepted;
      totals.drafting_rounds += draft.tokens.empty() ? 0 : 1;
      tokens_[s] = std::move(sequence);
    }
    const double cost = options_.cost(measured.rows);
    measured.verify_ms = cost * std::exp(options_.noise * std::normal_distribution<>()(random_));
    costs_.observe(measured);
    policy_.observe(measured, costs_.costs());
    totals.rounds += 1;
    totals.emitted += measured.emitted;
    totals.cost += cost;
    totals.plain_cost += options_.cost(static_cast<int>(jobs_.size())) * measured.emitted /
                         static_cast<double>(jobs_.size());
  }

  Options options_;
  DraftSources sources_;
  CostModel costs_;
  DraftPolicy policy_;
  std::vector<PolicyJob> policy_jobs_;
  std::vector<DraftJob> jobs_;
  std::vector<std::vector<TokenId>> tokens_;
  std::vector<std::uint64_t> requests_;
  std::vector<SamplingParams> samplings_;
  std::uint64_t next_request_ = 1000;
  std::mt19937_64 random_{42};
};

}  // namespace foretoken::simulated
