// foretoken COMMAND ...: finds the subcommand and hands over.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "foretoken/kernels/isa.h"
#include "runtime/cli/command.h"
#include "runtime/observe/build_info.h"

namespace foretoken {
namespace {

std::vector<const Subcommand*>& registry() {
  static std::vector<const Subcommand*> all;
  return all;
}

void print_help() {
  fmt::print(
      "foretoken serves a language model with speculative decoding and trains the speculator from "
      "the traffic "
      "it serves.\n\nusage: foretoken COMMAND [flags]\n\n");
  for (const Subcommand* command : subcommands())
    fmt::print("  {:<10} {}\n", command->name, command->summary);
  fmt::print(
      "\nforetoken COMMAND --help shows a command's flags; foretoken --version what this binary "
      "is.\n");
}

int run(int argc, char** argv) {
  std::string_view name = argc > 1 ? argv[1] : "--help";
  if (name == "--help" || name == "-h" || name == "help") return print_help(), argc > 1 ? 0 : 2;
  if (name == "--version" || name == "-V" || name == "version") {
    fmt::print("foretoken {} ({}, {}, {})\n", build_version(), build_git(), build_compiler(),
               kernels::isa_name(kernels::active_isa()));
    return 0;
  }
  if (!kernels::isa_environment_is_valid()) {
    fmt::print(
        stderr,
        "foretoken: FORETOKEN_ISA names an instruction set this machine or build has not; it has:");
    for (kernels::Isa isa : kernels::supported_isas())
      fmt::print(stderr, " {}", kernels::isa_name(isa));
    fmt::print(stderr, "\n");
    return 2;
  }
  for (const Subcommand* command : subcommands()) {
    if (command->name != name) continue;
    std::string full = fmt::format("foretoken {}", name);
    argv[1] = full.data();
    return command->main(argc - 1, argv + 1);
  }
  fmt::print(stderr, "foretoken: unknown command {}; foretoken --help lists them\n", name);
  return 2;
}

}  // namespace

Subcommand::Subcommand(std::string_view name, std::string_view summary, Main main, int place)
    : name(name), summary(summary), main(main), place(place) {
  registry().push_back(this);
}

const std::vector<const Subcommand*>& subcommands() {
  auto& all = registry();
  std::sort(all.begin(), all.end(), [](const Subcommand* a, const Subcommand* b) {
    return a->place != b->place ? a->place < b->place : a->name < b->name;
  });
  return all;
}

int exit_status(const char* command, const Status& done, int failed) {
  if (done) return 0;
  fmt::print(stderr, "{}: {}\n", command, done.error().message);
  return failed;
}

}  // namespace foretoken

int main(int argc, char** argv) {
  try {
    return foretoken::run(argc, argv);
  } catch (const std::exception&
               error) {  // a bug, or no memory: the libraries' own exceptions end earlier
    std::fprintf(stderr, "foretoken: %s\n", error.what());
    return 70;
  }
}
