#include "runtime/speculate/draft_sources.h"

#include <algorithm>
#include <cassert>

#include "runtime/speculate/candidates.h"
#include "runtime/speculate/learned.h"

namespace foretoken {

DraftSources::DraftSources(const DraftSourcesOptions& options)
    : drafting_(options.kinds),
      stores_(options.store_bytes, std::max(options.max_stores, options.max_sequences + 1)),
      kinds_(options.kinds, options),
      sequences_(std::size_t(options.max_sequences)) {
  const std::int64_t depths = options.max_draft + 1, tokens = options.max_tokens + depths;
  for (Sequence& sequence : sequences_) {
    sequence.own.reserve(tokens);
    sequence.logged.reserve(std::size_t(tokens));
    sequence.path.reserve(std::size_t(depths));
    sequence.path_tokens.reserve(std::size_t(depths));
  }
}

void DraftSources::open(const DraftContext& context) {
  Sequence& sequence = at(context.slot);
  assert(!sequence.open);
  sequence.open = true;
  sequence.store = context.store;
  sequence.own.clear();
  sequence.own.append(context.tokens);
  sequence.forms = calibration_.traffic(context.sampled());
  sequence.path.clear();
  sequence.path_tokens.clear();
  sequence.logged.clear();
  kinds_.open(context);
}

void DraftSources::forget(std::string_view key_id) { stores_.forget(key_id); }

void DraftSources::close(int slot, bool add_to_store) {
  Sequence& sequence = at(slot);
  if (!sequence.open) return;
  sequence.open = false;
  if (add_to_store) stores_.at(sequence.store).add(sequence.own.tokens());
}

const CandidateList& DraftSources::candidates(const DraftContext& context,
                                              std::span<const TokenId> drafted) {
  Sequence& sequence = at(context.slot);
  auto& path = sequence.path;
  auto& tokens = sequence.path_tokens;
  const auto common = std::size_t(
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
  return kinds_.propose({context, drafted, candidates(context, drafted)}, kinds);
}

OfferList DraftSources::offer_cheap(int job, std::span<const TokenId> drafted) {
  const DraftContext& of = context(job);
  const bool shipped = of.learned && of.learned->initial;
  return calibration_.offers(of, at(of.slot).forms,
                             propose(of, drafted, shipped ? drafting_.unlearned() : drafting_),
                             int(drafted.size()));
}

void DraftSources::commit(const DraftContext& context, std::span<const TokenId> emitted) {
  Sequence& sequence = at(context.slot);
  bool on_path = true;  // this round's look-ups so far had the right prefix
  for (std::size_t i = 0; i < emitted.size(); ++i) {
    on_path = on_path && i < sequence.path.size() &&
              (i == 0 || sequence.path_tokens[i - 1] == emitted[i - 1]);
    const CandidateList list =
        on_path ? sequence.path[i] : find_candidates(sequence.own, stores_.at(sequence.store), {});
    calibration_.learn(context, sequence.forms,
                       kinds_.propose({context, emitted.first(i), list}, spec_type("auto")),
                       emitted[i]);
    sequence.logged.push_back(list);
    sequence.own.append(emitted[i]);
  }
  kinds_.commit(context.slot, emitted);
  sequence.path.clear();
  sequence.path_tokens.clear();
}

void DraftSources::observe(const DraftOutcome& outcome) {
  const DraftTree& draft = *outcome.draft;
  Forms& forms = at(outcome.context.slot).forms;
  // The accepted ones and the first that was not; later ones were never tried. A block cut short by
  // an end (fewer emitted than accepted + 1) says nothing about the token after it.
  int node = -1;
  for (const TokenId emitted : outcome.emitted) {
    const int came = draft.child(node, emitted);
    for (int at = draft.first_child(node); at >= 0; at = draft.next_sibling(at)) {
      const auto i = std::size_t(at);
      if (draft.kinds[i] == SpeculatorKind::kModel)
        calibration_.score(outcome.context, forms, {SpeculatorKind::kModel}, draft.raw[i],
                           at == came);
    }
    if (came < 0) break;
    node = came;
  }
}

}  // namespace foretoken
