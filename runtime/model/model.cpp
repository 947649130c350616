#include "runtime/model/model.h"

#include <algorithm>
#include <thread>
#include <variant>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/kv_page.h"
#include "foretoken/protocol/failure.h"
#include "runtime/model/blocks/attention.h"
#include "runtime/model/blocks/dense_ffn.h"
#include "runtime/model/fingerprint.h"
#include "runtime/model/tensor_loader.h"

namespace foretoken {
namespace {

using kernels::ThreadPool;

struct Layer {
  std::variant<AttentionBlock> mixer;
  std::variant<DenseFfnBlock> ffn;
  // [hidden]; empty where LayerSpec::norms has none there.
  std::vector<float> mixer_norm, mixer_post_norm, ffn_norm, ffn_post_norm;

  template <class F>
  void each_matrix(F&& fn) const {
    std::visit([&](const auto& block) { block.each_matrix(fn); }, mixer);
    std::visit([&](const auto& block) { block.each_matrix(fn); }, ffn);
  }
};

Upcoming first_of(const auto& block) {
  return std::visit([](const auto& b) { return b.first(); }, block);
}

class LoadedModel final : public Model {
 public:
  const ModelConfig& config() const override { return config_; }
  KvGeometry kv_geometry() const override {
    const AttentionSpec& a = config_.attention(0);
    return {config_.n_layers, a.n_heads, a.n_kv_heads, a.head_dim};
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

  Result<std::unique_ptr<KvCache>> make_kv(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const override {
    return KvCache::create(kv_geometry(), options, std::move(calibration));
  }

  std::unique_ptr<LogitRows> make_logit_rows(int max_rows,
                                             const kernels::PackedMatrix* output) const override {
    return std::make_unique<HostLogitRows>(max_rows, output ? output->n_out : config_.n_vocab);
  }
  std::unique_ptr<FeatureRows> make_feature_rows(std::span<const int> taps, int max_rows,
                                                 int slots) const override {
    return std::make_unique<HostFeatureRows>(taps, config_.hidden, max_rows, slots);
  }

  std::unique_ptr<HeadWorkspace> make_head_workspace(const HeadWeights& head,
                                                     int max_rows) const override {
    return head.make_host_workspace(max_rows, std::pmr::get_default_resource());
  }

  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               ThreadPool& pool) const override;

  void embedding(TokenId token, float* out) const override {
    if (embedding_tensor_) {
      const std::size_t row_bytes = kernels::weight_row_bytes(embedding_type_, config_.hidden);
      kernels::dequantize_file_row(embedding_type_,
                                   embedding_tensor_->data.data() + std::size_t(token) * row_bytes,
                                   config_.hidden, out);
    } else {
      kernels::dequantize_row(output_.packed, token, out);
    }
  }

  const kernels::PackedMatrix& output_matrix() const override { return output_.packed; }

  void output_matrix_of_attention(int kv_layer, float* out) const override {
    const auto& block = std::get<AttentionBlock>(layers_[std::size_t(kv_layer)].mixer);
    const kernels::PackedMatrix& w = block.output().packed;
    for (std::int64_t row = 0; row < w.n_out; ++row)
      kernels::dequantize_row(w, row, out + row * w.n_in);
  }

 private:
  friend class Model;

  // n_file_layers: of the file, those that are not loaded included.
  Status load(int n_file_layers, ThreadPool& pool, const std::function<void(double)>& progress);
  Status load_layer(TensorLoader& loader, int l);
  void begin(Pass& pass) const;
  void run_layer(int l, Pass& pass, const Upcoming& next) const;
  void write_logits(Pass& pass) const;

  ModelConfig config_;
  std::unique_ptr<GgufFile> file_;
  const GgufTensor* embedding_tensor_ = nullptr;  // untied: rows are read from the mapped file
  kernels::WeightType embedding_type_ = kernels::WeightType::kF32;
  Matrix output_;                   // [n_vocab, hidden]; the embedding itself when tied
  std::vector<float> output_norm_;  // [hidden]
  std::vector<Layer> layers_;
  std::array<std::uint8_t, 32> fingerprint_{};
  std::size_t weight_bytes_ = 0, step_bytes_ = 0;
  std::int64_t step_macs_ = 0;
};

// Rows' embeddings, and the rotations of their positions.
void LoadedModel::begin(Pass& pass) const {
  Workspace& ws = pass.ws;
  pass.for_rows([&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r)
      embedding(pass.batch.tokens[std::size_t(r)], &ws.x[std::size_t(r * pass.hidden)]);
  });
  for (std::size_t i = 0; i < config_.ropes.size(); ++i) {
    const Rope& rope = config_.ropes[i];
    for (const KvRows& rows : pass.batch.sequences) {
      for (int r = 0; r < rows.n_rows; ++r) {
        rope.table(rows.position(r),
                   &ws.cos_sin[i][std::size_t(rows.first_row + r) * std::size_t(rope.dim)]);
      }
    }
  }
}

void LoadedModel::run_layer(int l, Pass& pass, const Upcoming& next) const {
  Workspace& ws = pass.ws;
  const Layer& layer = layers_[std::size_t(l)];
  const auto part = [&](const auto& block, const std::vector<float>& norm,
                        const std::vector<float>& post_norm, const Upcoming& after) {
    if (!norm.empty()) pass.norm(ws.x.data(), norm, ws.normed.data());
    const float* x = norm.empty() ? ws.x.data() : ws.normed.data();
    std::visit([&](const auto& b) { b.run(x, pass, after); }, block);
    if (!post_norm.empty()) pass.norm(ws.branch.data(), post_norm, ws.branch.data());
    pass.add_branch();
  };
  part(layer.mixer, layer.mixer_norm, layer.mixer_post_norm, first_of(layer.ffn));
  part(layer.ffn, layer.ffn_norm, layer.ffn_post_norm, next);
}

void LoadedModel::write_logits(Pass& pass) const {
  Workspace& ws = pass.ws;
  const ForwardBatch& batch = pass.batch;
  const std::int64_t hidden = pass.hidden;
  const auto n_logits = std::int64_t(batch.logit_rows.size());
  if (n_logits == 0) return;
  for (std::int64_t i = 0; i < n_logits; ++i) {
    kernels::rms_norm(&ws.x[std::size_t(batch.logit_rows[std::size_t(i)]) * std::size_t(hidden)],
                      hidden, output_norm_.data(), config_.rms_epsilon, 1, hidden,
                      &ws.normed[std::size_t(i * hidden)], hidden);
  }
  const kernels::PackedMatrix& output = batch.output ? *batch.output : output_.packed;
  ws.activations.set(ws.normed.data(), n_logits, hidden, hidden,
                     kernels::wants_block32(output.type), kernels::wants_block256(output.type),
                     pass.pool);
  auto& rows = static_cast<HostLogitRows&>(*batch.logits);
  const kernels::LinearJob logits{&output, nullptr, rows.values(n_logits), output.n_out,
                                  rows.summary()};
  const Upcoming first = first_of(layers_.front().mixer);
  kernels::linear_many(&logits, 1, ws.activations, pass.pool, {first[0], first[1], first[2]});
}

void LoadedModel::forward(const ForwardBatch& batch, SequenceMemory& memory,
                          ForwardWorkspace& workspace, ThreadPool& pool) const {
  Pass pass{.config = config_,
            .batch = batch,
            .kv = memory.cache(),
            .ws = static_cast<Workspace&>(workspace),
            .pool = pool,
            .n_rows = std::int64_t(batch.tokens.size()),
            .hidden = config_.hidden};
  Workspace& ws = pass.ws;
  auto* features = static_cast<HostFeatureRows*>(batch.features);
  const auto tap = [&](int id, const std::vector<float>& values) {
    if (!features) return;
    for (std::size_t i = 0; i < features->taps().size(); ++i) {
      if (features->taps()[i] != id) continue;
      for (std::int64_t r = 0; r < pass.n_rows; ++r)
        std::copy_n(&values[std::size_t(r * pass.hidden)], pass.hidden, features->values(r, i));
    }
  };
  begin(pass);
  const Upcoming last = {batch.output ? batch.output : &output_.packed, &kNoMatrix, &kNoMatrix};
  for (int l = 0; l < config_.n_layers; ++l) {
    const bool more = l + 1 < config_.n_layers;
    run_layer(l, pass, more ? first_of(layers_[std::size_t(l) + 1].mixer) : last);
    tap(l, ws.x);
  }
  if (features && std::ranges::find(features->taps(), config_.n_layers) != features->taps().end()) {
    pass.norm(ws.x.data(), output_norm_, ws.normed.data());
    tap(config_.n_layers, ws.normed);
  }
  write_logits(pass);
}

Status LoadedModel::load_layer(TensorLoader& loader, int l) {
  const std::string prefix = fmt::format("blk.{}.", l);
  const LayerSpec& spec = config_.layers[std::size_t(l)];
  Layer& layer = layers_[std::size_t(l)];
  auto& attention = layer.mixer.emplace<AttentionBlock>();
  if (auto s = attention.load(loader, prefix, config_.attention(l), l, config_.hidden); !s)
    return s;
  auto& ffn = layer.ffn.emplace<DenseFfnBlock>();
  if (auto s = ffn.load(loader, prefix, std::get<DenseFfnSpec>(spec.ffn), config_.hidden); !s)
    return s;
  const Presence pre = spec.norms == Norms::kPost ? Presence::kNone : Presence::kRequired;
  const Presence post = spec.norms == Norms::kPre ? Presence::kNone : Presence::kRequired;
  struct Norm {
    const char* name;
    Presence presence;
    std::vector<float>* out;
  };
  for (const Norm& n : {Norm{"attn_norm", pre, &layer.mixer_norm},
                        Norm{"post_attention_norm", post, &layer.mixer_post_norm},
                        Norm{"ffn_norm", pre, &layer.ffn_norm},
                        Norm{"post_ffw_norm", post, &layer.ffn_post_norm}}) {
    if (auto s = loader.vector(prefix + n.name + ".weight", config_.hidden, n.presence, *n.out); !s)
      return s;
  }
  return Ok{};
}

Status LoadedModel::load(int n_file_layers, ThreadPool& pool,
                         const std::function<void(double)>& progress) {
  TensorLoader loader(*file_, pool, progress);
  for (const std::string& name : config_.read_tensors) loader.claim(name);
  const char* output = config_.tied_output ? "token_embd.weight" : "output.weight";
  if (auto s = loader.matrix(output, config_.n_vocab, config_.hidden, output_); !s) return s;
  if (!config_.tied_output) {
    auto rows = loader.find("token_embd.weight", {config_.hidden, config_.n_vocab});
    if (!rows) return rows.error();
    embedding_tensor_ = rows->tensor;
    embedding_type_ = rows->type;
  }
  if (auto s =
          loader.vector("output_norm.weight", config_.hidden, Presence::kRequired, output_norm_);
      !s)
    return s;
  layers_.resize(std::size_t(config_.n_layers));
  for (int l = 0; l < config_.n_layers; ++l) {
    if (auto s = load_layer(loader, l); !s) return s;
  }
  std::vector<std::string> dropped;
  for (int l = config_.n_layers; l < n_file_layers; ++l)
    dropped.push_back(fmt::format("blk.{}.", l));
  if (auto s = loader.finish(dropped); !s) return s;

  const auto count = [&](const Matrix& m) {
    weight_bytes_ += m.buffer.bytes();
    step_bytes_ += m.file_bytes;
    step_macs_ += m.packed.n_out * m.packed.n_in;
  };
  count(output_);
  for (const Layer& layer : layers_) layer.each_matrix(count);
  return Ok{};
}

}  // namespace

Result<std::unique_ptr<SequenceMemory>> Model::make_memory(
    const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const {
  auto cache = make_kv(options, std::move(calibration));
  if (!cache) return cache.error();
  std::vector<std::unique_ptr<KvCache>> classes;
  classes.push_back(std::move(*cache));
  return std::make_unique<SequenceMemory>(std::move(classes));
}

Result<std::unique_ptr<SequenceMemory>> Model::make_memory_of_one(
    KvOptions options, std::shared_ptr<const KvCalibration> calibration) const {
  const KvGeometry g = kv_geometry();
  const std::int64_t pages = (options.max_model_len + options.max_rows) / kernels::kPageTokens + 2;
  // Every page in 16 bits and sealed.
  options.memory_bytes =
      2 * std::size_t(pages * g.n_layers * g.n_kv_heads) * kernels::hot_page_bytes(g.head_dim);
  options.max_sequences = 1;
  return make_memory(options, std::move(calibration));
}

void Model::forward_one(ForwardBatch batch, KvSequence sequence, std::int64_t first,
                        SequenceMemory& memory, ForwardWorkspace& workspace,
                        kernels::ThreadPool& pool) const {
  const KvRows rows{sequence, first, int(batch.tokens.size()), 0};
  batch.sequences = {&rows, 1};
  forward(batch, memory, workspace, pool);
}

Result<std::shared_ptr<const Model>> Model::load(const std::string& path,
                                                 const ModelLoadOptions& options) {
  if (options.device != kernels::Device::kCpu)
    return failure(ErrorCode::kUnsupported,
                   "{}: device: found cuda, wanted cpu (this build has no other)", path);
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  auto config = read_model_config(**file);
  if (!config) return config.error();
  const int n_file_layers = config->n_layers;
  if (options.drop_last_layers < 0 || options.drop_last_layers >= n_file_layers) {
    return failure(ErrorCode::kOutOfRange, "{}: cannot drop {} of {} layers", path,
                   options.drop_last_layers, n_file_layers);
  }
  config->n_layers -= options.drop_last_layers;
  config->layers.resize(std::size_t(config->n_layers));
  const int threads =
      options.threads > 0 ? options.threads : std::max(1, int(std::thread::hardware_concurrency()));
  ThreadPool pool(threads);
  auto model = std::make_shared<LoadedModel>();
  auto fingerprint = fingerprint_of(**file, options.drop_last_layers, pool);
  if (!fingerprint) return fingerprint.error();
  model->fingerprint_ = *fingerprint;
  model->config_ = std::move(*config);
  model->file_ = std::move(*file);
  if (auto s = model->load(n_file_layers, pool, options.progress); !s) return s.error();
  return std::shared_ptr<const Model>(std::move(model));
}

}  // namespace foretoken
