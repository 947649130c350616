#include "foretoken/kernels/isa.h"

#include <gtest/gtest.h>

#include "fixtures.h"
#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

TEST(Isa, NamesAreExactAndUnknownOnesAreRefused) {
  EXPECT_EQ(isa_name(Isa::kScalar), "scalar");
  EXPECT_EQ(isa_name(Isa::kAvx2), "avx2");
  EXPECT_EQ(isa_name(Isa::kAvx512), "avx512");
  EXPECT_EQ(isa_name(Isa::kAvx512Vnni), "avx512-vnni");
  EXPECT_EQ(isa_name(Isa::kAvx512VnniBf16), "avx512-vnni-bf16");
  EXPECT_EQ(isa_name(Isa::kAvx512Amx), "avx512-amx");
  const Isa before = active_isa();
  EXPECT_FALSE(set_isa("avx"));
  EXPECT_FALSE(set_isa(""));
  EXPECT_EQ(active_isa(), before);
  ASSERT_FALSE(supported_isas().empty());
  EXPECT_EQ(supported_isas().front(), Isa::kScalar);
  EXPECT_TRUE(set_isa("scalar"));
  EXPECT_EQ(active_isa(), Isa::kScalar);
  EXPECT_TRUE(set_isa(isa_name(before)));
}

// The chosen table is whole, and another choice is another table: nothing else asks for the set.
TEST(Isa, ChoosesATableOfKernels) {
  const CpuOps* before = nullptr;
  for (const Isa isa : supported_isas()) {
    const ScopedIsa scoped(isa);
    const CpuOps& ops = cpu_ops();
    EXPECT_NE(&ops, before) << isa_name(isa);
    for (const LinearGroups linear : ops.linear) EXPECT_NE(linear, nullptr) << isa_name(isa);
    for (const AttentionKernels& attention : ops.attention)
      EXPECT_NE(attention.segment, nullptr) << isa_name(isa);
    before = &ops;
  }
}

}  // namespace
}  // namespace foretoken::kernels
