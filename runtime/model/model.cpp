#include "runtime/model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/sampling.h"
#include "runtime/model/fingerprint.h"
#include "runtime/model/weights.h"

namespace foretoken {
namespace {

using kernels::LinearJob;
using kernels::ThreadPool;

class Workspace final : public ForwardWorkspace {
 public:
  Workspace(const ModelConfig& c, int max_rows, int max_logit_rows)
      : max_rows(max_rows),
        max_logit_rows(max_logit_rows),
        q_width(std::int64_t(c.n_heads) * c.head_dim),
        kv_width(std::int64_t(c.n_kv_heads) * c.head_dim),
        activations(std::max(max_rows, max_logit_rows), std::max({c.hidden, c.ffn, q_width})) {
    const auto rows = std::size_t(max_rows);
    x.resize(rows * std::size_t(c.hidden));
    normed.resize(std::size_t(std::max(max_rows, max_logit_rows)) * std::size_t(c.hidden));
    q.resize(rows * std::size_t(q_width));
    k.resize(rows * std::size_t(kv_width));
    v.resize(rows * std::size_t(kv_width));
    attended.resize(rows * std::size_t(q_width));
    gate.resize(rows * std::size_t(c.ffn));
    up.resize(rows * std::size_t(c.ffn));
    branch.resize(rows * std::size_t(c.hidden));
    cos_sin.resize(rows * std::size_t(c.rotary_dim));
  }
  const int max_rows, max_logit_rows;
  const std::int64_t q_width, kv_width;
  kernels::Activations activations;
  std::vector<float> x, normed;  // [max_rows, hidden]
  std::vector<float> q, k, v, attended;
  std::vector<float> gate, up, branch;
  std::vector<float> cos_sin;  // [max_rows, rotary_dim]
};

class LoadedModel final : public Model {
 public:
  const ModelConfig& config() const override { return config_; }
  KvGeometry kv_geometry() const override {
    return {config_.n_layers, config_.n_heads, config_.n_kv_heads, config_.head_dim};
  }
  const GgufFile& file() const override { return *file_; }
  const std::array<std::uint8_t, 32>& fingerprint() const override { return fingerprint_; }
  std::size_t weight_bytes() const override { return weight_bytes_; }
  std::size_t step_bytes() const override { return step_bytes_; }
  std::int64_t step_macs() const override { return step_macs_; }

  std::unique_ptr<ForwardWorkspace> make_workspace(int max_rows,
                                                   int max_logit_rows) const override {
    return std::make_unique<Workspace>(config_, max_rows, max_logit_rows);
  }

  void forward(const ForwardBatch& batch, KvCache& kv, ForwardWorkspace& workspace,
               ThreadPool& pool) const override;

  void embedding(TokenId token, float* out) const override {
    if (weights_.embedding_tensor) {
      const std::size_t row_bytes =
          kernels::weight_row_bytes(weights_.embedding_type, config_.hidden);
      kernels::dequantize_file_row(
          weights_.embedding_type,
          weights_.embedding_tensor->data.data() + std::size_t(token) * row_bytes, config_.hidden,
          out);
    } else {
      kernels::dequantize_row(weights_.output.packed, token, out);
    }
  }

  const kernels::PackedMatrix& output_matrix() const override { return weights_.output.packed; }

  void output_matrix_of_attention(int layer, float* out) const override {
    const kernels::PackedMatrix& w = weights_.layers[std::size_t(layer)].attention_output.packed;
    for (std::int64_t row = 0; row < w.n_out; ++row)
      kernels::dequantize_row(w, row, out + row * w.n_in);
  }

 private:
  friend class Model;

  ModelConfig config_;
  std::unique_ptr<GgufFile> file_;
  ModelWeights weights_;
  std::array<std::uint8_t, 32> fingerprint_{};
  std::size_t weight_bytes_ = 0, step_bytes_ = 0;
  std::int64_t step_macs_ = 0;
};

// fn(first, last) over rows; in parallel only when there are enough of them to pay for waking
// workers. Row-wise work only: no result may depend on the split.
template <class F>
void for_rows(std::int64_t n_rows, ThreadPool& pool, F&& fn) {
  constexpr std::int64_t kWorthwhile =
      8;  // a row of elementwise work is a few microseconds, a wake-up about one
  if (n_rows < kWorthwhile) {
    fn(0, n_rows);
  } else {
    pool.ranges(n_rows, 1, [&](std::int64_t begin, std::int64_t end, int) { fn(begin, end); });
  }
}

void LoadedModel::forward(const ForwardBatch& batch, KvCache& kv, ForwardWorkspace& workspace,
                          ThreadPool& pool) const {
  auto& ws = static_cast<Workspace&>(workspace);
  const auto n_rows = std::int64_t(batch.tokens.size());
  const std::int64_t hidden = config_.hidden, ffn = config_.ffn;
  const std::int64_t q_width = ws.q_width, kv_width = ws.kv_width;
  const int rotary = config_.rotary_dim;
  const float attention_scale = 1.0f / std::sqrt(float(config_.head_dim));

  for_rows(n_rows, pool, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      embedding(batch.tokens[std::size_t(r)], &ws.x[std::size_t(r * hidden)]);
  });
  const float* factors =
      weights_.rope_frequency_factors.empty() ? nullptr : weights_.rope_frequency_factors.data();
  for (const KvRows& rows : batch.sequences) {
    for (int i = 0; i < rows.n_rows; ++i) {
      kernels::rope_table(rows.first_position + i, rotary, config_.rope_theta, factors,
                          &ws.cos_sin[std::size_t(rows.first_row + i) * std::size_t(rotary)]);
    }
  }

  auto norm = [&](const std::vector<float>& weight) {
    for_rows(n_rows, pool, [&](std::int64_t begin, std::int64_t end) {
      kernels::rms_norm(&ws.x[std::size_t(begin * hidden)], hidden, weight.data(),
                        config_.rms_epsilon, end - begin, hidden,
                        &ws.normed[std::size_t(begin * hidden)], hidden);
    });
  };
  auto bias = [](const std::vector<float>& b) { return b.empty() ? nullptr : b.data(); };
  // One quantisation of the activations serves every matrix that reads them.
  auto set_activations = [&](const float* x, std::int64_t width,
                             std::initializer_list<const Matrix*> users) {
    bool block32 = false, block256 = false;
    for (const Matrix* m : users) {
      block32 |= kernels::wants_block32(m->packed.type);
      block256 |= kernels::wants_block256(m->packed.type);
    }
    ws.activations.set(x, n_rows, width, width, block32, block256, pool);
  };
  auto add_branch = [&] {
    for_rows(n_rows, pool, [&](std::int64_t begin, std::int64_t end) {
      kernels::add(&ws.branch[std::size_t(begin * hidden)], (end - begin) * hidden,
                   &ws.x[std::size_t(begin * hidden)]);
    });
  };
  auto tap = [&](int id, const float* values, std::int64_t width) {
    if (!batch.tap_values) return;
    for (std::size_t i = 0; i < batch.taps.size(); ++i) {
      if (batch.taps[i] != id) continue;
      for (std::int64_t r = 0; r < n_rows; ++r) {
        std::memcpy(
            batch.tap_values + (std::size_t(r) * batch.taps.size() + i) * std::size_t(hidden),
            values + r * width, std::size_t(hidden) * sizeof(float));
      }
    }
  };

  for (int l = 0; l < config_.n_layers; ++l) {
    const LayerWeights& layer = weights_.layers[std::size_t(l)];
    norm(layer.attention_norm);
    set_activations(ws.normed.data(), hidden, {&layer.q, &layer.k, &layer.v});
    const LinearJob qkv[] = {{&layer.q.packed, bias(layer.q_bias), ws.q.data(), q_width},
                             {&layer.k.packed, bias(layer.k_bias), ws.k.data(), kv_width},
                             {&layer.v.packed, bias(layer.v_bias), ws.v.data(), kv_width}};
    kernels::linear_many(qkv, 3, ws.activations, pool, {&layer.attention_output.packed});
    for_rows(n_rows, pool, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const float* cos_sin = &ws.cos_sin[std::size_t(r) * std::size_t(rotary)];
        kernels::rope(&ws.q[std::size_t(r * q_width)], config_.n_heads, config_.head_dim, rotary,
                      cos_sin, config_.rope_interleaved);
        kernels::rope(&ws.k[std::size_t(r * kv_width)], config_.n_kv_heads, config_.head_dim,
                      rotary, cos_sin, config_.rope_interleaved);
      }
    });
    if (batch.calibrator) {
      batch.calibrator->observe(l, static_cast<int>(n_rows), ws.q.data(), ws.k.data(), ws.v.data());
    }
    kv.store(l, batch.sequences, ws.k.data(), kv_width, ws.v.data(), kv_width);
    kv.attend(l, batch.sequences, ws.q.data(), q_width, ws.attended.data(), q_width,
              attention_scale, pool);
    set_activations(ws.attended.data(), q_width, {&layer.attention_output});
    kernels::linear(layer.attention_output.packed, ws.activations,
                    bias(layer.attention_output_bias), ws.branch.data(), hidden, pool,
                    {&layer.gate.packed, &layer.up.packed});
    add_branch();

    norm(layer.ffn_norm);
    set_activations(ws.normed.data(), hidden, {&layer.gate, &layer.up});
    const LinearJob gate_up[] = {{&layer.gate.packed, nullptr, ws.gate.data(), ffn},
                                 {&layer.up.packed, nullptr, ws.up.data(), ffn}};
    kernels::linear_many(gate_up, 2, ws.activations, pool, {&layer.down.packed});
    for_rows(n_rows, pool, [&](std::int64_t begin, std::int64_t end) {
      kernels::swiglu(&ws.gate[std::size_t(begin * ffn)], &ws.up[std::size_t(begin * ffn)],
                      (end - begin) * ffn, &ws.gate[std::size_t(begin * ffn)]);
    });
    set_activations(ws.gate.data(), ffn, {&layer.down});
    if (l + 1 < config_.n_layers) {
      const LayerWeights& next = weights_.layers[std::size_t(l + 1)];
      kernels::linear(layer.down.packed, ws.activations, nullptr, ws.branch.data(), hidden, pool,
                      {&next.q.packed, &next.k.packed, &next.v.packed});
    } else {
      kernels::linear(layer.down.packed, ws.activations, nullptr, ws.branch.data(), hidden, pool,
                      {batch.output ? batch.output : &weights_.output.packed});
    }
    add_branch();
    tap(l, ws.x.data(), hidden);
  }

  const bool final_tap =
      batch.tap_values && std::ranges::find(batch.taps, config_.n_layers) != batch.taps.end();
  if (final_tap) {
    norm(weights_.output_norm);
    tap(config_.n_layers, ws.normed.data(), hidden);
  }
  const auto n_logits = std::int64_t(batch.logit_rows.size());
  if (n_logits == 0) return;
  for (std::int64_t i = 0; i < n_logits; ++i) {
    kernels::rms_norm(&ws.x[std::size_t(batch.logit_rows[std::size_t(i)]) * std::size_t(hidden)],
                      hidden, weights_.output_norm.data(), config_.rms_epsilon, 1, hidden,
                      &ws.normed[std::size_t(i * hidden)], hidden);
  }
  const kernels::PackedMatrix& output = batch.output ? *batch.output : weights_.output.packed;
  ws.activations.set(ws.normed.data(), n_logits, hidden, hidden,
                     kernels::wants_block32(output.type), kernels::wants_block256(output.type),
                     pool);
  const kernels::LinearJob logits{&output, nullptr, batch.logits, output.n_out, batch.summary};
  const LayerWeights& first = weights_.layers.front();
  kernels::linear_many(&logits, 1, ws.activations, pool,
                       {&first.q.packed, &first.k.packed, &first.v.packed});
}

}  // namespace

Result<std::shared_ptr<const Model>> Model::load(const std::string& path,
                                                 const ModelLoadOptions& options) {
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  auto config = read_model_config(**file);
  if (!config) return config.error();
  if (options.drop_last_layers < 0 || options.drop_last_layers >= config->n_layers) {
    return Error{ErrorCode::kOutOfRange, fmt::format("{}: cannot drop {} of {} layers", path,
                                                     options.drop_last_layers, config->n_layers)};
  }
  config->n_layers -= options.drop_last_layers;
  const int threads =
      options.threads > 0 ? options.threads : std::max(1, int(std::thread::hardware_concurrency()));
  ThreadPool pool(threads);
  auto model = std::make_shared<LoadedModel>();
  auto fingerprint = fingerprint_of(**file, options.drop_last_layers, pool);
  if (!fingerprint) return fingerprint.error();
  model->fingerprint_ = *fingerprint;
  auto weights = load_weights(**file, *config, pool, options.progress);
  if (!weights) return weights.error();
  model->config_ = *config;
  model->file_ = std::move(*file);
  model->weights_ = std::move(*weights);
  auto count = [&](const Matrix& m) {
    model->weight_bytes_ += m.buffer.bytes();
    model->step_bytes_ += m.file_bytes;
    model->step_macs_ += m.packed.n_out * m.packed.n_in;
  };
  count(model->weights_.output);
  for (const LayerWeights& layer : model->weights_.layers) {
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.attention_output, &layer.gate,
                            &layer.up, &layer.down})
      count(*m);
  }
  return std::shared_ptr<const Model>(std::move(model));
}

}  // namespace foretoken
