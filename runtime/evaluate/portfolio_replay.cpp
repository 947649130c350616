#include "runtime/evaluate/portfolio_replay.h"

#include <algorithm>
#include <array>

#include "runtime/speculate/candidates.h"
#include "runtime/speculate/cheap_choice.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/draft_sources.h"

namespace foretoken {
namespace {

CandidateList list_of(const GeneratedTokenTrace& token) {
  CandidateList list;
  for (const Candidate& candidate : token.candidates) {
    // A trace from elsewhere may hold anything: what no table has a bias for is left out.
    if (list.n < kMaxCandidates && candidate.klass < kFusionClasses) list.push(candidate);
  }
  return list;
}

SamplingParams sampling_of(const RequestTrace& trace) {
  SamplingParams sampling;
  sampling.temperature = trace.sampling.temperature;
  sampling.seed = trace.sampling.seed;
  return sampling;
}

}  // namespace

// A position is scored once, by the walk that first passes it.
struct PortfolioReplay::Impl : Calibration {
  Kinds kinds;
  const LearnedWeights* learned;
  const DraftHead* head = nullptr;
  kernels::ThreadPool pool{1};
  std::unique_ptr<HeadWorkspace> workspace;
  HeadMemory memory;  // of the request being walked

  // The request being walked.
  const RequestTrace* trace = nullptr;
  SamplingParams sampling;
  bool sampled = false;
  std::vector<CandidateList> candidates;
  bool has_features = false;  // such as the head reads
  std::array<Form, kClaims> form;

  void open(const RequestTrace& t) {
    trace = &t;
    sampling = sampling_of(t);
    sampled = sampling.temperature > 0;
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
    form = traffic_form[sampled ? 1 : 0];
    chains.n = 0;
  }
  std::int64_t end() const { return trace->n_prompt + std::int64_t(candidates.size()); }
  TokenId token(std::int64_t position) const { return trace->tokens[std::size_t(position)]; }
  const CandidateList& list(std::int64_t position) const {
    return candidates[std::size_t(position - trace->n_prompt)];
  }

  Proposal ngram(std::int64_t position) const {
    Proposal p = propose_ngram(list(position));
    if (!p.empty()) p.raw = ngram_rates.rate(p.klass, sampled);
    return p;
  }
  Proposal fusion(std::int64_t position) const {
    return propose_fusion(list(position), learned->fusion, sampling, position, true);
  }
  float calibrated(Claim claim, float raw, int depth) const {
    return acceptance.estimate(claim, raw, form[std::size_t(claim)].after_hits(depth), sampled);
  }
  Offer cheap(std::int64_t position, int depth) const {
    return DraftPolicy::choose(cheap_offers(
        kinds.ngram ? ngram(position) : Proposal(), kinds.fusion ? fusion(position) : Proposal(),
        [&](Claim claim, float raw) { return calibrated(claim, raw, depth); }));
  }
  void score(Claim claim, float raw, bool hit) {
    const auto c = std::size_t(claim);
    acceptance.update(claim, raw, form[c], sampled, hit);
    form[c].update(hit);
    traffic_form[sampled ? 1 : 0][c].update(hit, DraftSources::kTrafficStep);
  }
  // What the cheap kinds would have said of positions [from, to), now that their tokens are known.
  void learn_cheap(std::int64_t from, std::int64_t to) {
    for (std::int64_t at = from; at < to; ++at) {
      const Proposal by_ngram = kinds.ngram ? ngram(at) : Proposal();
      score_cheap(by_ngram, kinds.fusion ? fusion(at) : Proposal(), token(at),
                  [&](Claim claim, float raw, bool hit) { score(claim, raw, hit); });
      if (!by_ngram.empty())
        ngram_rates.update(by_ngram.klass, sampled, by_ngram.token == token(at));
    }
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

  // Begins a round whose first token is at `start`. False: no head, or the features of start - 2
  // were not logged.
  bool begin_head(std::int64_t start) {
    round_start = start;
    if (chains.n > 0 && start >= chains.first && start < chains.first + chains.n) return true;
    const std::int64_t last = start - 2 - trace->tap_first, logged = trace->tap_positions();
    if (!has_features || last < 0 || last >= logged) return false;
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
    head->begin(starts, *workspace, pool);
    return true;
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
      head->step(std::span(previous).first(std::size_t(chains.n)), *workspace, pool);
      const auto n = std::ptrdiff_t(chains.n);
      chains.logits.emplace_back(workspace->logits(0),
                                 workspace->logits(0) + n * std::ssize(head->vocab()));
      chains.states.emplace_back(workspace->state(0),
                                 workspace->state(0) + n * head->state_width());
    }
    const auto row = std::size_t(round_start - chains.first);
    return head->choose(&chains.logits[depth][row * head->vocab().size()],
                        &chains.states[depth][row * std::size_t(head->state_width())],
                        list(position), sampling, position, true);
  }
  struct Pending {  // a position at which the head ran this round
    Claim claim;
    float raw, cheap;
    bool head_right, choice_right, cheap_right;
  };
  void learn_head() {
    for (const Pending& p : pending) {
      score(p.claim, p.raw, p.head_right);
      lift.update(p.cheap, sampled, p.choice_right, p.cheap_right);
    }
  }
  // How far the head is worth running, as DraftPolicy::plan_head() decides it for one sequence.
  int plan_head(std::int64_t start, int longest, const RoundCosts& costs, double price) const {
    std::array<float, kMaxDraft> cheap_confidence{};
    const int n = std::min(longest, kMaxDraft);
    for (int d = 0; d < n; ++d) cheap_confidence[std::size_t(d)] = cheap(start + d, d).confidence;
    const auto value_at = [&](int depth) {
      double best = 0, gain = 0;
      float survival = 1;
      for (int d = 0; d < n; ++d) {
        const float c = cheap_confidence[std::size_t(d)];
        survival *= d < depth ? lift.estimate(c, sampled) : c;
        gain += double(survival);
        best = std::max(best, gain - price * (costs.round(2 + d) - costs.round(1)));
      }
      const double head_ms = depth > 0 ? costs.head_start + depth * costs.head_step : 0.0;
      return best - price * head_ms;
    };
    int best_depth = 0;
    double best = value_at(0);
    for (int depth = 1; depth <= n; ++depth) {
      if (const double value = value_at(depth); value > best) best = value, best_depth = depth;
    }
    // Now and then all the same, so that a head that is not trusted yet is heard.
    if (best_depth == 0 && (start & 127) == 0) best_depth = std::min(2, n);
    return best_depth;
  }
  // Tokens a ms under the policy itself, at least plain decoding's (draft_policy.h).
  double rate(const RoundCosts& costs) const {
    const double plain = 1.0 / costs.round(1);
    return std::max(plain, (rate_tokens + kRatePrior) / (rate_ms + kRatePrior * costs.round(1)));
  }
  PortfolioWalk walk(const RequestTrace& t, int max_draft, const RoundCosts* costs, bool by_cost);

  static constexpr double kRateMemory = 200, kRatePrior = 16;  // as the policy's
  std::vector<Pending> pending;
  Chains chains;
  std::vector<HeadStart> starts;
  std::int64_t round_start = 0;
};

PortfolioReplay::PortfolioReplay(Kinds kinds, const LearnedWeights* learned)
    : impl_(std::make_unique<Impl>()) {
  impl_->kinds = kinds;
  if (kinds.ngram && learned && learned->initial) impl_->kinds.fusion = false;
  impl_->learned = learned;
  if (!learned || !kinds.head || !learned->head) return;
  impl_->head = learned->head.get();
  impl_->starts.reserve(Impl::kChains);
  impl_->workspace = impl_->head->make_workspace(Impl::kChains);
  impl_->memory.values.resize(impl_->head->memory_floats());
}

PortfolioReplay::~PortfolioReplay() = default;

const PortfolioReplay::Calibration& PortfolioReplay::calibration() const { return *impl_; }
void PortfolioReplay::set_calibration(const Calibration& calibration) {
  static_cast<Calibration&>(*impl_) = calibration;
}

namespace {

// One round into the sums.
void record(PortfolioWalk& walk, std::int64_t start, int drafted, int accepted, int head_steps,
            std::int64_t emitted, const RoundCosts* costs) {
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
  if (costs) walk.predicted_ms += costs->draft_round(drafted, head_steps);
}

}  // namespace

PortfolioWalk PortfolioReplay::walk_fixed(const RequestTrace& trace, int draft_length,
                                          const RoundCosts* costs) {
  return impl_->walk(trace, draft_length, costs, false);
}

PortfolioWalk PortfolioReplay::walk_costed(const RequestTrace& trace, int max_draft,
                                           const RoundCosts& costs) {
  return impl_->walk(trace, max_draft, &costs, true);
}

// What a draft says past its first wrong token is not in the log: the tokens after it are not those
// it read. It decides nothing but the draft's length and cost; there the draft is taken to go on as
// it would after the logged tokens.
PortfolioWalk PortfolioReplay::Impl::walk(const RequestTrace& t, int max_draft,
                                          const RoundCosts* costs, bool by_cost) {
  PortfolioWalk out;
  open(t);
  const bool pure = head && !kinds.ngram && !by_cost;
  if (end() > t.n_prompt) learn_cheap(t.n_prompt, t.n_prompt + 1);
  for (std::int64_t start = t.n_prompt + 1; start < end();) {
    // As live: the last token of a request is never drafted, it comes with the one before.
    const int longest = int(std::min<std::int64_t>(std::max(0, max_draft), end() - start - 1));
    const double price = by_cost ? rate(*costs) : 0;  // tokens a ms
    int head_depth = head ? longest : 0;
    if (head && by_cost) head_depth = plan_head(start, longest, *costs, price);
    bool head_runs = head_depth > 0;
    if (head_runs && !begin_head(start)) {
      head_runs = false;
      ++out.rounds_without_features;
    }
    int drafted = 0, accepted = 0, head_steps = 0;
    int best = 0, best_accepted = 0;
    double gain = 0, best_value = 0;
    float survival = 1;
    bool right = true;  // everything so far
    pending.clear();
    for (; drafted < longest; ++drafted) {
      const std::int64_t position = start + drafted;
      const Offer by_cheap = cheap(position, drafted);
      TokenId chosen = by_cheap.token;
      float confidence = by_cheap.confidence;
      const double row =
          by_cost ? price * (costs->round(2 + drafted) - costs->round(1 + drafted)) : 0;
      const float likely = lift.estimate(confidence, sampled);
      if (head_runs && by_cost && drafted > 0) {
        // As DraftPolicy::another_head_step().
        const double more = std::max(0.0, double(survival * likely) - row) -
                            std::max(0.0, double(survival * confidence) - row);
        head_runs =
            drafted < head_depth && DraftPolicy::kHeadFurther * more > price * costs->head_step;
      }
      if (head_runs) ++head_steps;
      if (head_runs && right) {
        const Proposal p = head_step(position);
        const Offer by_head = head_offer(p, by_cheap, pure, [&](Claim claim, float raw) {
          return calibrated(claim, raw, drafted);
        });
        if (pure || by_head.agrees ||
            by_head.confidence + DraftPolicy::kHeadMargin >= by_cheap.confidence)
          chosen = p.token, confidence = by_head.confidence;
        const TokenId came = token(position);
        pending.push_back({head_claim(by_head.agrees), p.raw, by_cheap.confidence, p.token == came,
                           chosen == came, by_cheap.token == came});
      } else if (head_runs && (pure || likely > confidence)) {
        chosen = -2, confidence = likely;  // something that will not be accepted
      }
      if (chosen == -1) break;
      survival *= confidence;
      if (by_cost && survival < DraftPolicy::kMinSurvival) break;
      right = right && chosen == token(position);
      if (right) ++accepted;
      // As DraftPolicy::best_slots(): the length that is best as a whole, because a first row may
      // be dear and the next ones nearly free.
      gain += double(survival);
      const double value =
          by_cost ? gain - price * (costs->round(2 + drafted) - costs->round(1)) : 0;
      if (value > best_value) best_value = value, best = drafted + 1, best_accepted = accepted;
    }
    if (by_cost) drafted = best, accepted = best_accepted;
    const std::int64_t emitted = std::min<std::int64_t>(accepted + 1, end() - start);
    // As live: only tokens that came are known, but also where the draft was cut before them.
    if (std::ssize(pending) > emitted) pending.resize(std::size_t(emitted));
    learn_head();
    learn_cheap(start, start + emitted);
    record(out, start, drafted, accepted, head_steps, emitted, costs);
    if (by_cost) {
      const double keep = 1.0 - 1.0 / kRateMemory;
      rate_tokens = rate_tokens * keep + double(emitted);
      rate_ms = rate_ms * keep + costs->draft_round(drafted, head_steps);
    }
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
    const auto length = std::min(round.drafted.size(), round.kinds.size());
    // The head reads every token of the draft up to its own last one.
    std::size_t head_until = 0;
    for (std::size_t d = 0; d < length; ++d) {
      if (round.kinds[d] == SpeculatorKind::kHead) head_until = d + 1;
    }
    bool head_runs = in.head && head_until > 0;
    if (head_runs && !in.begin_head(start)) {
      head_runs = false;
      ++out.rounds_without_features;
    }
    int drafted = 0, accepted = 0;
    bool right = true;
    for (std::size_t d = 0; d < length; ++d, ++drafted) {
      const std::int64_t position = start + std::int64_t(d);
      if (!right || position >= in.end()) continue;  // drafted, and known to be in vain
      Proposal from_head;
      if (head_runs && d < head_until) from_head = in.head_step(position);
      TokenId token = -1;
      switch (round.kinds[d]) {
        case SpeculatorKind::kHead:
          token = head_runs ? from_head.token : in.cheap(position, drafted).token;
          break;
        case SpeculatorKind::kNgram:
          token = in.kinds.ngram ? in.ngram(position).token : in.cheap(position, drafted).token;
          break;
        case SpeculatorKind::kFusion:
          token = in.kinds.fusion ? in.fusion(position).token : in.cheap(position, drafted).token;
          break;
        default:
          token = round.drafted[d];
      }
      if (token < 0) break;
      right = token == in.token(position);
      if (right) ++accepted;
    }
    const std::int64_t emitted = std::min<std::int64_t>(accepted + 1, in.end() - start);
    record(out, start, drafted, accepted, int(head_runs ? head_until : 0), emitted, costs);
  }
  return out;
}

}  // namespace foretoken
