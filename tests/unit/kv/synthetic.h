// Random rows, transforms and pages for the KV tests, and attention in double over dequantised
// pages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "foretoken/kernels/attention.h"
#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/kv_page.h"

namespace foretoken::kv_test {

using kernels::kPageTokens;

inline std::vector<float> normal(std::size_t n, std::mt19937_64& random, float deviation = 1) {
  std::normal_distribution<float> d(0, deviation);
  std::vector<float> x(n);
  for (float& v : x) v = d(random);
  return x;
}

// Sets an ISA for one scope.
class ScopedIsa {
 public:
  explicit ScopedIsa(kernels::Isa isa) : before_(kernels::active_isa()) {
    kernels::set_isa(kernels::isa_name(isa));
  }
  ~ScopedIsa() { kernels::set_isa(kernels::isa_name(before_)); }

 private:
  kernels::Isa before_;
};

// A random orthogonal matrix [d, d]: a product of Householder reflections.
inline std::vector<double> random_orthogonal(int d, std::mt19937_64& random) {
  std::vector<double> m(d * d, 0.0);
  for (int i = 0; i < d; ++i) m[i * d + i] = 1;
  for (int n = 0; n < d; ++n) {
    const std::vector<float> u = normal(d, random);
    double norm = 0;
    for (const float x : u) norm += double(x) * x;
    for (int i = 0; i < d; ++i) {
      double dot = 0;
      for (int j = 0; j < d; ++j) dot += m[i * d + j] * u[j];
      for (int j = 0; j < d; ++j) m[i * d + j] -= 2 * dot / norm * u[j];
    }
  }
  return m;
}

// Every mode with sealed pages.
inline std::vector<kernels::KvMode> sealed_modes() {
  std::vector<kernels::KvMode> modes;
  for (const kernels::KvFormat& format : kernels::kKvFormats) {
    if (format.bits > 0) modes.push_back(format.mode);
  }
  return modes;
}

// A transform of the mode's kind: orthogonal bases, and for symmetric modes falling channel
// deviations; its inverse is folded with the digits.
struct OwnedTransform {
  std::vector<float> k_encode, k_query, k_weight, v_encode, v_decode, v_weight, v_mean;
  kernels::KvTransform view;

  OwnedTransform(kernels::KvMode mode, int d, std::mt19937_64& random)
      : OwnedTransform(mode, d, (random() % 5) * d / 16, (random() % 5) * d / 16, random) {}
  // So many channels of two digits, of int2; at least as many as the digits need.
  OwnedTransform(kernels::KvMode mode, int d, int k_n4, int v_n4, std::mt19937_64& random) {
    const kernels::KvFormat& format = kernels::kv_format(mode);
    using Kind = kernels::KvTransformKind;
    if (format.transform == Kind::kHadamard || format.transform == Kind::kRotation) {
      make_rotation(d, random, true);
      if (format.transform == Kind::kRotation) make_rotation(d, random, false);
    } else if (format.transform != Kind::kIdentity) {
      const bool classes = kernels::has_classes(format.transform);
      const int k_n = kernels::k_digits(format, d), v_n = kernels::v_digits(format, d);
      view.k_n4 = std::max(classes ? k_n4 : 0, k_n - d);
      view.v_n4 = classes ? v_n4 : 0;
      v_mean = normal(d, random, 0.3f);
      make_side(d, view.k_n4, k_n, format.bits, random, true);
      make_side(d, view.v_n4, v_n, format.bits, random, false);
    }
    const auto data = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
    view.k_encode = data(k_encode), view.k_query = data(k_query), view.k_weight = data(k_weight);
    view.v_encode = data(v_encode), view.v_decode = data(v_decode), view.v_weight = data(v_weight);
    view.v_mean = data(v_mean);
  }

 private:
  void make_rotation(int d, std::mt19937_64& random, bool key) {
    const std::vector<double> basis = random_orthogonal(d, random);
    std::vector<float> encode(d * d), decode(d * d);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        encode[i * d + j] = static_cast<float>(basis[i * d + j]);
        decode[(key ? i * d + j : j * d + i)] = static_cast<float>(basis[i * d + j]);
      }
    }
    (key ? k_encode : v_encode) = encode;
    (key ? k_query : v_decode) = decode;
  }
  void make_side(int d, int n4, int n_digits, int bits, std::mt19937_64& random, bool key) {
    const std::vector<double> basis = random_orthogonal(d, random);
    std::vector<float> encode(d * d), decode(d * n_digits), weight(d);
    std::vector<double> step(d);
    for (int i = 0; i < d; ++i) {
      const int channel_bits = i < n4 ? 2 * bits : bits;
      step[i] = (channel_bits == 2   ? 0.996
                 : channel_bits == 4 ? 0.335
                                     : 0.031) *
                std::exp(-1.5 * i / d);
      weight[i] = static_cast<float>(step[i] * step[i]);
    }
    for (int j = 0; j < d; ++j) {
      for (int i = 0; i < d; ++i)
        encode[j * d + i] = static_cast<float>(basis[j * d + i] / step[i]);
      for (int digit = 0; digit < n_digits; ++digit) {
        const int channel = digit < n4 ? digit : digit - n4;
        const double w = (digit < n4 ? 1 << bits : 1) * step[channel];
        const auto x = static_cast<float>(w * basis[j * d + channel]);
        (key ? decode[j * n_digits + digit] : decode[digit * d + j]) = x;
      }
    }
    (key ? k_encode : v_encode) = encode;
    (key ? k_query : v_decode) = decode;
    (key ? k_weight : v_weight) = weight;
  }
};

// One sequence of one layer with its own pages, and what each page means.
struct SyntheticSequence {
  int d, n_kv_heads;
  std::vector<std::vector<std::byte>> hot, sealed;  // by page: [n_kv_heads] blobs
  std::vector<const std::byte*> hot_pages, sealed_pages;
  std::vector<std::vector<float>> hot_k, hot_v, coded_k,
      coded_v;  // by page * n_kv_heads + head: [64, d]

  SyntheticSequence(int n_tokens, int n_kv_heads_, int d_, kernels::KvMode mode,
                    const std::vector<kernels::KvTransform>& transforms, std::mt19937_64& random)
      : d(d_), n_kv_heads(n_kv_heads_) {
    const int n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
    for (int p = 0; p < n_pages; ++p) {
      hot.emplace_back(kernels::hot_page_bytes(d) * n_kv_heads);
      sealed.emplace_back(kernels::sealed_page_bytes(mode, d) * n_kv_heads);
      // Stale bytes of an earlier owner: NaNs, in what no row has reached.
      std::fill(hot.back().begin(), hot.back().end(), std::byte{0xff});
      for (int h = 0; h < n_kv_heads; ++h) {
        std::byte* page = hot.back().data() + kernels::hot_page_bytes(d) * h;
        const std::vector<float> bias = normal(d, random, 2);
        hot_k.emplace_back(kPageTokens * d), hot_v.emplace_back(kPageTokens * d);
        coded_k.emplace_back(kPageTokens * d), coded_v.emplace_back(kPageTokens * d);
        const int filled = std::min(kPageTokens, n_tokens - p * kPageTokens);
        for (int t = 0; t < filled; ++t) {
          std::vector<float> k = normal(d, random), v = normal(d, random);
          for (int c = 0; c < d; ++c) k[c] += bias[c];
          kernels::store_kv(page, d, t, k.data(), v.data());
          kernels::load_k(page, d, t, hot_k.back().data() + t * d);
          kernels::load_v(page, d, t, hot_v.back().data() + t * d);
        }
        if (filled == kPageTokens && kernels::kv_format(mode).bits > 0) {
          std::byte* out = sealed.back().data() + kernels::sealed_page_bytes(mode, d) * h;
          kernels::seal_page(page, mode, transforms[h], d, out);
          kernels::dequantize_sealed_page(out, mode, transforms[h], d, coded_k.back().data(),
                                          coded_v.back().data());
        }
      }
    }
    for (int p = 0; p < n_pages; ++p)
      hot_pages.push_back(hot[p].data()), sealed_pages.push_back(sealed[p].data());
  }

  // Attention of one query of head `kv_head` at `position`, in double.
  std::vector<double> attend(const float* q, int kv_head, std::int64_t position, double scale,
                             bool coded, int sink_pages, int window_pages) const {
    std::vector<double> logits(position + 1), out(d, 0.0);
    const auto row = [&](std::int64_t t, bool key) {
      const std::int64_t page = t / kPageTokens;
      const bool packed =
          coded && page >= sink_pages && page < position / kPageTokens - window_pages;
      const auto& rows = key ? (packed ? coded_k : hot_k) : (packed ? coded_v : hot_v);
      return rows[page * n_kv_heads + kv_head].data() + t % kPageTokens * d;
    };
    double most = -1e300, mass = 0;
    for (std::int64_t t = 0; t <= position; ++t) {
      double dot = 0;
      for (int c = 0; c < d; ++c) dot += double(q[c]) * row(t, true)[c];
      logits[t] = dot * scale;
      most = std::max(most, logits[t]);
    }
    for (std::int64_t t = 0; t <= position; ++t) {
      const double p = std::exp(logits[t] - most);
      mass += p;
      for (int c = 0; c < d; ++c) out[c] += p * row(t, false)[c];
    }
    for (double& x : out) x /= mass;
    return out;
  }
};

// Runs the kernels over rows [first, first + n) of one sequence, or a tree of n rows; out [n,
// n_heads, d].
inline std::vector<float> run_attention(const SyntheticSequence& s, const std::vector<float>& q,
                                        int n_heads, std::int64_t first, int n,
                                        kernels::KvMode mode, int sink_pages, int window_pages,
                                        const std::vector<kernels::KvTransform>& transforms,
                                        kernels::ThreadPool& pool,
                                        const std::int32_t* parents = nullptr) {
  const int width = n_heads * s.d;
  std::vector<float> out(static_cast<std::size_t>(n) * width, -7e7f);
  const kernels::AttentionRows rows{
      first, n, q.data(), out.data(), s.hot_pages.data(), s.sealed_pages.data(), parents};
  const kernels::AttentionCall call{.sequences = &rows,
                                    .n_sequences = 1,
                                    .n_heads = n_heads,
                                    .n_kv_heads = s.n_kv_heads,
                                    .head_dim = s.d,
                                    .q_stride = width,
                                    .out_stride = width,
                                    .scale = 1 / std::sqrt(static_cast<float>(s.d)),
                                    .hot_offset = 0,
                                    .hot_stride = kernels::hot_page_bytes(s.d),
                                    .sealed_offset = 0,
                                    .sealed_stride = kernels::sealed_page_bytes(mode, s.d),
                                    .mode = mode,
                                    .sink_pages = sink_pages,
                                    .window_pages = window_pages,
                                    .transforms = transforms.data()};
  static std::vector<std::byte> scratch;  // clearing it anew would take longer than most calls
  scratch.resize(
      std::max(scratch.size(),
               kernels::attention_scratch_bytes(n, n_heads, s.d, pool.size(), 1 << 16) + 64));
  kernels::attention(call, scratch.data(), scratch.size(), pool);
  return out;
}

}  // namespace foretoken::kv_test
