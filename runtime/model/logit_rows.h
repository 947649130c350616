// The logits of a forward pass, on the device that computed them. What is asked of a row is the
// token that its request's sampling chooses there, and what is reported of it; the row itself comes
// to the host on demand alone. Made by the model (Model::make_logit_rows). A pass:
//   begin(), want() each row, Model::forward(), choose(), then token() of the rows that matter, in
//   order; tasks, by idle workers; report().
// Engine thread, tasks aside.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "foretoken/kernels/linear.h"
#include "foretoken/protocol/ids.h"
#include "runtime/model/sampler.h"

namespace foretoken {

struct RowWish {
  const SamplingParams* sampling = nullptr;
  // For penalties, or null. Of the committed tokens; a row counts the drafted ones before it too:
  // whoever asks for its token() has added them by then, as they are the tokens chosen there.
  const TokenCounts* counts = nullptr;
  std::int64_t position = 0;  // of the token that is chosen
  int report_k = -1;          // so many most likely tokens are reported; -1: nothing is
  float scale = 0;            // 1 / temperature: reports the token's probability as sampled; 0: not
};

// Of the model's own row, before bias, penalties, temperature and filters.
struct RowReport {
  TokenId token = 0;
  float logit = 0;         // the token's
  double log_sum_exp = 0;  // of the row
  double logprob = 0;      // of the token as sampled: after temperature and filters
  std::vector<TokenId> top_ids;
  std::vector<float> top_values;
};

class LogitRows {
 public:
  virtual ~LogitRows() = default;
  LogitRows(const LogitRows&) = delete;
  LogitRows& operator=(const LogitRows&) = delete;

  // A new pass, of so many rows; what was wanted of the last one is forgotten.
  virtual void begin(int n_rows) = 0;
  virtual void want(int row, const RowWish& wish) = 0;
  // After the pass: the device may begin with all rows at once.
  virtual void choose() = 0;
  virtual TokenId token(int row) = 0;  // at most once a row
  // The row as the model made it, [columns], valid until the next pass. The caller may change it
  // and choose by itself; it then says what it chose.
  virtual std::span<float> host_row(int row) = 0;
  virtual void chosen(int row, TokenId token, double logprob) = 0;

  // Before passes some of whose reported rows choosing will change: room for copies of them.
  virtual void keep_changed_rows() {}

  // What is left for idle workers, task by task in any order: of the reports of rows whose token is
  // chosen.
  virtual int tasks() const = 0;
  virtual void run_task(int i) = 0;
  virtual RowReport& report(int row) = 0;  // after the tasks

 protected:
  LogitRows() = default;
};

// In the host's memory: tokens are chosen one by one, when they are asked for.
class HostLogitRows final : public LogitRows {
 public:
  // memory: of the rows and their summaries.
  HostLogitRows(int max_rows, std::int64_t n_columns,
                std::pmr::memory_resource* memory = std::pmr::get_default_resource());

  void begin(int n_rows) override;
  void want(int row, const RowWish& wish) override;
  void choose() override {}
  TokenId token(int row) override;
  std::span<float> host_row(int row) override;
  void chosen(int row, TokenId token, double logprob) override;
  void keep_changed_rows() override;
  int tasks() const override { return int(reported_.size()); }
  void run_task(int i) override;
  RowReport& report(int row) override { return rows_[std::size_t(row)].report; }

  // For the forward pass: room for n_rows rows [n_columns], and what it is to leave of each beside
  // (null: nothing).
  float* values(std::int64_t n_rows);
  const kernels::LogitSummary* summary() { return wanted_ ? &summary_ : nullptr; }

 private:
  struct Row {
    RowWish wish;
    const float* raw = nullptr;  // as the model made it
    std::vector<float> kept;     // the same, where choosing changes the row in place
    bool unfiltered = false;     // sampled from raw: the normaliser is still to be found
    RowReport report;
  };
  float* row(int i) { return values_.data() + std::size_t(i) * std::size_t(n_columns_); }
  void keep_raw(int i, bool changes);

  const std::int64_t n_columns_, n_blocks_;
  std::pmr::vector<float> values_;  // [max_rows, n_columns]
  // [max_rows, n_blocks] and, the scales, [max_rows].
  std::pmr::vector<float> maxima_, sums_, scaled_sums_, scales_;
  kernels::LogitSummary summary_;
  bool wanted_ = false;
  std::vector<Row> rows_;
  std::vector<int> reported_;
  Sampler sampler_;
};

}  // namespace foretoken
