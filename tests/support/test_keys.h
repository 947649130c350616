// Signing keys for tests: always the same ones.
#pragma once

#include "foretoken/protocol/signing.h"

namespace foretoken {

inline SigningKey test_signing_key(std::uint8_t which = 1) {
  std::array<std::uint8_t, 32> seed{};
  seed[0] = which;
  return SigningKey::from_seed(seed);
}
inline TrustedSigners test_signers() { return {test_signing_key().public_key()}; }

}  // namespace foretoken
