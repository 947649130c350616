// The paired transform of every (layer, KV head): made once a model from a calibration text, kept in the
// state directory by fingerprint, immutable afterwards. Recipe: notes "pt2", described in runtime/README.md.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

struct KvGeometry;

class KvCalibration {
 public:
  virtual ~KvCalibration() = default;
  virtual const kernels::Int2Transform* layer(int layer) const = 0;   // [n_kv_heads]
  virtual Status save(const std::string& path, const std::array<std::uint8_t, 32>& fingerprint) const = 0;
  // A file of another model (fingerprint) or geometry is refused by name.
  static Result<std::shared_ptr<const KvCalibration>> load(const std::string& path, const KvGeometry& geometry,
                                                           const std::array<std::uint8_t, 32>& fingerprint);
  // Without calibration data: steps for unit-variance Hadamard-rotated channels, per-head scales a row.
  static std::shared_ptr<const KvCalibration> data_free(const KvGeometry& geometry);
};

// Collects second moments from a forward pass over calibration text and solves for the transforms.
class KvCalibrator {
 public:
  static std::unique_ptr<KvCalibrator> create(const KvGeometry& geometry);
  virtual ~KvCalibrator() = default;
  // One window of text at a time, all layers in order. Rows are consecutive positions; q [n_rows, n_heads, d]
  // and k, v [n_rows, n_kv_heads, d] with rotary applied (positions at random offsets: see the notes).
  virtual void observe(int layer, int n_rows, const float* q, const float* k, const float* v) = 0;
  // wo: the layer's attention output matrix, dequantised, [hidden, n_heads * d]; used for V's importance.
  virtual void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) = 0;
  virtual std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) = 0;
};

}  // namespace foretoken
