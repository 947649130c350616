// Rows of logits on the host: the tokens are the sampler's, the reports are of the model's own
// rows.
#include "runtime/model/logit_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "foretoken/kernels/sampling.h"

namespace foretoken {
namespace {

constexpr int kColumns = 1000;

std::vector<float> random_row(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> row(kColumns);
  for (float& value : row) value = normal(random);
  return row;
}

// As a forward pass leaves them.
void fill(HostLogitRows& rows, const std::vector<std::vector<float>>& from) {
  float* to = rows.values(std::ssize(from));
  const kernels::LogitSummary* summary = rows.summary();
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::copy(from[i].begin(), from[i].end(), to + i * kColumns);
    if (!summary) continue;
    const std::int64_t at = std::int64_t(i) * summary->stride;
    kernels::logit_block_summary(from[i].data(), kColumns, summary->maxima + at,
                                 summary->sums ? summary->sums + at : nullptr,
                                 summary->scaled_sums ? summary->scales[i] : 1.0f,
                                 summary->scaled_sums ? summary->scaled_sums + at : nullptr);
  }
}

TEST(LogitRows, TokensAreTheSamplersAndReportsOfTheModelsRow) {
  TokenCounts counts(kColumns);
  for (TokenId token = 0; token < 50; ++token) counts.add_output(token * 3);
  std::vector<SamplingParams> sampling(4);
  sampling[0].temperature = 0;
  sampling[1].temperature = 0.8f;
  sampling[1].top_p = 0.9f;
  sampling[2].temperature = 0.7f;
  sampling[2].frequency_penalty = 0.8f;
  sampling[2].logit_bias = {{7, 9.0f}};
  sampling[3].temperature = 1.3f;
  std::vector<std::vector<float>> model;
  for (std::uint64_t i = 0; i < 4; ++i) model.push_back(random_row(5 + i));
  HostLogitRows rows(2, kColumns);  // more than it was made for
  for (int pass = 0; pass < 2; ++pass) {
    rows.begin(4);
    EXPECT_EQ(rows.summary(), nullptr) << "nobody wants anything yet";
    for (int i = 0; i < 4; ++i) {
      const SamplingParams& s = sampling[std::size_t(i)];
      rows.want(i, {.sampling = &s,
                    .counts = i == 2 ? &counts : nullptr,
                    .position = 100 + i,
                    .report_k = i == 0 ? -1 : 5,
                    .scale = i > 0 ? 1 / s.temperature : 0.0f});
    }
    fill(rows, model);
    rows.choose();
    Sampler sampler(kColumns);
    std::vector<double> logprobs(4);
    std::vector<TokenId> tokens(4);
    for (int i = 0; i < 4; ++i) {
      std::vector<float> copy = model[std::size_t(i)];
      sampler.prepare(copy.data(), sampling[std::size_t(i)], i == 2 ? &counts : nullptr);
      tokens[std::size_t(i)] = sampler.sample(std::uint64_t(100 + i));
      logprobs[std::size_t(i)] = sampler.logprob(tokens[std::size_t(i)]);
      EXPECT_EQ(rows.token(i), tokens[std::size_t(i)]) << i;
    }
    ASSERT_EQ(rows.tasks(), 3);
    for (int i = 2; i >= 0; --i) rows.run_task(i);
    for (int i = 1; i < 4; ++i) {
      const std::vector<float>& raw = model[std::size_t(i)];
      const RowReport& report = rows.report(i);
      EXPECT_EQ(report.token, tokens[std::size_t(i)]);
      EXPECT_EQ(report.logit, raw[std::size_t(report.token)]);
      EXPECT_NEAR(report.logprob, logprobs[std::size_t(i)], 1e-4) << i;
      EXPECT_NEAR(report.log_sum_exp, kernels::log_sum_exp(raw.data(), kColumns, 1.0f), 1e-4);
      std::vector<std::int32_t> ids(5);
      std::vector<float> values(5);
      kernels::top_k(raw.data(), kColumns, 5, ids.data(), values.data());
      EXPECT_EQ(report.top_ids, ids);
      EXPECT_EQ(report.top_values, values);
    }
  }
}

TEST(LogitRows, ARowOnTheHostMayBeChangedAndChosenFrom) {
  const std::vector<float> model = random_row(9);
  SamplingParams sampling;
  HostLogitRows rows(1, kColumns);
  rows.begin(1);
  rows.want(0, {.sampling = &sampling, .report_k = 2});
  fill(rows, {model});
  const std::span<float> row = rows.host_row(0);
  EXPECT_TRUE(std::equal(row.begin(), row.end(), model.begin(), model.end()));
  std::ranges::fill(row, -1.0f);
  rows.chosen(0, 17, -0.25);
  ASSERT_EQ(rows.tasks(), 1);
  rows.run_task(0);
  EXPECT_EQ(rows.report(0).token, 17);
  EXPECT_EQ(rows.report(0).logprob, -0.25);
  EXPECT_EQ(rows.report(0).logit, model[17]);
  EXPECT_EQ(rows.report(0).top_values[0], *std::ranges::max_element(model));
}

}  // namespace
}  // namespace foretoken
