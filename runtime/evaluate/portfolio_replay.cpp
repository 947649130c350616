#include "runtime/evaluate/portfolio_replay.h"

#include <algorithm>
#include <array>

#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/kind_set.h"

namespace foretoken {
namespace {

CandidateList list_of(const GeneratedTokenTrace& token) {
  CandidateList list;
  for (const Candidate& candidate : token.candidates) {
    // A trace from elsewhere may hold anything: what no table has a bias for is left out.
    if (candidate.fusion_class < kFusionClasses) list.push_back(candidate);
  }
  return list;
}

SamplingParams sampling_of(const RequestTrace& trace) {
  SamplingParams sampling;
  sampling.temperature = trace.sampling.temperature;
  sampling.seed = trace.sampling.seed;
  sampling.logit_bias = trace.sampling.logit_bias;
  return sampling;
}

bool is_cheap(SpeculatorKind kind) {
  return std::ranges::any_of(kSpeculators, [&](const SpeculatorRow& row) {
    return row.kind == kind && row.make != nullptr;
  });
}

PolicyOptions policy_options(int max_draft, int n_fixed, bool head_alone) {
  return {.max_sequences = 1,
          .max_draft = std::max(0, max_draft),
          .n_fixed = n_fixed,
          .head_alone = head_alone};
}

}  // namespace

// A position is scored once, by the walk that first passes it.
struct PortfolioReplay::Impl : Calibration, DraftOffers {
  Impl(SpecType all, const LearnedWeights* weights)
      : drafting(weights && weights->initial ? all.unlearned() : all),
        set(drafting, DraftSourcesOptions{.max_sequences = 1, .max_stores = 1}) {
    policy = DraftPolicy(policy_options(0, -1, false)).state();
    context.sampling = &sampling;
    context.learned = weights;
  }

  const SpecType drafting;
  KindSet set;
  const DraftHead* head = nullptr;
  kernels::ThreadPool pool{1};
  std::unique_ptr<HostHeadWorkspace> workspace;
  HeadMemory memory;  // of the request being walked

  // The request being walked.
  const RequestTrace* trace = nullptr;
  SamplingParams sampling;
  DraftContext context;
  // Rejection sampling: what was drafted did not know the request's noise. Such a draft is a point
  // mass (the cheap kinds and the head take the most likely token), and of one that proposed x
  // P(accepted | y was emitted) = min(1, q(y) / p(y)) is 1 for y = x and 0 for any other: accepted
  // is what came, as with coupled drafts. The draft model's, which draw, count as logged.
  std::int64_t committed = 0;  // tokens that the kinds were told
  std::vector<CandidateList> candidates;
  bool has_features = false;  // such as the head reads
  Forms forms;

  void open(const RequestTrace& t) {
    trace = &t;
    sampling = sampling_of(t);
    // As many as both the tokens and the lists cover.
    const std::size_t n = std::min(
        t.generated.size(),
        t.tokens.size() > std::size_t(t.n_prompt) ? t.tokens.size() - std::size_t(t.n_prompt) : 0);
    candidates.resize(n);
    for (std::size_t i = 0; i < n; ++i) candidates[i] = list_of(t.generated[i]);
    memory.forget();
    // A trace may be of another model, or of a server that taps other layers.
    has_features = head && t.n_taps == kHeadTaps && t.tap_width == head->hidden() &&
                   head->reads(t.tap_layers) &&
                   std::ssize(t.tap_values) >= t.tap_positions() * kHeadTaps * head->hidden() &&
                   std::ranges::all_of(t.tokens, [&](TokenId token) {
                     return token >= 0 && token < head->n_vocab();
                   });
    chains.n = 0;
    committed = std::min<std::int64_t>(t.n_prompt, std::ssize(t.tokens));
    context.tokens = std::span(t.tokens).first(std::size_t(committed));
    context.rejection = t.sampling.rejection;
    context.stop_tokens = t.sampling.stop_tokens;
    forms = kinds.traffic(context.sampled());
    set.open(context);
  }
  std::int64_t end() const { return trace->n_prompt + std::int64_t(candidates.size()); }
  TokenId token(std::int64_t position) const { return trace->tokens[std::size_t(position)]; }
  const CandidateList& list(std::int64_t position) const {
    return candidates[std::size_t(position - trace->n_prompt)];
  }

  // What the kinds say of a position, the log's tokens before it taken as drafted.
  ProposalList said(std::int64_t position) {
    context.tokens = std::span(trace->tokens).first(std::size_t(committed));
    const auto drafted =
        std::span(trace->tokens).subspan(std::size_t(committed), std::size_t(position - committed));
    return set.propose({context, drafted, list(position)}, drafting);
  }
  Proposal said_by(SpeculatorKind kind, std::int64_t position) {
    for (const Proposal& p : said(position))
      if (p.kind == kind) return p;
    return {};
  }
  void commit(std::int64_t to) {
    if (to <= committed) return;
    set.commit(
        0, std::span(trace->tokens).subspan(std::size_t(committed), std::size_t(to - committed)));
    committed = to;
  }
  OfferList cheap_at(std::int64_t position, int depth) {
    return kinds.offers(context, forms, said(position), depth);
  }
  // What the cheap kinds would have said of positions [from, to), now that their tokens are known.
  void learn_cheap(std::int64_t from, std::int64_t to) {
    for (std::int64_t at = from; at < to; ++at) kinds.learn(context, forms, said(at), token(at));
    commit(to);
  }

  // The head's drafts from kChains starts in a row, computed together: what it says at a start and
  // depth is a function of the log alone as long as the tokens before are right, a row's result
  // does not depend on its neighbours, and the weights are read once for all. Depth by depth, as
  // far as some round of the walk asks.
  struct Chains {
    std::int64_t first = 0;                          // the first start
    int n = 0;                                       // starts; 0: none
    std::vector<std::vector<float>> logits, states;  // of each depth: [n, V], [n, H]
  };
  static constexpr int kChains = 16;

  // Whether the head can draft from `start`: the features of start - 2 were logged.
  bool features_at(std::int64_t start) const {
    const std::int64_t last = start - 2 - trace->tap_first;
    return has_features && last >= 0 && last < trace->tap_positions();
  }
  // Begins the head's draft of the round whose first token is at round_start.
  void begin_chain() {
    const std::int64_t start = round_start;
    if (chains.n > 0 && start >= chains.first && start < chains.first + chains.n) return;
    const std::int64_t last = start - 2 - trace->tap_first, logged = trace->tap_positions();
    chains.first = start;
    // What a head keeps of the sequence is of one start at a time.
    const int most = head->window() > 1 ? 1 : kChains;
    chains.n = int(std::min<std::int64_t>({most, logged - last, end() - start}));
    chains.logits.clear();
    chains.states.clear();
    starts.clear();
    for (int i = 0; i < chains.n; ++i) {
      const FeatureView features{trace->tap_values.data(),
                                 trace->tap_scales.data(),
                                 head->hidden(),
                                 trace->tap_first,
                                 start + i - 1,
                                 trace->tap_first,
                                 logged};
      starts.push_back({std::span(trace->tokens).first(std::size_t(start + i)), features, &memory});
    }
    workspace->begin(starts, pool);
  }
  // What the head proposes at a position of the round, having read the token before it. Once a
  // position.
  Proposal head_step(std::int64_t position) {
    const auto depth = std::size_t(position - round_start);
    while (chains.logits.size() <= depth) {
      std::array<TokenId, kChains> previous;
      for (int i = 0; i < chains.n; ++i) {
        // Past the end nothing is asked.
        previous[std::size_t(i)] =
            token(std::min(end() - 1, chains.first + i + std::int64_t(chains.logits.size()) - 1));
      }
      workspace->step(std::span(previous).first(std::size_t(chains.n)), pool);
      const auto n = std::ptrdiff_t(chains.n);
      chains.logits.emplace_back(workspace->logits(0),
                                 workspace->logits(0) + n * std::ssize(head->vocab()));
      chains.states.emplace_back(workspace->state(0),
                                 workspace->state(0) + n * head->state_width());
    }
    const auto row = std::size_t(round_start - chains.first);
    return head->choose(&chains.logits[depth][row * head->vocab().size()],
                        &chains.states[depth][row * std::size_t(head->state_width())],
                        list(position), sampling, position, !context.rejection);
  }

  // DraftOffers: one job, the round that begins at round_start. What a draft says past its first
  // wrong token is not in the log: the tokens after it are not those it read. It decides nothing
  // but the draft's length and cost; there the cheap kinds are taken to go on as they would after
  // the logged tokens, and the head to be as sure as it was found to be (kUnknown: never accepted).
  static constexpr TokenId kUnknown = -2;
  bool as_logged(std::span<const TokenId> drafted) const {
    return std::equal(drafted.begin(), drafted.end(), trace->tokens.begin() + round_start);
  }
  OfferList offer_cheap(int, std::span<const TokenId> drafted) override {
    return cheap_at(round_start + std::ssize(drafted), int(drafted.size()));
  }
  float expect_head(int, float cheap) override { return kinds.expect_head(context, cheap); }
  void begin_head(std::span<const std::uint8_t>) override { begin_chain(); }
  Offer offer_head(int, std::span<const TokenId> drafted, const Offer& by_cheap,
                   bool alone) override {
    if (!as_logged(drafted))
      return {kUnknown, 0, expect_head(0, by_cheap.confidence), SpeculatorKind::kHead};
    return kinds.head_offer(context, forms, head_step(round_start + std::ssize(drafted)), by_cheap,
                            alone, int(drafted.size()));
  }

  PortfolioWalk walk(const RequestTrace& t, DraftPolicy& policy_of_walk, int max_draft,
                     const RoundCosts& costs, bool charged);

  Chains chains;
  std::vector<HeadStart> starts;
  std::int64_t round_start = 0;
};

PortfolioReplay::PortfolioReplay(SpecType kinds, const LearnedWeights* learned)
    : impl_(std::make_unique<Impl>(kinds, learned)) {
  if (!learned || !kinds.has(SpeculatorKind::kHead) || !learned->head) return;
  impl_->head = learned->head.get();
  impl_->starts.reserve(Impl::kChains);
  impl_->workspace = impl_->head->make_workspace(Impl::kChains);
  impl_->workspace->reserve(impl_->memory);
}

PortfolioReplay::~PortfolioReplay() = default;

const PortfolioReplay::Calibration& PortfolioReplay::calibration() const { return *impl_; }
void PortfolioReplay::set_calibration(const Calibration& calibration) {
  static_cast<Calibration&>(*impl_) = calibration;
}

namespace {

// One round into the sums.
void record(PortfolioWalk& walk, std::int64_t start, int drafted, int accepted, int head_steps,
            std::int64_t emitted) {
  AcceptanceStats& s = walk.stats;
  ++s.rounds;
  s.drafting_rounds += drafted > 0 ? 1 : 0;
  s.drafted += drafted;
  s.accepted += accepted;
  s.emitted += emitted;
  for (int i = 0; i < drafted && i < kMaxDraft; ++i) {
    ++s.drafted_at[std::size_t(i)];
    if (i < accepted) ++s.accepted_at[std::size_t(i)];
  }
  walk.starts.push_back(std::int32_t(start));
  walk.drafted.push_back(drafted);
  walk.accepted.push_back(accepted);
  walk.head_starts += head_steps > 0 ? 1 : 0;
  walk.head_steps += head_steps;
}

}  // namespace

PortfolioWalk PortfolioReplay::walk_fixed(const RequestTrace& trace, int draft_length,
                                          const RoundCosts* costs) {
  Impl& in = *impl_;
  const int length = std::max(0, draft_length);
  DraftPolicy policy(
      policy_options(length, length, in.head && !in.drafting.has(SpeculatorKind::kNgram)));
  return in.walk(trace, policy, length, costs ? *costs : RoundCosts{}, costs != nullptr);
}

PortfolioWalk PortfolioReplay::walk_costed(const RequestTrace& trace, int max_draft,
                                           const RoundCosts& costs) {
  Impl& in = *impl_;
  DraftPolicy policy(policy_options(max_draft, -1, false));
  policy.set_state(in.policy);
  const PortfolioWalk walk = in.walk(trace, policy, max_draft, costs, true);
  in.policy = policy.state();
  return walk;
}

PortfolioWalk PortfolioReplay::Impl::walk(const RequestTrace& t, DraftPolicy& policy_of_walk,
                                          int max_draft, const RoundCosts& costs, bool charged) {
  PortfolioWalk out;
  open(t);
  // What the policy carries from request to request is in units of a round of one row.
  const RoundCosts relative = costs.relative();
  DraftTree draft;
  if (end() > t.n_prompt) learn_cheap(t.n_prompt, t.n_prompt + 1);
  for (std::int64_t start = t.n_prompt + 1; start < end();) {
    round_start = start;
    PolicyJob job;
    // As live: the last token of a request is never drafted, it comes with the one before.
    job.max_tokens = int(std::min<std::int64_t>(std::max(0, max_draft), end() - start - 1));
    job.n_tokens = start;
    job.head_ready = head && features_at(start);
    job.draft = &draft;
    if (head && !job.head_ready && job.max_tokens > 0) ++out.rounds_without_features;
    policy_of_walk.draft(std::span(&job, 1), 0, job.max_tokens, relative, *this);
    const int drafted = int(draft.tokens.size());
    int accepted = 0;
    while (accepted < drafted && draft.tokens[std::size_t(accepted)] == token(start + accepted))
      ++accepted;
    const std::int64_t emitted = accepted + 1;
    kinds.learn_head(context, forms, policy_of_walk.head_positions(0),
                     std::span(trace->tokens).subspan(std::size_t(start), std::size_t(emitted)));
    learn_cheap(start, start + emitted);
    RoundMeasurement round;
    round.sequences = 1;
    round.rows = 1 + drafted;
    round.work = double(round.rows) * double(start) / 1000.0;
    round.emitted = int(emitted);
    round.head_steps = policy_of_walk.head_steps();
    policy_of_walk.observe(round, relative);
    record(out, start, drafted, accepted, round.head_steps, emitted);
    if (charged) out.predicted_ms += costs.of(round);
    start += emitted;
  }
  return out;
}

PortfolioWalk PortfolioReplay::walk_logged(const RequestTrace& trace, const RoundCosts* costs) {
  PortfolioWalk out;
  Impl& in = *impl_;
  in.open(trace);
  for (const RoundTrace& round : trace.rounds) {
    const std::int64_t start = round.start;
    if (start <= trace.n_prompt || start >= in.end()) continue;
    in.commit(start);
    const auto length = std::min(round.drafted.size(), round.kinds.size());
    // The head reads every token of the draft up to its own last one.
    std::size_t head_until = 0;
    for (std::size_t d = 0; d < length; ++d) {
      if (round.kinds[d] == SpeculatorKind::kHead) head_until = d + 1;
    }
    in.round_start = start;
    bool head_runs = in.head && head_until > 0;
    if (head_runs && !in.features_at(start)) {
      head_runs = false;
      ++out.rounds_without_features;
    }
    if (head_runs) in.begin_chain();
    const auto cheap = [&](std::int64_t position) {
      return DraftPolicy::choose(in.cheap_at(position, int(position - start))).token;
    };
    int drafted = 0, accepted = 0;
    bool right = true;
    for (std::size_t d = 0; d < length; ++d, ++drafted) {
      const std::int64_t position = start + std::int64_t(d);
      if (!right || position >= in.end()) continue;  // drafted, and known to be in vain
      Proposal from_head;
      if (head_runs && d < head_until) from_head = in.head_step(position);
      const SpeculatorKind kind = round.kinds[d];
      TokenId token = round.drafted[d];  // of a kind that is not replayed: as logged
      if (kind == SpeculatorKind::kHead) token = head_runs ? from_head.token : cheap(position);
      if (is_cheap(kind))
        token = in.drafting.has(kind) ? in.said_by(kind, position).token : cheap(position);
      if (token < 0) break;
      right = token == in.token(position);
      if (right) ++accepted;
    }
    const std::int64_t emitted = std::min<std::int64_t>(accepted + 1, in.end() - start);
    const int head_steps = int(head_runs ? head_until : 0);
    record(out, start, drafted, accepted, head_steps, emitted);
    if (costs) out.predicted_ms += costs->draft_round(drafted, head_steps);
  }
  return out;
}

}  // namespace foretoken
