// Who is who between a server and its trainer: a folder of keys.
//   server.key    secret, 0600: the server's CURVE key      server.pub   the public line of it
//   trainer.key   secret, 0600: the trainer's CURVE key and Ed25519 signing key     trainer.pub
//   trusted       public lines of the peers that are trusted, one a line, # comments
// A public line is "foretoken-server CURVE [COMMENT]" or "foretoken-trainer CURVE ED25519
// [COMMENT]", keys as 64 hexadecimal digits. On one machine both ends share a folder, made at first
// use, in which each trusts the other; on two, each has its own and is told the other's line.
// Secrets readable, and trust writable, by group or world are refused.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"
#include "foretoken/protocol/signing.h"

namespace foretoken {

using CurveKey = std::array<std::uint8_t, 32>;  // of CurveZMQ: X25519
struct CurveKeyPair {
  CurveKey public_key{}, secret{};
  static CurveKeyPair generate();
  static CurveKeyPair from_secret(const CurveKey& secret);
};

// One end's CURVE keys, and whom it talks to: a server to these trainers, a trainer to this one
// server.
struct LinkKeys {
  CurveKeyPair own;
  std::vector<CurveKey> peers;
};

enum class KeyRole { kServer, kTrainer };
struct PublicKeys {
  KeyRole role = KeyRole::kServer;
  CurveKey curve{};
  SigningPublicKey signing{};  // of a trainer
  std::string comment;
  std::string line() const;
  static Result<PublicKeys> parse(std::string_view line);
};

struct ServerKeys {
  LinkKeys link;
  TrustedSigners signers;  // the trusted trainers'
};
struct TrainerKeys {
  LinkKeys link;  // exactly one peer
  SigningKey signing;
};

class KeyFolder {
 public:
  explicit KeyFolder(std::filesystem::path folder) : folder_(std::move(folder)) {}
  const std::filesystem::path& path() const { return folder_; }

  // Makes the key pairs that are missing; keys that are there are never replaced. With both roles
  // each is added to `trusted`. Safe against another process doing the same.
  Status make(bool server, bool trainer) const;
  // Adds a public line unless it is there.
  Status trust(const PublicKeys& keys) const;

  // Errors: kNotFound (no such key: says which command makes it), kInvalidInput (a damaged or
  // readable file, a trainer's folder that trusts no server or several), kIo.
  Result<ServerKeys> server() const;
  Result<TrainerKeys> trainer() const;
  Result<PublicKeys> public_keys(KeyRole role) const;
  Result<std::vector<PublicKeys>> trusted() const;

 private:
  std::filesystem::path secret_path(KeyRole role) const;
  std::filesystem::path public_path(KeyRole role) const;
  std::filesystem::path trusted_path() const { return folder_ / "trusted"; }
  Result<PublicKeys> make_pair(KeyRole role) const;
  // The CURVE secret; of a trainer also the seed of its signing key.
  Result<std::vector<CurveKey>> secrets(KeyRole role) const;
  std::filesystem::path folder_;
};

const char* key_role_name(KeyRole role);  // "server", "trainer"

}  // namespace foretoken
