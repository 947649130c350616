// The paired transform of every (layer, KV head): made once a model from a calibration text, kept
// in the state directory by fingerprint, immutable afterwards.
//
// Keys. With Sq = E[q q^T] over the group's queries and Sk = E[k k^T] of keys less their page's
// mean (after rotary, each row weighted by what attention reads sealed: calibrator.cpp), R = M^1/2,
// M = Sk^-1/2 (Sk^1/2 Sq Sk^1/2)^1/2 Sk^-1/2 (the geometric mean of Sq and Sk^-1, symmetric) gives
// k' = R k and q' = R^-1 q one second moment C, while q'.k' = q.k. In C's eigenbasis a channel's
// energy is also its importance, so bits go where they buy most: the n4 largest get 4 bits (int4:
// 8), the n4 smallest none, the rest 2 (4), n4 by least predicted loss. Inside each class a Hartley
// rotation spreads the energy evenly, so that one static step a class fits all its channels.
// Values. The same with Sk the values' covariance and Sq the sum over the group's heads of G_h
// Wo_h^T Wo_h: what an error in a value costs in the layer's output, G_h being the head's mean sum
// of squared sealed weights. An orthogonal rotation (QuaRot, arXiv 2404.00456; OSCAR, arXiv
// 2605.17757) cannot do this: with the key biases of Qwen2.5, hundreds of times the rms, it spreads
// a few channels' energy over all of them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

struct KvGeometry;
class KvTransforms;

using KvMode = kernels::KvMode;

// The transforms of one model for every mode that it covers: those without data always (none,
// Hadamard), those with data once a calibration has made them. One object serves caches of all
// modes.
class KvCalibration {
 public:
  explicit KvCalibration(const KvGeometry& geometry);  // covers the modes that need no data
  bool covers(KvMode mode) const;
  // [n_kv_heads]; null if it does not cover the mode.
  const kernels::KvTransform* layer(KvMode mode, int layer) const;
  Status save(const std::string& path, const std::array<std::uint8_t, 32>& fingerprint) const;
  // A file of another model (fingerprint) or geometry is refused by name; so is one that is cut or
  // changed. `only` leaves out of memory what other modes need.
  static Result<std::shared_ptr<const KvCalibration>> load(
      const std::string& path, const KvGeometry& geometry,
      const std::array<std::uint8_t, 32>& fingerprint, std::optional<KvMode> only = std::nullopt);
  // Without calibration data, for every mode: Hartley-rotated channels of one step, the page mean
  // of K removed, a least-squares scale a row. Usable where keys have no large bias (Llama family);
  // on Qwen2.5 it costs most of the quality.
  static std::shared_ptr<const KvCalibration> data_free(const KvGeometry& geometry);
  // Negative controls and comparisons, for int2: token-wise INT2 as it is (largest value on the
  // outermost code), and after a Hadamard-like (Hartley) rotation with least-squares scales;
  // neither removes any mean.
  static std::shared_ptr<const KvCalibration> naive(const KvGeometry& geometry);
  static std::shared_ptr<const KvCalibration> hadamard(const KvGeometry& geometry);

  void add(std::shared_ptr<const KvTransforms> transforms);  // while it is being made

 private:
  std::array<std::shared_ptr<const KvTransforms>, 6> by_kind_;  // by KvTransformKind
};

// Collects second moments from a forward pass over calibration text and solves for the transforms.
class KvCalibrator {
 public:
  static std::unique_ptr<KvCalibrator> create(const KvGeometry& geometry);
  virtual ~KvCalibrator() = default;
  // One window of text at a time, all layers in order. Rows are consecutive positions, the first at
  // a page border; q [n_rows, n_heads, d] and k, v [n_rows, n_kv_heads, d] with rotary applied.
  virtual void observe(int layer, int n_rows, const float* q, const float* k, const float* v) = 0;
  // wo: the layer's attention output matrix, dequantised, [hidden, n_heads * d]; used for V's
  // importance.
  virtual void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) = 0;
  // Every kind of transform that needs data. progress may be null; called with 0..1.
  virtual std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) = 0;
};

}  // namespace foretoken
