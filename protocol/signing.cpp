#include "foretoken/protocol/signing.h"

#include <fmt/format.h>
#include <sodium.h>

#include <algorithm>
#include <cassert>
#include <cstdlib>

namespace foretoken {
namespace {

// Without libsodium's random numbers nothing may be signed.
void need_sodium() {
  static const bool ready = sodium_init() >= 0;
  if (!ready) std::abort();
}

const unsigned char* as_unsigned(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

}  // namespace

SigningKey SigningKey::from_seed(const std::array<std::uint8_t, 32>& seed) {
  need_sodium();
  SigningKey key;
  crypto_sign_seed_keypair(key.public_key_.data(), key.secret_.data(), seed.data());
  key.empty_ = false;
  return key;
}

SigningKey SigningKey::generate() {
  need_sodium();
  std::array<std::uint8_t, 32> seed;
  randombytes_buf(seed.data(), seed.size());
  return from_seed(seed);
}

std::array<std::uint8_t, 32> SigningKey::seed() const {
  std::array<std::uint8_t, 32> seed{};
  crypto_sign_ed25519_sk_to_seed(seed.data(), secret_.data());
  return seed;
}

Signature SigningKey::sign(std::span<const std::byte> bytes) const {
  assert(!empty_);
  Signature signature;
  crypto_sign_detached(reinterpret_cast<unsigned char*>(signature.data()), nullptr,
                       as_unsigned(bytes), bytes.size(), secret_.data());
  return signature;
}

bool signature_is_valid(std::span<const std::byte> bytes, const Signature& signature,
                        const SigningPublicKey& signer) {
  need_sodium();
  return crypto_sign_verify_detached(reinterpret_cast<const unsigned char*>(signature.data()),
                                     as_unsigned(bytes), bytes.size(), signer.data()) == 0;
}

std::string key_id(std::span<const std::uint8_t, 32> public_key) {
  std::array<std::uint8_t, 16> hash;
  crypto_generichash(hash.data(), hash.size(), public_key.data(), public_key.size(), nullptr, 0);
  return to_hex(std::span<const std::uint8_t>(hash).first(8));
}

std::string to_hex(std::span<const std::uint8_t> bytes) {
  std::string hex(2 * bytes.size() + 1, '\0');
  sodium_bin2hex(hex.data(), hex.size(), bytes.data(), bytes.size());
  hex.pop_back();  // its final zero
  return hex;
}

Result<std::vector<std::uint8_t>> bytes_from_hex(std::string_view hex) {
  std::vector<std::uint8_t> bytes(hex.size() / 2);
  std::size_t read = 0;
  const char* end = nullptr;
  sodium_hex2bin(bytes.data(), bytes.size(), hex.data(), hex.size(), nullptr, &read, &end);
  if (2 * read == hex.size()) return bytes;
  const auto at = end ? std::size_t(end - hex.data()) : 0;
  return Error{ErrorCode::kInvalidInput, at < hex.size() && hex.size() % 2 == 0
                                             ? fmt::format("not hexadecimal at {}", at)
                                             : std::string("an odd number of digits")};
}

Result<std::array<std::uint8_t, 32>> key_from_hex(std::string_view hex) {
  std::array<std::uint8_t, 32> key{};
  const auto bytes = bytes_from_hex(hex);
  // The text may be a secret: it is not repeated.
  if (!bytes || bytes->size() != key.size()) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("key: found {} characters, wanted 64 hexadecimal digits", hex.size())};
  }
  std::ranges::copy(*bytes, key.begin());
  return key;
}

}  // namespace foretoken
