// The API keys a server accepts: one a line of a file, # comments; a key followed by a space and
// `no-trace` is never traced, learned from or in a traffic store. Immutable; any thread.
// A key's label, "key-" and the first 8 hex digits of its BLAKE2b hash, stands for it in
// statistics, traces and traffic stores; the key itself is never logged.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

class ApiKeys {
 public:
  ApiKeys() = default;                                        // none: everybody may
  static Result<ApiKeys> from_file(const std::string& path);  // a file without a key is an error
  static ApiKeys from_list(const std::vector<std::string>& keys);  // lines as in a file
  // Of a key; a label is its own.
  static std::string label_of(std::string_view key);
  bool required() const { return !keys_.empty(); }
  // The label of the key in an Authorization header ("Bearer KEY"), compared in constant time
  // against every key; nullopt: none of them.
  std::optional<std::string> check(std::string_view authorization) const;
  bool traced(std::string_view label) const;  // true: of no key, or of one that may be

 private:
  struct Key {
    std::array<unsigned char, 32> hash;
    std::string label;
    bool trace = true;
  };
  std::vector<Key> keys_;
};

}  // namespace foretoken
