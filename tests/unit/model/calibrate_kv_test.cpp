// Calibration of a loaded model: what it observes is what the model computes.
#include "runtime/model/calibrate_kv.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "runtime/model/model.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

// The saved transforms of a tiny model, observed at offsets up to `max_offset`.
std::string transforms(const TemporaryDirectory& folder, std::function<void(GgufWriter&)> first,
                       std::int64_t max_offset) {
  TinyModelOptions o;
  o.n_layers = 1;
  o.first = std::move(first);
  write_tiny_model(folder.file("m.gguf"), o);
  ModelLoadOptions load;
  load.threads = 1;
  auto model = Model::load(folder.file("m.gguf"), load);
  EXPECT_TRUE(model) << model.error().message;
  std::vector<TokenId> tokens;
  for (int i = 0; i < 512; ++i) tokens.push_back((i * 31 + i * i) % 300);
  KvCalibrateOptions options;
  options.window_tokens = 256;
  options.max_offset = max_offset;
  kernels::ThreadPool pool(1);
  auto made = calibrate_kv(**model, tokens, options, pool, {});
  EXPECT_TRUE(made) << made.error().message;
  EXPECT_TRUE((*made)->save(folder.file("c"), {}));
  std::ifstream in(folder.file("c"), std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Factors so large that nothing turns: then no offset may change anything.
TEST(CalibrateKv, OffsetsAreRotatedAsTheModelRotates) {
  TemporaryDirectory folder;
  const auto still = [](GgufWriter& w) {
    w.add_tensor("rope_freqs.weight", {32}, std::vector<float>(32, 1e30f));
  };
  EXPECT_EQ(transforms(folder, still, 1), transforms(folder, still, 1500));
  const auto plain = [](GgufWriter&) {};
  EXPECT_NE(transforms(folder, plain, 1), transforms(folder, plain, 1500)) << "the control";
}

}  // namespace
}  // namespace foretoken::testing
