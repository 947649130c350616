#include "runtime/speculate/draft_sources.h"

#include <algorithm>
#include <cassert>

#include "runtime/speculate/cheap_choice.h"

namespace foretoken {
namespace {

bool is_sampled(const DraftContext& context) { return context.sampling->temperature > 0; }

}  // namespace

DraftSources::DraftSources(const DraftSourcesOptions& options)
    : max_draft_(options.max_draft),
      stores_(options.store_bytes, std::max(options.max_stores, options.max_sequences + 1)),
      sequences_(static_cast<std::size_t>(options.max_sequences)) {
  for (Sequence& sequence : sequences_) {
    sequence.own.reserve(options.max_tokens + max_draft_ + 1);
    sequence.logged.reserve(static_cast<std::size_t>(options.max_tokens + max_draft_ + 1));
    sequence.path.reserve(static_cast<std::size_t>(max_draft_) + 1);
    sequence.path_tokens.reserve(static_cast<std::size_t>(max_draft_) + 1);
  }
}

void DraftSources::open(const DraftContext& context) {
  Sequence& sequence = at(context.slot);
  assert(!sequence.open);
  sequence.open = true;
  sequence.store = context.store;
  sequence.own.clear();
  sequence.own.append(context.tokens);
  sequence.form = traffic_form_[is_sampled(context) ? 1 : 0];
  sequence.path.clear();
  sequence.path_tokens.clear();
  sequence.logged.clear();
}

void DraftSources::close(int slot, bool add_to_store) {
  Sequence& sequence = at(slot);
  if (!sequence.open) return;
  sequence.open = false;
  if (add_to_store) stores_.at(sequence.store).add(sequence.own.tokens());
}

const CandidateList& DraftSources::lookup(Sequence& sequence, std::span<const TokenId> drafted) {
  auto& path = sequence.path;
  auto& tokens = sequence.path_tokens;
  const auto common = static_cast<std::size_t>(
      std::mismatch(drafted.begin(), drafted.end(), tokens.begin(), tokens.end()).first -
      drafted.begin());
  if (common == drafted.size() && path.size() > drafted.size()) return path[drafted.size()];
  // Another branch, or one token further. A branch's positions are looked up in order, so what is
  // missing is at the end.
  tokens.resize(common);
  path.resize(std::min(path.size(), common + 1));
  while (path.size() <= drafted.size()) {
    const std::size_t depth = path.size();
    while (tokens.size() < depth) tokens.push_back(drafted[tokens.size()]);
    path.push_back(find_candidates(sequence.own, stores_.at(sequence.store), drafted.first(depth)));
  }
  return path[drafted.size()];
}

Proposal DraftSources::ngram(const DraftContext& context, std::span<const TokenId> drafted) {
  Proposal out = propose_ngram(lookup(at(context.slot), drafted));
  if (!out.empty()) out.raw = ngram_rates_.rate(out.klass, is_sampled(context));
  return out;
}

Proposal DraftSources::fusion(const DraftContext& context, std::span<const TokenId> drafted) {
  Sequence& sequence = at(context.slot);
  const std::int64_t position = sequence.own.size() + static_cast<std::int64_t>(drafted.size());
  return propose_fusion(lookup(sequence, drafted), table_of(context), *context.sampling, position,
                        !context.rejection);
}

float DraftSources::calibrate(Claim claim, const DraftContext& context, float raw,
                              int depth) const {
  const Form form = at(context.slot).form[static_cast<std::size_t>(claim)].after_hits(depth);
  return acceptance_.estimate(claim, raw, form, is_sampled(context));
}

float DraftSources::expect(Claim claim, const DraftContext& context, int depth) const {
  const Form form = at(context.slot).form[static_cast<std::size_t>(claim)].after_hits(depth);
  return acceptance_.estimate_blind(claim, form, is_sampled(context));
}

void DraftSources::score(Sequence& sequence, Claim claim, float raw, bool sampled, bool hit) {
  const auto c = static_cast<std::size_t>(claim);
  acceptance_.update(claim, raw, sequence.form[c], sampled, hit);
  sequence.form[c].update(hit);
  traffic_form_[sampled ? 1 : 0][c].update(hit, kTrafficStep);
}

void DraftSources::score_head(const DraftContext& context, Claim claim, float raw, bool hit) {
  score(at(context.slot), claim, raw, is_sampled(context), hit);
}

void DraftSources::commit(const DraftContext& context, std::span<const TokenId> emitted) {
  Sequence& sequence = at(context.slot);
  const bool sampled = is_sampled(context);
  bool on_path = true;  // this round's look-ups so far had the right prefix
  for (std::size_t i = 0; i < emitted.size(); ++i) {
    on_path = on_path && i < sequence.path.size() &&
              (i == 0 || sequence.path_tokens[i - 1] == emitted[i - 1]);
    const CandidateList list =
        on_path ? sequence.path[i] : find_candidates(sequence.own, stores_.at(sequence.store), {});

    Proposal ngram = propose_ngram(list);
    if (!ngram.empty()) ngram.raw = ngram_rates_.rate(ngram.klass, sampled);
    const Proposal fusion = propose_fusion(list, table_of(context), *context.sampling,
                                           sequence.own.size(), !context.rejection);
    score_cheap(ngram, fusion, emitted[i], [&](Claim claim, float raw, bool hit) {
      score(sequence, claim, raw, sampled, hit);
    });
    if (!ngram.empty()) ngram_rates_.update(ngram.klass, sampled, ngram.token == emitted[i]);

    sequence.logged.push_back(list);
    sequence.own.append(emitted[i]);
  }
  sequence.path.clear();
  sequence.path_tokens.clear();
}

void DraftSources::observe(const DraftOutcome& outcome) {
  const DraftTree& draft = *outcome.draft;
  Sequence& sequence = at(outcome.context.slot);
  const bool sampled = is_sampled(outcome.context);
  // The accepted ones and the first that was not; later ones were never tried. A block cut short by
  // an end (fewer emitted than accepted + 1) says nothing about the token after it.
  int node = -1;
  for (const TokenId emitted : outcome.emitted) {
    const int came = draft.child(node, emitted);
    for (int at = draft.first_child(node); at >= 0; at = draft.next_sibling(at)) {
      const auto i = std::size_t(at);
      if (draft.kinds[i] == SpeculatorKind::kModel)
        score(sequence, Claim::kModel, draft.raw[i], sampled, at == came);
    }
    if (came < 0) break;
    node = came;
  }
}

std::span<const CandidateList> DraftSources::logged(int slot) const { return at(slot).logged; }

}  // namespace foretoken
