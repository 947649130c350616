#include "foretoken/protocol/signing.h"

#include <fmt/format.h>
#include <sodium.h>

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
  std::string hex;
  for (const std::uint8_t byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

Result<std::array<std::uint8_t, 32>> key_from_hex(std::string_view hex) {
  std::array<std::uint8_t, 32> key{};
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  bool good = hex.size() == 2 * key.size();
  for (std::size_t i = 0; good && i < key.size(); ++i) {
    const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    good = high >= 0 && low >= 0;
    key[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  // The text may be a secret: it is not repeated.
  if (!good) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("key: found {} characters, wanted 64 hexadecimal digits", hex.size())};
  }
  return key;
}

}  // namespace foretoken
