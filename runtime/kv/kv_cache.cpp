#include "runtime/kv/kv_cache.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/protocol/failure.h"

namespace foretoken {

using kernels::kPageTokens;

std::string_view kv_mode_name(KvMode mode) { return kernels::kv_format(mode).name; }

std::optional<KvMode> parse_kv_mode(std::string_view name) {
  for (const kernels::KvFormat& format : kernels::kKvFormats) {
    if (name == format.name) return format.mode;
  }
  return std::nullopt;
}

std::span<const KvMode> kv_modes() {
  static const auto modes = [] {
    std::array<KvMode, std::size(kernels::kKvFormats)> all{};
    std::transform(std::begin(kernels::kKvFormats), std::end(kernels::kKvFormats), all.begin(),
                   [](const kernels::KvFormat& format) { return format.mode; });
    return all;
  }();
  return modes;
}

std::string kv_mode_names() {
  std::string names;
  for (std::size_t i = 0; i < kv_modes().size(); ++i) {
    if (i > 0) names += i + 1 == kv_modes().size() ? " or " : ", ";
    names += kv_mode_name(kv_modes()[i]);
  }
  return names;
}

bool kv_mode_needs_calibration(KvMode mode) {
  const kernels::KvTransformKind kind = kernels::kv_format(mode).transform;
  return kind != kernels::KvTransformKind::kIdentity && kind != kernels::KvTransformKind::kHadamard;
}

Result<std::unique_ptr<KvCache>> KvCache::create(const KvGeometry& geometry,
                                                 const KvOptions& options,
                                                 std::shared_ptr<const KvCalibration> calibration,
                                                 const MakeKvPages& make_pages) {
  const auto bad = []<class... Args>(fmt::format_string<Args...> text, Args&&... args) {
    return failure(ErrorCode::kInvalidInput, "kv cache: {}",
                   fmt::format(text, std::forward<Args>(args)...));
  };
  if (geometry.n_layers <= 0 || geometry.n_kv_heads <= 0 || geometry.n_heads <= 0 ||
      geometry.n_heads % geometry.n_kv_heads != 0 || geometry.n_heads / geometry.n_kv_heads > 64) {
    return bad("{} layers, {} heads, {} KV heads are not supported", geometry.n_layers,
               geometry.n_heads, geometry.n_kv_heads);
  }
  if (geometry.head_dim <= 0 || geometry.head_dim % 16 != 0 ||
      geometry.head_dim > kernels::kMaxHeadDim) {
    return bad("head_dim {} is not a multiple of 16 up to {}", geometry.head_dim,
               kernels::kMaxHeadDim);
  }
  if (options.sink_tokens < 0 || options.sink_tokens % kPageTokens != 0)
    return bad("sink_tokens {} is not a multiple of {}", options.sink_tokens, kPageTokens);
  if (options.window_tokens < kPageTokens || options.window_tokens % kPageTokens != 0) {
    return bad("window_tokens {} is not a multiple of {}, at least {}", options.window_tokens,
               kPageTokens, kPageTokens);
  }
  if (options.max_sequences <= 0 || options.max_rows <= 0 || options.max_model_len <= 0)
    return bad("max_sequences, max_rows and max_model_len must be positive");
  if (calibration == nullptr) calibration = std::make_shared<const KvCalibration>(geometry);
  if (!calibration->covers(options.mode))
    return bad("{} needs a calibration", kv_mode_name(options.mode));
  const KvLayout layout{.geometry = geometry,
                        .mode = options.mode,
                        .sink_pages = options.sink_tokens / kPageTokens,
                        .window_pages = options.window_tokens / kPageTokens,
                        .max_sequences = options.max_sequences,
                        .max_pages = int((options.max_model_len + kPageTokens - 1) / kPageTokens),
                        .max_rows = options.max_rows};
  auto pages = make_pages ? make_pages(layout, std::move(calibration))
                          : std::make_unique<HostKvPages>(layout, std::move(calibration));
  std::unique_ptr<KvCache> cache(new KvCache(layout, options, std::move(pages)));
  if (options.memory_bytes < cache->chunk_bytes()) {
    return bad("memory_bytes {} is less than one page of {}", options.memory_bytes,
               cache->chunk_bytes());
  }
  if (!cache->ok())
    return failure(ErrorCode::kOutOfRange, "kv cache: cannot map {} bytes", options.memory_bytes);
  return cache;
}

KvCache::KvCache(const KvLayout& layout, const KvOptions& options, std::unique_ptr<KvPages> pages)
    : PageTable(layout, options, *pages), pages_(std::move(pages)) {}

void KvCache::store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
                    const float* v, std::int64_t v_stride) {
  storing(layer, rows);
  pages_->store(layer, rows, k, k_stride, v, v_stride);
}

void KvCache::attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
                     float* out, std::int64_t out_stride, float scale, kernels::ThreadPool& pool) {
  if (const auto pages = sealing(layer, rows); !pages.empty()) pages_->seal(layer, pages, pool);
  pages_->attend(layer, rows, q, q_stride, out, out_stride, scale, pool);
}

}  // namespace foretoken
