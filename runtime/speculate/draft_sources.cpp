#include "runtime/speculate/draft_sources.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "runtime/speculate/cheap_choice.h"

namespace foretoken {
namespace {

bool is_sampled(const DraftContext& context) { return context.sampling->temperature > 0; }

}  // namespace

DraftSources::DraftSources(const DraftSourcesOptions& options)
    : max_draft_(options.max_draft),
      stores_(options.store_bytes, std::max(options.max_stores, options.max_sequences + 1)),
      kinds_(options.kinds, options),
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
  forget_cleared(context.store);
  kinds_.open(context);
}

void DraftSources::forget(std::string_view key_id) {
  stores_.forget(key_id);
  for (std::size_t store = 0; store < cleared_.size(); ++store)
    forget_cleared(static_cast<int>(store));
}

// A store that was emptied since, perhaps for another key, has taught nothing.
void DraftSources::forget_cleared(int store) {
  const auto i = static_cast<std::size_t>(store);
  if (cleared_.size() <= i) cleared_.resize(i + 1);
  const std::uint64_t cleared = stores_.at(store).cleared();
  if (std::exchange(cleared_[i], cleared) == cleared) return;
  kinds_.forget(store);
}

void DraftSources::close(int slot, bool add_to_store) {
  Sequence& sequence = at(slot);
  if (!sequence.open) return;
  sequence.open = false;
  kinds_.close(slot, sequence.store, add_to_store);
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

ProposalList DraftSources::propose(const DraftContext& context, std::span<const TokenId> drafted,
                                   SpecType kinds) {
  return kinds_.propose({context, drafted, lookup(at(context.slot), drafted)}, kinds, rates_);
}

float DraftSources::calibrate(Claim claim, const DraftContext& context, float raw,
                              int depth) const {
  const Form form = at(context.slot).form[claim.index()].after_hits(depth);
  return acceptance_.estimate(claim, raw, form, is_sampled(context));
}

float DraftSources::expect(Claim claim, const DraftContext& context, int depth) const {
  const Form form = at(context.slot).form[claim.index()].after_hits(depth);
  return acceptance_.estimate_blind(claim, form, is_sampled(context));
}

void DraftSources::score(Sequence& sequence, Claim claim, float raw, bool sampled, bool hit) {
  const std::size_t c = claim.index();
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

    const ProposalList said =
        kinds_.propose({context, emitted.first(i), list}, spec_type("auto"), rates_);
    score_cheap(said, emitted[i], [&](Claim claim, float raw, bool hit) {
      score(sequence, claim, raw, sampled, hit);
    });
    for (int n = 0; n < said.n; ++n) rates_.update(said[n], sampled, said[n].token == emitted[i]);
    sequence.logged.push_back(list);
    sequence.own.append(emitted[i]);
  }
  kinds_.commit(context.slot, emitted);
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
        score(sequence, {SpeculatorKind::kModel}, draft.raw[i], sampled, at == came);
    }
    if (came < 0) break;
    node = came;
  }
}

std::span<const CandidateList> DraftSources::logged(int slot) const { return at(slot).logged; }

}  // namespace foretoken
