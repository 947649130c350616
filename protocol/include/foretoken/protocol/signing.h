// Ed25519 signatures (libsodium, detached): who vouches for a weight bundle.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

using SigningPublicKey = std::array<std::uint8_t, 32>;
using Signature = std::array<std::byte, 64>;
// Whose bundles are served. Empty: nobody's.
using TrustedSigners = std::vector<SigningPublicKey>;

class SigningKey {
 public:
  SigningKey() = default;  // empty: cannot sign
  static SigningKey generate();
  static SigningKey from_seed(const std::array<std::uint8_t, 32>& seed);

  bool empty() const { return empty_; }
  const SigningPublicKey& public_key() const { return public_key_; }
  std::array<std::uint8_t, 32> seed() const;
  Signature sign(std::span<const std::byte> bytes) const;  // not of an empty key

 private:
  bool empty_ = true;
  std::array<std::uint8_t, 64> secret_{};
  SigningPublicKey public_key_{};
};

bool signature_is_valid(std::span<const std::byte> bytes, const Signature& signature,
                        const SigningPublicKey& signer);

// A short name of a public key for logs and listings: 16 hexadecimal digits of its BLAKE2b hash.
std::string key_id(std::span<const std::uint8_t, 32> public_key);
std::string to_hex(std::span<const std::uint8_t> bytes);
// Errors: a character that is no digit, an odd number of them.
Result<std::vector<std::uint8_t>> bytes_from_hex(std::string_view hex);
// Errors: "key: ..." for anything but 64 hexadecimal digits.
Result<std::array<std::uint8_t, 32>> key_from_hex(std::string_view hex);

}  // namespace foretoken
