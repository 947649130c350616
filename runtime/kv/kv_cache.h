// The KV cache of one model: its page table (page_table.h: what sequences may do with it) over its
// pages' bytes (kv_pages.h), which a forward pass writes and reads. Owned and called by the engine
// thread (attend() fans out over the kernel pool).
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/result.h"
#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_pages.h"
#include "runtime/kv/page_table.h"

namespace foretoken {

// The modes are the rows of kernels/kv_format.h.
std::string_view kv_mode_name(KvMode mode);  // "bf16", "int2", ...
std::optional<KvMode> parse_kv_mode(std::string_view name);
std::span<const KvMode> kv_modes();
std::string kv_mode_names();  // "bf16, int2 or ...", for messages
// Whether the mode's transforms come from a calibration text (or, without one, from
// KvCalibration::data_free). Other modes take a null calibration.
bool kv_mode_needs_calibration(KvMode mode);

class KvCache : public PageTable {
 public:
  // make_pages: where the bytes are; none: in the host's memory.
  static Result<std::unique_ptr<KvCache>> create(const KvGeometry& geometry,
                                                 const KvOptions& options,
                                                 std::shared_ptr<const KvCalibration> calibration,
                                                 const MakeKvPages& make_pages = {});

  // Inside a forward pass, layer by layer: store() all rows' K and V (rotary applied), then
  // attend(). k, v: [n_rows, n_kv_heads * head_dim]; q, out: [n_rows, n_heads * head_dim], where
  // the pages are; strides in floats.
  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride);
  // Seals, in this layer, the pages that these rows read sealed and that are not sealed yet; then
  // attends.
  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale, kernels::ThreadPool& pool);

 private:
  KvCache(const KvLayout& layout, const KvOptions& options, std::unique_ptr<KvPages> pages);
  const std::unique_ptr<KvPages> pages_;
};

}  // namespace foretoken
