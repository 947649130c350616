#include "tests/support/test_files.h"

#include <fmt/format.h>
#include <sodium.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

namespace foretoken::testing {
namespace {

const std::string kTests = FORETOKEN_TESTS_DIR;

std::string sha256_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  crypto_hash_sha256_state state;
  crypto_hash_sha256_init(&state);
  std::vector<char> block(1 << 20);
  while (in.read(block.data(), std::ssize(block)) || in.gcount() > 0)
    crypto_hash_sha256_update(&state, reinterpret_cast<const unsigned char*>(block.data()),
                              static_cast<unsigned long long>(in.gcount()));
  std::array<unsigned char, crypto_hash_sha256_BYTES> hash{};
  crypto_hash_sha256_final(&state, hash.data());
  std::string hex;
  for (const unsigned char byte : hash) hex += fmt::format("{:02x}", byte);
  return hex;
}

// As sha256sum writes them: the hash, two spaces, the name.
std::string listed_hash(const std::string& name) {
  std::ifstream list(kTests + "/files.sha256");
  for (std::string line; std::getline(list, line);) {
    const std::size_t space = line.find("  ");
    if (line[0] != '#' && space != std::string::npos && line.substr(space + 2) == name)
      return line.substr(0, space);
  }
  return {};
}

}  // namespace

Result<std::string> verified_file(const std::string& path, const std::string& name) {
  const std::string wanted = listed_hash(name);
  if (wanted.empty())
    return Error{ErrorCode::kInvalidInput, fmt::format("tests/files.sha256 has no {}", name)};
  if (!std::filesystem::exists(path))
    return Error{ErrorCode::kNotFound, fmt::format("there is no {}", path)};
  if (const std::string found = sha256_of(path); found != wanted)
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("{}: found sha256 {}, wanted {}", path, found, wanted)};
  return path;
}

Result<std::string> find_test_model(const std::string& file_name) {
  static std::map<std::string, Result<std::string>> known;
  const auto at = known.find(file_name);
  if (at != known.end()) return at->second;
  const char* folder = std::getenv("FORETOKEN_TEST_MODELS");
  Result<std::string> found =
      folder ? verified_file(std::string(folder) + "/" + file_name, file_name)
             : Error{ErrorCode::kNotFound,
                     fmt::format("FORETOKEN_TEST_MODELS is not set: no {}", file_name)};
  return known.emplace(file_name, std::move(found)).first->second;
}

std::string corpus_path(const std::string& name) {
  const auto path = verified_file(kTests + "/corpus/" + name, "corpus/" + name);
  EXPECT_TRUE(path) << path.error().message;
  return path ? *path : std::string();
}

std::string corpus_text(const std::string& name) {
  std::ifstream in(corpus_path(name), std::ios::binary);
  EXPECT_TRUE(in) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

bool in_ci() {
  const char* value = std::getenv("CI");
  return value && std::string(value) == "true";
}

bool full_tests() {
  const char* value = std::getenv("FORETOKEN_TEST_FULL");
  return value && *value == '1';
}

}  // namespace foretoken::testing
