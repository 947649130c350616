#include "runtime/unicode/unicode.h"

#include <fmt/format.h>

#include <utf8proc.h>

#include <algorithm>
#include <vector>

namespace foretoken {

Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Step::Kind::kCharacter, 1, lead};
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  int length = 0;
  unsigned low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Step::Kind::kInvalid, 1, 0};
  }
  char32_t code_point = lead & (0xFFu >> (length + 1));
  for (int i = 1; i < length; ++i) {
    if (std::size_t(i) == text.size()) return {Utf8Step::Kind::kIncomplete, i, 0};
    const unsigned next = byte(i);
    if (next < low || next > high) return {Utf8Step::Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (next & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::Kind::kCharacter, length, code_point};
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::Kind::kCharacter) return at;
    at += step.bytes;
  }
  return std::string_view::npos;
}

void append_utf8(std::string& out, char32_t c) {
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(n));
}

std::string to_nfc(std::string_view text) {
  // Nothing below U+0300 (first byte 0xCC) composes or reorders by itself.
  const auto first = std::find_if(text.begin(), text.end(),
                                  [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
  if (first == text.end()) return std::string(text);

  // utf8proc_map sorts combining marks by exchanging neighbours, which is quadratic in the length
  // of a run of marks, and a request chooses that length. So: decompose a character at a time, sort
  // the runs here, and leave the (linear) composition to utf8proc.
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    at += step.bytes;
    utf8proc_int32_t parts[8];  // the longest canonical decomposition has 4
    const auto n =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code_point), parts, 8,
                                static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE), nullptr);
    points.insert(points.end(), parts, parts + std::clamp<utf8proc_ssize_t>(n, 0, 8));
  }
  const auto combining = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, points.end(), [&](auto c) { return combining(c) == 0; });
    std::stable_sort(begin, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    begin = end;
  }
  const auto length =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) append_utf8(out, static_cast<char32_t>(points[i]));
  return out;
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    const auto bytes = static_cast<std::size_t>(step.bytes);
    const bool control = step.code_point < 0x20 || step.code_point == 0x7f;
    if (step.kind != Utf8Step::Kind::kCharacter)
      out += kReplacement;
    else if (control)
      out += fmt::format("\\x{:02x}", std::uint32_t(step.code_point));
    else
      out += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return out;
}

}  // namespace foretoken
