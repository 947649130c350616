// A subcommand of `foretoken`. Each lives in a file of its own and registers itself:
//   int replay_main(int argc, char** argv);   // argv[0] is "foretoken replay"
//   const Subcommand kReplay{"replay", "send a traffic log to a server and measure", replay_main};
// Listed by `foretoken --help` in order of `place`.
#pragma once

#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct Subcommand {
  using Main = int (*)(int, char**);
  Subcommand(std::string_view name, std::string_view summary, Main main, int place = 50);
  std::string_view name, summary;
  Main main;
  int place;
};

const std::vector<const Subcommand*>& subcommands();  // sorted by place, then name

// What a subcommand ends with: 0; or `failed`, the error said on standard error after the command's
// name (its argv[0]).
int exit_status(const char* command, const Status& done, int failed = 1);

}  // namespace foretoken
