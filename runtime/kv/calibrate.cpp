#include "runtime/kv/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/sampling.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/model.h"

namespace foretoken {
namespace {

constexpr int kChunkRows = 512;  // of one forward pass, and of one offset
// Shares of the progress bar, by time on the 0.5B: the forward passes, the output matrices, the
// solving.
constexpr double kForwardShare = 0.8, kMatrixShare = 0.1;

// Shows a chunk to the calibrator as if its text stood elsewhere: a rotary embedding is a rotation
// by the position, so rotating q and k once more by an offset moves them there; their products stay
// as they are.
class AtOffsets final : public KvCalibrator {
 public:
  AtOffsets(KvCalibrator& inner, const ModelConfig& config)
      : inner_(inner), config_(config), cos_sin_(config.rotary_dim) {}
  void set_offsets(std::vector<std::int64_t> offsets) { offsets_ = std::move(offsets); }

  void observe(int layer, int n_rows, const float* q, const float* k, const float* v) override {
    const std::size_t q_width = static_cast<std::size_t>(config_.n_heads) * config_.head_dim;
    const std::size_t k_width = static_cast<std::size_t>(config_.n_kv_heads) * config_.head_dim;
    for (const std::int64_t offset : offsets_) {
      q_.assign(q, q + n_rows * q_width);
      k_.assign(k, k + n_rows * k_width);
      kernels::rope_table(offset, config_.rotary_dim, config_.rope_theta, nullptr, cos_sin_.data());
      for (int r = 0; r < n_rows; ++r) {
        kernels::rope(q_.data() + r * q_width, config_.n_heads, config_.head_dim,
                      config_.rotary_dim, cos_sin_.data(), config_.rope_interleaved);
        kernels::rope(k_.data() + r * k_width, config_.n_kv_heads, config_.head_dim,
                      config_.rotary_dim, cos_sin_.data(), config_.rope_interleaved);
      }
      inner_.observe(layer, n_rows, q_.data(), k_.data(), v);
    }
  }
  void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) override {
    inner_.observe_output_matrix(layer, wo, hidden);
  }
  std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) override {
    return inner_.solve(std::move(progress));
  }

 private:
  KvCalibrator& inner_;
  const ModelConfig& config_;
  std::vector<std::int64_t> offsets_;
  std::vector<float> q_, k_, cos_sin_;
};

// Of a text longer than `most`, windows evenly from its beginning to its end: its end may be of
// another kind than its beginning.
std::vector<TokenId> pieces_of(std::span<const TokenId> tokens, std::int64_t window, int most) {
  if (tokens.size() <= static_cast<std::size_t>(most)) return {tokens.begin(), tokens.end()};
  const auto length = static_cast<std::size_t>(std::min<std::int64_t>(window, most));
  const std::size_t n = static_cast<std::size_t>(most) / length, last = tokens.size() - length;
  std::vector<TokenId> out;
  for (std::size_t i = 0; i < n; ++i) {
    const auto piece = tokens.subspan(n > 1 ? last * i / (n - 1) : last / 2, length);
    out.insert(out.end(), piece.begin(), piece.end());
  }
  return out;
}

}  // namespace

Result<std::shared_ptr<const KvCalibration>> calibrate_kv(const Model& model,
                                                          std::span<const TokenId> tokens,
                                                          const KvCalibrateOptions& options,
                                                          kernels::ThreadPool& pool,
                                                          std::function<void(double)> progress) {
  constexpr std::size_t kLeastTokens = 256;
  if (tokens.size() < kLeastTokens) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("KV calibration: the text has {} tokens, wanted at least {}",
                             tokens.size(), kLeastTokens)};
  }
  const ModelConfig& config = model.config();
  const KvGeometry geometry = model.kv_geometry();
  const std::int64_t window =
      std::min<std::int64_t>({options.window_tokens / kChunkRows * kChunkRows,
                              std::max<std::int64_t>(config.context_length, kChunkRows)});
  const std::vector<TokenId> pieces = pieces_of(tokens, window, options.max_tokens);
  tokens = pieces;
  const std::size_t page_bytes =
      kernels::hot_page_bytes(geometry.head_dim) * geometry.n_layers * geometry.n_kv_heads;
  KvOptions kv_options{
      .mode = KvMode::kBf16,
      .memory_bytes = page_bytes * static_cast<std::size_t>(window / kernels::kPageTokens + 1),
      .max_sequences = 1,
      .max_rows = kChunkRows,
      .max_model_len = window};
  auto kv = KvCache::create(geometry, kv_options, nullptr);
  if (!kv) return kv.error();
  auto workspace = model.make_workspace(kChunkRows, 1);
  auto calibrator = KvCalibrator::create(geometry);
  AtOffsets observer(*calibrator, config);

  // Offsets: one in each equal part of the range, in random order, so that few of them cover it.
  const std::int64_t range =
      std::max<std::int64_t>(1, std::min(options.max_offset, config.context_length - window));
  const auto n_chunks = static_cast<int>((tokens.size() + kChunkRows - 1) / kChunkRows);
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(n_chunks) *
                                    std::max(1, options.offsets_per_chunk));
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    offsets[i] =
        static_cast<std::int64_t>((static_cast<double>(i) + kernels::uniform(options.seed, i, 0)) /
                                  static_cast<double>(offsets.size()) * static_cast<double>(range));
  }
  for (std::size_t i = offsets.size(); i > 1; --i) {
    std::swap(offsets[i - 1], offsets[static_cast<std::size_t>(
                                  kernels::uniform(options.seed, i, 1) * static_cast<double>(i))]);
  }

  const auto report = [&](double share) {
    if (progress) progress(share);
  };
  std::size_t done = 0;
  for (int chunk = 0; done < tokens.size(); ++chunk) {
    const std::int64_t position = static_cast<std::int64_t>(done) % window;
    if (position == 0) {
      if (chunk > 0) (*kv)->close(0);
      (*kv)->open();
    }
    const int n = static_cast<int>(std::min<std::size_t>(kChunkRows, tokens.size() - done));
    (*kv)->reserve(0, position + n);
    const KvRows rows{0, position, n, 0};
    ForwardBatch batch;
    batch.tokens = tokens.subspan(done, n);
    batch.sequences = {&rows, 1};
    batch.calibrator = &observer;
    const auto per_chunk = static_cast<std::ptrdiff_t>(offsets.size()) / n_chunks;
    observer.set_offsets(
        {offsets.begin() + chunk * per_chunk, offsets.begin() + (chunk + 1) * per_chunk});
    model.forward(batch, **kv, *workspace, pool);
    (*kv)->commit(0, position + n);
    done += n;
    report(kForwardShare * static_cast<double>(done) / static_cast<double>(tokens.size()));
  }
  std::vector<float> matrix(static_cast<std::size_t>(config.hidden) * config.n_heads *
                            config.head_dim);
  for (int layer = 0; layer < config.n_layers; ++layer) {
    model.output_matrix_of_attention(layer, matrix.data());
    calibrator->observe_output_matrix(layer, matrix.data(), config.hidden);
    report(kForwardShare + kMatrixShare * (layer + 1) / config.n_layers);
  }
  return calibrator->solve([&](double share) {
    report(kForwardShare + kMatrixShare + (1 - kForwardShare - kMatrixShare) * share);
  });
}

}  // namespace foretoken
