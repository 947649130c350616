// Rotary embeddings and what stretches them to longer contexts: the one place that knows the
// factors, for target models (GGUF metadata) and draft heads (config.json) alike.
// Every scaling comes down to two things: frequency i is divided by factors[i], and cosines and
// sines are multiplied by one magnitude (YaRN's and LongRoPE's "attention factor").
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

namespace foretoken {

struct LinearScaling {  // "position interpolation": all frequencies by one factor
  double factor = 1;
};
struct Llama3Scaling {  // Llama 3.1: long waves by factor, short ones not at all, between them
                        // mixed
  double factor = 8, low_freq_factor = 1, high_freq_factor = 4, original_length = 8192;
};
struct YarnScaling {  // arXiv 2309.00071; beta in turns over the original length
  double factor = 1, original_length = 0, beta_fast = 32, beta_slow = 1;
};
struct LongRopeScaling {  // arXiv 2402.13753: factors found by search, one a frequency
  std::vector<float> factors;
};
// std::monostate: no scaling.
using RopeScaling =
    std::variant<std::monostate, LinearScaling, Llama3Scaling, YarnScaling, LongRopeScaling>;

// What frequencies are divided by: [rotary_dim / 2], or empty where nothing is scaled.
std::vector<float> rope_factors(const RopeScaling& scaling, int rotary_dim, double theta);
// What the method itself multiplies cosines and sines by.
float rope_magnitude(const RopeScaling& scaling);

struct Rope {
  int dim = 0;  // of a head's values, from its first on; even
  float theta = 10000;
  bool interleaved = false;    // pairs (2i, 2i + 1), as Llama's GGUF files have them; else halves
  std::vector<float> factors;  // [dim / 2], or empty: all 1
  float magnitude = 1;

  // cos_sin: [dim / 2, 2] at a position, for kernels::rope.
  void table(std::int64_t position, float* cos_sin) const;
  // The same without the magnitude: moves what is rotated already by so many positions.
  void rotation(std::int64_t offset, float* cos_sin) const;
};

}  // namespace foretoken
