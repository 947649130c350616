// Published EAGLE-3 heads as files: both formats are read, written and converted without a changed
// bit, through a bundle too; every key that is missing, unknown or not what config.json says is an
// error that names it; and no mutation crashes.
#include "runtime/speculate/head/eagle3_checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "foretoken/protocol/atomic_file.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/head_bundle.h"
#include "tests/support/eagle3_maker.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_keys.h"

namespace foretoken::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const Eagle3Verifier kVerifier{"example/target", "LlamaForCausalLM", 3};

void expect_error(const Eagle3Checkpoint& checkpoint, const std::string& reason,
                  std::initializer_list<std::string> parts) {
  const auto found = eagle3_parts(checkpoint);
  ASSERT_FALSE(found.ok()) << reason;
  EXPECT_THAT(found.error().message, StartsWith(reason + ": eagle3: "));
  for (const std::string& part : parts) EXPECT_THAT(found.error().message, HasSubstr(part));
}

// As SpecForge writes it for a Llama-3.1 target.
const char* const kPublished = R"({
  "architectures": ["LlamaForCausalLMEagle3"], "attention_bias": false, "bos_token_id": 128000,
  "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 2048, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 1,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "float16",
  "use_cache": true, "vocab_size": 128256, "draft_vocab_size": 32000})";

TEST(Eagle3Config, ReadsWhatIsPublished) {
  auto c = parse_eagle3_config(kPublished);
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->format, Eagle3Format::kEagle3);
  EXPECT_EQ(c->hidden, 4096);
  EXPECT_EQ(c->target_hidden, 4096);
  EXPECT_EQ(c->ffn, 14336);
  EXPECT_EQ(c->n_heads, 32);
  EXPECT_EQ(c->n_kv_heads, 8);
  EXPECT_EQ(c->head_dim, 128);
  EXPECT_EQ(c->n_vocab, 128256);
  EXPECT_EQ(c->n_draft_vocab, 32000);
  EXPECT_EQ(c->rms_epsilon, 1e-5f);
  EXPECT_EQ(c->rope_theta, 500000.0f);
  // As transformers has it: fast turns stay, slow ones are stretched by the factor.
  ASSERT_EQ(c->rope_factors.size(), 64u);
  EXPECT_EQ(c->rope_factors.front(), 1.0f);
  EXPECT_FLOAT_EQ(c->rope_factors.back(), 8.0f);
  EXPECT_FALSE(c->norm_before_residual || c->norm_before_fc || c->fc_norm || c->norm_output);
  // The default: inputs of layers 2, n/2 and n - 3.
  EXPECT_THAT(*c->taps(32), ElementsAre(1, 15, 28));
}

TEST(Eagle3Config, ReadsTheSpeculatorsFormat) {
  auto c = parse_eagle3_config(R"({"architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3", "draft_vocab_size": 32000, "norm_before_residual": true,
    "target_hidden_size": null, "tie_word_embeddings": false,
    "eagle_aux_hidden_state_layer_ids": [2, 18, 33],
    "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy",
      "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
      "verifier": {"architectures": ["Qwen3ForCausalLM"], "name_or_path": "Qwen/Qwen3-8B"}},
    "transformer_layer_config": {"model_type": "llama", "head_dim": 128, "hidden_act": "silu",
      "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
      "num_hidden_layers": 1, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
      "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "vocab_size": 151936}})");
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->format, Eagle3Format::kSpeculators);
  EXPECT_TRUE(c->norm_before_residual);
  EXPECT_EQ(c->n_vocab, 151936);
  EXPECT_EQ(c->rope_theta, 1e6f);
  EXPECT_TRUE(c->rope_factors.empty());
  EXPECT_THAT(*c->taps(36), ElementsAre(1, 17, 32));
}

// Ids are of layers' inputs; a list that begins with 1 is, in the older format, of outputs.
TEST(Eagle3Config, NamesTheTapsByEitherConvention) {
  const auto taps = [](const char* where, const char* ids, int n_layers) {
    std::string text = kPublished;
    text.replace(
        text.rfind('}'), 1,
        where == std::string("top")
            ? fmt::format(R"(,"eagle_aux_hidden_state_layer_ids": {}}})", ids)
            : fmt::format(R"(,"eagle_config": {{"eagle_aux_hidden_state_layer_ids": {}}}}})", ids));
    auto config = parse_eagle3_config(text);
    EXPECT_TRUE(config) << config.error().message;
    auto found = config->taps(n_layers);
    return found ? fmt::format("{}", fmt::join(*found, ",")) : found.error().message.substr(0, 6);
  };
  EXPECT_EQ(taps("top", "[2, 18, 33]", 36), "1,17,32");
  EXPECT_EQ(taps("eagle", "[2, 18, 33]", 36), "1,17,32");
  EXPECT_EQ(taps("eagle", "[1, 46, 90]", 94), "1,46,90");
  EXPECT_EQ(taps("eagle", "[24, 30, 36]", 36), "23,29,35");
  EXPECT_EQ(taps("eagle", "[2, 18, 37]", 36), "config");
  EXPECT_EQ(taps("eagle", "[0, 18, 33]", 36), "config");  // the embedding is no block's output
}

TEST(Eagle3Config, WrongSettingsAreNamed) {
  const auto error = [](const std::string& from, const std::string& to) {
    std::string text = kPublished;
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    const auto found = parse_eagle3_config(text);
    return found ? "accepted" : found.error().message;
  };
  EXPECT_THAT(error("LlamaForCausalLMEagle3", "LlamaForCausalLM"), HasSubstr("architectures"));
  EXPECT_THAT(error("\"hidden_size\": 4096,", ""), HasSubstr("hidden_size: found nothing"));
  EXPECT_THAT(error("4096", "\"4096\""), HasSubstr("hidden_size"));
  EXPECT_THAT(error("4096", "-1"), HasSubstr("hidden_size: found -1"));
  EXPECT_THAT(error("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"),
              HasSubstr("num_hidden_layers: found 2, wanted 1"));
  EXPECT_THAT(error("silu", "gelu"), HasSubstr("hidden_act: found gelu"));
  EXPECT_THAT(error("\"attention_bias\": false", "\"attention_bias\": true"),
              HasSubstr("attention_bias"));
  EXPECT_THAT(error("\"model_type\": \"llama\"", "\"model_type\": \"qwen3\""),
              HasSubstr("model_type: found qwen3"));
  EXPECT_THAT(error("\"llama3\"", "\"yarn\""), HasSubstr("rope_type: found yarn"));
  EXPECT_THAT(error("32000", "128257"), HasSubstr("draft_vocab_size"));
  EXPECT_THAT(error("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5"),
              HasSubstr("num_key_value_heads: found 5"));
  EXPECT_THAT(error("1e-05", "2"), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error("{", "["), HasSubstr("not JSON"));
  EXPECT_THAT(error("\"use_cache\": true", "\"eagle_config\": {\"use_aux_hidden_state\": false}"),
              HasSubstr("use_aux_hidden_state"));
}

TEST(Eagle3Checkpoint, FilesAndBundlesGiveBackEveryBit) {
  for (const Eagle3Format format : {Eagle3Format::kEagle3, Eagle3Format::kSpeculators}) {
    for (const SafetensorType type :
         {SafetensorType::kBF16, SafetensorType::kF16, SafetensorType::kF32}) {
      RandomEagle3 options = tiny_eagle3();
      if (format == Eagle3Format::kEagle3) options.config.layer_ids = {{2, 2, 3}};
      options.format = format;
      options.type = type;
      options.own_embedding = type == SafetensorType::kF16;
      options.config.fc_norm = type == SafetensorType::kF32;
      const Eagle3Checkpoint made = random_eagle3(options);
      const TemporaryDirectory folder;
      ASSERT_TRUE(write_eagle3(made, folder.file("a")));
      EXPECT_TRUE(is_eagle3_folder(folder.file("a")));
      auto read = read_eagle3(folder.file("a"));
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_EQ(*read, made);
      ASSERT_TRUE(write_eagle3(*read, folder.file("b")));
      for (const char* file : {"config.json", "model.safetensors"}) {
        EXPECT_EQ(*read_file(folder.file("a") + "/" + file, 1 << 24),
                  *read_file(folder.file("b") + "/" + file, 1 << 24))
            << file;
      }
      // Through a bundle: signed, sent, parsed.
      Bundle bundle = bundle_of(FusionTable::initial());
      bundle.version = {3};
      HeadTerms terms = HeadTerms::none(options.config.hidden);
      terms.bias[3] = 0.5f;
      terms.source[7] = -2;
      add_eagle3(bundle, *read, terms);
      const auto bytes = serialize(bundle, test_signing_key());
      auto parsed = parse_bundle_of_anyone(bytes);
      ASSERT_TRUE(parsed) << parsed.error().message;
      auto back = eagle3_of(*parsed);
      ASSERT_TRUE(back) << back.error().message;
      EXPECT_EQ(back->checkpoint, made);
      EXPECT_EQ(back->terms.bias, terms.bias);
      EXPECT_EQ(back->terms.source, terms.source);
      EXPECT_EQ(back->terms.outside, terms.outside);
      parsed->tensors["more"] = BundleTensor::f32({1}, std::vector<float>{1});
      EXPECT_FALSE(eagle3_of(*parsed));
    }
  }
}

TEST(Eagle3Checkpoint, ConvertsBetweenTheFormats) {
  RandomEagle3 options = tiny_eagle3();
  options.config.layer_ids = {{2, 2, 3}};
  options.config.norm_before_residual = true;
  options.format = Eagle3Format::kEagle3;
  const Eagle3Checkpoint made = random_eagle3(options);
  auto there = converted(made, Eagle3Format::kSpeculators, kVerifier);
  ASSERT_TRUE(there) << there.error().message;
  EXPECT_TRUE(there->tensors.contains("layers.0.mlp.up_proj.weight"));
  EXPECT_FALSE(there->tensors.contains("midlayer.mlp.up_proj.weight"));
  auto config = parse_eagle3_config(there->config);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->format, Eagle3Format::kSpeculators);
  EXPECT_EQ(config->norm_before_residual, true);
  EXPECT_EQ(*config->taps(3), *parse_eagle3_config(made.config)->taps(3));
  auto back = converted(*there, Eagle3Format::kEagle3, kVerifier);
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(*back, made);
  EXPECT_EQ(*converted(made, Eagle3Format::kEagle3, kVerifier), made);
  // What SGLang could not read as it is meant is not written.
  options.config.layer_ids = {{1, 2, 3}};
  options.format = Eagle3Format::kSpeculators;
  EXPECT_FALSE(converted(random_eagle3(options), Eagle3Format::kEagle3, kVerifier));
}

TEST(Eagle3Checkpoint, EveryKeyMustBeWhatTheConfigurationSays) {
  RandomEagle3 options = tiny_eagle3();
  options.config.layer_ids = {{2, 2, 3}};
  options.config.norm_before_fc = true;
  options.config.n_draft_vocab = 64;
  options.format = Eagle3Format::kEagle3;
  const Eagle3Checkpoint good = random_eagle3(options);
  ASSERT_TRUE(eagle3_parts(good)) << eagle3_parts(good).error().message;
  for (const auto& [name, tensor] : good.tensors) {
    SCOPED_TRACE(name);
    Eagle3Checkpoint bad = good;
    bad.tensors.erase(name);
    if (name == "t2d")  // d2t says it all
      EXPECT_TRUE(eagle3_parts(bad));
    else
      expect_error(bad, "missing", {name});
    bad = good;
    bad.tensors[name].shape.back() += 1;
    expect_error(bad, "shape", {name, "wanted ["});
    bad = good;
    bad.tensors[name].bytes.pop_back();
    expect_error(bad, "shape", {name});
    bad = good;
    bad.tensors[name].type = SafetensorType::kI32;
    expect_error(bad, "dtype", {name, "found I32, wanted"});
    if (tensor.type == SafetensorType::kBF16) {
      bad = good;
      const std::uint16_t nan = 0x7fc0;
      std::memcpy(bad.tensors[name].bytes.data() + 6, &nan, 2);
      expect_error(bad, "non-finite", {name + "[3]"});
    }
  }
  Eagle3Checkpoint bad = good;
  bad.tensors["midlayer.self_attn.q_norm.weight"] = good.tensors.at("norm.weight");
  expect_error(bad, "extra", {"q_norm"});
  bad = good;
  bad.tensors["layers.0.mlp.up_proj.weight"] = good.tensors.at("midlayer.mlp.up_proj.weight");
  expect_error(bad, "extra", {"midlayer.* and layers.0.*"});
  // A tensor of a flag that is off is as unknown as any.
  options.config.norm_before_fc = false;
  bad = random_eagle3(options);
  ASSERT_TRUE(eagle3_parts(bad));
  bad.tensors["input_norm.weight"] = good.tensors.at("input_norm.weight");
  expect_error(bad, "extra", {"input_norm.weight"});
  const auto with_offset = [&](std::size_t i, std::int64_t offset) {
    Eagle3Checkpoint changed = good;
    std::memcpy(changed.tensors["d2t"].bytes.data() + 8 * i, &offset, 8);
    return changed;
  };
  expect_error(with_offset(2, -3), "vocabulary", {"d2t[2]", "-3"});
  expect_error(with_offset(2, 318), "vocabulary", {"d2t[2]", "320"});
  expect_error(with_offset(2, std::int64_t{1} << 62), "vocabulary", {"d2t[2]"});
  expect_error(with_offset(2, 3), "vocabulary", {"token 5 comes twice"});
  bad = good;
  bad.tensors["t2d"].bytes[1] = std::byte{1};
  expect_error(bad, "vocabulary", {"t2d[1]: found 1, wanted 0"});
}

TEST(Eagle3Checkpoint, NoMutationCrashes) {
  const Eagle3Checkpoint good = random_eagle3(tiny_eagle3());
  std::mt19937_64 random(5);
  const std::string letters = "{}[]\",:0129-eE\\ntf";
  int refused = 0, read = 0;
  for (int i = 0; i < 3000; ++i) {
    Eagle3Checkpoint bad = good;
    for (int edits = 1 + int(random() % 3); edits > 0; --edits) {
      const std::size_t at = random() % bad.config.size();
      switch (random() % 5) {
        case 0:
          bad.config[at] = char(bad.config[at] ^ (1 << random() % 8));
          break;
        case 1:
          bad.config[at] = letters[random() % letters.size()];
          break;
        case 2:
          bad.config.erase(at, 1 + random() % 12);
          break;
        case 3:
          bad.config.insert(at, 1, char('0' + random() % 10));
          break;
        default: {
          auto& bytes = bad.tensors["d2t"].bytes;
          bytes[random() % bytes.size()] ^= std::byte(1u << random() % 8);
        }
      }
      if (bad.config.empty()) break;
    }
    const auto parts = eagle3_parts(bad);
    ++(parts ? read : refused);
    if (parts) {
      for (const TokenId token : parts->vocab) ASSERT_LT(token, parts->config.n_vocab);
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(read, 100);
  // Files: what is not there, or not what it says.
  const TemporaryDirectory folder;
  EXPECT_FALSE(is_eagle3_folder(folder.path()));
  auto missing = read_eagle3(folder.path());
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  ASSERT_TRUE(write_eagle3(good, folder.path()));
  std::ofstream(folder.file("model.safetensors"), std::ios::trunc) << "no";
  EXPECT_FALSE(read_eagle3(folder.path()));
}

}  // namespace
}  // namespace foretoken::testing
