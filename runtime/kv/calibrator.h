// Collects second moments from a forward pass over calibration text and solves for the transforms
// (calibration.h has the method). A window is weighed once, where its text stands, and its moments
// are then added block by block, moved to other positions (model/calibrate_kv.cpp). Private.
#pragma once

#include <functional>

#include "foretoken/kernels/thread_pool.h"
#include "runtime/kv/calibration.h"

namespace foretoken {

class KvCalibrator {
 public:
  static std::unique_ptr<KvCalibrator> create(const KvGeometry& geometry);
  virtual ~KvCalibrator() = default;
  // wo: the layer's attention output matrix, dequantised, [hidden, n_heads * d]; used for V's
  // importance.
  virtual void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) = 0;
  // What attention makes of a window's rows, shaped as for KvObserver: which queries read sealed
  // pages how much, and which keys and values they find there. pool may be null.
  virtual void weigh(int layer, int n_rows, const float* q, const float* k, const float* v,
                     kernels::ThreadPool* pool) = 0;
  // Rows first .. first + n - 1 of the window last weighed, first a page border; q, k, v of these
  // rows alone, q and k possibly moved by an offset common to all of them.
  virtual void add_moments(int layer, int first, int n, const float* q, const float* k,
                           const float* v, kernels::ThreadPool* pool) = 0;
  // Every kind of transform that needs data. progress may be null; called with 0..1.
  virtual std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) = 0;
};

}  // namespace foretoken
