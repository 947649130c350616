// What the blocks of a layer share in one forward pass: the buffers between them and the steps that
// several of them take. Blocks read x and leave their branch in Workspace::branch; nothing here
// allocates.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/thread_pool.h"
#include "runtime/model/model.h"

namespace foretoken {

class Workspace final : public ForwardWorkspace {
 public:
  Workspace(const ModelConfig& config, int max_rows, int max_logit_rows);
  kernels::Activations activations;
  std::vector<float> x, normed, branch;  // [max_rows, hidden]; normed also [max_logit_rows, hidden]
  std::vector<float> q, k, v, attended;  // [max_rows, heads * head_dim] of the widest layer
  std::vector<float> gate, up;           // [max_rows, ffn]
  std::vector<std::vector<float>> cos_sin;  // one a Rope of the model: [max_rows, dim]
};

// The matrices that are read next, for linear()'s last argument: what is not there is kNoMatrix.
using Upcoming = std::array<const kernels::PackedMatrix*, 3>;
inline constexpr kernels::PackedMatrix kNoMatrix{};

struct Pass {
  const ModelConfig& config;
  const ForwardBatch& batch;
  KvCache& kv;
  Workspace& ws;
  kernels::ThreadPool& pool;
  std::int64_t n_rows, hidden;

  // fn(first, last) over rows; in parallel only when there are enough of them to pay for waking
  // workers. Row-wise work only: no result may depend on the split.
  template <class F>
  void for_rows(F&& fn) {
    // A row of elementwise work is a few microseconds, a wake-up about one.
    constexpr std::int64_t kWorthwhile = 8;
    if (n_rows < kWorthwhile) {
      fn(std::int64_t{0}, n_rows);
    } else {
      pool.ranges(n_rows, 1, [&](std::int64_t begin, std::int64_t end, int) { fn(begin, end); });
    }
  }
  // from, to: [n_rows, hidden]; may be the same.
  void norm(const float* from, const std::vector<float>& weight, float* to);
  // One quantisation of the activations serves every matrix that reads them. x: [n_rows, width]
  void set_activations(const float* x, std::int64_t width, Upcoming users);
  void add_branch();  // x += branch
};

}  // namespace foretoken
