#include "runtime/model/calibrate_kv.h"

#include <algorithm>
#include <vector>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/sampling.h"
#include "foretoken/protocol/failure.h"
#include "runtime/kv/calibrator.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/model.h"

namespace foretoken {
namespace {

constexpr int kBlockRows = 256;  // that are moved by one offset
// Shares of the progress bar, by time on the 0.5B: the output matrices, the forward passes, the
// solving.
constexpr double kMatrixShare = 0.05, kForwardShare = 0.85;

// Shows a window to the calibrator as if its blocks stood elsewhere: a rotary embedding is a
// rotation by the position, so rotating q and k once more by an offset moves them there; their
// products stay as they are.
class AtOffsets final : public KvObserver {
 public:
  AtOffsets(KvCalibrator& inner, const ModelConfig& config, kernels::ThreadPool& pool,
            std::function<void(int)> seen)
      : inner_(inner), config_(config), pool_(pool), seen_(std::move(seen)) {}
  // Of the blocks in turn, as many times as there are.
  void set_offsets(std::span<const std::int64_t> offsets) { offsets_ = offsets; }

  void observe(int layer, int n_rows, const float* q, const float* k, const float* v) override {
    inner_.weigh(layer, n_rows, q, k, v, &pool_);
    const AttentionSpec& a = config_.attention(layer);
    const Rope* rope = config_.rope_of(a);
    const std::size_t q_width = std::size_t(a.n_heads) * a.head_dim;
    const std::size_t k_width = std::size_t(a.n_kv_heads) * a.head_dim;
    const int n_blocks = (n_rows + kBlockRows - 1) / kBlockRows;
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      const int first = int(i) % n_blocks * kBlockRows, n = std::min(kBlockRows, n_rows - first);
      q_.assign(q + first * q_width, q + (first + n) * q_width);
      k_.assign(k + first * k_width, k + (first + n) * k_width);
      if (rope) move(offsets_[i], n, a, *rope);
      inner_.add_moments(layer, first, n, q_.data(), k_.data(), v + first * k_width, &pool_);
    }
    seen_(layer);
  }

 private:
  void move(std::int64_t offset, int n_rows, const AttentionSpec& a, const Rope& rope) {
    cos_sin_.resize(std::size_t(rope.dim));
    rope.rotation(offset, cos_sin_.data());
    const std::size_t q_width = q_.size() / n_rows, k_width = k_.size() / n_rows;
    pool_.ranges(n_rows, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        kernels::rope(q_.data() + r * q_width, a.n_heads, a.head_dim, rope.dim, cos_sin_.data(),
                      rope.interleaved);
        kernels::rope(k_.data() + r * k_width, a.n_kv_heads, a.head_dim, rope.dim, cos_sin_.data(),
                      rope.interleaved);
      }
    });
  }

  KvCalibrator& inner_;
  const ModelConfig& config_;
  kernels::ThreadPool& pool_;
  std::function<void(int)> seen_;  // a layer
  std::span<const std::int64_t> offsets_;
  std::vector<float> q_, k_, cos_sin_;
};

// Where windows begin: evenly from the text's beginning to its end, for its end may be of another
// kind than its beginning; the last two overlap where the text is no multiple of a window.
std::vector<std::size_t> window_starts(std::size_t n_tokens, std::size_t window, int most) {
  const std::size_t n =
      std::max<std::size_t>(1, std::min((n_tokens + window - 1) / window, most / window));
  std::vector<std::size_t> starts(n);
  for (std::size_t i = 0; i < n; ++i)
    starts[i] = n > 1 ? (n_tokens - window) * i / (n - 1) : (n_tokens - window) / 2;
  return starts;
}

}  // namespace

std::string_view kv_calibration_text() {
  static constexpr std::string_view text =
#include "calibration_text.inc"  // written by CMake from calibration_text.txt
      ;
  return text;
}

Result<std::shared_ptr<const KvCalibration>> calibrate_kv(const Model& model,
                                                          std::span<const TokenId> tokens,
                                                          const KvCalibrateOptions& options,
                                                          kernels::ThreadPool& pool,
                                                          std::function<void(double)> progress) {
  constexpr std::size_t kLeastTokens = 256;
  if (tokens.size() < kLeastTokens) {
    return failure(ErrorCode::kInvalidInput,
                   "KV calibration: the text has {} tokens, wanted at least {}", tokens.size(),
                   kLeastTokens);
  }
  const ModelConfig& config = model.config();
  const KvGeometry geometry = model.kv_geometry();
  // Whole pages.
  const auto window =
      std::size_t(std::min<std::int64_t>({std::int64_t(tokens.size()), options.window_tokens,
                                          options.max_tokens, config.context_length})) /
      kernels::kPageTokens * kernels::kPageTokens;
  const std::vector<std::size_t> starts = window_starts(tokens.size(), window, options.max_tokens);
  const auto rows_in_window = int(window);
  auto kv = model.make_memory_of_one(
      {.mode = KvMode::kBf16, .max_rows = rows_in_window, .max_model_len = rows_in_window},
      nullptr);
  if (!kv) return kv.error();
  auto workspace = model.make_workspace(rows_in_window, 1);
  auto calibrator = KvCalibrator::create(geometry);
  const auto report = [&](double share) {
    if (progress) progress(share);
  };
  std::size_t done = 0;
  AtOffsets observer(*calibrator, config, pool, [&](int layer) {
    const double window_share = double(layer + 1) / geometry.n_layers;
    report(kMatrixShare + kForwardShare * (double(done) + window_share) / double(starts.size()));
  });
  std::vector<float> matrix(std::size_t(config.hidden) * geometry.n_heads * geometry.head_dim);
  for (int layer = 0; layer < geometry.n_layers; ++layer) {
    model.output_matrix_of_attention(layer, matrix.data());
    calibrator->observe_output_matrix(layer, matrix.data(), config.hidden);
    report(kMatrixShare * (layer + 1) / geometry.n_layers);
  }

  // Offsets: one in each equal part of the range, in random order, so that few of them cover it.
  const std::int64_t range = std::max<std::int64_t>(
      1, std::min(options.max_offset, config.context_length - rows_in_window));
  const std::size_t per_window =
      (window + kBlockRows - 1) / kBlockRows * std::size_t(std::max(1, options.offsets_per_block));
  std::vector<std::int64_t> offsets(starts.size() * per_window);
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    offsets[i] = std::int64_t((double(i) + kernels::uniform(options.seed, i, 0)) /
                              double(offsets.size()) * double(range));
  }
  for (std::size_t i = offsets.size(); i > 1; --i) {
    std::swap(offsets[i - 1],
              offsets[std::size_t(kernels::uniform(options.seed, i, 1) * double(i))]);
  }

  for (; done < starts.size(); ++done) {
    (*kv)->open();
    (*kv)->reserve(0, rows_in_window);
    observer.set_offsets(std::span(offsets).subspan(done * per_window, per_window));
    model.forward_one({.tokens = tokens.subspan(starts[done], window), .observer = &observer}, 0, 0,
                      **kv, *workspace, pool);
    (*kv)->close(0);
  }
  return calibrator->solve([&](double share) {
    report(kMatrixShare + kForwardShare + (1 - kMatrixShare - kForwardShare) * share);
  });
}

}  // namespace foretoken
