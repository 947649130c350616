// The head in LibTorch against the head that serves, and its gradients against differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/head_bundle.h"
#include "tests/unit/trainer/head_traffic.h"
#include "tests/unit/trainer/tiny_vocabulary.h"
#include "trainer/head/head_batch.h"

namespace foretoken::trainer {
namespace {

class HeadTwin : public TinyVocabulary {
 protected:
  static constexpr std::int64_t kInner = 64;

  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(TinyVocabulary::SetUp());
    std::vector<TokenId> tokens(160);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = TokenId(2 * i);
    vocabulary_ = std::make_unique<HeadVocabulary>(tokens, *rows_);
    head_ = HeadParameters::initial(kHidden, kInner, 160, 5);
    head_.gain.fill_(0.6);
    head_.outside.fill_(0.3);
    head_.candidate_gain = torch::tensor({0.4f, -0.2f, 0.1f, 0.3f});
    head_.source = 0.3 * torch::randn({kHeadSources, kHidden}, at::detail::createCPUGenerator(8));
  }

  HeadBatch batch(float temperature, int n_steps = 3) {
    HeadTraffic traffic(kHidden, 320, 3);
    RequestTrace trace = traffic.request(5, 24, temperature, true);
    // The second of three drafts is refused, then both of two are accepted, then nothing is
    // drafted.
    trace.rounds = {{.start = 5 + 3, .drafted = {1, 2, 3}, .accepted = 1},
                    {.start = 5 + 5, .drafted = {1, 2}, .accepted = 2},
                    {.start = 5 + 8}};
    auto example = head_example(trace, kHidden, 320, 1.0);
    EXPECT_TRUE(example.has_value());
    const auto shared = std::make_shared<const HeadExample>(std::move(*example));
    const ChainRange range{shared, 0, shared->n_starts()};
    return make_head_batch({&range, 1}, n_steps, *rows_);
  }

  std::unique_ptr<HeadVocabulary> vocabulary_;
  HeadParameters head_;
};

TEST_F(HeadTwin, GoesToABundleAndBackByteForByte) {
  const HeadParts parts = head_.parts(vocabulary_->tokens);
  Bundle bundle = bundle_of(FusionTable::initial());
  add_head(bundle, parts);
  EXPECT_EQ(bundle.kind, "head");
  auto back = head_parts_of(bundle);
  ASSERT_TRUE(back) << back.error().message;
  auto twin = HeadParameters::of(*back);
  ASSERT_TRUE(twin) << twin.error().message;
  Bundle again = bundle_of(FusionTable::initial());
  add_head(again, twin->parts(back->vocab));
  EXPECT_EQ(bundle.tensors, again.tensors);
  bundle.tensors.erase("head.gate");
  EXPECT_FALSE(head_parts_of(bundle));
}

TEST_F(HeadTwin, ScoresAsTheServedHeadDoes) {
  const HeadParts parts = head_.parts(vocabulary_->tokens);
  auto served = RecurrentHead::create(parts, rows_);
  ASSERT_TRUE(served) << served.error().message;
  const auto twin = HeadParameters::of(parts);
  ASSERT_TRUE(twin);
  kernels::ThreadPool pool(1);
  HeadTraffic traffic(kHidden, 320, 4);
  const RequestTrace trace = traffic.request(5, 40, 0, true);
  auto decoded = head_example(trace, kHidden, 320, 1.0);
  ASSERT_TRUE(decoded.has_value());
  const auto example = std::make_shared<const HeadExample>(std::move(*decoded));
  const ChainRange range{example, 0, example->n_starts()};
  const int n_steps = 4;
  const HeadBatch made = make_head_batch({&range, 1}, n_steps, *rows_);
  torch::NoGradGuard no_grad;
  const auto r = run_head(*twin, made.x, made.embedded);
  const auto plain = torch::mm(r, vocabulary_->rows.t()) * twin->gain;
  const HeadScores scores = head_scores(*twin, *vocabulary_, made, r);
  const auto best = scores.scores.argmax(1);
  const auto buffers = (*served)->make_workspace(1);
  HostHeadWorkspace& workspace = *buffers;
  int choices = 0, same = 0;
  SamplingParams greedy;
  greedy.temperature = 0;
  for (std::int64_t c = 0; c < made.n; ++c) {
    std::vector<float> features(std::size_t(kHeadTaps * kHidden));
    const FeatureView view{&example->features[std::size_t(c * kHeadTaps * kHidden)],
                           &example->scales[std::size_t(c * kHeadTaps)], kHidden, 0, 1};
    view.decode(0, kHeadTaps, features.data());
    (*served)->begin(features.data(), 1, workspace, pool);
    for (int s = 0; s < n_steps && made.rows[std::size_t(s * made.n + c)].example; ++s) {
      const TokenId token = example->tokens[std::size_t(c + s)];
      workspace.step({&token, 1}, pool);
      const float* wanted = plain.data_ptr<float>() + (s * made.n + c) * 160;
      double error = 0, norm = 0;
      for (int v = 0; v < 160; ++v) {
        const double difference = double(workspace.logits(0)[v]) - wanted[v];
        error += difference * difference;
        norm += double(wanted[v]) * wanted[v];
      }
      // int8 activations: about 1/254/sqrt(3) a product, a few in a row.
      EXPECT_LT(std::sqrt(error / norm), 0.03) << "chain " << c << ", step " << s;
      const CandidateList& candidates = trace.generated[std::size_t(c + s + 1)].candidates;
      const auto choice = workspace.choose(0, candidates, greedy, 0, true).token;
      const std::int64_t column = best.data_ptr<std::int64_t>()[s * made.n + c];
      ++choices;
      if (column < 160) {
        same += vocabulary_->tokens[std::size_t(column)] == choice;
      } else {  // the slot of a candidate outside the vocabulary
        same += vocabulary_->slot_of[std::size_t(choice)] < 0;
      }
    }
  }
  // Near-ties may fall the other way under int8.
  EXPECT_GE(same, choices * 95 / 100) << same << " of " << choices;
}

// The derivative along the gradient is the gradient's square.
TEST_F(HeadTwin, GradientsAreTheLosssDerivatives) {
  for (const float temperature : {0.0f, 0.7f}) {
    for (const Objective& objective : objectives()) {
      if (objective.name == "hybrid") continue;  // its weight is held fixed: not its derivative
      const HeadBatch made = batch(temperature);
      const std::vector<double> weights = {1.0, 0.8, 0.64};
      const auto loss_of = [&](const HeadParameters& at) {
        torch::NoGradGuard no_grad;
        const auto r = run_head(at, made.x, made.embedded);
        return head_loss(objective, at, *vocabulary_, made, r, weights, 3).sum;
      };
      HeadParameters at = head_.clone();
      for (torch::Tensor& p : at.all()) p.set_requires_grad(true);
      const auto r = run_head(at, made.x, made.embedded);
      r.backward(head_loss(objective, at, *vocabulary_, made, r, weights, 3).r_gradient);
      const char* names[] = {"fc",     "inner", "down",    "gain",
                             "source", "bias",  "outside", "candidate_gain"};
      for (std::size_t i = 0; i < at.all().size(); ++i) {
        const auto gradient = at.all()[i].grad().clone();
        const double squares = gradient.square().sum().item<double>();
        ASSERT_GT(squares, 0) << names[i];
        // One number's derivative is small beside the fp32 rounding of the loss: a longer way.
        const double step = (gradient.numel() == 1 ? 2e-2 : 2e-3) / std::sqrt(squares);
        HeadParameters up = head_.clone(), down = head_.clone();
        up.all()[i].add_(gradient, step);
        down.all()[i].sub_(gradient, step);
        const double slope = (loss_of(up) - loss_of(down)) / (2 * step);
        // Overlap has kinks where q crosses p; the rest is fp32 rounding.
        EXPECT_NEAR(slope / squares, 1, objective.name == "overlap" ? 0.1 : 0.03)
            << names[i] << ", objective " << objective.name << ", T " << temperature;
      }
    }
  }
}

TEST_F(HeadTwin, APositionWhereADraftWasRefusedWeighsAsMuchAsIsAsked) {
  const HeadBatch made = batch(0.0f);
  const HeadExample& example = *made.kept.front();
  EXPECT_EQ(std::ranges::count(example.refused, 1), 1);
  EXPECT_EQ(example.refused[4], 1);
  const std::vector<double> weights = {1.0, 0.8, 0.64};
  const auto r = run_head(head_, made.x, made.embedded);
  const auto loss = [&](double refused_weight) {
    return head_loss(objectives().front(), head_, *vocabulary_, made, r, weights, refused_weight);
  };
  const HeadLoss without = loss(0), plain = loss(1), twice = loss(2);
  // It is predicted by the first step of one chain, the second of another, the third of a third.
  EXPECT_NEAR(plain.weight - without.weight, 1.0 + 0.8 + 0.64, 1e-9);
  EXPECT_GT(plain.sum, without.sum);
  EXPECT_NEAR(twice.sum - plain.sum, plain.sum - without.sum, 1e-9 * plain.sum);
}

// Products in bf16, as on a processor with AMX: the same loss and the same direction, to the eight
// bits that it has.
TEST_F(HeadTwin, InBf16TheGradientsPointTheSameWay) {
  const HeadBatch made = batch(0.0f);
  const std::vector<double> weights = {1.0, 0.8, 0.64};
  const HeadVocabulary rounded_rows(vocabulary_->tokens, *rows_, torch::kBFloat16);
  HeadParameters exact = head_.clone();
  for (torch::Tensor& p : exact.all()) p.set_requires_grad(true);
  HeadParameters rounded = exact.rounded_copy();
  const auto run = [&](const HeadParameters& at, const HeadVocabulary& vocabulary) {
    const auto r = run_head(at, made.x, made.embedded);
    const HeadLoss loss = head_loss(objectives().front(), at, vocabulary, made, r, weights);
    r.backward(loss.r_gradient);
    return loss.sum / loss.weight;
  };
  const double loss = run(exact, *vocabulary_);
  std::vector<torch::Tensor> wanted;
  for (const torch::Tensor& p : {exact.fc, exact.inner, exact.down})
    wanted.push_back(p.grad().clone());
  EXPECT_NEAR(run(rounded, rounded_rows), loss, 0.01 * loss);
  std::size_t i = 0;
  for (const torch::Tensor& p : {rounded.fc, rounded.inner, rounded.down}) {
    ASSERT_TRUE(p.grad().defined());
    EXPECT_GT(
        torch::cosine_similarity(p.grad().to(torch::kFloat32).flatten(), wanted[i].flatten(), 0)
            .item<double>(),
        0.99);
    ++i;
  }
}

}  // namespace
}  // namespace foretoken::trainer
