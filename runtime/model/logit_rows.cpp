#include "runtime/model/logit_rows.h"

#include <algorithm>

#include "foretoken/kernels/sampling.h"

namespace foretoken {
namespace {
constexpr std::size_t kReserved = 64;  // most likely tokens a row: as many as traces want
}  // namespace

HostLogitRows::HostLogitRows(int max_rows, std::int64_t n_columns,
                             std::pmr::memory_resource* memory)
    : n_columns_(n_columns),
      n_blocks_(kernels::logit_blocks(n_columns)),
      values_(memory),
      maxima_(memory),
      sums_(memory),
      scaled_sums_(memory),
      scales_(memory),
      sampler_(n_columns) {
  values(max_rows);
  begin(max_rows);
}

float* HostLogitRows::values(std::int64_t n_rows) {
  const auto n = std::size_t(n_rows * n_columns_);
  if (values_.size() < n) values_.resize(n);
  return values_.data();
}

void HostLogitRows::begin(int n_rows) {
  if (rows_.size() < std::size_t(n_rows)) {
    rows_.resize(std::size_t(n_rows));
    for (Row& r : rows_) {
      r.report.top_ids.reserve(kReserved);
      r.report.top_values.reserve(kReserved);
    }
    reported_.reserve(std::size_t(n_rows));
    for (auto* of_blocks : {&maxima_, &sums_, &scaled_sums_})
      of_blocks->resize(std::size_t(n_rows) * std::size_t(n_blocks_));
    scales_.resize(std::size_t(n_rows));
  }
  for (int i = 0; i < n_rows; ++i) rows_[std::size_t(i)].wish = {};
  std::fill_n(scales_.begin(), n_rows, 0.0f);
  reported_.clear();
  wanted_ = false;
  summary_ = {};
  summary_.maxima = maxima_.data();
  summary_.scales = scales_.data();
  summary_.stride = n_blocks_;
}

void HostLogitRows::want(int row, const RowWish& wish) {
  rows_[std::size_t(row)].wish = wish;
  scales_[std::size_t(row)] = wish.scale;
  wanted_ = true;
  if (wish.report_k >= 0) summary_.sums = sums_.data();
  if (wish.scale > 0) summary_.scaled_sums = scaled_sums_.data();
}

// changes: the row is going to be.
void HostLogitRows::keep_raw(int i, bool changes) {
  Row& r = rows_[std::size_t(i)];
  if (r.wish.report_k < 0) return;
  r.raw = row(i);
  if (!changes) return;
  r.kept.assign(r.raw, r.raw + n_columns_);
  r.raw = r.kept.data();
}

void HostLogitRows::keep_changed_rows() {
  for (Row& r : rows_) r.kept.reserve(std::size_t(n_columns_));
}

TokenId HostLogitRows::token(int i) {
  Row& r = rows_[std::size_t(i)];
  const SamplingParams& sampling = *r.wish.sampling;
  const bool changes = r.wish.counts || !sampling.logit_bias.empty();
  keep_raw(i, changes);
  sampler_.prepare(row(i), sampling, r.wish.counts,
                   changes ? nullptr : &maxima_[std::size_t(i * n_blocks_)]);
  const TokenId token = sampler_.sample(std::uint64_t(r.wish.position));
  const bool exact = sampler_.filtered() || changes;
  chosen(i, token, r.wish.scale > 0 && exact ? sampler_.logprob(token) : 0);
  r.unfiltered = r.wish.scale > 0 && !exact;
  return token;
}

std::span<float> HostLogitRows::host_row(int i) {
  keep_raw(i, true);
  return {row(i), std::size_t(n_columns_)};
}

void HostLogitRows::chosen(int i, TokenId token, double logprob) {
  Row& r = rows_[std::size_t(i)];
  if (r.wish.report_k < 0) return;
  r.report.token = token;
  r.report.logprob = logprob;
  r.unfiltered = false;
  reported_.push_back(i);
}

void HostLogitRows::run_task(int task) {
  const int i = reported_[std::size_t(task)];
  Row& r = rows_[std::size_t(i)];
  RowReport& report = r.report;
  const auto blocks = std::size_t(i * n_blocks_);
  const float* maxima = &maxima_[blocks];
  report.logit = r.raw[report.token];
  report.log_sum_exp = kernels::log_sum_exp_of_blocks(maxima, &sums_[blocks], n_blocks_, 1.0f);
  report.top_ids.resize(std::size_t(r.wish.report_k));
  report.top_values.resize(std::size_t(r.wish.report_k));
  const auto n = std::size_t(kernels::top_k(
      r.raw, n_columns_, r.wish.report_k, report.top_ids.data(), report.top_values.data(), maxima));
  report.top_ids.resize(n);
  report.top_values.resize(n);
  if (!r.unfiltered) return;
  report.logprob =
      double(r.raw[report.token] * r.wish.scale) -
      kernels::log_sum_exp_of_blocks(maxima, &scaled_sums_[blocks], n_blocks_, r.wish.scale);
}

}  // namespace foretoken
