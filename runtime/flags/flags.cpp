#include "runtime/flags/flags.h"

#include <fmt/format.h>

#include <cstdlib>

namespace foretoken {

Flags::Flags(std::string name, std::string summary, std::string config_variable)
    : app_(std::move(summary), std::move(name)), config_variable_(std::move(config_variable)) {
  app_.set_config("--config", "", "a TOML file of flags (a-flag = value)");
  app_.add_flag("--print-config", print_config_, "print every flag's value as TOML, and exit")
      ->configurable(false);
  app_.allow_config_extras(false);
  app_.get_formatter()->column_width(38);
}

std::string Flags::toml(const std::string& value) {
  std::string out = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string Flags::toml(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "[" : ", ") + toml(value);
  return out.empty() ? out : out + ']';
}

CLI::Option* Flags::named(CLI::Option* option, const std::string& flag,
                          std::function<std::string()> value, char letter) {
  std::string variable = "FORETOKEN_";
  for (char c : flag)
    variable += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  known_.push_back({option, flag, std::move(variable), std::move(value), letter});
  return option;
}

void Flags::variable(CLI::Option* option, const std::string& name) {
  for (Known& known : known_)
    if (known.option == option) known.variable = name;
}

void Flags::refuse(const std::string& flag, const std::string& found, const std::string& wanted) {
  throw CLI::ValidationError("--" + flag, fmt::format("found \"{}\", wanted {}", found, wanted));
}

CLI::Option* Flags::choice(const std::string& flag, std::string& value,
                           const std::vector<std::string>& names, const std::string& help) {
  Choices<std::string> choices;
  for (const std::string& name : names) choices.emplace_back(name, name);
  return choice<std::string>(flag, value, std::move(choices), help);
}

CLI::Option* Flags::bytes(const std::string& flag, std::size_t& value, const std::string& help,
                          std::size_t least, std::size_t most) {
  const auto set = [&value, flag, least, most](const std::string& text) {
    const auto parsed = parse_bytes(text);
    if (!parsed || *parsed < least || *parsed > most)
      refuse(flag, text,
             fmt::format("a size like 512M, {} to {}", format_bytes(least), format_bytes(most)));
    value = *parsed;
  };
  CLI::Option* option = app_.add_option_function<std::string>("--" + flag, set, help);
  option->default_str(format_bytes(value));
  return named(option, flag, [&value] { return toml(format_bytes(value)); });
}

CLI::Option* Flags::toggle(const std::string& flag, bool& value, const std::string& help) {
  return named(
      app_.add_flag(fmt::format("--{0},!--no-{0}", flag), value, help)->capture_default_str(), flag,
      [&value] { return toml(value); });
}

std::optional<int> Flags::parse(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  auto given = [&](const std::string& name) {
    for (const std::string& a : arguments)
      if (a == name || a.rfind(name + "=", 0) == 0) return true;
    return false;
  };
  std::vector<std::string> from_environment;
  for (const Known& known : known_) {
    if (known.variable.empty()) continue;
    // Shown in --help; read here, because CLI11 would let the file win over it.
    known.option->description(
        fmt::format("{} [{}]", known.option->get_description(), known.variable));
    const char* value = std::getenv(known.variable.c_str());
    if (!value || !*value || given("--" + known.flag) || given("--no-" + known.flag) ||
        (known.letter && given(std::string("-") + known.letter)))
      continue;
    from_environment.push_back(fmt::format("--{}={}", known.flag, value));
  }
  if (const char* config = std::getenv(config_variable_.c_str());
      config && *config && !given("--config"))
    from_environment.push_back(fmt::format("--config={}", config));
  arguments.insert(arguments.begin(), from_environment.begin(), from_environment.end());
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // what CLI11 wants
  try {
    app_.parse(reversed);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app_.exit(error);  // --help
    fmt::print(stderr, "{}: {}\nRun with --help for more information.\n", app_.get_name(),
               error.what());
    return 2;
  }
  if (print_config_) {
    // Not CLI11's own: it spells lists and set flags in ways it does not read back.
    for (const Known& known : known_)
      if (std::string value = known.value(); !value.empty())
        fmt::print("{} = {}\n", known.flag, value);
    return 0;
  }
  return std::nullopt;
}

std::optional<std::size_t> parse_bytes(const std::string& text) {
  std::size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  std::string unit = text.substr(end);
  if (unit.size() > 1 && (unit.substr(1) == "B" || unit.substr(1) == "iB")) unit.resize(1);
  double factor = 1;
  if (unit == "K" || unit == "k")
    factor = 1024;
  else if (unit == "M")
    factor = 1024.0 * 1024;
  else if (unit == "G")
    factor = 1024.0 * 1024 * 1024;
  else if (unit == "T")
    factor = 1024.0 * 1024 * 1024 * 1024;
  else if (!unit.empty() && unit != "B")
    return std::nullopt;
  constexpr double kMost = 1125899906842624;  // 1024T
  if (!(value >= 0) || value * factor > kMost) return std::nullopt;
  return static_cast<std::size_t>(value * factor);
}

std::string format_bytes(std::size_t bytes) {
  constexpr std::string_view kUnits = "KMGT";
  std::string_view unit;
  for (std::size_t i = 0; i < kUnits.size() && bytes > 0 && bytes % 1024 == 0; ++i) {
    bytes /= 1024;
    unit = kUnits.substr(i, 1);
  }
  return fmt::format("{}{}", bytes, unit);
}

}  // namespace foretoken
