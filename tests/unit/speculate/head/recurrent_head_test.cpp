// The served head against its definition in double, row independence, and what is refused.
#include "runtime/speculate/head/recurrent_head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "foretoken/kernels/convert.h"
#include "foretoken/kernels/sampling.h"
#include "runtime/model/feature_rows.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/head_bundle.h"
#include "runtime/speculate/head/initial_head.h"
#include "runtime/speculate/learned.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

constexpr std::int64_t kHidden = 128, kInner = 64;

class RecurrentHeadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions options;
    options.hidden = int(kHidden);
    write_tiny_model(folder_.file("tiny.gguf"), options);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    rows_ = *rows;
    std::vector<TokenId> vocab(96);
    for (std::size_t i = 0; i < vocab.size(); ++i) vocab[i] = TokenId(3 * i + 1);
    parts_ = initial_head(kHidden, kInner, vocab, 7);
    parts_.gain = 0.7f;
    parts_.outside = 0.25f;
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal(0, 0.2f);
    for (float& v : parts_.source) v = normal(random);
    parts_.candidate_gain = {0.5f, -0.1f, 0.2f, 0.35f};
    auto head = RecurrentHead::create(parts_, rows_);
    ASSERT_TRUE(head) << head.error().message;
    head_ = *head;
  }

  std::vector<float> features(std::uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> out(std::size_t(kHeadTaps * kHidden));
    for (float& v : out) v = normal(random);
    return out;
  }

  TemporaryDirectory folder_;
  std::shared_ptr<const VocabularyRows> rows_;
  HeadParts parts_;
  std::shared_ptr<const RecurrentHead> head_;
  kernels::ThreadPool pool_{2};
};

// The definition, in double, over the dequantised weights.
struct Reference {
  const HeadParts& p;
  const VocabularyRows& rows;
  std::vector<double> h;

  static std::vector<double> rms(std::span<const double> x) {
    double sum = 0;
    for (double v : x) sum += v * v;
    const double scale = 1 / std::sqrt(sum / double(x.size()) + 1e-6);
    std::vector<double> y(x.begin(), x.end());
    for (double& v : y) v *= scale;
    return y;
  }
  static std::vector<double> times(const HeadMatrix& m, std::int64_t n_in,
                                   std::span<const double> x) {
    const std::size_t row_bytes = kernels::weight_row_bytes(m.type, n_in);
    std::vector<double> y(m.rows.size() / row_bytes);
    std::vector<float> row(std::size_t(n_in), 0.0f);
    for (std::size_t o = 0; o < y.size(); ++o) {
      kernels::dequantize_file_row(m.type, m.rows.data() + o * row_bytes, n_in, row.data());
      for (std::size_t i = 0; i < row.size(); ++i) y[o] += double(row[i]) * x[i];
    }
    return y;
  }
  void begin(std::span<const float> features) {
    std::vector<double> x;
    for (int tap = 0; tap < kHeadTaps; ++tap) {
      const auto part = features.subspan(std::size_t(tap * p.hidden), std::size_t(p.hidden));
      const auto normed = rms(std::vector<double>(part.begin(), part.end()));
      x.insert(x.end(), normed.begin(), normed.end());
    }
    h = times(p.fc, kHeadTaps * p.hidden, x);
  }
  std::vector<double> step(TokenId token) {
    std::vector<float> e(std::size_t(p.hidden));
    rows.embedding(token, e.data());
    auto z = rms(std::vector<double>(e.begin(), e.end()));
    const auto normed = rms(h);
    z.insert(z.end(), normed.begin(), normed.end());
    const auto direct = times(p.step, 2 * p.hidden, z);
    auto gate = times(p.gate, 2 * p.hidden, z);
    const auto up = times(p.up, 2 * p.hidden, z);
    for (std::size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    const auto down = times(p.down, p.inner, gate);
    for (std::size_t i = 0; i < h.size(); ++i) h[i] += direct[i] + down[i];
    const auto r = rms(h);
    std::vector<double> logits(p.vocab.size());
    for (std::size_t v = 0; v < logits.size(); ++v) {
      rows.output(p.vocab[v], e.data());
      for (std::size_t i = 0; i < e.size(); ++i) logits[v] += double(e[i]) * r[i];
      logits[v] *= double(p.gain);
    }
    return logits;
  }
};

// A whole chain, [tokens.size(), V] without candidates. features: [kHeadTaps, H]
std::vector<float> chain(const DraftHead& head, const float* features,
                         std::span<const TokenId> tokens, kernels::ThreadPool& pool) {
  const auto ws = head.make_workspace(1);
  RecurrentHead::begin(features, 1, *ws, pool);
  std::vector<float> out;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ws->step(tokens.subspan(i, 1), pool);
    out.insert(out.end(), ws->logits(0), ws->logits(0) + head.vocab().size());
  }
  return out;
}

TEST_F(RecurrentHeadTest, IsItsDefinition) {
  const std::vector<TokenId> tokens = {5, 200, 17, 301};
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const auto x = features(seed);
    const std::vector<float> out = chain(*head_, x.data(), tokens, pool_);
    Reference reference{parts_, *rows_, {}};
    reference.begin(x);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const auto wanted = reference.step(tokens[t]);
      double error = 0, norm = 0;
      for (std::size_t v = 0; v < wanted.size(); ++v) {
        const double difference = double(out[t * wanted.size() + v]) - wanted[v];
        error += difference * difference;
        norm += wanted[v] * wanted[v];
      }
      // int8 activations: a relative error of about 1/254/sqrt(3) a product, a few in a row.
      EXPECT_LT(std::sqrt(error / norm), 0.03) << "step " << t;
      EXPECT_GT(norm, 0);
    }
  }
}

TEST_F(RecurrentHeadTest, ARowDoesNotDependOnItsBatch) {
  constexpr int kRows = 5;
  std::vector<float> x;
  for (int i = 0; i < kRows; ++i) {
    const auto one = features(std::uint64_t(20 + i));
    x.insert(x.end(), one.begin(), one.end());
  }
  const auto made = head_->make_workspace(8);
  HostHeadWorkspace& ws = *made;
  const std::vector<std::vector<TokenId>> tokens = {
      {1, 2, 3}, {4, 5, 6}, {7, 8, 9}, {10, 11, 12}, {13, 14, 15}};
  head_->begin(x.data(), kRows, ws, pool_);
  std::vector<int> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  for (std::size_t step = 0; step < 3; ++step) {
    std::vector<TokenId> now;
    for (int row : rows) now.push_back(tokens[std::size_t(row)][step]);
    ws.step(now, pool_);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto r = std::size_t(rows[i]);
      kernels::ThreadPool one(1);
      const std::vector<float> alone = chain(*head_, &x[r * std::size_t(kHeadTaps * kHidden)],
                                             std::span(tokens[r]).first(step + 1), one);
      for (std::size_t v = 0; v < parts_.vocab.size(); ++v)
        ASSERT_EQ(ws.logits(int(i))[v], alone[step * parts_.vocab.size() + v]);
    }
    // Rows drop out as drafts end.
    std::vector<int> kept, left;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] == int(step)) continue;
      kept.push_back(int(i));
      left.push_back(rows[i]);
    }
    ws.keep(kept);
    rows = left;
  }
}

TEST_F(RecurrentHeadTest, ChoosesAsTheTargetWould) {
  const auto x = features(1);
  const auto made = head_->make_workspace(1);
  HostHeadWorkspace& ws = *made;
  const auto one_step = [&] {
    const TokenId token = 9;
    head_->begin(x.data(), 1, ws, pool_);
    ws.step(std::span(&token, 1), pool_);
  };
  CandidateList list;
  list.push_back({parts_.vocab[40], 4});
  list.push_back({parts_.vocab[40], traffic_class(4, 9, 10)});
  list.push_back({2, traffic_class(2, 1, 2)});  // outside the vocabulary
  list.push_back({2, traffic_class(3, 1, 2)});
  for (const float temperature : {0.0f, 0.8f}) {
    for (std::int64_t position = 100; position < 140; ++position) {
      SamplingParams sampling;
      sampling.temperature = temperature;
      sampling.seed = 77;
      one_step();
      // By the definition, over every token that has a logit.
      std::vector<std::pair<TokenId, float>> scored;
      for (std::size_t v = 0; v < parts_.vocab.size(); ++v)
        scored.emplace_back(parts_.vocab[v], ws.logits(0)[v]);
      scored.emplace_back(2, parts_.outside);
      for (const Candidate& c : list) {
        double dot = 0;
        for (std::int64_t i = 0; i < kHidden; ++i) {
          dot += double(parts_.source[std::size_t(head_source(c.fusion_class) * kHidden + i)]) *
                 double(ws.state(0)[i]);
        }
        for (std::size_t v = 0; v < scored.size(); ++v) {
          auto& [token, logit] = scored[v];
          if (token != c.token) continue;
          logit += parts_.bias[c.fusion_class] + float(dot);
          if (v < parts_.vocab.size()) {
            logit += parts_.candidate_gain[std::size_t(head_source(c.fusion_class))] *
                     (ws.logits(0)[v] / parts_.gain);
          }
        }
      }
      TokenId wanted = -1;
      double best = -1e30, sum = 0;
      const float inverse = temperature > 0 ? 1 / temperature : 1.0f;
      for (const auto& [token, logit] : scored) {
        double score = double(logit * (temperature > 0 ? inverse : 1.0f));
        sum += std::exp(score);
        if (temperature > 0)
          score += kernels::gumbel(77, std::uint64_t(position), std::uint32_t(token));
        if (score > best || (score == best && token < wanted)) best = score, wanted = token;
      }
      double p = 0;
      for (const auto& [token, logit] : scored)
        if (token == wanted) p = std::exp(double(logit * inverse)) / sum;
      const Proposal got = ws.choose(0, list, sampling, position, true);
      EXPECT_EQ(got.token, wanted) << "T " << temperature << " position " << position;
      EXPECT_NEAR(got.raw, p, 1e-4);
      if (temperature == 0) break;
    }
  }
}

TEST_F(RecurrentHeadTest, RefusesWhatDoesNotFit) {
  const auto refused = [&](auto change) {
    HeadParts bad = parts_;
    change(bad);
    auto head = RecurrentHead::create(bad, rows_);
    return head ? std::string("accepted")
                : head.error().message.substr(0, head.error().message.find(':'));
  };
  EXPECT_EQ(refused([](HeadParts&) {}), "accepted");
  EXPECT_EQ(refused([](HeadParts& p) { p.hidden = 64; }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.inner = 48; }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.vocab[3] = p.vocab[2]; }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.vocab.back() = 320; }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.vocab.pop_back(); }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.down.rows.pop_back(); }), "shape");
  EXPECT_EQ(refused([](HeadParts& p) { p.down.rows[35] = std::byte{0x7c}; }), "non-finite");
  EXPECT_EQ(refused([](HeadParts& p) { p.gain = std::nanf(""); }), "non-finite");
  EXPECT_EQ(refused([](HeadParts& p) { p.source[1] = INFINITY; }), "non-finite");
  EXPECT_EQ(refused([](HeadParts& p) { p.candidate_gain[2] = std::nanf(""); }), "non-finite");
  EXPECT_EQ(refused([](HeadParts& p) { p.gain = 1e-30f, p.candidate_gain[2] = 1e30f; }),
            "non-finite");
}

// Through the bytes that cross the wire: the same proposals, and every spoilt tensor refused.
TEST_F(RecurrentHeadTest, SurvivesItsBundle) {
  FusionTable table = FusionTable::initial();
  table.other = 1.25f;
  Bundle bundle = bundle_of(table);
  add_head(bundle, parts_);
  bundle.version.value = 9;
  const SigningKey key = SigningKey::generate();
  auto parsed = parse_bundle(serialize(bundle, key), {key.public_key()});
  ASSERT_TRUE(parsed) << parsed.error().message;
  auto learned = learned_from_bundle(*parsed, rows_);
  ASSERT_TRUE(learned) << learned.error().message;
  EXPECT_EQ((*learned)->version.value, 9u);
  EXPECT_EQ((*learned)->fusion.other, 1.25f);
  const auto x = features(4);
  const std::vector<TokenId> tokens = {5, 200};
  ASSERT_TRUE((*learned)->head);
  EXPECT_EQ(chain(*head_, x.data(), tokens, pool_),
            chain(*(*learned)->head, x.data(), tokens, pool_));

  const auto refused = [&](auto change) {
    Bundle bad = *parsed;
    change(bad);
    auto made = learned_from_bundle(bad, rows_);
    return made ? std::string("accepted")
                : made.error().message.substr(0, made.error().message.find(':'));
  };
  EXPECT_EQ(refused([](Bundle&) {}), "accepted");
  EXPECT_EQ(refused([](Bundle& w) { w.kind = "transformer"; }), "kind");
  EXPECT_EQ(refused([](Bundle& w) { w.tensors.erase("head.up"); }), "shape");
  EXPECT_EQ(refused([](Bundle& w) { w.tensors["head.down"].shape = {64, 64}; }), "shape");
  EXPECT_EQ(refused([](Bundle& w) { w.tensors["head.extra"] = w.tensors["head.gain"]; }), "shape");
  EXPECT_EQ(refused([](Bundle& w) { w.tensors["head.step"].type = TensorType::kF32; }), "shape");
  EXPECT_EQ(refused([](Bundle& w) {
              const float nan = std::nanf("");
              w.tensors["head.outside"] = BundleTensor::f32({1}, std::span(&nan, 1));
            }),
            "non-finite");
  for (const auto& [name, tensor] : parsed->tensors) {
    EXPECT_EQ(refused([&](Bundle& w) { w.tensors[name].bytes.pop_back(); }), "shape") << name;
    EXPECT_EQ(refused([&](Bundle& w) { w.tensors[name].shape.push_back(1); }), "shape") << name;
  }
  EXPECT_FALSE(learned_from_bundle(*parsed, nullptr));
}

TEST(Canary, IsStickyAndOfItsShare) {
  int canaries = 0, both = 0;
  for (std::uint64_t id = 1; id <= 20000; ++id) {
    const bool now = is_canary(RequestId{id}, SpeculatorVersion{5}, 0.1);
    EXPECT_EQ(now, is_canary(RequestId{id}, SpeculatorVersion{5}, 0.1));
    // A larger share keeps those that were in.
    if (now) {
      EXPECT_TRUE(is_canary(RequestId{id}, SpeculatorVersion{5}, 0.2));
    }
    canaries += now;
    both += now && is_canary(RequestId{id}, SpeculatorVersion{6}, 0.1);
  }
  EXPECT_NEAR(canaries, 2000, 5 * std::sqrt(20000 * 0.09));
  EXPECT_NEAR(both, 200, 5 * std::sqrt(200.0));  // another canary takes others
  EXPECT_FALSE(is_canary(RequestId{3}, SpeculatorVersion{5}, 0));
  EXPECT_TRUE(is_canary(RequestId{3}, SpeculatorVersion{5}, 1));
}

TEST(Features, RoundToHalfTheLargestInOneToTwo) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 1);
  for (const float size : {1e-30f, 1e-3f, 1.0f, 3e4f, 1e30f}) {
    std::vector<float> x(257);
    for (float& v : x) v = normal(random) * size;
    x[5] = 0;
    x[6] = -x[7] * 1e-7f;
    std::vector<std::uint16_t> h(x.size());
    std::vector<float> back(x.size());
    float scale = 0;
    kernels::encode_half(x.data(), std::int64_t(x.size()), h.data(), &scale);
    kernels::decode_half(h.data(), scale, std::int64_t(x.size()), back.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      // Half's 11 bits, and below 2^-14 of the scale its fixed unit.
      const float tolerance = std::max(std::fabs(x[i]) * 0x1p-11f, scale * 0x1p-25f);
      ASSERT_LE(std::fabs(back[i] - x[i]), tolerance) << x[i];
    }
    // What was rounded once is kept: encoding is idempotent.
    std::vector<std::uint16_t> again(x.size());
    float scale_again = 0;
    kernels::encode_half(back.data(), std::int64_t(x.size()), again.data(), &scale_again);
    if (scale == scale_again) {
      EXPECT_EQ(h, again);
    }
  }
  // Not finite becomes 0, and zeros keep a scale.
  const float bad[] = {INFINITY, -INFINITY, std::nanf(""), 0.0f};
  std::uint16_t h[4];
  float scale = 0, back[4];
  kernels::encode_half(bad, 4, h, &scale);
  kernels::decode_half(h, scale, 4, back);
  for (const float v : back) EXPECT_EQ(v, 0.0f);
  EXPECT_EQ(scale, 1.0f);
}

TEST(Q8_0, IsWithinHalfAStep) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<float> x(320), back(320);
  for (float& v : x) v = normal(random);
  std::fill_n(x.begin() + 32, 32, 0.0f);
  const HeadMatrix m = quantized(x);
  kernels::dequantize_file_row(m.type, m.rows.data(), 320, back.data());
  for (std::size_t b = 0; b < 10; ++b) {
    float largest = 0;
    for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[b * 32 + i]));
    for (std::size_t i = 0; i < 32; ++i)
      EXPECT_NEAR(back[b * 32 + i], x[b * 32 + i], largest / 127 * 0.5f + largest * 1e-3f);
  }
}

}  // namespace
}  // namespace foretoken::testing
