// The published layer in LibTorch: the reference of the EAGLE-3 head that serves, on random
// checkpoints; into a checkpoint and back; gradients against differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "runtime/model/feature_rows.h"
#include "runtime/speculate/head/eagle3_head.h"
#include "tests/support/eagle3_maker.h"
#include "tests/unit/trainer/tiny_vocabulary.h"
#include "trainer/head/eagle3_twin.h"

namespace foretoken::trainer {
namespace {

using foretoken::testing::random_eagle3;
using foretoken::testing::RandomEagle3;
using foretoken::testing::tiny_eagle3;

class Eagle3Twin : public TinyVocabulary {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(TinyVocabulary::SetUp());
    std::mt19937_64 random(6);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> taps(kHeadTaps * kHidden);
    values_.resize(kLength * taps.size());
    scales_.resize(kLength * kHeadTaps);
    for (std::size_t i = 0; i < kLength; ++i) {
      tokens_.push_back(TokenId(random() % 320));
      for (float& v : taps) v = normal(random);
      encode_features(taps.data(), kHidden, &values_[i * taps.size()], &scales_[i * kHeadTaps]);
    }
  }
  FeatureView view(std::int64_t first, std::int64_t length) const {
    return {values_.data(), scales_.data(), kHidden, first, length - 1, 0, kLength};
  }
  // Chains from each of the last n_chains rows that leave room for n_steps tokens.
  Eagle3Segment segment(const Eagle3Parameters& head, std::int64_t first, std::int64_t n_chains,
                        int n_steps) const {
    Eagle3Segment s;
    const std::int64_t rows = std::int64_t(kLength) - n_steps - first;
    s.first = first;
    s.n_chains = n_chains;
    s.taps = torch::empty({rows, kEagle3Taps * kHidden});
    s.embedded = torch::empty({rows + n_steps - 1, head.config.hidden});
    for (std::int64_t r = 0; r < rows; ++r)
      view(0, kLength)
          .decode(first + r, kEagle3Taps, s.taps.data_ptr<float>() + r * kEagle3Taps * kHidden);
    for (std::int64_t r = 0; r < s.embedded.size(0); ++r) {
      const TokenId token = tokens_[std::size_t(first + r + 1)];
      float* to = s.embedded.data_ptr<float>() + r * head.config.hidden;
      if (head.embedding.defined())
        std::copy_n(head.embedding.data_ptr<float>() + token * head.config.hidden,
                    head.config.hidden, to);
      else
        rows_->embedding(token, to);
    }
    return s;
  }

  static constexpr std::size_t kLength = 48;
  std::vector<TokenId> tokens_;
  std::vector<std::uint16_t> values_;
  std::vector<float> scales_;
};

std::vector<RandomEagle3> variants() {
  std::vector<RandomEagle3> all(4, tiny_eagle3());
  for (RandomEagle3& r : all) r.logit_scale = 3;
  all[1].config.norm_before_residual = all[1].config.norm_output = true;
  all[1].config.norm_before_fc = true;
  all[2].config.fc_norm = true;
  all[2].config.n_heads = 4;
  all[2].config.n_kv_heads = 2;
  all[2].config.head_dim = 48;
  all[2].type = SafetensorType::kF16;
  all[2].config.rope_factors.assign(24, 3.0f);
  all[2].config.rope_scaling = R"({"rope_type":"linear","factor":3.0})";
  all[3].config.hidden = 96;
  all[3].own_embedding = true;
  all[3].type = SafetensorType::kF32;
  return all;
}

TEST_F(Eagle3Twin, IsTheHeadThatServes) {
  constexpr int kSteps = 4;
  constexpr std::int64_t kWindow = 20, kFirst = 2, kChains = 30;
  int which = 0;
  for (const RandomEagle3& options : variants()) {
    SCOPED_TRACE(which++);
    const Eagle3Checkpoint checkpoint = random_eagle3(options);
    auto twin = Eagle3Parameters::of(checkpoint);
    ASSERT_TRUE(twin) << twin.error().message;
    auto served = Eagle3Head::create(checkpoint, HeadTerms::none(twin->config.hidden), rows_,
                                     {.as_stored = true, .window = kWindow});
    ASSERT_TRUE(served) << served.error().message;
    torch::NoGradGuard no_grad;
    const Eagle3Segment made = segment(*twin, kFirst, kChains, kSteps);
    const auto logits =
        torch::mm(run_eagle3(*twin, made, kSteps, kWindow), twin->lm_head.t());  // [steps n, V]
    const auto ws = (*served)->make_workspace(1);
    kernels::ThreadPool pool(1);
    for (std::int64_t c = 0; c < kChains; ++c) {
      const std::int64_t position = kFirst + made.taps.size(0) - kChains + c;
      HeadMemory memory;
      ws->reserve(memory);
      const HeadStart start{std::span(tokens_).first(std::size_t(position) + 2),
                            view(kFirst, position + 2), &memory};
      ws->begin(std::span(&start, 1), pool);
      for (int s = 0; s < kSteps; ++s) {
        ws->step(std::span(tokens_).subspan(std::size_t(position + 1 + s), 1), pool);
        const float* wanted =
            logits.data_ptr<float>() + (s * kChains + c) * std::int64_t(twin->vocab.size());
        double error = 0, size = 0;
        for (std::size_t v = 0; v < twin->vocab.size(); ++v) {
          const auto at = std::ranges::lower_bound((*served)->vocab(), twin->vocab[v]);
          const double found = double(ws->logits(0)[at - (*served)->vocab().begin()]);
          error += (found - double(wanted[v])) * (found - double(wanted[v]));
          size += double(wanted[v]) * double(wanted[v]);
        }
        ASSERT_LT(std::sqrt(error / size), 3e-4) << "chain " << c << ", step " << s;
      }
    }
  }
}

TEST_F(Eagle3Twin, GoesIntoACheckpointAndBack) {
  for (const RandomEagle3& options : variants()) {
    const Eagle3Checkpoint checkpoint = random_eagle3(options);
    auto twin = Eagle3Parameters::of(checkpoint);
    ASSERT_TRUE(twin) << twin.error().message;
    EXPECT_EQ(twin->rounded_into(checkpoint), checkpoint);
    // What is learned arrives, and is a head again.
    torch::NoGradGuard no_grad;
    for (auto& [name, values] : twin->named()) values.mul_(1.25);
    const Eagle3Checkpoint learned = twin->rounded_into(checkpoint);
    ASSERT_TRUE(eagle3_parts(learned));
    auto back = Eagle3Parameters::of(learned);
    ASSERT_TRUE(back);
    for (std::size_t i = 0; i < twin->named().size(); ++i) {
      const auto a = twin->named()[i].second, b = back->named()[i].second;
      EXPECT_LT((a - b).abs().max().item<float>(), 0.01f * a.abs().max().item<float>())
          << twin->named()[i].first;
    }
  }
}

// The derivative along the gradient is the gradient's square, through every parameter.
TEST_F(Eagle3Twin, GradientsAreDerivatives) {
  int which = 0;
  for (const RandomEagle3& options : variants()) {
    SCOPED_TRACE(which++);
    auto twin = Eagle3Parameters::of(random_eagle3(options));
    ASSERT_TRUE(twin);
    constexpr int kSteps = 3;
    Eagle3Segment made = segment(*twin, 0, 12, kSteps);
    // In double, so that differences are not of rounding.
    for (torch::Tensor* t :
         {&twin->fc, &twin->input_norm, &twin->fc_norm, &twin->input_layernorm, &twin->hidden_norm,
          &twin->post_attention_layernorm, &twin->norm, &twin->q, &twin->k, &twin->v, &twin->o,
          &twin->gate, &twin->up, &twin->down, &twin->lm_head, &made.taps, &made.embedded})
      if (t->defined()) *t = t->to(torch::kFloat64);
    const auto loss = [&] {
      const auto logits = torch::mm(run_eagle3(*twin, made, kSteps, 256), twin->lm_head.t());
      return -torch::log_softmax(logits, 1).select(1, 7).mean();
    };
    for (const auto& [name, values] : twin->named()) {
      torch::Tensor parameter = values;
      if (name.starts_with("fc_norm")) continue;  // views of one parameter
      parameter.set_requires_grad(true);
      loss().backward();
      const auto gradient = parameter.grad().clone();
      parameter.set_requires_grad(false);
      parameter.mutable_grad().reset();
      torch::NoGradGuard no_grad;
      const double squares = gradient.square().sum().item<double>();
      ASSERT_GT(squares, 0) << name;
      const double step = 1e-3 / std::sqrt(squares);
      parameter.add_(gradient, step);
      const double above = loss().item<double>();
      parameter.sub_(gradient, 2 * step);
      const double below = loss().item<double>();
      parameter.add_(gradient, step);
      EXPECT_NEAR((above - below) / (2 * step) / squares, 1, 0.01) << name;
    }
  }
}

}  // namespace
}  // namespace foretoken::trainer
