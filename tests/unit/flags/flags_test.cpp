// Flags of a program: who wins (command line, environment, file), what is refused and how it is
// said, and that what --print-config prints is read back as the same.
#include "runtime/flags/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

enum class Colour { kRed, kGreen };

class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

struct Program {
  explicit Program(std::string config_variable = "FORETOKEN_CONFIG")
      : flags("program", "For tests.", std::move(config_variable)) {
    flags.option("count", count, "how many")->check(CLI::Range(0, 100));
    flags.choice<Colour>("colour", colour, {{"red", Colour::kRed}, {"green", Colour::kGreen}},
                         "of the paint");
    flags.choice("level", level, {"low", "high"}, "");
    flags.bytes("size", size, "of the tin", 1024, std::size_t{1} << 30);
    flags.variable(flags.option("secret", secret, "told on the command line alone"), "");
    flags.variable(flags.option("other", other, "named otherwise"), "ANOTHER_NAME");
    flags.toggle("lid", lid, "on the tin");
    flags.option("names", names, "a list");
    flags.option("maybe", maybe, "may be left open");
  }
  std::optional<int> parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "program");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return flags.parse(static_cast<int>(argv.size()), argv.data());
  }
  // Its message; empty: it was taken.
  std::string refusal(std::vector<std::string> arguments) {
    CaptureStderr();
    const auto status = parse(std::move(arguments));
    const std::string said = GetCapturedStderr();
    EXPECT_EQ(status.value_or(0), said.empty() ? 0 : 2);
    return said;
  }

  int count = 3;
  Colour colour = Colour::kRed;
  std::string level = "low", secret, other;
  std::size_t size = 64 << 10;
  bool lid = true;
  std::vector<std::string> names;
  std::optional<int> maybe;
  Flags flags;
};

TEST(Flags, TheCommandLineWinsThenTheEnvironmentThenTheFile) {
  testing::TemporaryDirectory folder;
  std::ofstream(folder.file("a.toml")) << "count = 10\ncolour = \"green\"\nsize = \"2K\"\n";
  const Variable config("FORETOKEN_CONFIG", folder.file("a.toml"));
  {
    Program p;
    EXPECT_EQ(p.parse({}), std::nullopt);
    EXPECT_EQ(p.count, 10);
    EXPECT_EQ(p.colour, Colour::kGreen);
    EXPECT_EQ(p.size, 2048u);
  }
  const Variable count("FORETOKEN_COUNT", "20"), colour("FORETOKEN_COLOUR", "red");
  const Variable lid("FORETOKEN_LID", "false"), other("ANOTHER_NAME", "x");
  const Variable secret("FORETOKEN_SECRET", "told"), not_other("FORETOKEN_OTHER", "y");
  {
    Program p;
    EXPECT_EQ(p.parse({}), std::nullopt);
    EXPECT_EQ(p.count, 20);
    EXPECT_EQ(p.colour, Colour::kRed);
    EXPECT_EQ(p.size, 2048u);
    EXPECT_FALSE(p.lid);
    EXPECT_EQ(p.other, "x");
    EXPECT_EQ(p.secret, "");
  }
  {
    Program p;
    EXPECT_EQ(p.parse({"--count", "30", "--colour=green", "--lid"}), std::nullopt);
    EXPECT_EQ(p.count, 30);
    EXPECT_EQ(p.colour, Colour::kGreen);
    EXPECT_TRUE(p.lid);
  }
  {
    Program p("ANOTHER_CONFIG");  // whose file this is not
    EXPECT_EQ(p.parse({}), std::nullopt);
    EXPECT_EQ(p.size, 64u << 10);
  }
}

TEST(Flags, ARefusalNamesFoundAndWanted) {
  EXPECT_EQ(Program().refusal({"--count", "7"}), "");
  EXPECT_THAT(Program().refusal({"--count", "101"}), HasSubstr("program: --count"));
  EXPECT_THAT(Program().refusal({"--colour", "blue"}),
              HasSubstr("--colour: found \"blue\", wanted red or green"));
  EXPECT_THAT(Program().refusal({"--level", "Low"}),
              HasSubstr("--level: found \"Low\", wanted low or high"));
  EXPECT_THAT(Program().refusal({"--size", "12X"}),
              HasSubstr("--size: found \"12X\", wanted a size like 512M, 1K to 1G"));
  EXPECT_THAT(Program().refusal({"--size", "2G"}), HasSubstr("--size: found \"2G\""));
  EXPECT_THAT(Program().refusal({"--absent"}), HasSubstr("--absent"));
  testing::TemporaryDirectory folder;
  std::ofstream(folder.file("a.toml")) << "colour = \"blue\"\n";
  EXPECT_THAT(Program().refusal({"--config", folder.file("a.toml")}), HasSubstr("red or green"));
}

TEST(Flags, WhatIsPrintedIsReadBack) {
  testing::TemporaryDirectory folder;
  const auto print = [](std::vector<std::string> arguments) {
    Program p;
    arguments.push_back("--print-config");
    CaptureStdout();
    EXPECT_EQ(p.parse(arguments), 0);
    return GetCapturedStdout();
  };
  const std::string printed = print({"--count=42", "--colour=green", "--size=1536", "--no-lid",
                                     "--names", "a", "b c", "--maybe", "5", "--level=high"});
  EXPECT_THAT(printed, HasSubstr("colour = \"green\"\n"));
  EXPECT_THAT(printed, HasSubstr("size = \"1536\"\n"));
  std::ofstream(folder.file("a.toml")) << printed;
  EXPECT_EQ(print({"--config", folder.file("a.toml")}), printed);
  EXPECT_NE(print({}), printed);
}

TEST(Flags, HelpShowsChoicesDefaultsAndVariables) {
  Program p;
  CaptureStdout();
  EXPECT_EQ(p.parse({"--help"}), 0);
  const std::string help = GetCapturedStdout();
  for (const char* text : {"red or green", "[FORETOKEN_COLOUR]", "[ANOTHER_NAME]", "=64K"})
    EXPECT_THAT(help, HasSubstr(text));
  EXPECT_THAT(help, ::testing::Not(HasSubstr("FORETOKEN_SECRET")));
}

TEST(Flags, Sizes) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{1536},
                                 std::size_t{64} << 10, std::size_t{3} << 30, std::size_t{1} << 50})
    EXPECT_EQ(parse_bytes(format_bytes(size)), size) << format_bytes(size);
  EXPECT_EQ(format_bytes(std::size_t{2} << 40), "2T");
  EXPECT_EQ(parse_bytes("1.5GiB"), std::size_t{3} << 29);
  for (const char* bad : {"", "K", "-1", "1Q", "nan"}) EXPECT_EQ(parse_bytes(bad), std::nullopt);
}

}  // namespace
}  // namespace foretoken
