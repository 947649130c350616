#include "tests/support/faulty_logits.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "foretoken/kernels/sampling.h"
#include "tests/support/model_decorator.h"

namespace foretoken::testing {
namespace {

class FaultyRows final : public LogitRows {
 public:
  explicit FaultyRows(std::unique_ptr<LogitRows> rows) : inner(std::move(rows)) {}
  void begin(int n_rows) override {
    forced.assign(std::size_t(n_rows), -1);
    inner->begin(n_rows);
  }
  void want(int row, const RowWish& wish) override { inner->want(row, wish); }
  void choose() override { inner->choose(); }
  TokenId token(int row) override {
    const TokenId right = inner->token(row);
    return forced[std::size_t(row)] >= 0 ? forced[std::size_t(row)] : right;
  }
  std::span<float> host_row(int row) override {
    const std::span<float> values = inner->host_row(row);
    if (const TokenId token = forced[std::size_t(row)]; token >= 0) {
      std::ranges::fill(values, -std::numeric_limits<float>::infinity());
      values[std::size_t(token)] = 0;
    }
    return values;
  }
  void chosen(int row, TokenId token, double logprob) override {
    inner->chosen(row, token, logprob);
  }
  int tasks() const override { return inner->tasks(); }
  void run_task(int i) override { inner->run_task(i); }
  RowReport& report(int row) override { return inner->report(row); }

  const std::unique_ptr<LogitRows> inner;
  std::vector<TokenId> forced;  // of each row, -1: none
};

class FaultyLogits final : public ModelDecorator {
 public:
  FaultyLogits(std::shared_ptr<const Model> inner, LogitFault fault)
      : ModelDecorator(std::move(inner)), fault_(fault) {}

  std::unique_ptr<LogitRows> make_logit_rows(int max_rows,
                                             const kernels::PackedMatrix* output) const override {
    return std::make_unique<FaultyRows>(inner_->make_logit_rows(max_rows, output));
  }
  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               kernels::ThreadPool& pool) const override {
    auto& rows = static_cast<FaultyRows&>(*batch.logits);
    ForwardBatch inner = batch;
    inner.logits = rows.inner.get();
    inner_->forward(inner, memory, workspace, pool);
    if (fault_ == LogitFault::kAcceptFirstDraft)
      force_drafts(batch, rows);
    else
      disturb(batch, static_cast<HostLogitRows&>(*rows.inner));
  }

 private:
  static void force_drafts(const ForwardBatch& batch, FaultyRows& rows) {
    for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
      for (const KvRows& r : batch.sequences) {
        if (r.n_rows > 1 && r.first_row == batch.logit_rows[i])
          rows.forced[i] = batch.tokens[std::size_t(r.first_row) + 1];
      }
    }
  }
  void disturb(const ForwardBatch& batch, HostLogitRows& rows) const {
    const auto n_vocab = config().n_vocab, n_rows = std::int64_t(batch.logit_rows.size());
    float* logits = rows.values(n_rows);
    for (std::int64_t i = 0; i < n_rows * n_vocab; ++i)
      logits[i] *= 1.0f + 2e-3f * float((std::size_t(i) * batch.tokens.size()) % 7);
    const kernels::LogitSummary* summary = rows.summary();
    for (std::int64_t row = 0; summary && row < n_rows; ++row) {
      const std::int64_t at = row * summary->stride;
      kernels::logit_block_summary(logits + row * n_vocab, n_vocab, summary->maxima + at,
                                   summary->sums ? summary->sums + at : nullptr,
                                   summary->scales[row],
                                   summary->scaled_sums ? summary->scaled_sums + at : nullptr);
    }
  }
  const LogitFault fault_;
};

}  // namespace

std::shared_ptr<const Model> with_faulty_logits(std::shared_ptr<const Model> model,
                                                LogitFault fault) {
  return std::make_shared<FaultyLogits>(std::move(model), fault);
}

}  // namespace foretoken::testing
