// Linear layers over packed weights: y[r, o] = sum_k x[r, k] * w[o, k] (+ bias[o]).
// Weights keep their GGUF precision but are repacked at load into a layout that is fast at 1 to 16
// rows and correct at any. Quantised weights meet int8 activations (quantised per row, in blocks of
// 32 or 256 values, whichever the weight type wants); F32/F16/BF16 weights meet float activations.
// Invariant (law 1): y[r, o] is a function of (w, bias[o], x[r, :]) and the ISA alone; never of the
// number of rows, the row's index, the thread count or the alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>

#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/thread_pool.h"
#include "foretoken/kernels/weight_type.h"

namespace foretoken::kernels {

// A view; the bytes belong to whoever allocated them (64-byte aligned).
struct PackedMatrix {
  WeightType type = WeightType::kF32;
  Device device = Device::kCpu;
  std::int64_t n_out = 0, n_in = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};
std::size_t packed_bytes(WeightType type, std::int64_t n_out, std::int64_t n_in);
// Repacks rows [first_row, first_row + n_rows) from the file's row-major blocks. first_row must be
// a multiple of kPackRows (rows are interleaved in groups), n_rows too unless it reaches n_out.
inline constexpr int kPackRows = 16;
void pack_rows(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows,
               const std::byte* file_rows);
// Rows rows[0 .. n_rows) of `from` become rows first_row .. of `to`, of the same type and n_in,
// under the same conditions on first_row and n_rows.
void gather_rows(const PackedMatrix& from, const std::int32_t* rows, std::int64_t n_rows,
                 const PackedMatrix& to, std::int64_t first_row);
// out: [n_in]. The exact values of the file's row `row` (embedding look-up of tied matrices;
// oracles).
void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out);
// The same from the file's own bytes.
void dequantize_file_row(WeightType type, const std::byte* file_row, std::int64_t n_in, float* out);

// Quantised activations of up to max_rows rows; allocated once, refilled by set(). Holds the float
// pointer too, so that one set() serves every weight type.
class Activations {
 public:
  Activations(std::int64_t max_rows, std::int64_t max_in);
  ~Activations();
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;
  // x: [n_rows, n_in] float, row stride in floats; must stay valid while used. Forms not asked for
  // are not made (`block32`: int8 in blocks of 32, `block256`: of 256).
  void set(const float* x, std::int64_t n_rows, std::int64_t n_in, std::int64_t stride,
           bool block32, bool block256, ThreadPool& pool);
  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};
// y: [n_rows, n_out], row stride in floats. bias: [n_out] or null. Rows come from `x`.
// `next`: the matrices that will be read after these: waiting workers fetch where their parts of
// them begin.
void linear(const PackedMatrix& w, const Activations& x, const float* bias, float* y,
            std::int64_t y_stride, ThreadPool& pool,
            std::initializer_list<const PackedMatrix*> next = {});

// Where the summaries of rows of logits go: all [n_rows, stride], stride >= logit_blocks(n_out).
// scales [n_rows]: of the scaled sums, 0 for a row that needs none. What is null is not made;
// maxima must not be.
struct LogitSummary {
  float* maxima = nullptr;
  float* sums = nullptr;
  const float* scales = nullptr;
  float* scaled_sums = nullptr;
  std::int64_t stride = 0;
};

// Several matrices over the same activations in one parallel section (q, k, v; gate, up).
struct LinearJob {
  const PackedMatrix* w;
  const float* bias;  // or null
  float* y;
  std::int64_t y_stride;
  // Of logits: a summary of each row (sampling.h) is written beside them, or null.
  const struct LogitSummary* summary = nullptr;
};
void linear_many(const LinearJob* jobs, int n_jobs, const Activations& x, ThreadPool& pool,
                 std::initializer_list<const PackedMatrix*> next = {});

}  // namespace foretoken::kernels
