// The calibrator as calibrate.cpp drives it: a window is weighed once, where its text stands, and
// its moments are then added block by block, moved to other positions. Private.
#pragma once

#include "foretoken/kernels/thread_pool.h"
#include "runtime/kv/calibration.h"

namespace foretoken {

class MomentCalibrator : public KvCalibrator {
 public:
  static std::unique_ptr<MomentCalibrator> create(const KvGeometry& geometry);
  // What attention makes of a window's rows (all of them, [n_rows, heads, d] as for observe): which
  // queries read sealed pages how much, and which keys and values they find there.
  virtual void weigh(int layer, int n_rows, const float* q, const float* k, const float* v,
                     kernels::ThreadPool* pool) = 0;
  // Rows first .. first + n - 1 of the window last weighed, first a page border; q, k, v of these
  // rows alone, q and k possibly moved by an offset common to all of them.
  virtual void add_moments(int layer, int first, int n, const float* q, const float* k,
                           const float* v, kernels::ThreadPool* pool) = 0;
};

}  // namespace foretoken
