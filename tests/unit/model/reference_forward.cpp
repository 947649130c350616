#include "tests/unit/model/reference_forward.h"

#include <cmath>

#include "foretoken/kernels/linear.h"
#include "runtime/model/weights.h"

namespace foretoken::testing {
namespace {

using Rows = std::vector<std::vector<float>>;

std::vector<float> row_of(const GgufTensor& t, std::int64_t row) {
  std::vector<float> out(std::size_t(t.shape[0]));
  const auto type = weight_type_of(t.ggml_type).value();
  kernels::dequantize_file_row(
      type, t.data.data() + std::size_t(row) * kernels::weight_row_bytes(type, t.shape[0]),
      t.shape[0], out.data());
  return out;
}

// y[r] = W x[r] (+ b): the weight row is dequantised once for all rows.
Rows apply(const GgufFile& file, const std::string& name, const Rows& x) {
  const GgufTensor& w = *file.find(name + ".weight");
  const GgufTensor* b = file.find(name + ".bias");
  const std::vector<float> bias = b ? row_of(*b, 0) : std::vector<float>();
  Rows y(x.size(), std::vector<float>(std::size_t(w.shape[1])));
  for (std::int64_t o = 0; o < w.shape[1]; ++o) {
    const std::vector<float> weights = row_of(w, o);
    for (std::size_t r = 0; r < x.size(); ++r) {
      float sum[8] = {};
      const float* a = x[r].data();
      for (std::size_t i = 0; i < weights.size(); i += 8) {
        for (std::size_t lane = 0; lane < 8; ++lane) sum[lane] += a[i + lane] * weights[i + lane];
      }
      float total = 0;
      for (const float s : sum) total += s;
      y[r][std::size_t(o)] = total + (b ? bias[std::size_t(o)] : 0.0f);
    }
  }
  return y;
}

// Each stretch of the weight's length by itself; without such a tensor nothing.
Rows normalised(const GgufFile& file, const std::string& name, const Rows& x, float epsilon) {
  const GgufTensor* tensor = file.find(name + ".weight");
  Rows y = x;
  if (!tensor) return y;
  const std::vector<float> weight = row_of(*tensor, 0);
  for (auto& row : y) {
    for (std::size_t at = 0; at < row.size(); at += weight.size()) {
      double square = 0;
      for (std::size_t i = 0; i < weight.size(); ++i) square += double(row[at + i]) * row[at + i];
      const double scale = 1.0 / std::sqrt(square / double(weight.size()) + epsilon);
      for (std::size_t i = 0; i < weight.size(); ++i)
        row[at + i] = float(row[at + i] * scale) * weight[i];
    }
  }
  return y;
}

void rotate(Rows& x, int n_heads, int head_dim, const Rope& rope) {
  for (std::size_t position = 0; position < x.size(); ++position) {
    for (int h = 0; h < n_heads; ++h) {
      float* head = &x[position][std::size_t(h * head_dim)];
      for (int i = 0; i < rope.dim / 2; ++i) {
        const double factor = rope.factors.empty() ? 1.0 : double(rope.factors[std::size_t(i)]);
        const double angle =
            double(position) * std::pow(double(rope.theta), -2.0 * i / rope.dim) / factor;
        const int a = rope.interleaved ? 2 * i : i;
        const int b = rope.interleaved ? 2 * i + 1 : i + rope.dim / 2;
        const double p = head[a], q = head[b];
        head[a] = float(double(rope.magnitude) * (p * std::cos(angle) - q * std::sin(angle)));
        head[b] = float(double(rope.magnitude) * (p * std::sin(angle) + q * std::cos(angle)));
      }
    }
  }
}

}  // namespace

std::vector<std::vector<float>> reference_logits(const GgufFile& file, const ModelConfig& c,
                                                 const std::vector<TokenId>& tokens) {
  const std::size_t n = tokens.size();
  Rows x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = row_of(*file.find("token_embd.weight"), tokens[i]);
  for (int l = 0; l < c.n_layers; ++l) {
    const AttentionSpec& spec = c.attention(l);
    const int group = spec.n_heads / spec.n_kv_heads;
    const std::string block = "blk." + std::to_string(l) + ".";
    const Rows a = normalised(file, block + "attn_norm", x, c.rms_epsilon);
    Rows q =
        normalised(file, block + "attn_q_norm", apply(file, block + "attn_q", a), c.rms_epsilon);
    Rows k =
        normalised(file, block + "attn_k_norm", apply(file, block + "attn_k", a), c.rms_epsilon);
    const Rows v = apply(file, block + "attn_v", a);
    if (const Rope* rope = c.rope_of(spec)) {
      rotate(q, spec.n_heads, spec.head_dim, *rope);
      rotate(k, spec.n_kv_heads, spec.head_dim, *rope);
    }
    Rows attended(n, std::vector<float>(q[0].size()));
    for (std::size_t i = 0; i < n; ++i) {
      for (int h = 0; h < spec.n_heads; ++h) {
        const std::size_t qo = std::size_t(h * spec.head_dim),
                          ko = std::size_t(h / group * spec.head_dim);
        std::vector<double> score(i + 1);
        double best = -1e300;
        for (std::size_t j = 0; j <= i; ++j) {
          double dot = 0;
          for (int d = 0; d < spec.head_dim; ++d)
            dot += double(q[i][qo + std::size_t(d)]) * k[j][ko + std::size_t(d)];
          score[j] = dot / std::sqrt(double(spec.head_dim));
          best = std::max(best, score[j]);
        }
        double total = 0;
        for (double& s : score) total += s = std::exp(s - best);
        for (std::size_t j = 0; j <= i; ++j) {
          for (int d = 0; d < spec.head_dim; ++d) {
            attended[i][qo + std::size_t(d)] += float(score[j] / total * v[j][ko + std::size_t(d)]);
          }
        }
      }
    }
    const Rows o = normalised(file, block + "post_attention_norm",
                              apply(file, block + "attn_output", attended), c.rms_epsilon);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t d = 0; d < x[i].size(); ++d) x[i][d] += o[i][d];
    }
    const Rows f = normalised(file, block + "ffn_norm", x, c.rms_epsilon);
    Rows gate = apply(file, block + "ffn_gate", f);
    const Rows up = apply(file, block + "ffn_up", f);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t d = 0; d < gate[i].size(); ++d)
        gate[i][d] = gate[i][d] / (1.0f + std::exp(-gate[i][d])) * up[i][d];
    }
    const Rows down = normalised(file, block + "post_ffw_norm",
                                 apply(file, block + "ffn_down", gate), c.rms_epsilon);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t d = 0; d < x[i].size(); ++d) x[i][d] += down[i][d];
    }
  }
  const Rows h = normalised(file, "output_norm", x, c.rms_epsilon);
  return apply(file, file.find("output.weight") ? "output" : "token_embd", h);
}

}  // namespace foretoken::testing
