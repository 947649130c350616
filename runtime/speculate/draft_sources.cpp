#include "runtime/speculate/draft_sources.h"

#include <algorithm>
#include <cassert>

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

DraftSources::Calibrated DraftSources::ngram(const DraftContext& context,
                                             std::span<const TokenId> drafted) {
  Sequence& sequence = at(context.slot);
  Calibrated out{propose_ngram(lookup(sequence, drafted)), 0};
  if (out.proposal.empty()) return out;
  out.proposal.raw = ngram_rates_.rate(out.proposal.klass, is_sampled(context));
  out.confidence = calibrate(SpeculatorKind::kNgram, context, out.proposal.raw,
                             static_cast<int>(drafted.size()));
  return out;
}

DraftSources::Calibrated DraftSources::fusion(const DraftContext& context,
                                              std::span<const TokenId> drafted) {
  Sequence& sequence = at(context.slot);
  const std::int64_t position = sequence.own.size() + static_cast<std::int64_t>(drafted.size());
  Calibrated out{propose_fusion(lookup(sequence, drafted), table_of(context), *context.sampling,
                                position, !context.rejection),
                 0};
  if (out.proposal.empty()) return out;
  out.confidence = calibrate(SpeculatorKind::kFusion, context, out.proposal.raw,
                             static_cast<int>(drafted.size()));
  return out;
}

float DraftSources::calibrate(SpeculatorKind kind, const DraftContext& context, float raw,
                              int depth) const {
  const Form form = at(context.slot).form[static_cast<std::size_t>(kind)].after_hits(depth);
  return acceptance_.estimate(kind, raw, form, is_sampled(context));
}

float DraftSources::expect(SpeculatorKind kind, const DraftContext& context, int depth) const {
  const Form form = at(context.slot).form[static_cast<std::size_t>(kind)].after_hits(depth);
  return acceptance_.estimate_blind(kind, form, is_sampled(context));
}

void DraftSources::score(Sequence& sequence, SpeculatorKind kind, float raw, bool sampled,
                         bool hit) {
  const auto k = static_cast<std::size_t>(kind);
  acceptance_.update(kind, raw, sequence.form[k], sampled, hit);
  sequence.form[k].update(hit);
  traffic_form_[sampled ? 1 : 0][k].update(hit, kTrafficStep);
}

void DraftSources::score_head(const DraftContext& context, float raw, bool hit) {
  score(at(context.slot), SpeculatorKind::kHead, raw, is_sampled(context), hit);
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

    if (Proposal p = propose_ngram(list); !p.empty()) {
      const bool hit = p.token == emitted[i];
      score(sequence, SpeculatorKind::kNgram, ngram_rates_.rate(p.klass, sampled), sampled, hit);
      ngram_rates_.update(p.klass, sampled, hit);
    }
    const std::int64_t position = sequence.own.size();
    if (Proposal p = propose_fusion(list, table_of(context), *context.sampling, position,
                                    !context.rejection);
        !p.empty()) {
      const bool hit = p.token == emitted[i];
      score(sequence, SpeculatorKind::kFusion, p.raw, sampled, hit);
    }

    sequence.logged.push_back(list);
    sequence.own.append(emitted[i]);
  }
  sequence.path.clear();
  sequence.path_tokens.clear();
}

void DraftSources::observe(const DraftOutcome& outcome) {
  const Draft& draft = *outcome.draft;
  Sequence& sequence = at(outcome.context.slot);
  const bool sampled = is_sampled(outcome.context);
  // The accepted ones and the first that was not; later ones were never tried. A block cut short by
  // an end (fewer emitted than accepted + 1) says nothing about the token after it.
  for (std::size_t i = 0; i < draft.tokens.size() && i < outcome.emitted.size(); ++i) {
    const bool hit = draft.tokens[i] == outcome.emitted[i];
    const SpeculatorKind kind = draft.kinds[i];
    if (kind == SpeculatorKind::kModel && i < draft.raw.size()) {
      score(sequence, kind, draft.raw[i], sampled, hit);
    }
    if (!hit) break;
  }
}

std::span<const CandidateList> DraftSources::logged(int slot) const { return at(slot).logged; }

}  // namespace foretoken
