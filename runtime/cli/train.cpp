// foretoken train ...: becomes foretoken-trainer, which has the flags (this binary has no
// LibTorch).
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "runtime/cli/command.h"
#include "runtime/cli/trainer_process.h"

namespace foretoken {
namespace {

int train_main(int argc, char** argv) {
  auto trainer = find_trainer();
  if (!trainer) return exit_status(argv[0], trainer.error());
  std::vector<char*> arguments = {trainer->data()};
  for (int i = 1; i < argc; ++i) arguments.push_back(argv[i]);
  arguments.push_back(nullptr);
  execv(trainer->c_str(), arguments.data());
  return exit_status(argv[0],
                     Error{ErrorCode::kIo, fmt::format("{}: {}", *trainer, std::strerror(errno))});
}

const Subcommand kTrain{"train", "train the speculator from a server's traces", train_main, 11};

}  // namespace
}  // namespace foretoken
