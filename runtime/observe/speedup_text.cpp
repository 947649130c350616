#include "runtime/observe/speedup_text.h"

#include <charconv>

namespace foretoken {

std::string speedup_sums_to_text(const SpeedupSums& sums) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte b : sums.save()) {
    text += kDigits[std::to_integer<int>(b) >> 4];
    text += kDigits[std::to_integer<int>(b) & 15];
  }
  return text;
}

Result<SpeedupSums> speedup_sums_from_text(std::string_view text) {
  std::vector<std::byte> bytes;
  bytes.reserve(text.size() / 2);
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    unsigned value = 0;
    const auto [end, ec] = std::from_chars(text.data() + i, text.data() + i + 2, value, 16);
    if (ec != std::errc{} || end != text.data() + i + 2)
      return Error{ErrorCode::kInvalidInput,
                   "speedup_sums: not hexadecimal at " + std::to_string(i)};
    bytes.push_back(static_cast<std::byte>(value));
  }
  if (text.size() % 2 != 0)
    return Error{ErrorCode::kInvalidInput, "speedup_sums: an odd number of digits"};
  return SpeedupSums::restore(bytes);
}

}  // namespace foretoken
