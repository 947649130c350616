#include "foretoken/protocol/keys.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sodium.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "foretoken/protocol/atomic_file.h"
#include "protocol/posix_file.h"

namespace foretoken {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20, kMaxTrusted = 1024;

Error invalid(const fs::path& path, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: {}", path.string(), text)};
}

std::vector<std::string> words_of(std::string_view line) {
  std::istringstream in{std::string(line)};
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The file's lines without comments. `forbidden`: mode bits it must not have.
Result<std::vector<std::string>> lines_of(const fs::path& path, mode_t forbidden,
                                          const char* wanted) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && (status.st_mode & forbidden) != 0) {
    return invalid(path, fmt::format("mode {:o}: wanted {}", status.st_mode & 07777, wanted));
  }
  auto bytes = read_file(path, kMaxFileBytes);
  if (!bytes) return bytes.error();
  std::istringstream in{std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size())};
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    line.resize(std::min(line.find('#'), line.size()));
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(line);
  }
  return lines;
}

// Held while keys are made, so that a server and a trainer that start together make one set.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : file_(::open((folder / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    if (file_) ::flock(file_.get(), LOCK_EX);
  }
  explicit operator bool() const { return bool(file_); }

 private:
  Descriptor file_;
};

}  // namespace

const char* key_role_name(KeyRole role) { return role == KeyRole::kServer ? "server" : "trainer"; }

CurveKeyPair CurveKeyPair::from_secret(const CurveKey& secret) {
  CurveKeyPair pair;
  pair.secret = secret;
  crypto_scalarmult_base(pair.public_key.data(), secret.data());
  return pair;
}

CurveKeyPair CurveKeyPair::generate() {
  if (sodium_init() < 0) std::abort();
  CurveKeyPair pair;
  crypto_box_keypair(pair.public_key.data(), pair.secret.data());
  return pair;
}

std::string PublicKeys::line() const {
  std::string line = fmt::format("foretoken-{} {}", key_role_name(role), to_hex(curve));
  if (role == KeyRole::kTrainer) line += " " + to_hex(signing);
  if (!comment.empty()) line += " " + comment;
  return line;
}

Result<PublicKeys> PublicKeys::parse(std::string_view line) {
  const std::vector<std::string> words = words_of(line.substr(0, line.find('#')));
  PublicKeys keys;
  if (!words.empty() && words[0] == "foretoken-trainer") {
    keys.role = KeyRole::kTrainer;
  } else if (words.empty() || words[0] != "foretoken-server") {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("public key: found \"{}\", wanted \"foretoken-server KEY\" or "
                             "\"foretoken-trainer KEY KEY\"",
                             words.empty() ? std::string() : words[0].substr(0, 40))};
  }
  const std::size_t n_keys = keys.role == KeyRole::kTrainer ? 2 : 1;
  if (words.size() < 1 + n_keys) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("public key: {} wants {} of 64 digits", words[0],
                             n_keys == 1 ? "a key" : "two keys")};
  }
  for (std::size_t i = 0; i < n_keys; ++i) {
    auto key = key_from_hex(words[1 + i]);
    if (!key) return Error{ErrorCode::kInvalidInput, "public key: " + key.error().message};
    (i == 0 ? keys.curve : keys.signing) = *key;
  }
  for (std::size_t i = 1 + n_keys; i < words.size(); ++i)
    keys.comment += (keys.comment.empty() ? "" : " ") + words[i];
  return keys;
}

fs::path KeyFolder::secret_path(KeyRole role) const {
  return folder_ / fmt::format("{}.key", key_role_name(role));
}
fs::path KeyFolder::public_path(KeyRole role) const {
  return folder_ / fmt::format("{}.pub", key_role_name(role));
}

Status KeyFolder::make(bool server, bool trainer) const {
  std::error_code error;
  const bool created = fs::create_directories(folder_, error);
  if (created) fs::permissions(folder_, fs::perms::owner_all, error);
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder_.string(), error.message())};
  }
  const FolderLock lock(folder_);
  if (!lock) {
    // A folder one may only read is good enough if the keys are there.
    for (const KeyRole role : {KeyRole::kServer, KeyRole::kTrainer}) {
      const bool wanted = role == KeyRole::kServer ? server : trainer;
      if (wanted && !fs::exists(secret_path(role), error)) {
        return Error{ErrorCode::kIo, fmt::format("{}: no keys, and none can be made: {}",
                                                 folder_.string(), std::strerror(errno))};
      }
    }
    return Ok{};
  }
  for (const KeyRole role : {KeyRole::kServer, KeyRole::kTrainer}) {
    if (!(role == KeyRole::kServer ? server : trainer)) continue;
    const bool there = fs::exists(secret_path(role), error);
    auto keys = there ? public_keys(role) : make_pair(role);
    if (!keys) return keys.error();
    if (!(server && trainer)) continue;
    if (!there || !fs::exists(trusted_path(), error)) {
      if (auto s = trust(*keys); !s) return s.error();
    }
  }
  return Ok{};
}

Result<PublicKeys> KeyFolder::make_pair(KeyRole role) const {
  const CurveKeyPair curve = CurveKeyPair::generate();
  PublicKeys keys;
  keys.role = role;
  keys.curve = curve.public_key;
  std::string secret = fmt::format("# foretoken: the {}'s secret key. Keep it to yourself.\n{}",
                                   key_role_name(role), to_hex(curve.secret));
  if (role == KeyRole::kTrainer) {
    const SigningKey signing = SigningKey::generate();
    keys.signing = signing.public_key();
    secret += " " + to_hex(signing.seed());
  }
  secret += "\n";
  const std::string line = keys.line() + "\n";
  if (auto s = write_file_atomically(secret_path(role), bytes_of(secret), 0600); !s)
    return s.error();
  if (auto s = write_file_atomically(public_path(role), bytes_of(line)); !s) return s.error();
  return keys;
}

Status KeyFolder::trust(const PublicKeys& keys) const {
  std::error_code error;
  fs::create_directories(folder_, error);
  std::string text = "# Peers that are trusted, one public line each (foretoken keys).\n";
  if (fs::exists(trusted_path(), error)) {
    auto already = trusted();
    if (!already) return already.error();
    for (const PublicKeys& other : *already) {
      if (other.role == keys.role && other.curve == keys.curve && other.signing == keys.signing)
        return Ok{};
    }
    auto bytes = read_file(trusted_path(), kMaxFileBytes);
    if (!bytes) return bytes.error();
    text.assign(reinterpret_cast<const char*>(bytes->data()), bytes->size());
    if (!text.empty() && text.back() != '\n') text += '\n';
  }
  text += keys.line() + "\n";
  return write_file_atomically(trusted_path(), bytes_of(text));
}

Result<std::vector<CurveKey>> KeyFolder::secrets(KeyRole role) const {
  auto lines = lines_of(secret_path(role), 0077, "0600: a secret is its owner's alone (chmod 600)");
  if (!lines) {
    if (lines.error().code != ErrorCode::kNotFound) return lines.error();
    return Error{ErrorCode::kNotFound,
                 fmt::format("{}: no such key; `foretoken keys make {}` makes it",
                             secret_path(role).string(), folder_.string())};
  }
  const std::size_t wanted = role == KeyRole::kTrainer ? 2 : 1;
  auto words = lines->size() == 1 ? words_of(lines->front()) : std::vector<std::string>();
  if (words.size() != wanted)
    return invalid(secret_path(role), fmt::format("wanted one line of {} keys", wanted));
  std::vector<CurveKey> keys;
  for (const std::string& word : words) {
    auto key = key_from_hex(word);
    if (!key) return invalid(secret_path(role), key.error().message);
    keys.push_back(*key);
  }
  return keys;
}

Result<std::vector<PublicKeys>> KeyFolder::trusted() const {
  auto lines = lines_of(trusted_path(), 0022, "one that only the owner can write (chmod 644)");
  if (!lines && lines.error().code == ErrorCode::kNotFound) return std::vector<PublicKeys>();
  if (!lines) return lines.error();
  if (lines->size() > kMaxTrusted)
    return invalid(trusted_path(), fmt::format("more than {} lines", kMaxTrusted));
  std::vector<PublicKeys> all;
  for (const std::string& line : *lines) {
    auto keys = PublicKeys::parse(line);
    if (!keys) return invalid(trusted_path(), keys.error().message);
    all.push_back(std::move(keys).value());
  }
  return all;
}

Result<ServerKeys> KeyFolder::server() const {
  auto secret = secrets(KeyRole::kServer);
  if (!secret) return secret.error();
  auto peers = trusted();
  if (!peers) return peers.error();
  ServerKeys keys;
  keys.link.own = CurveKeyPair::from_secret(secret->front());
  for (const PublicKeys& peer : *peers) {
    if (peer.role != KeyRole::kTrainer) continue;
    keys.link.peers.push_back(peer.curve);
    keys.signers.push_back(peer.signing);
  }
  return keys;
}

Result<TrainerKeys> KeyFolder::trainer() const {
  auto secret = secrets(KeyRole::kTrainer);
  if (!secret) return secret.error();
  auto peers = trusted();
  if (!peers) return peers.error();
  TrainerKeys keys;
  keys.link.own = CurveKeyPair::from_secret(secret->front());
  keys.signing = SigningKey::from_seed(secret->back());
  for (const PublicKeys& peer : *peers) {
    if (peer.role == KeyRole::kServer) keys.link.peers.push_back(peer.curve);
  }
  if (keys.link.peers.size() != 1) {
    return invalid(trusted_path(),
                   fmt::format("found {} servers, wanted one: a trainer talks to one server "
                               "(`foretoken keys trust` adds it)",
                               keys.link.peers.size()));
  }
  return keys;
}

Result<PublicKeys> KeyFolder::public_keys(KeyRole role) const {
  auto secret = secrets(role);
  if (!secret) return secret.error();
  PublicKeys keys;
  keys.role = role;
  keys.curve = CurveKeyPair::from_secret(secret->front()).public_key;
  if (role == KeyRole::kTrainer) keys.signing = SigningKey::from_seed(secret->back()).public_key();
  return keys;
}

}  // namespace foretoken
