#include "runtime/model/weights.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace foretoken {
namespace {

std::uintptr_t address(const WeightBuffer& buffer) {
  return reinterpret_cast<std::uintptr_t>(buffer.data());
}

TEST(WeightBuffer, LiesOnTheBorderOfAHugePageWhereItFillsOne) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  for (const std::size_t bytes : {std::size_t{64}, kHugePage - 1, kHugePage, 3 * kHugePage + 100}) {
    WeightBuffer buffer(bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(address(buffer) % (bytes < kHugePage ? 64 : kHugePage), 0u);
    buffer.data()[0] = buffer.data()[bytes - 1] = std::byte{1};
  }
  EXPECT_EQ(WeightBuffer(std::size_t{1} << 62).data(), nullptr);
}

// Pieces keep their place and bytes when the arena is gone and others are freed; what the arena has
// no room for is had all the same.
TEST(WeightArena, PiecesAreApartAndOutliveIt) {
  std::optional<WeightArena> arena(1000);
  std::vector<WeightBuffer> pieces;
  for (const std::size_t bytes : {1, 64, 65, 500, 300, 5000, 200, 100}) {
    pieces.push_back(arena->take(bytes));
    ASSERT_NE(pieces.back().data(), nullptr);
    EXPECT_EQ(pieces.back().bytes(), bytes);
    EXPECT_EQ(address(pieces.back()) % 64, 0u);
    std::memset(pieces.back().data(), int(pieces.size()), bytes);
  }
  EXPECT_EQ(address(pieces[3]) - address(pieces[0]), 64u + 64u + 128u);
  EXPECT_EQ(address(pieces[6]) - address(pieces[0]), 768u) << "300 and 5000 did not fit";
  arena.reset();
  pieces[0] = {};
  for (std::size_t i = 1; i < pieces.size(); ++i) {
    for (std::size_t b = 0; b < pieces[i].bytes(); ++b)
      ASSERT_EQ(pieces[i].data()[b], std::byte(i + 1)) << i << " at " << b;
  }
}

}  // namespace
}  // namespace foretoken
