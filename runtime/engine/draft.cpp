// draft: the control coin, then the portfolio proposes.
#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::draft() {
  Round& r = round_;
  const auto begin = now();
  // Tossed for the whole round before the controller chooses, whatever it would choose (law 6).
  r.plain = probe_->plain(begin);
  if (r.plain) end_captures();
  r.control = !r.plain && r.n_jobs > 0 && options_.control_fraction > 0 &&
              options_.spec_draft_n_max > 0 && coin_.toss();
  if (r.n_jobs > 0) {
    const int prefill_rows = int(plan_.prefill_rows);
    const auto jobs = std::span(r.jobs).first(std::size_t(r.n_jobs));
    portfolio_->draft(jobs, r.control || r.plain, prefill_rows,
                      options_.max_batch_rows - r.n_jobs - prefill_rows);
    if (options_.on_drafted) options_.on_drafted(jobs);
  }
  r.draft_ms = ms_of(now() - begin);
}

}  // namespace foretoken
