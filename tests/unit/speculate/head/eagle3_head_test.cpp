// The served EAGLE-3 head against the published layer in double; what it keeps of a sequence
// against building it anew; rows against their neighbours; what is refused.
#include "runtime/speculate/head/eagle3_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>
#include <random>

#include "foretoken/kernels/convert.h"
#include "runtime/model/feature_rows.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/head_bundle.h"
#include "runtime/speculate/learned.h"
#include "tests/support/eagle3_maker.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

using Doubles = std::vector<double>;

// The layer as it is published, one row after another.
class Published {
 public:
  Published(const Eagle3Parts& parts, std::shared_ptr<const VocabularyRows> rows,
            std::int64_t window)
      : p_(parts), c_(parts.config), rows_(std::move(rows)), window_(window) {}

  // Logits over the draft vocabulary, in the checkpoint's order, after each of `drafted` read past
  // the history. taps: [positions, 3, width] of positions first...; tokens: of positions 0...
  std::vector<Doubles> run(const std::vector<TokenId>& tokens, const Doubles& taps,
                           std::int64_t first, const std::vector<TokenId>& drafted) {
    keys_.clear();
    values_.clear();
    first_ = first;
    const auto width = std::size_t(kEagle3Taps * c_.target_hidden);
    const std::int64_t last = std::int64_t(tokens.size()) - 2;
    Doubles logits, h;
    std::vector<Doubles> out;
    for (std::int64_t position = first; position <= last; ++position) {
      const auto at = std::size_t(position - first) * width;
      h = row(fused({taps.begin() + std::ptrdiff_t(at), taps.begin() + std::ptrdiff_t(at + width)}),
              tokens[std::size_t(position) + 1], position, logits);
    }
    out.push_back(logits);
    for (std::size_t i = 0; i < drafted.size(); ++i) {
      h = row(h, drafted[i], last + 1 + std::int64_t(i), logits);
      out.push_back(logits);
    }
    return out;
  }

 private:
  static Doubles values(const Eagle3Tensor* t) {
    const auto floats = decoded(*t);
    return {floats.begin(), floats.end()};
  }
  static Doubles times(const Eagle3Tensor* w, const Doubles& x) {
    const Doubles m = values(w);
    Doubles y(m.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t k = 0; k < x.size(); ++k) y[o] += m[o * x.size() + k] * x[k];
    return y;
  }
  Doubles normed(Doubles x, const Eagle3Tensor* w) const {
    const Doubles weight = values(w);
    double square = 0;
    for (const double v : x) square += v * v;
    const double scale = 1 / std::sqrt(square / double(x.size()) + double(c_.rms_epsilon));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= scale * weight[i];
    return x;
  }
  Doubles fused(Doubles taps) const {
    if (c_.norm_before_fc) taps = normed(taps, p_.input_norm);
    for (std::size_t t = 0; c_.fc_norm && t < kEagle3Taps; ++t) {
      const auto at = taps.begin() + std::ptrdiff_t(t) * c_.target_hidden;
      const Doubles one = normed({at, at + c_.target_hidden}, p_.fc_norm[t]);
      std::copy(one.begin(), one.end(), at);
    }
    return times(p_.fc, taps);
  }
  // transformers' rotate_half.
  void rotate(Doubles& x, std::int64_t position) const {
    const int half = c_.head_dim / 2;
    for (std::size_t head = 0; head * std::size_t(c_.head_dim) < x.size(); ++head) {
      double* v = &x[head * std::size_t(c_.head_dim)];
      for (int i = 0; i < half; ++i) {
        double frequency = std::pow(double(c_.rope_theta), -2.0 * i / c_.head_dim);
        if (!c_.rope_factors.empty()) frequency /= double(c_.rope_factors[std::size_t(i)]);
        const double angle = double(position) * frequency, a = v[i], b = v[i + half];
        v[i] = a * std::cos(angle) - b * std::sin(angle);
        v[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  // What the next drafted row reads.
  Doubles row(Doubles h, TokenId token, std::int64_t position, Doubles& logits) {
    Doubles e(std::size_t(c_.hidden));
    if (p_.embedding) {
      const Doubles all = values(p_.embedding);
      std::copy_n(all.begin() + std::ptrdiff_t(token) * c_.hidden, c_.hidden, e.begin());
    } else {
      std::vector<float> floats(e.size());
      rows_->embedding(token, floats.data());
      e.assign(floats.begin(), floats.end());
    }
    Doubles z = normed(e, p_.input_layernorm);
    const Doubles hidden = normed(h, p_.hidden_norm);
    z.insert(z.end(), hidden.begin(), hidden.end());
    if (c_.norm_before_residual) h = hidden;
    Doubles q = times(p_.q, z), k = times(p_.k, z);
    rotate(q, position);
    rotate(k, position);
    keys_.push_back(k);
    values_.push_back(times(p_.v, z));
    Doubles attended(q.size());
    const std::int64_t low = std::max(first_, position - window_ + 1);
    for (int head = 0; head < c_.n_heads; ++head) {
      const std::size_t at = std::size_t(head * c_.head_dim),
                        kv = std::size_t(head / (c_.n_heads / c_.n_kv_heads) * c_.head_dim);
      double sum = 0;
      for (std::int64_t t = low; t <= position; ++t) {
        const auto index = std::size_t(t - first_);
        double score = 0;
        for (std::size_t d = 0; d < std::size_t(c_.head_dim); ++d)
          score += q[at + d] * keys_[index][kv + d];
        const double weight = std::exp(score / std::sqrt(double(c_.head_dim)));
        sum += weight;
        for (std::size_t d = 0; d < std::size_t(c_.head_dim); ++d)
          attended[at + d] += weight * values_[index][kv + d];
      }
      for (std::size_t d = 0; d < std::size_t(c_.head_dim); ++d) attended[at + d] /= sum;
    }
    const Doubles branch = times(p_.o, attended);
    for (std::size_t i = 0; i < h.size(); ++i) h[i] += branch[i];
    const Doubles m = normed(h, p_.post_attention_layernorm);
    Doubles gate = times(p_.gate, m);
    const Doubles up = times(p_.up, m);
    for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    const Doubles down = times(p_.down, gate);
    for (std::size_t i = 0; i < h.size(); ++i) h[i] += down[i];
    const Doubles r = normed(h, p_.norm);
    logits = times(p_.lm_head, r);
    return c_.norm_output ? r : h;
  }

  const Eagle3Parts& p_;
  const Eagle3Config& c_;
  std::shared_ptr<const VocabularyRows> rows_;
  const std::int64_t window_;
  std::int64_t first_ = 0;
  std::vector<Doubles> keys_, values_;
};

class Eagle3HeadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions options;
    options.hidden = 128;
    write_tiny_model(folder_.file("tiny.gguf"), options);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    rows_ = *rows;
  }

  // A sequence: tokens, and features of every position but the last, as they are logged.
  struct Sequence {
    std::vector<TokenId> tokens;
    std::vector<std::uint16_t> values;
    std::vector<float> scales;
    FeatureView view(std::int64_t first, std::size_t length) const {
      return {values.data(),
              scales.data(),
              128,
              first,
              std::int64_t(length) - 1,
              0,
              std::int64_t(tokens.size())};
    }
  };
  static Sequence sequence(std::size_t length, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 2);
    Sequence s;
    for (std::size_t i = 0; i < length; ++i) s.tokens.push_back(TokenId(random() % 320));
    std::vector<float> taps(kHeadTaps * 128);
    s.values.resize(length * taps.size());
    s.scales.resize(length * kHeadTaps);
    for (std::size_t i = 0; i < length; ++i) {
      for (float& v : taps) v = normal(random);
      encode_features(taps.data(), 128, &s.values[i * taps.size()], &s.scales[i * kHeadTaps]);
    }
    return s;
  }
  std::shared_ptr<const Eagle3Head> make(const Eagle3Checkpoint& checkpoint,
                                         const Eagle3Options& options = {}) {
    auto head = Eagle3Head::create(checkpoint, HeadTerms::none(width_), rows_, options);
    EXPECT_TRUE(head) << head.error().message;
    return head ? *head : nullptr;
  }
  HeadMemory memory_of(const DraftHead& head) {
    HeadMemory memory;
    head.make_workspace(1)->reserve(memory);
    return memory;
  }

  std::int64_t width_ = 128;
  TemporaryDirectory folder_;
  std::shared_ptr<const VocabularyRows> rows_;
  kernels::ThreadPool pool_{2};
};

TEST_F(Eagle3HeadTest, IsThePublishedLayer) {
  struct Case {
    const char* name;
    std::function<void(RandomEagle3&)> change;
  };
  const Case cases[] = {
      {"plain", [](RandomEagle3&) {}},
      {"residual of the normed feature",
       [](RandomEagle3& r) { r.config.norm_before_residual = true; }},
      {"a norm before fc and one of the output",
       [](RandomEagle3& r) { r.config.norm_before_fc = r.config.norm_output = true; }},
      {"a norm a tap, f32, own embedding",
       [](RandomEagle3& r) {
         r.config.fc_norm = r.own_embedding = true;
         r.type = SafetensorType::kF32;
       }},
      {"f16, four heads, stretched rotary",
       [](RandomEagle3& r) {
         r.type = SafetensorType::kF16;
         r.config.n_heads = 4;
         r.config.n_kv_heads = 2;
         r.config.head_dim = 48;
         r.config.rope_factors.assign(24, 3.0f);
         r.config.rope_scaling = R"({"rope_type":"linear","factor":3.0})";
       }},
      {"another width than the target's", [](RandomEagle3& r) {
         r.config.hidden = 96;
         r.own_embedding = true;
       }}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    RandomEagle3 options = tiny_eagle3();
    options.logit_scale = 3;
    c.change(options);
    const Eagle3Checkpoint checkpoint = random_eagle3(options);
    auto parts = eagle3_parts(checkpoint);
    ASSERT_TRUE(parts) << parts.error().message;
    width_ = parts->config.hidden;
    const auto exact = make(checkpoint, {.as_stored = true, .window = 20});
    const auto served = make(checkpoint, {.window = 20});
    ASSERT_TRUE(exact && served);
    EXPECT_EQ(exact->taps(), (HeadTaps{0, 1, 2, 3}));
    const Sequence s = sequence(33, 9);
    const std::vector<TokenId> drafted = {5, 300, 17};
    constexpr std::int64_t kFirst = 3;
    Doubles taps;
    std::vector<float> one(kEagle3Taps * 128);
    const FeatureView view = s.view(kFirst, s.tokens.size());
    for (std::int64_t p = kFirst; p < view.end; ++p) {
      view.decode(p, kEagle3Taps, one.data());
      taps.insert(taps.end(), one.begin(), one.end());
    }
    const auto wanted = Published(*parts, rows_, 20).run(s.tokens, taps, kFirst, drafted);
    for (const auto& head : {exact, served}) {
      const auto ws = head->make_workspace(1);
      HeadMemory memory = memory_of(*head);
      const HeadStart start{s.tokens, view, &memory};
      ws->begin(std::span(&start, 1), pool_);
      for (std::size_t step = 0; step < wanted.size(); ++step) {
        const TokenId token = step == 0 ? s.tokens.back() : drafted[step - 1];
        ws->step(std::span(&token, 1), pool_);
        double error = 0, size = 0, mean = 0;
        for (const double v : wanted[step]) mean += v / double(wanted[step].size());
        for (std::size_t i = 0; i < wanted[step].size(); ++i) {
          // The head's rows are by the target's ids.
          const auto at = std::ranges::lower_bound(head->vocab(), parts->vocab[i]);
          const double found = double(ws->logits(0)[at - head->vocab().begin()]);
          error += (found - wanted[step][i]) * (found - wanted[step][i]);
          size += (wanted[step][i] - mean) * (wanted[step][i] - mean);
        }
        const double relative = std::sqrt(error / size);
        // Float against double; then int8 weights and activations, through five products.
        if (head == exact)
          EXPECT_LT(relative, 2e-4) << step;
        else
          EXPECT_LT(relative, 0.06) << step;
      }
    }
  }
}

// A mapping that is not in order, and offsets: what is proposed is the target's token.
TEST_F(Eagle3HeadTest, ProposesTheTargetsTokens) {
  RandomEagle3 options = tiny_eagle3();
  std::mt19937_64 random(4);
  std::vector<TokenId> all(320);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  options.vocab.assign(all.begin(), all.begin() + 96);
  const Eagle3Checkpoint checkpoint = random_eagle3(options);
  auto parts = eagle3_parts(checkpoint);
  ASSERT_TRUE(parts) << parts.error().message;
  const auto head = make(checkpoint, {.as_stored = true});
  const Sequence s = sequence(12, 2);
  Doubles taps;
  std::vector<float> one(kEagle3Taps * 128);
  const FeatureView view = s.view(0, s.tokens.size());
  for (std::int64_t p = 0; p < view.end; ++p) {
    view.decode(p, kEagle3Taps, one.data());
    taps.insert(taps.end(), one.begin(), one.end());
  }
  const auto wanted = Published(*parts, rows_, kHeadWindow).run(s.tokens, taps, 0, {})[0];
  const auto best = std::size_t(std::ranges::max_element(wanted) - wanted.begin());
  const auto ws = head->make_workspace(1);
  HeadMemory memory = memory_of(*head);
  const HeadStart start{s.tokens, view, &memory};
  ws->begin(std::span(&start, 1), pool_);
  ws->step(std::span(&s.tokens.back(), 1), pool_);
  SamplingParams sampling;
  sampling.temperature = 0;
  const Proposal p = ws->choose(0, {}, sampling, 12, true);
  EXPECT_EQ(p.token, options.vocab[best]);
  EXPECT_NE(options.vocab[best], TokenId(best));
  double sum = 0;
  for (const double v : wanted) sum += std::exp(v - wanted[best]);
  EXPECT_NEAR(p.raw, 1 / sum, 1e-3);
  // A candidate it cannot say stays unsaid: it was not trained with them.
  CandidateList outside;
  outside.push_back({all[200], 4});
  ws->begin(std::span(&start, 1), pool_);
  ws->step(std::span(&s.tokens.back(), 1), pool_);
  EXPECT_EQ(ws->choose(0, outside, sampling, 12, true).token, p.token);
}

// Round after round, with what is kept; from nothing; among other rows, on other threads: the same
// bits. And a window is a window.
TEST_F(Eagle3HeadTest, WhatIsKeptIsWhatWouldBeBuilt) {
  const auto head = make(random_eagle3(tiny_eagle3()));
  const auto ws = head->make_workspace(4), alone = head->make_workspace(1);
  std::vector<Sequence> all;
  for (std::uint64_t i = 0; i < 3; ++i) all.push_back(sequence(700, 40 + i));
  std::vector<HeadMemory> kept;
  for (int i = 0; i < 3; ++i) kept.push_back(memory_of(*head));
  std::vector<std::size_t> length = {2, 40, 300};
  std::mt19937_64 random(8);
  kernels::ThreadPool one(1);
  for (int round = 0; round < 60; ++round) {
    std::vector<HeadStart> starts;
    for (std::size_t i = 0; i < all.size(); ++i) {
      starts.push_back(
          {std::span(all[i].tokens).first(length[i]),
           all[i].view(std::max<std::int64_t>(0, std::int64_t(length[i]) - 257), length[i]),
           &kept[i]});
    }
    ws->begin(starts, pool_);
    const int steps = 1 + int(random() % 4);
    std::vector<std::vector<TokenId>> drafted(3);
    std::vector<int> rows = {0, 1, 2};
    for (int step = 0; step < steps; ++step) {
      std::vector<TokenId> now;
      for (const int r : rows) {
        const auto i = std::size_t(r);
        const TokenId token =
            step == 0 ? all[i].tokens[length[i] - 1] : TokenId(random() % 320);  // mostly wrong
        drafted[i].push_back(token);
        now.push_back(token);
      }
      ws->step(now, pool_);
      for (std::size_t at = 0; at < rows.size(); ++at) {
        const auto i = std::size_t(rows[at]);
        HeadMemory fresh = memory_of(*head);
        HeadStart start = starts[i];
        start.memory = &fresh;
        alone->begin(std::span(&start, 1), one);
        for (const TokenId token : drafted[i]) alone->step(std::span(&token, 1), one);
        for (std::size_t v = 0; v < head->vocab().size(); ++v)
          ASSERT_EQ(ws->logits(int(at))[v], alone->logits(0)[v]) << round << ' ' << step;
      }
      if (rows.size() > 1 && random() % 3 == 0) {
        std::vector<int> keep(rows.size() - 1);
        std::iota(keep.begin(), keep.end(), 1);
        ws->keep(keep);
        rows.erase(rows.begin());
      }
    }
    for (std::size_t& l : length) l += 1 + random() % 5;
  }
}

TEST_F(Eagle3HeadTest, SeesItsWindowAndNothingBefore) {
  const auto head = make(random_eagle3(tiny_eagle3()));
  Sequence s = sequence(600, 3);
  const auto ws = head->make_workspace(1);
  const auto logits = [&](std::int64_t first) {
    HeadMemory memory = memory_of(*head);
    const HeadStart start{s.tokens, s.view(first, s.tokens.size()), &memory};
    ws->begin(std::span(&start, 1), pool_);
    ws->step(std::span(&s.tokens.back(), 1), pool_);
    return std::vector<float>(ws->logits(0), ws->logits(0) + head->vocab().size());
  };
  const auto whole = logits(0);
  EXPECT_EQ(logits(599 - kHeadWindow), whole);
  EXPECT_NE(logits(600 - kHeadWindow), whole);
  s.tokens[std::size_t(599 - kHeadWindow)] += 1;  // embedded by the row before
  EXPECT_EQ(logits(0), whole);
  s.tokens[std::size_t(600 - kHeadWindow)] = TokenId((s.tokens[600 - kHeadWindow] + 1) % 320);
  EXPECT_NE(logits(0), whole);
}

TEST_F(Eagle3HeadTest, RefusesAnotherTarget) {
  const auto error = [&](const std::function<void(RandomEagle3&)>& change) {
    RandomEagle3 options = tiny_eagle3();
    change(options);
    auto head =
        Eagle3Head::create(random_eagle3(options), HeadTerms::none(options.config.hidden), rows_);
    return head ? "accepted" : head.error().message.substr(0, head.error().message.find(':'));
  };
  EXPECT_EQ(error([](RandomEagle3&) {}), "accepted");
  EXPECT_EQ(error([](RandomEagle3& r) { r.config.target_hidden = 64; }), "missing");  // embedding
  EXPECT_EQ(error([](RandomEagle3& r) {
              r.config.target_hidden = 64;
              r.own_embedding = true;
            }),
            "shape");
  EXPECT_EQ(error([](RandomEagle3& r) { r.config.n_vocab = 321; }), "shape");
  // Taps beyond the target's last layer.
  EXPECT_EQ(error([](RandomEagle3& r) {
              r.config.layer_ids = {{1, 2, 5}};
              r.n_layers = 8;
            }),
            "config");
  // And from a bundle, as a server takes it.
  Bundle bundle = bundle_of(FusionTable::initial());
  add_eagle3(bundle, random_eagle3(tiny_eagle3()), HeadTerms::none(128));
  auto weights = learned_from_bundle(bundle, rows_);
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_STREQ((*weights)->head->kind(), "eagle3");
  bundle.tensors.at("head.source") = BundleTensor::f32({kHeadSources, 64}, std::vector<float>(256));
  EXPECT_FALSE(learned_from_bundle(bundle, rows_));
  bundle.tensors.erase("head.source");
  EXPECT_FALSE(learned_from_bundle(bundle, rows_));
}

}  // namespace
}  // namespace foretoken::testing
