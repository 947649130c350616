// The flags of one subcommand: CLI11 with the house rules. Every flag --a-name has the environment
// variable FORETOKEN_A_NAME and the key a-name in a TOML file given by --config; the command line
// wins, then the environment, then the file. Every command has --config, --print-config and --help.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

namespace foretoken {

class Flags {
 public:
  Flags(std::string name, std::string summary);

  template <class T>
  CLI::Option* option(const std::string& flag, T& value, const std::string& help) {
    return named(app_.add_option("--" + flag, value, help)->capture_default_str(), flag);
  }
  // --flag / --no-flag
  CLI::Option* toggle(const std::string& flag, bool& value, const std::string& help);
  CLI::App& app() { return app_; }

  // nullopt: go on. Else the process ends with this status: --help, --print-config, or an error,
  // all printed.
  std::optional<int> parse(int argc, char** argv);

 private:
  CLI::Option* named(CLI::Option* option, const std::string& flag);
  CLI::App app_;
  struct Known {
    std::string flag, environment;
    bool is_toggle;
  };
  std::vector<Known> known_;
  bool print_config_ = false;
};

// Sizes with a suffix: "512", "64K", "1.5G", "2GiB".
std::optional<std::size_t> parse_bytes(const std::string& text);

}  // namespace foretoken
