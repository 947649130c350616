// UTF-8 and normalisation, for text that comes from outside. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace foretoken {

// One step over possibly malformed UTF-8 (Unicode 15, section 3.9).
struct Utf8Step {
  enum class Kind {
    kCharacter,   // `bytes` bytes are one well-formed character
    kIncomplete,  // all of the rest, 1 to 3 bytes, begins a character that more input may complete
    kInvalid,     // `bytes` bytes are a maximal ill-formed part: one U+FFFD
  };
  Kind kind;
  int bytes;
  char32_t code_point;  // of a kCharacter
};
// text must not be empty.
Utf8Step utf8_step(std::string_view text);

// Offset of the first byte that is not well-formed UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);

// Canonical composition (NFC) of well-formed UTF-8, in O(n log n) whatever the input.
std::string to_nfc(std::string_view text);

// Strings of files and of strangers may hold anything, JSON UTF-8 alone and a log line no control
// character: those as \xNN, what is ill-formed as U+FFFD.
std::string printable(std::string_view text);

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace foretoken
