#include "runtime/replay/synthetic_text.h"

#include <iterator>
#include <string_view>

namespace foretoken {
namespace {

// Common words that byte-level vocabularies have whole, with their leading space.
constexpr std::string_view kWords[] = {
    "time", "year",   "people",  "way",    "day",      "man",    "thing",   "woman",
    "life", "child",  "world",   "school", "state",    "family", "group",   "hand",
    "part", "place",  "case",    "week",   "company",  "system", "program", "question",
    "work", "number", "night",   "point",  "home",     "water",  "room",    "mother",
    "area", "money",  "story",   "fact",   "month",    "lot",    "right",   "study",
    "book", "eye",    "job",     "word",   "business", "issue",  "side",    "kind",
    "head", "house",  "service", "friend", "father",   "power",  "hour",    "game",
    "line", "end",    "member",  "law",    "car",      "city",   "name",    "team"};

// SplitMix64 (Steele, Lea and Flood 2014): a stateless, well-mixed stream from any seed.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

std::string synthetic_text(std::uint64_t seed, std::int64_t words) {
  std::string text;
  const std::uint64_t stream = mix(seed);
  for (std::int64_t i = 0; i < words; ++i) {
    text += ' ';
    text += kWords[mix(stream + static_cast<std::uint64_t>(i)) % std::size(kWords)];
  }
  return text;
}

}  // namespace foretoken
