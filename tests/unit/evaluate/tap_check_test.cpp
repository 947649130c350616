// The tap check on a target and a head whose every weight has a purpose: the head is right with the
// hidden states of one layer and says nonsense with those of its neighbours.
#include "runtime/evaluate/tap_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

#include "runtime/speculate/head/eagle3_head.h"
#include "tests/support/eagle3_maker.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Dimensions of the residual stream: a constant, a token's code, a mark that each block leaves.
constexpr int kHidden = 64, kLayers = 4, kTokens = 64, kCode = 1, kCodeBits = 32, kMark = 40,
              kEarly = 50, kLate = 51, kNonsense = 7;

struct Rig {
  std::vector<std::array<float, kCodeBits>> code{kTokens};
  std::vector<int> before{std::vector<int>(kTokens)};  // after before[y] comes y
  std::shared_ptr<const Model> model;
  std::shared_ptr<const VocabularyRows> rows;
  std::vector<TokenId> text;
};

std::vector<float> zeros(int n_out, int n_in) {
  return std::vector<float>(std::size_t(n_out * n_in));
}
void set(std::vector<float>& matrix, int n_in, int row, int column, float value) {
  matrix[std::size_t(row * n_in + column)] = value;
}

// The next token is a function of the last one, whatever the blocks do beside leaving their mark.
Rig make_rig(const std::string& path) {
  Rig rig;
  std::mt19937_64 random(5);
  for (auto& code : rig.code)
    for (float& bit : code) bit = random() % 2 ? 1.0f : -1.0f;
  for (int y = 0; y < kTokens; ++y) rig.before[std::size_t(y)] = (y * 23 + 11) % kTokens;
  GgufWriter w;
  w.add_string("general.architecture", "llama");
  w.add_uint32("llama.block_count", kLayers);
  w.add_uint32("llama.embedding_length", kHidden);
  w.add_uint32("llama.feed_forward_length", 32);
  w.add_uint32("llama.attention.head_count", 1);
  w.add_uint32("llama.context_length", 2048);
  w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6f);
  auto embedding = zeros(kTokens, kHidden), output = zeros(kTokens, kHidden);
  for (int t = 0; t < kTokens; ++t) {
    set(embedding, kHidden, t, 0, 1);
    for (int b = 0; b < kCodeBits; ++b) {
      set(embedding, kHidden, t, kCode + b, rig.code[std::size_t(t)][std::size_t(b)]);
      set(output, kHidden, t, kCode + b,
          rig.code[std::size_t(rig.before[std::size_t(t)])][std::size_t(b)]);
    }
  }
  const std::vector<float> ones(kHidden, 1.0f);
  w.add_tensor("token_embd.weight", {kHidden, kTokens}, embedding);
  w.add_tensor("output.weight", {kHidden, kTokens}, output);
  w.add_tensor("output_norm.weight", {kHidden}, ones);
  for (int l = 0; l < kLayers; ++l) {
    const std::string b = "blk." + std::to_string(l) + ".";
    w.add_tensor(b + "attn_norm.weight", {kHidden}, ones);
    w.add_tensor(b + "ffn_norm.weight", {kHidden}, ones);
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"})
      w.add_tensor(b + name + ".weight", {kHidden, kHidden}, zeros(kHidden, kHidden));
    auto gate = zeros(32, kHidden), up = zeros(32, kHidden), down = zeros(kHidden, 32);
    set(gate, kHidden, 0, 0, 4);
    set(up, kHidden, 0, 0, 1);
    set(down, 32, kMark + l, 0, 0.05f);
    w.add_tensor(b + "ffn_gate.weight", {kHidden, 32}, gate);
    w.add_tensor(b + "ffn_up.weight", {kHidden, 32}, up);
    w.add_tensor(b + "ffn_down.weight", {32, kHidden}, down);
  }
  w.write(path);
  auto model = Model::load(path, {.threads = 1});
  EXPECT_TRUE(model) << model.error().message;
  rig.model = *model;
  rig.rows = *VocabularyRows::of(rig.model);
  for (int i = 0; i < 400; ++i) rig.text.push_back(TokenId(random() % kTokens));
  return rig;
}

// Reads block 1's outputs rightly: there the marks of blocks 0 and 1 are set and that of block 2 is
// not. ids: what its configuration claims.
std::shared_ptr<const Eagle3Head> make_head(const Rig& rig, std::array<int, 3> ids, float mark) {
  RandomEagle3 r = tiny_eagle3();
  Eagle3Config& c = r.config;
  c.hidden = c.target_hidden = kHidden;
  c.ffn = 32;
  c.n_heads = c.n_kv_heads = 1;
  c.head_dim = kHidden;
  c.n_vocab = c.n_draft_vocab = kTokens;
  c.layer_ids = ids;
  r.n_layers = kLayers;
  r.type = SafetensorType::kF32;
  Eagle3Checkpoint checkpoint = random_eagle3(r);
  const auto put = [&](const std::string& name, int n_out, int n_in, const std::vector<float>& m) {
    checkpoint.tensors.at(name) = encoded(SafetensorType::kF32, {n_out, n_in}, m);
  };
  for (const char* name : {"layers.0.input_layernorm.weight", "layers.0.hidden_norm.weight",
                           "layers.0.post_attention_layernorm.weight", "norm.weight"})
    checkpoint.tensors.at(name) =
        encoded(SafetensorType::kF32, {kHidden}, std::vector<float>(kHidden, 1.0f));
  auto fc = zeros(kHidden, 3 * kHidden);
  set(fc, 3 * kHidden, kLate, kMark + 2, 50);
  set(fc, 3 * kHidden, kEarly, kMark + 1, -50);
  set(fc, 3 * kHidden, kEarly, 0, 50 * mark);
  put("fc.weight", kHidden, 3 * kHidden, fc);
  // A row attends to itself: queries and keys are one constant in the fast turning pairs.
  auto q = zeros(kHidden, 2 * kHidden), v = q, o = zeros(kHidden, kHidden);
  for (int i = 0; i < 10; ++i) set(q, 2 * kHidden, i, 0, 30);
  for (int b = 0; b < kCodeBits; ++b) {
    set(v, 2 * kHidden, b, kCode + b, 1);
    set(o, kHidden, kCode + b, b, 1);
  }
  put("layers.0.self_attn.q_proj.weight", kHidden, 2 * kHidden, q);
  put("layers.0.self_attn.k_proj.weight", kHidden, 2 * kHidden, q);
  put("layers.0.self_attn.v_proj.weight", kHidden, 2 * kHidden, v);
  put("layers.0.self_attn.o_proj.weight", kHidden, kHidden, o);
  put("layers.0.mlp.down_proj.weight", kHidden, 32, zeros(kHidden, 32));
  auto lm_head = zeros(kTokens, kHidden);
  for (int t = 0; t < kTokens; ++t)
    for (int b = 0; b < kCodeBits; ++b)
      set(lm_head, kHidden, t, kCode + b,
          rig.code[std::size_t(rig.before[std::size_t(t)])][std::size_t(b)]);
  set(lm_head, kHidden, kNonsense, kEarly, 40);
  set(lm_head, kHidden, kNonsense, kLate, 40);
  put("lm_head.weight", kTokens, kHidden, lm_head);
  auto head = Eagle3Head::create(checkpoint, HeadTerms::none(kHidden), rig.rows);
  EXPECT_TRUE(head) << head.error().message;
  return *head;
}

TEST(TapCheck, RefusesAHeadThatIsRightOneLayerAway) {
  const TemporaryDirectory folder;
  const Rig rig = make_rig(folder.file("rig.gguf"));
  kernels::ThreadPool pool(1);
  // What a block's mark is, in units of the constant: silu(4 c) c / 20 of the normed constant c.
  const double c = 1 / std::sqrt((1 + kCodeBits) / double(kHidden));
  const float mark = float(0.05 * c * 4 * c / (1 + std::exp(-4 * c)));
  // hits: whether it is right as configured, one layer earlier, one later.
  const auto judged = [&](std::array<int, 3> ids, std::array<int, 3> hits) {
    const auto head = make_head(rig, ids, mark);
    auto check = check_taps(*rig.model, *head, rig.text, pool);
    EXPECT_TRUE(check) << check.error().message;
    // There is no layer before the first.
    EXPECT_EQ(check->shifts.size(), ids[0] == 1 ? 2u : 3u);
    for (const TapCheck::Shift& shift : check->shifts) {
      EXPECT_EQ(shift.right.size(), kTapProbeTokens);
      const bool right = hits[shift.by == 0 ? 0 : shift.by < 0 ? 1 : 2] != 0;
      if (right)
        EXPECT_GT(shift.hits(), int(kTapProbeTokens) * 9 / 10) << shift.by;
      else
        EXPECT_LT(shift.hits(), int(kTapProbeTokens) / 10) << shift.by;
    }
    const auto verdict = judge_taps(*check);
    return verdict ? std::string("good") : verdict.error().message;
  };
  EXPECT_EQ(judged({2, 2, 2}, {1, 0, 0}), "good");
  const std::string early = judged({1, 1, 1}, {0, 0, 1}), late = judged({3, 3, 3}, {0, 1, 0});
  EXPECT_THAT(early, StartsWith("taps: "));
  EXPECT_THAT(early, HasSubstr("one layer later"));
  EXPECT_THAT(early, HasSubstr("should be [2, 2, 2]"));
  EXPECT_THAT(late, HasSubstr("one layer earlier"));
  EXPECT_THAT(late, HasSubstr("should be [2, 2, 2]"));
}

TEST(TapCheck, ProvesNothingAgainstAHeadThatKnowsNothing) {
  const TemporaryDirectory folder;
  const Rig rig = make_rig(folder.file("rig.gguf"));
  kernels::ThreadPool pool(1);
  RandomEagle3 r = tiny_eagle3();
  r.config.hidden = r.config.target_hidden = kHidden;
  r.config.n_vocab = r.config.n_draft_vocab = kTokens;
  r.n_layers = kLayers;
  auto head = Eagle3Head::create(random_eagle3(r), HeadTerms::none(kHidden), rig.rows);
  ASSERT_TRUE(head) << head.error().message;
  auto check = check_taps(*rig.model, **head, rig.text, pool);
  ASSERT_TRUE(check) << check.error().message;
  EXPECT_EQ(check->shifts.size(), 2u);  // there is no layer before the first
  EXPECT_TRUE(judge_taps(*check));
  EXPECT_FALSE(check_taps(*rig.model, **head, std::span(rig.text).first(40), pool));
}

}  // namespace
}  // namespace foretoken::testing
