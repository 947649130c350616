// foretoken keys: makes the key pairs of a server and a trainer, shows the public ones, and tells
// one end whom to trust.
#include <fmt/format.h>

#include <fstream>

#include "foretoken/protocol/keys.h"
#include "foretoken/protocol/state_folder.h"
#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"

namespace foretoken {
namespace {

std::string describe(const PublicKeys& keys) {
  std::string ids = "link " + key_id(keys.curve);
  if (keys.role == KeyRole::kTrainer) ids += ", signatures " + key_id(keys.signing);
  return fmt::format("{:<8} {}{}{}", key_role_name(keys.role), ids,
                     keys.comment.empty() ? "" : "  ", keys.comment);
}

Status show(const KeyFolder& folder) {
  bool any = false;
  for (const KeyRole role : {KeyRole::kServer, KeyRole::kTrainer}) {
    auto keys = folder.public_keys(role);
    if (!keys && keys.error().code == ErrorCode::kNotFound) continue;
    if (!keys) return keys.error();
    any = true;
    fmt::print("{}\n  {}\n", describe(*keys), keys->line());
  }
  auto trusted = folder.trusted();
  if (!trusted) return trusted.error();
  for (const PublicKeys& keys : *trusted) fmt::print("trusts   {}\n", describe(keys));
  if (any || !trusted->empty()) return Ok{};
  return Error{ErrorCode::kNotFound, fmt::format("{}: no keys; `foretoken keys make {}` makes them",
                                                 folder.path().string(), folder.path().string())};
}

// A public line, or a file of them.
Status trust(const KeyFolder& folder, const std::string& what) {
  std::vector<std::string> lines;
  if (what.starts_with("foretoken-")) {
    lines.push_back(what);
  } else {
    std::ifstream file(what);
    if (!file)
      return Error{ErrorCode::kNotFound,
                   fmt::format("{}: neither a file nor a public key line", what)};
    for (std::string line; std::getline(file, line);) {
      if (!line.empty() && line[0] != '#') lines.push_back(line);
    }
  }
  for (const std::string& line : lines) {
    auto keys = PublicKeys::parse(line);
    if (!keys) return keys.error();
    if (auto s = folder.trust(*keys); !s) return s.error();
    fmt::print("trusts   {}\n", describe(*keys));
  }
  return Ok{};
}

int keys_main(int argc, char** argv) {
  Flags flags(argv[0],
              "Keys with which a server and its trainer know each other, and with which weights "
              "are signed. On one machine nothing needs doing: they are made at first start.");
  std::string folder = (default_state_root() / "keys").string(), role = "both", peer;
  auto* make = flags.app().add_subcommand(
      "make", "makes what is missing; both ends on one machine trust each other");
  auto* list = flags.app().add_subcommand("show", "prints the public lines and who is trusted");
  auto* add = flags.app().add_subcommand("trust", "trusts the other end");
  make->add_option("DIR", folder, "folder of the keys")->capture_default_str();
  make->add_option("--role", role, "both, server or trainer")
      ->check(CLI::IsMember({"both", "server", "trainer"}))
      ->capture_default_str();
  list->add_option("DIR", folder, "folder of the keys")->capture_default_str();
  add->add_option("DIR", folder, "folder of the keys")->required();
  add->add_option("LINE", peer, "the other end's public line, or a file with it (server.pub)")
      ->required();
  flags.app().require_subcommand(1);
  if (const auto status = flags.parse(argc, argv)) return *status;
  const KeyFolder keys(folder);
  if (*add) return exit_status(argv[0], trust(keys, peer));
  Status done = *make ? keys.make(role != "trainer", role != "server") : Ok{};
  if (done) done = show(keys);
  return exit_status(argv[0], done);
}

const Subcommand kKeys{"keys", "make and trust the keys of server and trainer", keys_main, 13};

}  // namespace
}  // namespace foretoken
