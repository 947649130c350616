// The flags of one subcommand: CLI11 with the house rules. Every flag --a-name has the environment
// variable FORETOKEN_A_NAME and the key a-name in a TOML file given by --config; the command line
// wins, then the environment, then the file. Every command has --config, --print-config and --help.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace foretoken {

class Flags {
 public:
  Flags(std::string name, std::string summary);

  // `letter`: 0, or of the short form, as 'o' of -o.
  template <class T>
  CLI::Option* option(const std::string& flag, T& value, const std::string& help, char letter = 0) {
    const std::string names = letter ? fmt::format("-{},--{}", letter, flag) : "--" + flag;
    CLI::Option* option = app_.add_option(names, value, help)->capture_default_str();
    return named(
        option, flag, [&value] { return toml(value); }, letter);
  }
  // --flag / --no-flag
  CLI::Option* toggle(const std::string& flag, bool& value, const std::string& help);
  CLI::App& app() { return app_; }

  // nullopt: go on. Else the process ends with this status: --help, --print-config, or an error,
  // all printed.
  std::optional<int> parse(int argc, char** argv);

 private:
  // A value as TOML; "" for what has no spelling (an empty list, an absent optional).
  static std::string toml(const std::string& value);
  static std::string toml(const std::vector<std::string>& values);
  template <class T>
  requires std::is_arithmetic_v<T>
  static std::string toml(const std::vector<T>& values) {
    return values.empty() ? "" : fmt::format("[{}]", fmt::join(values, ", "));
  }
  static std::string toml(bool value) { return value ? "true" : "false"; }
  template <class T>
  static std::string toml(const T& value) {
    if constexpr (std::is_arithmetic_v<T>)
      return fmt::format("{}", value);
    else
      return "";
  }
  CLI::Option* named(CLI::Option* option, const std::string& flag,
                     std::function<std::string()> value, char letter = 0);
  CLI::App app_;
  struct Known {
    std::string flag, environment;
    std::function<std::string()> value;  // now, as TOML
    char letter;
  };
  std::vector<Known> known_;
  bool print_config_ = false;
};

// Sizes with a suffix: "512", "64K", "1.5G", "2GiB".
std::optional<std::size_t> parse_bytes(const std::string& text);

}  // namespace foretoken
