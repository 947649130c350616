#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.h"
#include "foretoken/kernels/sampling.h"

namespace foretoken::kernels {
namespace {

std::vector<float> run_linear(const OwnedMatrix& m, const float* x, std::int64_t n_rows,
                              std::int64_t stride, const float* bias, ThreadPool& pool) {
  Activations a(n_rows, m.w.n_in);
  a.set(x, n_rows, m.w.n_in, stride, wants_block32(m.w.type), wants_block256(m.w.type), pool);
  std::vector<float> y(static_cast<std::size_t>(n_rows * m.w.n_out), NAN);
  linear(m.w, a, bias, y.data(), m.w.n_out, pool);
  return y;
}

std::int64_t random_in(WeightType type, std::mt19937_64& random) {
  const int block = weight_block_values(type);
  if (block == 1) return 1 + static_cast<std::int64_t>(random() % 300);
  if (block == 256) return 256 * (1 + static_cast<std::int64_t>(random() % 6));
  return 32 * (1 + static_cast<std::int64_t>(random() % 40));
}

class LinearTypes : public ::testing::TestWithParam<WeightType> {};
INSTANTIATE_TEST_SUITE_P(All, LinearTypes, ::testing::ValuesIn(kAllTypes),
                         [](const auto& info) { return weight_type_name(info.param); });

TEST_P(LinearTypes, PackedRowsDequantizeToTheFilesValues) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 8; ++trial) {
    const std::int64_t n_in = random_in(GetParam(), random);
    const std::int64_t n_out = 1 + static_cast<std::int64_t>(random() % 70);
    const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
    std::vector<float> packed(static_cast<std::size_t>(n_in)), file(static_cast<std::size_t>(n_in));
    for (std::int64_t o = 0; o < n_out; ++o) {
      dequantize_row(m.w, o, packed.data());
      dequantize_file_row(
          GetParam(),
          m.file.data() + static_cast<std::size_t>(o) * weight_row_bytes(GetParam(), n_in), n_in,
          file.data());
      ASSERT_EQ(0, std::memcmp(packed.data(), file.data(), packed.size() * 4)) << "row " << o;
    }
  }
}

TEST_P(LinearTypes, PackingInPartsEqualsPackingAtOnce) {
  std::mt19937_64 random(2);
  const std::int64_t n_in = weight_block_values(GetParam()) * 3, n_out = 61;
  const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
  std::vector<std::byte> other(m.w.bytes, std::byte{0xaa});
  PackedMatrix w = m.w;
  w.data = other.data();
  const std::size_t row = weight_row_bytes(GetParam(), n_in);
  pack_rows(w, 48, 13, m.file.data() + 48 * row);
  pack_rows(w, 0, 16, m.file.data());
  pack_rows(w, 16, 32, m.file.data() + 16 * row);
  EXPECT_EQ(0, std::memcmp(other.data(), m.w.data, m.w.bytes));
}

TEST_P(LinearTypes, GatheredRowsHaveThePackedRowsBytes) {
  std::mt19937_64 random(8);
  const std::int64_t n_in = weight_block_values(GetParam()) * 3, n_out = 61;
  const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
  const std::size_t row = weight_row_bytes(GetParam(), n_in);
  std::vector<std::int32_t> rows;
  std::vector<std::byte> file;
  for (int i = 0; i < 42; ++i) {
    rows.push_back(static_cast<std::int32_t>(random() % n_out));
    const std::byte* of = m.file.data() + static_cast<std::size_t>(rows.back()) * row;
    file.insert(file.end(), of, of + row);
  }
  const std::size_t bytes = packed_bytes(GetParam(), 42, n_in);
  std::vector<std::byte> wanted(bytes, std::byte{1}), got(bytes, std::byte{2});
  pack_rows({GetParam(), Device::kCpu, 42, n_in, wanted.data(), bytes}, 0, 42, file.data());
  const PackedMatrix to{GetParam(), Device::kCpu, 42, n_in, got.data(), bytes};
  gather_rows(m.w, rows.data() + 16, 26, to, 16);
  gather_rows(m.w, rows.data(), 16, to, 0);
  EXPECT_EQ(0, std::memcmp(wanted.data(), got.data(), bytes));
}

// |x - scale q| <= absmax / 254 in a block, so that a quantised product is off by at most
// sum_blocks absmax_b / 254 * |w_b|_1; float summation adds n_in * 2^-23 of |x|_1-weighted |w|.
TEST_P(LinearTypes, AgreesWithFloatArithmeticWithinTheQuantisationBound) {
  std::mt19937_64 random(3);
  ThreadPool pool(1);
  for (int trial = 0; trial < 12; ++trial) {
    const std::int64_t n_in = random_in(GetParam(), random);
    const std::int64_t n_out = 1 + static_cast<std::int64_t>(random() % 50);
    const std::int64_t n_rows = 1 + static_cast<std::int64_t>(random() % 11);
    const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
    const std::vector<float> x = random_activations(n_rows, n_in, random);
    const std::vector<float> bias = random_activations(1, n_out, random);
    const std::int64_t block = wants_block256(GetParam()) ? 256 : 32;
    const bool quantised = weight_format(GetParam()).activations != ActivationForm::kFloat;
    std::vector<float> w(static_cast<std::size_t>(n_in));
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      const std::vector<float> y = run_linear(m, x.data(), n_rows, n_in, bias.data(), pool);
      double largest_error = 0;
      for (std::int64_t o = 0; o < n_out; ++o) {
        dequantize_row(m.w, o, w.data());
        for (std::int64_t r = 0; r < n_rows; ++r) {
          const float* row = x.data() + r * n_in;
          double exact = bias[static_cast<std::size_t>(o)], magnitude = std::fabs(exact), bound = 0;
          for (std::int64_t b = 0; b < n_in; b += block) {
            double absmax = 0, norm = 0;
            for (std::int64_t i = b; i < b + block && i < n_in; ++i) {
              const double wi = w[static_cast<std::size_t>(i)];
              exact += row[i] * wi;
              magnitude += std::fabs(row[i] * wi);
              absmax = std::max(absmax, std::fabs(static_cast<double>(row[i])));
              norm += std::fabs(wi);
            }
            if (quantised) bound += absmax / 254 * norm;
          }
          // Offsets and minimums meet the sums apart from the codes: up to 16 times the product.
          bound = bound * 1.001 + magnitude * static_cast<double>(n_in + 16) * 0x1p-23 * 4;
          const double error = std::fabs(y[static_cast<std::size_t>(r * n_out + o)] - exact);
          ASSERT_LE(error, bound) << isa_name(isa) << " row " << r << " output " << o;
          largest_error = std::max(largest_error, error);
        }
      }
      if (quantised && n_in > 32) {   // the first 32 values are zero
        EXPECT_GT(largest_error, 0);  // int8 activations were indeed used
      }
    }
  }
}

TEST_P(LinearTypes, EveryIsaGivesTheReferencesBits) {
  std::mt19937_64 random(4);
  ThreadPool pool(1);
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t n_in = random_in(GetParam(), random);
    const std::int64_t n_out = 1 + static_cast<std::int64_t>(random() % 50);
    const std::int64_t n_rows = 1 + static_cast<std::int64_t>(random() % 19);
    const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
    const std::vector<float> x = random_activations(n_rows, n_in, random);
    std::vector<float> reference;
    for (Isa isa : supported_isas()) {
      const ScopedIsa scoped(isa);
      const std::vector<float> y = run_linear(m, x.data(), n_rows, n_in, nullptr, pool);
      if (isa == Isa::kScalar) reference = y;
      for (std::size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(y[i], reference[i])
            << isa_name(isa) << " n_in " << n_in << " rows " << n_rows << " at " << i;
    }
  }
}

// Law 1: whatever else is in the call, a row's outputs have the same bits.
TEST_P(LinearTypes, RowsDoNotDependOnTheirNeighboursOrTheThreads) {
  std::mt19937_64 random(5);
  ThreadPool one(1), two(2), three(3);
  ThreadPool* const pools[] = {&one, &two, &three};
  for (Isa isa : supported_isas()) {
    const ScopedIsa scoped(isa);
    for (int trial = 0; trial < (isa == Isa::kScalar ? 2 : 6); ++trial) {
      const std::int64_t n_in = random_in(GetParam(), random);
      const std::int64_t n_out = 1 + static_cast<std::int64_t>(random() % 130);
      constexpr std::int64_t kRows = 40;
      const OwnedMatrix m = random_matrix(GetParam(), n_out, n_in, random);
      const std::vector<float> x = random_activations(kRows, n_in, random);
      const std::vector<float> bias = random_activations(1, n_out, random);
      std::vector<float> alone;
      for (std::int64_t r = 0; r < kRows; ++r) {
        const auto y = run_linear(m, x.data() + r * n_in, 1, n_in, bias.data(), one);
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (std::int64_t n_rows = 1; n_rows <= 17; ++n_rows) {
        const std::int64_t first = static_cast<std::int64_t>(random() % (kRows - n_rows));
        const auto y =
            run_linear(m, x.data() + first * n_in, n_rows, n_in, bias.data(), *pools[random() % 3]);
        ASSERT_EQ(0, std::memcmp(y.data(), alone.data() + first * n_out, y.size() * 4))
            << isa_name(isa) << ' ' << n_rows << " rows from " << first;
      }
      const auto all = run_linear(m, x.data(), kRows, n_in, bias.data(), three);
      ASSERT_EQ(0, std::memcmp(all.data(), alone.data(), all.size() * 4));
    }
  }
}

// Rows long and many enough that a prefill is cut into chunks and passes that fit the caches.
TEST(Linear, ChunksOfManyRowsGiveTheSameBits) {
  std::mt19937_64 random(6);
  ThreadPool one(1), two(2);
  for (const WeightType type : {WeightType::kQ4_1, WeightType::kQ4_K, WeightType::kQ6_K}) {
    constexpr std::int64_t kOut = 40, kIn = 8192, kRows = 200;
    const OwnedMatrix m = random_matrix(type, kOut, kIn, random);
    const std::vector<float> x = random_activations(kRows, kIn, random);
    const std::vector<float> bias = random_activations(1, kOut, random);
    for (Isa isa : supported_isas()) {
      if (isa == Isa::kScalar) continue;
      const ScopedIsa scoped(isa);
      const auto all = run_linear(m, x.data(), kRows, kIn, bias.data(), two);
      for (std::int64_t r = 0; r < kRows; r += 7) {
        const auto y = run_linear(m, x.data() + r * kIn, 1, kIn, bias.data(), one);
        ASSERT_EQ(0, std::memcmp(y.data(), all.data() + r * kOut, y.size() * 4))
            << weight_type_name(type) << ' ' << isa_name(isa) << " row " << r;
      }
    }
  }
}

TEST(Linear, ManyJobsEqualOneByOneAndStayInsideTheirRows) {
  std::mt19937_64 random(7);
  ThreadPool one(1), three(3);
  const std::int64_t n_in = 512, n_rows = 5;
  const WeightType types[] = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ8_0,
                              WeightType::kF16};
  const std::int64_t outs[] = {70, 16, 1, 33};
  const std::vector<float> x = random_activations(n_rows, n_in + 5, random);
  Activations a(n_rows, n_in);
  a.set(x.data(), n_rows, n_in, n_in + 5, true, true, three);
  std::vector<OwnedMatrix> matrices;
  std::vector<std::vector<float>> y;
  for (int j = 0; j < 4; ++j) {
    matrices.push_back(random_matrix(types[j], outs[j], n_in, random));
    y.emplace_back(static_cast<std::size_t>(n_rows * (outs[j] + 3)), 123.0f);
  }
  std::vector<LinearJob> jobs;
  for (std::size_t j = 0; j < 4; ++j)
    jobs.push_back({&matrices[j].w, nullptr, y[j].data(), outs[j] + 3});
  linear_many(jobs.data(), 4, a, three);
  for (std::size_t j = 0; j < 4; ++j) {
    const auto expected = run_linear(matrices[j], x.data(), n_rows, n_in + 5, nullptr, one);
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const float* row = y[j].data() + r * (outs[j] + 3);
      EXPECT_EQ(0, std::memcmp(row, expected.data() + r * outs[j],
                               static_cast<std::size_t>(outs[j]) * 4));
      for (std::int64_t i = 0; i < 3; ++i) EXPECT_EQ(row[outs[j] + i], 123.0f);
    }
  }
}

// Whatever the parts and chunks: a block is summarised whole.
TEST(Linear, SummariesAreThoseOfTheRowsItWrote) {
  std::mt19937_64 random(9);
  const std::int64_t n_in = 64, n_rows = 3;
  for (const std::int64_t n_out : {50, 64, 4999}) {
    const OwnedMatrix m = random_matrix(WeightType::kQ8_0, n_out, n_in, random);
    const std::vector<float> x = random_activations(n_rows, n_in, random);
    const auto n_blocks = static_cast<std::size_t>(logit_blocks(n_out)), stride = n_blocks + 2;
    const float scales[n_rows] = {1.25f, 0, 2};
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      Activations a(n_rows, n_in);
      a.set(x.data(), n_rows, n_in, n_in, true, true, pool);
      std::vector<float> y(static_cast<std::size_t>(n_rows * n_out));
      std::vector<float> maxima(stride * n_rows, 123), sums = maxima, scaled = maxima;
      const LogitSummary summary{maxima.data(), sums.data(), scales, scaled.data(),
                                 static_cast<std::int64_t>(stride)};
      const LinearJob job{&m.w, nullptr, y.data(), n_out, &summary};
      linear_many(&job, 1, a, pool);
      for (std::size_t r = 0; r < n_rows; ++r) {
        std::vector<float> want(3 * stride, 123);
        logit_block_summary(y.data() + r * static_cast<std::size_t>(n_out), n_out, want.data(),
                            want.data() + stride, scales[r],
                            scales[r] > 0 ? want.data() + 2 * stride : nullptr);
        for (std::size_t b = 0; b < stride; ++b) {
          ASSERT_EQ(maxima[r * stride + b], want[b]) << n_out << ' ' << threads << ' ' << b;
          ASSERT_EQ(sums[r * stride + b], want[stride + b]);
          ASSERT_EQ(scaled[r * stride + b], want[2 * stride + b]);
        }
      }
    }
  }
}

// Extreme codes meet extreme activations: nothing may saturate.
TEST_P(LinearTypes, LargestCodesDoNotSaturate) {
  if (weight_block_values(GetParam()) == 1) GTEST_SKIP() << "no codes";
  std::mt19937_64 random(8);
  ThreadPool pool(1);
  for (const int fill : {0x00, 0xff, 0x80, 0x7f}) {
    OwnedMatrix m = random_matrix(GetParam(), 16, 512, random);
    const std::size_t block = weight_row_bytes(GetParam(), weight_block_values(GetParam()));
    for (std::size_t i = 0; i < m.file.size(); ++i) {
      const std::size_t at = i % block;
      const auto type = GetParam();
      const bool scale = type == WeightType::kQ6_K   ? at >= 208
                         : type == WeightType::kQ3_K ? at >= 108
                         : type == WeightType::kQ2_K
                             ? at >= 80
                             : at < (block == 34 || block == 18 || block == 22 ? 2u : 4u);
      if (!scale) m.file[i] = static_cast<std::byte>(fill);
    }
    pack_rows(m.w, 0, 16, m.file.data());
    for (const int pattern : {0, 1, 2}) {
      std::vector<float> x(512);
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = pattern == 0 ? 1.0f : pattern == 1 ? -1.0f : i % 2 == 0 ? 1.0f : -1.0f;
      std::vector<float> reference;
      for (Isa isa : supported_isas()) {
        const ScopedIsa scoped(isa);
        const auto y = run_linear(m, x.data(), 1, 512, nullptr, pool);
        if (isa == Isa::kScalar) reference = y;
        ASSERT_EQ(y, reference) << isa_name(isa) << " fill " << fill << " pattern " << pattern;
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::kernels
