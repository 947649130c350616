// The flags of one program or subcommand: CLI11 with the house rules, for server and trainer alike.
// Every flag --a-name has the environment variable FORETOKEN_A_NAME (or another, or none) and the
// key a-name in a TOML file given by --config; the command line wins, then the environment, then
// the file. Every command has --config, --print-config and --help. Values live in the caller's
// variables and are set by parse(); what a flag accepts is checked there, and an error names the
// flag, what was found and what was wanted.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace foretoken {

class Flags {
 public:
  template <class T>
  using Choices = std::vector<std::pair<std::string, T>>;

  // config_variable: the environment's, of --config.
  Flags(std::string name, std::string summary, std::string config_variable = "FORETOKEN_CONFIG");

  // `letter`: 0, or of the short form, as 'o' of -o.
  template <class T>
  CLI::Option* option(const std::string& flag, T& value, const std::string& help, char letter = 0) {
    const std::string names = letter ? fmt::format("-{},--{}", letter, flag) : "--" + flag;
    CLI::Option* option = app_.add_option(names, value, help)->capture_default_str();
    return named(
        option, flag, [&value] { return toml(value); }, letter);
  }
  // A number from `least` to `most`.
  template <class T>
  CLI::Option* number(const std::string& flag, T& value, std::type_identity_t<T> least,
                      std::type_identity_t<T> most, const std::string& help) {
    return option(flag, value, help)->check(CLI::Range(least, most));
  }
  // --flag / --no-flag
  CLI::Option* toggle(const std::string& flag, bool& value, const std::string& help);
  // One of a list of names; the help lists them.
  template <class T>
  CLI::Option* choice(const std::string& flag, T& value, Choices<T> choices,
                      const std::string& help) {
    const auto table = std::make_shared<const Choices<T>>(std::move(choices));
    std::string names;
    for (const auto& [name, of] : *table) {
      if (!names.empty()) names += &of == &table->back().second ? " or " : ", ";
      names += name;
    }
    const auto name_now = [table, &value]() -> std::string {
      for (const auto& [name, of] : *table)
        if (of == value) return name;
      return "";
    };
    const auto set = [table, &value, names, flag](const std::string& text) {
      for (const auto& [name, of] : *table) {
        if (name == text) return void(value = of);
      }
      refuse(flag, text, names);
    };
    CLI::Option* option = app_.add_option_function<std::string>(
        "--" + flag, set, help.empty() ? names : help + ": " + names);
    option->default_str(name_now());
    return named(option, flag, [name_now] { return name_now().empty() ? "" : toml(name_now()); });
  }
  CLI::Option* choice(const std::string& flag, std::string& value,
                      const std::vector<std::string>& names, const std::string& help);
  // A size in bytes with a suffix (parse_bytes).
  CLI::Option* bytes(const std::string& flag, std::size_t& value, const std::string& help,
                     std::size_t least = 0, std::size_t most = std::size_t{1} << 50);
  // Another environment variable than the flag's name says; "": none.
  void variable(CLI::Option* option, const std::string& name);
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
  static std::string toml(const std::optional<T>& value) {
    return value ? toml(*value) : "";
  }
  template <class T>
  static std::string toml(const T& value) {
    if constexpr (std::is_arithmetic_v<T>)
      return fmt::format("{}", value);
    else
      return "";
  }
  [[noreturn]] static void refuse(const std::string& flag, const std::string& found,
                                  const std::string& wanted);
  CLI::Option* named(CLI::Option* option, const std::string& flag,
                     std::function<std::string()> value, char letter = 0);
  CLI::App app_;
  struct Known {
    CLI::Option* option;
    std::string flag, variable;
    std::function<std::string()> value;  // now, as TOML
    char letter;
  };
  std::vector<Known> known_;
  const std::string config_variable_;
  bool print_config_ = false;
};

// Sizes with a suffix: "512", "64K", "1.5G", "2GiB".
std::optional<std::size_t> parse_bytes(const std::string& text);
std::string format_bytes(std::size_t bytes);  // "64K", "2G": what parse_bytes reads back

}  // namespace foretoken
