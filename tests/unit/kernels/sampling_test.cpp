#include "foretoken/kernels/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fixtures.h"
#include "kernels/cpu/gumbel.h"
#include "kernels/cpu/philox.h"

namespace foretoken::kernels {
namespace {

// The known-answer vectors published with Random123 (kat_vectors).
TEST(Philox, KnownAnswers) {
  struct Case {
    PhiloxBlock counter;
    std::uint32_t key0, key1;
    PhiloxBlock answer;
  };
  const Case cases[] = {
      {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       0xffffffff,
       0xffffffff,
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0xa4093822,
       0x299f31d0,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const Case& c : cases) {
    const PhiloxBlock b = philox4x32(c.counter, c.key0, c.key1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(b.word[i], c.answer.word[i]);
  }
}

TEST(Gumbel, IsTheDocumentedFunctionOfTheCounter) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 10000; ++trial) {
    const std::uint64_t seed = random(), position = random() >> (random() % 64);
    const auto token = static_cast<std::uint32_t>(random() % 200000);
    const PhiloxBlock b =
        philox4x32({{token >> 2, 0, static_cast<std::uint32_t>(position),
                     static_cast<std::uint32_t>(position >> 32)}},
                   static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    const double u = (b.word[token & 3] + 0.5) * 0x1p-32;
    const double expected = -std::log(-std::log(u));
    EXPECT_NEAR(gumbel(seed, position, token), expected, 1e-14 * (1 + std::fabs(expected)));
  }
}

TEST(Gumbel, LogarithmIsAccurateAtTheExtremesOfU) {
  auto check = [](std::uint32_t word) {
    const long double u = (static_cast<long double>(word) + 0.5L) * 0x1p-32L;
    const long double expected = -std::log(-std::log(u));
    const long double got = gumbel_of_word(word);
    ASSERT_LE(std::fabs(got - expected), 1e-14L * (1 + std::fabs(expected))) << word;
    ASSERT_GE(gumbel_bound(word), got) << word;
    ASSERT_LE(gumbel_bound(word), got + 6) << word;
    ASSERT_LT(got, kLargestGumbel);
  };
  for (std::uint32_t i = 0; i < 100000; ++i) {
    check(i);
    check(~i);
    check(0x80000000u + i - 50000);
  }
  std::mt19937_64 random(2);
  for (int i = 0; i < 300000; ++i) check(static_cast<std::uint32_t>(random()));
}

TEST(Uniform, LiesInsideTheIntervalAndIsUniform) {
  int bucket[16] = {};
  constexpr int kDraws = 160000;
  for (int i = 0; i < kDraws; ++i) {
    const double u =
        uniform(7, static_cast<std::uint64_t>(i / 4), static_cast<std::uint32_t>(i % 4));
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bucket[static_cast<int>(u * 16)];
  }
  double chi_square = 0;
  for (int b : bucket) chi_square += (b - kDraws / 16.0) * (b - kDraws / 16.0) / (kDraws / 16.0);
  EXPECT_LT(chi_square, 37.7);  // 15 degrees of freedom, p = 0.001; the draws are fixed
}

std::vector<float> random_logits(std::int64_t n, float spread, std::mt19937_64& random) {
  std::vector<float> x(static_cast<std::size_t>(n));
  std::normal_distribution<float> normal(0.0f, spread);
  for (float& v : x) v = normal(random);
  return x;
}

std::int32_t plain_sample(const std::vector<float>& logits, float inv_temperature,
                          std::uint64_t seed, std::uint64_t position) {
  double best = -INFINITY;
  std::int32_t id = -1;
  for (std::size_t v = 0; v < logits.size(); ++v) {
    const float s = logits[v] * inv_temperature;
    const double score =
        static_cast<double>(s) + gumbel(seed, position, static_cast<std::uint32_t>(v));
    if (score > best) {
      best = score;
      id = static_cast<std::int32_t>(v);
    }
  }
  return id;
}

TEST(Sample, FullEqualsThePlainLoopOnEveryIsa) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 60; ++trial) {
    const std::int64_t n =
        trial < 50 ? 1 + static_cast<std::int64_t>(random() % 5000) : 49152 + trial;
    const float spreads[] = {0.0f, 0.01f, 1.0f, 4.0f, 30.0f, 3000.0f};
    std::vector<float> logits = random_logits(n, spreads[trial % 6], random);
    if (trial % 4 == 1)
      for (float& v : logits)
        if (random() % 3 == 0) v = -INFINITY;
    if (trial % 4 == 1) logits[0] = 0.5f;
    const float temperatures[] = {1.0f, 0.8f, 0.1f, 2.0f};
    const float inv = 1.0f / temperatures[random() % 4];
    const std::uint64_t seed = random(), position = random() % 100000;
    const std::int32_t expected = plain_sample(logits, inv, seed, position);
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      ASSERT_EQ(sample_full(logits.data(), n, inv, seed, position), expected) << isa_name(isa);
    }
  }
}

TEST(Sample, SubsetEqualsFullOverMaskedLogitsWhateverTheOrder) {
  std::mt19937_64 random(4);
  for (int trial = 0; trial < 200; ++trial) {
    const std::int64_t n = 3000;
    const std::vector<float> logits = random_logits(n, trial % 2 ? 3.0f : 0.1f, random);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(1 + random() % 200);
    std::vector<float> masked(static_cast<std::size_t>(n), -INFINITY), values;
    for (std::int32_t id : ids) {
      values.push_back(logits[static_cast<std::size_t>(id)]);
      masked[static_cast<std::size_t>(id)] = values.back();
    }
    const float inv = trial % 5 == 0 ? 0.0f : 1.25f;
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      EXPECT_EQ(sample_subset(values.data(), ids.data(), static_cast<std::int64_t>(ids.size()), inv,
                              9, static_cast<std::uint64_t>(trial)),
                sample_full(masked.data(), n, inv, 9, static_cast<std::uint64_t>(trial)));
    }
  }
}

TEST(Sample, FollowsTheSoftmaxDistribution) {
  const std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 0.5f, 1.5f, -0.5f, 0.25f};
  const double lse = log_sum_exp(logits.data(), 8, 1.25f);
  std::vector<int> count(8);
  constexpr int kDraws = 100000;
  for (int t = 0; t < kDraws; ++t)
    ++count[static_cast<std::size_t>(
        sample_full(logits.data(), 8, 1.25f, 42, static_cast<std::uint64_t>(t)))];
  double chi_square = 0;
  for (std::size_t v = 0; v < 8; ++v) {
    const double expected = kDraws * std::exp(logits[v] * 1.25 - lse);
    chi_square += (count[v] - expected) * (count[v] - expected) / expected;
  }
  EXPECT_LT(chi_square, 24.3);  // 7 degrees of freedom, p = 0.001
}

TEST(Sample, ArgmaxTakesTheLowestOfEqualsAndIgnoresNan) {
  std::mt19937_64 random(5);
  for (Isa isa : supported_isas()) {
    const ScopedIsa scoped(isa);
    for (int trial = 0; trial < 200; ++trial) {
      const std::int64_t n = 1 + static_cast<std::int64_t>(random() % 700);
      std::vector<float> x(static_cast<std::size_t>(n));
      for (float& v : x) v = static_cast<float>(random() % 50);
      if (trial % 3 == 0) x[random() % x.size()] = NAN;
      std::int64_t expected = -1;
      for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isnan(x[i]) && (expected < 0 || x[i] > x[static_cast<std::size_t>(expected)]))
          expected = static_cast<std::int64_t>(i);
      ASSERT_EQ(argmax(x.data(), n), expected < 0 ? 0 : expected);
    }
  }
}

TEST(LogSumExp, IsAccurateAndTheSameOnEveryIsa) {
  std::mt19937_64 random(6);
  for (int trial = 0; trial < 60; ++trial) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(random() % 40000);
    std::vector<float> x = random_logits(n, trial % 3 == 0 ? 100.0f : 3.0f, random);
    if (trial % 4 == 0) x[0] = -INFINITY;
    if (n == 1) x[0] = 2.0f;
    const float scale = trial % 2 == 0 ? 1.0f : 1.25f;
    double largest = -INFINITY, sum = 0;
    for (float v : x) largest = std::max(largest, static_cast<double>(v * scale));
    for (float v : x) sum += std::exp(static_cast<double>(v * scale) - largest);
    const double expected = largest + std::log(sum);
    double reference = 0;
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      const double got = log_sum_exp(x.data(), n, scale);
      if (isa == Isa::kScalar) reference = got;
      ASSERT_EQ(got, reference) << isa_name(isa);
      ASSERT_NEAR(got, expected, 2e-6);  // exp's 2e-7, and x - max rounded to 2^-24 of up to 16
      ASSERT_NEAR(approximate_log_sum_exp(x.data(), n, scale), expected, 1e-5) << isa_name(isa);
    }
  }
  const float masked[3] = {-INFINITY, -INFINITY, -INFINITY};
  EXPECT_EQ(log_sum_exp(masked, 3, 1.0f), -INFINITY);
  EXPECT_EQ(approximate_log_sum_exp(masked, 3, 1.0f), -INFINITY);
}

// With and without a summary everything is the same; the sums give the normaliser.
TEST(LogitSummary, SparesASecondPassAndChangesNothing) {
  std::mt19937_64 random(8);
  for (int trial = 0; trial < 60; ++trial) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(random() % 20000);
    std::vector<float> x = random_logits(n, trial % 3 == 0 ? 100.0f : 3.0f, random);
    if (trial % 4 == 0)
      for (float& v : x)
        if (random() % 10 != 0) v = -INFINITY;
    if (trial % 4 == 1) x[random() % x.size()] = NAN;
    x[random() % x.size()] = 1.5f;
    const float scale = 1.25f;
    const auto n_blocks = static_cast<std::size_t>(logit_blocks(n));
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      std::vector<float> maxima(n_blocks), sums(n_blocks), scaled(n_blocks);
      logit_block_summary(x.data(), n, maxima.data(), sums.data(), scale, scaled.data());
      EXPECT_EQ(argmax(x.data(), n, maxima.data()), argmax(x.data(), n));
      for (std::uint64_t position = 0; position < 5; ++position) {
        EXPECT_EQ(sample_full(x.data(), n, scale, 7, position, maxima.data()),
                  sample_full(x.data(), n, scale, 7, position));
      }
      std::vector<std::int32_t> ids(64), other_ids(64);
      std::vector<float> values(64), other_values(64);
      const std::int64_t k = top_k(x.data(), n, 64, ids.data(), values.data(), maxima.data());
      EXPECT_EQ(top_k(x.data(), n, 64, other_ids.data(), other_values.data()), k);
      EXPECT_EQ(ids, other_ids);
      if (trial % 4 == 1) continue;  // a sum over NaN is NaN
      EXPECT_NEAR(log_sum_exp_of_blocks(maxima.data(), sums.data(), logit_blocks(n), 1),
                  log_sum_exp(x.data(), n, 1), 1e-5);
      EXPECT_NEAR(log_sum_exp_of_blocks(maxima.data(), scaled.data(), logit_blocks(n), scale),
                  log_sum_exp(x.data(), n, scale), 1e-5);
    }
  }
}

TEST(TopK, EqualsASort) {
  std::mt19937_64 random(7);
  for (int trial = 0; trial < 120; ++trial) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(random() % 20000);
    std::vector<float> x = random_logits(n, 3.0f, random);
    if (trial % 4 == 1)
      for (float& v : x) v = std::round(v);  // many ties
    if (trial % 4 == 2) std::sort(x.begin(), x.end());
    if (trial % 4 == 3)
      for (float& v : x)
        if (random() % 10 != 0) v = -INFINITY;
    const std::int64_t k = trial % 5 == 0 ? n + 3 : 1 + static_cast<std::int64_t>(random() % 200);
    std::vector<std::int32_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
    });
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      std::vector<std::int32_t> ids(static_cast<std::size_t>(k), -1);
      std::vector<float> values(static_cast<std::size_t>(k));
      ASSERT_EQ(top_k(x.data(), n, k, ids.data(), values.data()), std::min(k, n));
      for (std::int64_t i = 0; i < std::min(k, n); ++i) {
        ASSERT_EQ(ids[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(i)]) << i;
        ASSERT_EQ(values[static_cast<std::size_t>(i)],
                  x[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])]);
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::kernels
