// What a model file says about its arithmetic is understood, or refused by name.
#include "runtime/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "runtime/model/model.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

class Config : public ::testing::Test {
 protected:
  // The tiny model's configuration with what `first` puts into its file instead of the usual.
  Result<ModelConfig> read(std::function<void(GgufWriter&)> first,
                           const char* architecture = "llama") {
    write(std::move(first), architecture);
    file_ = *GgufFile::open(folder_.file("m.gguf"));
    return read_model_config(*file_);
  }
  std::string load_error(std::function<void(GgufWriter&)> first,
                         const char* architecture = "llama") {
    write(std::move(first), architecture);
    auto model = Model::load(folder_.file("m.gguf"), {.threads = 1});
    return model ? "loaded" : model.error().message;
  }

 private:
  // (A metadata value that is refused is refused by the writer's own look at it too: so the good
  // file is copied, with what `first` adds.)
  void write(std::function<void(GgufWriter&)> first, const char* architecture) {
    TinyModelOptions o;
    o.architecture = architecture;
    o.n_layers = 1;
    const std::string good = folder_.file("good.gguf");
    write_tiny_model(good, o);
    const auto file = *GgufFile::open(good);
    GgufWriter w;
    first(w);
    for (const std::string& key : file->keys()) {
      if (const auto text = file->get_string(key)) w.add_string(key, std::string(*text));
      if (const auto whole = file->get_uint(key)) w.add_uint32(key, std::uint32_t(*whole));
      if (const auto number = file->get_float(key)) w.add_float32(key, float(*number));
    }
    for (const GgufTensor& t : file->tensors()) {
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(t.data.data());
      w.add_raw_tensor(t.name, t.shape, t.ggml_type, {bytes, bytes + t.data.size()});
    }
    w.write(folder_.file("m.gguf"));
  }
  TemporaryDirectory folder_;
  std::unique_ptr<GgufFile> file_;
};

TEST_F(Config, WhatIsThereIsRead) {
  const auto c = read([](GgufWriter&) {});
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->attention(0).n_heads, 4);
  EXPECT_EQ(c->attention(0).n_kv_heads, 2);
  EXPECT_FLOAT_EQ(c->attention(0).scale, 0.125f);
  EXPECT_EQ(c->ropes.size(), 1u);
  EXPECT_TRUE(c->ropes[0].factors.empty());
  EXPECT_TRUE(c->ropes[0].interleaved);
  EXPECT_EQ(load_error([](GgufWriter&) {}), "loaded");
}

TEST_F(Config, ATensorThatNobodyReadsIsRefusedByName) {
  const std::vector<float> values(64, 1.0f);
  for (const char* name : {"blk.0.attn_q_norm.weight", "blk.0.ffn_up.scale",
                           "blk.7.attn_norm.weight", "vision.patch.weight"}) {
    EXPECT_THAT(load_error([&](GgufWriter& w) { w.add_tensor(name, {64}, values); }),
                AllOf(HasSubstr(name), HasSubstr("not understood")));
  }
  // What the architecture has is none of them.
  EXPECT_EQ(load_error([&](GgufWriter& w) {
              w.add_tensor("rope_freqs.weight", {32}, std::vector<float>(32, 2.0f));
              w.add_tensor("blk.0.ffn_down.bias", {128}, std::vector<float>(128));
            }),
            "loaded");
  EXPECT_THAT(load_error(
                  [&](GgufWriter& w) {
                    w.add_tensor("blk.0.ffn_down.bias", {128}, std::vector<float>(128));
                  },
                  "qwen2"),
              HasSubstr("blk.0.ffn_down.bias"));
}

TEST_F(Config, AScalingWithoutATypeIsLinear) {
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    const auto c = read([&](GgufWriter& w) { w.add_float32(key, 4.0f); });
    ASSERT_TRUE(c) << c.error().message;
    EXPECT_EQ(c->ropes[0].factors.size(), 32u) << key;
    EXPECT_THAT(c->ropes[0].factors, Each(4.0f)) << key;
  }
  const auto none = read([](GgufWriter& w) {
    w.add_string("llama.rope.scaling.type", "none");
    w.add_float32("llama.rope.scaling.factor", 4.0f);
  });
  ASSERT_TRUE(none) << none.error().message;
  EXPECT_TRUE(none->ropes[0].factors.empty());
  EXPECT_THAT(load_error([](GgufWriter& w) { w.add_string("llama.rope.scaling.type", "dynamic"); }),
              AllOf(HasSubstr("rope.scaling.type"), HasSubstr("dynamic"), HasSubstr("yarn")));
}

TEST_F(Config, AnArrayIsNoNumber) {
  for (const char* key :
       {"block_count", "context_length", "embedding_length", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.value_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.factor",
        "attention.layer_norm_rms_epsilon", "attention.scale", "expert_count",
        "rope.scaling.type"}) {
    const std::string name = std::string("llama.") + key;
    EXPECT_THAT(load_error([&](GgufWriter& w) {
                  w.add_int32s(name, {4, 2});
                }),
                AllOf(HasSubstr(name), HasSubstr("wanted")))
        << key;
  }
}

TEST_F(Config, WhatIsNotUnderstoodIsRefusedByName) {
  struct Case {
    const char* key;
    float value;
  };
  for (const Case& c : {Case{"attention.clamp_kqv", 8},
                        {"nextn_predict_layers", 1},
                        {"attn_logit_softcapping", 50},
                        {"logit_scale", 2},
                        {"rope.scaling.yarn_ext_factor", 1},
                        {"a_key_of_the_future", 1}}) {
    const std::string name = std::string("llama.") + c.key;
    EXPECT_THAT(load_error([&](GgufWriter& w) { w.add_float32(name, c.value); }),
                AllOf(HasSubstr(name), HasSubstr("not understood")));
    EXPECT_EQ(load_error([&](GgufWriter& w) { w.add_float32(name, 0); }), "loaded") << name;
  }
  EXPECT_EQ(load_error([](GgufWriter& w) { w.add_uint32("llama.vocab_size", 320); }), "loaded");
  EXPECT_THAT(
      load_error([](GgufWriter& w) { w.add_uint32("llama.attention.sliding_window", 128); }),
      HasSubstr("sliding window of 128"));
  EXPECT_EQ(load_error([](GgufWriter& w) { w.add_uint32("llama.attention.sliding_window", 2048); }),
            "loaded")
      << "as long as the context, a window hides nothing";
  EXPECT_THAT(load_error([](GgufWriter& w) {
                w.add_uint32("llama.expert_count", 8);
                w.add_uint32("llama.expert_used_count", 2);
              }),
              HasSubstr("mixture of 8 experts"));
}

TEST_F(Config, AttentionsScaleIsUsed) {
  const auto c = read([](GgufWriter& w) { w.add_float32("llama.attention.scale", 0.25f); });
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_FLOAT_EQ(c->attention(0).scale, 0.25f);
}

}  // namespace
}  // namespace foretoken::testing
