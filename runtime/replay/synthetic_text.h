// Made-up words for logs that record lengths alone: about one token a word, the same words for the
// same seed.
#pragma once

#include <cstdint>
#include <string>

namespace foretoken {

std::string synthetic_text(std::uint64_t seed, std::int64_t words);

}  // namespace foretoken
