// The kernels of an instruction set as one table, chosen once (isa.cpp) and read by every
// operation. The sources in isa/ are compiled once a set, each in a namespace of that set's name
// (the compiler's definition FORETOKEN_ISA), and give the parts declared at the end. They include
// no standard library code that may be shared with other files: the linker would keep one copy of
// an inline function, perhaps the wide one.
#pragma once

#include "foretoken/kernels/convert.h"
#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/sampling.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/attention_kernels.h"

namespace foretoken::kernels {

// Groups [first_group, last_group) of one matrix, every row of x. y: [n_rows, n_out].
struct LinearTask {
  PackedMatrix w;
  const Activations::Impl* x;
  const float* bias;  // or null
  float* y;
  std::int64_t y_stride;
};
using LinearGroups = void (*)(const LinearTask& task, std::int64_t first_group,
                              std::int64_t last_group);
using LinearTable = std::array<LinearGroups, kWeightTypes>;

struct ElementwiseOps {
  decltype(&kernels::rms_norm) rms_norm;
  decltype(&kernels::rope) rope;
  decltype(&kernels::swiglu) swiglu;
  decltype(&kernels::add) add;
  decltype(&kernels::encode_half) encode_half;
  decltype(&kernels::decode_half) decode_half;
  // One row of activations: block b goes to out + b * out_stride.
  void (*quantize_row32)(const float* x, std::int64_t n_in, Record32* out, std::int64_t out_stride);
  void (*quantize_row256)(const float* x, std::int64_t n_in, Record256* out,
                          std::int64_t out_stride);
};

inline constexpr std::int64_t kFew = 128;
struct SamplingOps {
  decltype(&kernels::sample_full) sample_full;
  decltype(&kernels::sample_subset) sample_subset;
  decltype(&kernels::argmax) argmax;
  decltype(&kernels::log_sum_exp) log_sum_exp;
  decltype(&kernels::approximate_log_sum_exp) approximate_log_sum_exp;
  decltype(&kernels::logit_block_summary) logit_block_summary;
  decltype(&kernels::log_sum_exp_of_blocks) log_sum_exp_of_blocks;
  // top_k() of at most kFew values of a row with at least that many blocks above minus infinity; -1
  // where there are fewer, or too many values that tie.
  std::int64_t (*top_few)(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids,
                          float* values, const float* maxima);
};

using SealPage = void(const std::byte* hot, const KvFormat& format, const KvTransform& transform,
                      int head_dim, std::byte* sealed);

struct PeakOps {                                                         // peak.h
  std::uint64_t (*sum_words)(const std::byte* data, std::size_t bytes);  // a multiple of 512
  // Returns the multiply-adds done.
  std::int64_t (*int8_spin)(std::int64_t iterations, std::int32_t* sink);
};

struct CpuOps {
  const LinearTable& linear;        // by WeightType
  const AttentionTable& attention;  // by place in kKvFormats
  const PeakOps& peak;
  const ElementwiseOps& elementwise;
  const SamplingOps& sampling;
  SealPage& seal_page;
};
const CpuOps& cpu_ops();  // of active_isa()

#define FORETOKEN_ISA_PARTS(isa)            \
  namespace isa {                           \
  extern const LinearTable kLinear;         \
  extern const AttentionTable kAttention;   \
  extern const PeakOps kPeak;               \
  extern const ElementwiseOps kElementwise; \
  extern const SamplingOps kSampling;       \
  SealPage seal_page;                       \
  }
FORETOKEN_ISA_PARTS(scalar)
FORETOKEN_ISA_PARTS(avx2)
FORETOKEN_ISA_PARTS(avx512)
// These two share what their extensions have no part in with avx512.
FORETOKEN_ISA_PARTS(avx512_vnni)
FORETOKEN_ISA_PARTS(avx512_amx)
#undef FORETOKEN_ISA_PARTS

}  // namespace foretoken::kernels
