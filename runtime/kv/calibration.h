// A calibration holds two transforms, of keys and of values, for every (layer, KV head). It is made
// once a model from a calibration text, kept in the state directory by fingerprint, and immutable.
//
// Sealed rows have few bits a channel, so a matrix R first makes them easy to quantize: keys k
// become R k and queries q become R^-1 q, which leaves q.k as it was. Example: where keys are large
// but queries hardly look, the channel shrinks, and bits go where they buy more.
// R gives keys and queries one second moment C. From Sk = E[k k^T] and Sq = E[q q^T] (all queries
// of the group) it is R = M^1/2, M = Sk^-1/2 (Sk^1/2 Sq Sk^1/2)^1/2 Sk^-1/2. In the eigenbasis of C
// a channel's energy is also its importance: the n largest get 4 bits (int4: 8), the n smallest
// none, the rest 2 (4), with n by least predicted loss. A Hartley rotation within each class then
// evens out the energy, so that one fixed step fits all its channels.
// Keys count after rotary, less their page's mean, by the attention they get when sealed. For
// values, Sk is their covariance and Sq what an error in them costs in the layer's output: the sum
// of G_h Wo_h^T Wo_h over the group's heads, G_h the head's mean sum of squared sealed weights.
// An orthogonal rotation (QuaRot, arXiv 2404.00456; OSCAR, arXiv 2605.17757) cannot do this: the
// key biases of Qwen2.5, hundreds of times the rms, it spreads over all channels.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

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

// Sees what a forward pass over calibration text computes.
class KvObserver {
 public:
  virtual ~KvObserver() = default;
  // One window of text at a time, all layers in order. Rows are consecutive positions, the first at
  // a page border; q [n_rows, n_heads, d] and k, v [n_rows, n_kv_heads, d] with rotary applied.
  virtual void observe(int layer, int n_rows, const float* q, const float* k, const float* v) = 0;
};

}  // namespace foretoken
