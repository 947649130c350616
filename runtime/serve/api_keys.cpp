#include "runtime/serve/api_keys.h"

#include <fmt/format.h>
#include <sodium.h>

#include <algorithm>
#include <fstream>

#include "foretoken/protocol/signing.h"

namespace foretoken {
namespace {

std::array<unsigned char, 32> hash_of(std::string_view key) {
  std::array<unsigned char, 32> hash;
  crypto_generichash(hash.data(), hash.size(), reinterpret_cast<const unsigned char*>(key.data()),
                     key.size(), nullptr, 0);
  return hash;
}

std::string label_of_hash(std::span<const unsigned char> hash) {
  return "key-" + to_hex(hash.first(4));
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t' || s.back() == '\r'))
    s.remove_suffix(1);
  return s;
}

}  // namespace

std::string ApiKeys::label_of(std::string_view key) {
  const bool is_label = key.size() == 12 && key.starts_with("key-") &&
                        key.find_first_not_of("0123456789abcdef", 4) == std::string_view::npos;
  if (is_label) return std::string(key);
  return label_of_hash(hash_of(key));
}

ApiKeys ApiKeys::from_list(const std::vector<std::string>& keys) {
  ApiKeys out;
  for (const std::string& line : keys) {
    std::string_view key = trim(line);
    constexpr std::string_view kNoTrace = " no-trace";
    const bool trace = !key.ends_with(kNoTrace);
    if (!trace) key = trim(key.substr(0, key.size() - kNoTrace.size()));
    const auto hash = hash_of(key);
    out.keys_.push_back({hash, label_of_hash(hash), trace});
  }
  return out;
}

bool ApiKeys::traced(std::string_view label) const {
  return std::none_of(keys_.begin(), keys_.end(),
                      [&](const Key& key) { return !key.trace && key.label == label; });
}

Result<ApiKeys> ApiKeys::from_file(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    return Error{ErrorCode::kNotFound, fmt::format("--api-key-file {}: cannot be read", path)};
  std::vector<std::string> keys;
  for (std::string line; std::getline(file, line);) {
    std::string_view key = trim(line);
    if (!key.empty() && key.front() != '#') keys.emplace_back(key);
  }
  if (keys.empty())
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--api-key-file {}: has no key, wanted one a line", path)};
  return from_list(keys);
}

std::optional<std::string> ApiKeys::check(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return std::nullopt;
  for (std::size_t i = 0; i < kScheme.size(); ++i)
    if (static_cast<char>(authorization[i] | 32) != kScheme[i]) return std::nullopt;
  // Hashes of equal length are compared, all of them, each in constant time: nothing about a key
  // leaks.
  auto hash = hash_of(trim(authorization.substr(kScheme.size())));
  const Key* found = nullptr;
  for (const Key& key : keys_)
    if (sodium_memcmp(hash.data(), key.hash.data(), hash.size()) == 0) found = &key;
  if (!found) return std::nullopt;
  return found->label;
}

}  // namespace foretoken
