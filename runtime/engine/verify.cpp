// verify: one forward pass over every decoding sequence's last token and draft, and over prefill
// chunks.

#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::verify() {
  Round& r = round_;
  const auto begin = now();
  r.tokens.clear();
  r.groups.clear();
  r.logit_rows.clear();
  for (int i = 0; i < r.n_entries; ++i) {
    RoundEntry& e = r.entries[std::size_t(i)];
    const DraftTree& draft = r.jobs[std::size_t(e.job)].draft;
    e.first_row = int(r.tokens.size());
    e.n_rows = 1 + draft.size();
    e.first_logit = int(r.logit_rows.size());
    r.tokens.push_back(e.sequence->tokens.back());
    r.tokens.insert(r.tokens.end(), draft.tokens.begin(), draft.tokens.end());
    for (int row = 0; row < e.n_rows; ++row) r.logit_rows.push_back(e.first_row + row);
    r.groups.push_back({e.sequence->kv, e.sequence->computed(), e.n_rows, e.first_row,
                        draft.is_chain() ? nullptr : draft.parents.data()});
  }
  // Prefill chunks take what rows are left. A sequence that was preempted recomputes everything but
  // its last token, which then decodes as if nothing had happened.
  Pages pages(*this);
  plan_prefill(states_, limits_, std::int64_t(r.tokens.size()), pages, plan_);
  for (const RoundSchedule::Chunk& chunk : plan_.prefill) {
    Sequence& s = *running_[chunk.sequence];
    const std::int64_t n = chunk.rows;
    RoundEntry& e = r.entries[std::size_t(r.n_entries++)];
    e.sequence = &s;
    e.decode = false;
    e.samples = s.n_generated() == 0 && s.computed() + n == s.n_prompt;
    e.job = -1;
    e.accepted = 0;
    e.first_row = int(r.tokens.size());
    e.n_rows = chunk.rows;
    e.first_logit = int(r.logit_rows.size());
    r.tokens.insert(r.tokens.end(), s.tokens.begin() + s.computed(),
                    s.tokens.begin() + s.computed() + n);
    if (e.samples) r.logit_rows.push_back(e.first_row + e.n_rows - 1);
    r.groups.push_back({s.kv, s.computed(), e.n_rows, e.first_row});
  }
  settle_reports();
  logits_->begin(int(r.logit_rows.size()));
  if (!r.tokens.empty()) {
    ForwardBatch batch;
    batch.tokens = r.tokens;
    batch.sequences = r.groups;
    batch.logit_rows = r.logit_rows;
    batch.logits = logits_.get();
    for (int i = 0; i < r.n_entries; ++i) {
      const RoundEntry& e = r.entries[std::size_t(i)];
      const Sequence& s = *e.sequence;
      const SamplingParams& sampling = s.request.sampling;
      RowWish wish{.sampling = &sampling, .counts = s.counts.get()};
      if (s.trace)
        wish.report_k = kTeacherTopK;
      else if (s.request.top_logprobs >= 0)
        wish.report_k = s.request.top_logprobs;
      if (s.trace && sampling.temperature > 0) wish.scale = 1 / sampling.temperature;
      const int n = e.decode ? e.n_rows : int(e.samples);
      for (int j = 0; j < n; ++j) {
        // The index of the token chosen here.
        wish.position =
            e.decode ? r.groups[std::size_t(i)].position(j) + 1 : std::int64_t(s.tokens.size());
        logits_->want(e.first_logit + j, wish);
      }
    }
    // A few copies of hidden states, and the final norm of every row: only when somebody reads
    // them.
    r.has_taps = false;
    for (int i = 0; i < r.n_entries; ++i)
      r.has_taps |= wants_features(*r.entries[std::size_t(i)].sequence);
    if (r.has_taps) batch.features = features_.get();
    model_->forward(batch, *memory_, *workspace_, *pool_);
    logits_->choose();
  }
  r.verify_ms = ms_of(now() - begin);
}

}  // namespace foretoken
