#include "runtime/speculate/head/initial_head.h"

#include <cmath>
#include <random>

#include "foretoken/kernels/convert.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

HeadMatrix quantized(std::span<const float> values) {
  HeadMatrix m;
  m.rows.resize(kernels::weight_row_bytes(m.type, std::int64_t(values.size())));
  kernels::quantize_q8_0(values.data(), std::int64_t(values.size()), m.rows.data());
  return m;
}

HeadParts initial_head(std::int64_t hidden, std::int64_t inner, std::span<const TokenId> vocab,
                       std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values;
  const auto noise = [&](std::int64_t n) {
    // Uniform of that deviation, from integers: the same on every standard library.
    values.resize(std::size_t(n));
    for (float& v : values) v = 0.02f * 1.7320508f * (float(random() >> 40) * 0x1p-23f - 1.0f);
  };
  HeadParts parts;
  parts.hidden = hidden;
  parts.inner = inner;
  parts.vocab.assign(vocab.begin(), vocab.end());
  noise(hidden * kHeadTaps * hidden);
  for (std::int64_t i = 0; i < hidden; ++i)
    values[std::size_t(i * kHeadTaps * hidden + (kHeadTaps - 1) * hidden + i)] += 1.0f;
  parts.fc = quantized(values);
  noise(hidden * 2 * hidden);
  parts.step = quantized(values);
  noise(inner * 2 * hidden);
  parts.gate = quantized(values);
  noise(inner * 2 * hidden);
  parts.up = quantized(values);
  noise(hidden * inner);
  parts.down = quantized(values);
  const FusionTable table = FusionTable::initial();
  // At a gain of 0.1 the vocabulary's logits are nearly flat: their mass is about its size. A
  // traffic candidate of order 4 is one of the orders 3 and 2 as well, and each brings its part.
  const float lift = std::log(float(vocab.size())) - table.other;
  for (std::size_t c = 0; c < parts.bias.size(); ++c)
    parts.bias[c] = table.bias[c] + (c < kOwnClasses ? lift : lift / 3);
  parts.source.assign(std::size_t(kHeadSources * hidden), 0.0f);
  return parts;
}

}  // namespace foretoken
