// SpeedupSums as text, for GET /stats?sums=1 and its readers: hexadecimal of SpeedupSums::save().
#pragma once

#include <string>
#include <string_view>

#include "foretoken/protocol/result.h"
#include "runtime/observe/speedup.h"

namespace foretoken {

std::string speedup_sums_to_text(const SpeedupSums& sums);
Result<SpeedupSums> speedup_sums_from_text(std::string_view text);

}  // namespace foretoken
