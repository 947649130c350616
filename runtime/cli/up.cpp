// foretoken up: server and trainer on one machine. The server runs in this process, the trainer as
// a child that is restarted when it dies; they meet in sockets in a private folder of the state
// directory.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/cli/command.h"
#include "runtime/cli/run_server.h"
#include "runtime/cli/trainer_process.h"

namespace foretoken {
namespace {

// A folder only this user can enter, for the two sockets. Their paths must fit into a socket
// address (107 bytes); with a longer state directory they go below /tmp.
class SocketFolder {
 public:
  explicit SocketFolder(const std::string& state_dir) {
    std::error_code ignored;
    std::filesystem::create_directories(state_dir, ignored);
    for (const std::string& parent :
         {std::filesystem::absolute(state_dir, ignored).string(), std::string("/tmp")}) {
      std::string name = parent + "/up-XXXXXX";
      if (name.size() + 10 > 107) continue;
      if (mkdtemp(name.data())) {  // mode 0700
        path_ = name;
        return;
      }
    }
  }
  ~SocketFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

int up_main(int argc, char** argv) {
  Flags flags(argv[0],
              "Server and trainer on one machine. Takes the flags of serve; the trainer's own "
              "after --trainer-flags.");
  ServeFlags options;
  options.add_to(flags);
  std::vector<std::string> trainer_flags;
  flags.option(
      "trainer-flags", trainer_flags,
      "a flag handed to foretoken-trainer, e.g. --trainer-flags=--threads=1; may be repeated");
  if (auto status = flags.parse(argc, argv)) return *status;
  const auto complain = [&](const Error& error) { return exit_status(argv[0], error, 2); };
  if (Status status = options.server.complete(); !status) return complain(status.error());
  if (options.check) return run_server(options, {});
  auto trainer = find_trainer();
  if (!trainer) return complain(trainer.error());
  if (options.server.keys.empty()) {
    if (auto s = KeyFolder(options.server.keys_folder()).make(true, true); !s)
      return complain(s.error());
  }
  SocketFolder sockets(options.server.state_dir);
  if (options.server.traces_endpoint.empty()) {
    if (sockets.path().empty())
      return complain(
          {ErrorCode::kIo,
           fmt::format("--state-dir {}: no folder for sockets could be made there or in /tmp",
                       options.server.state_dir)});
    options.server.traces_endpoint = fmt::format("ipc://{}/traces", sockets.path());
    options.server.weights_endpoint = fmt::format("ipc://{}/weights", sockets.path());
  }
  std::vector<std::string> command = {*trainer};
  const auto hand_on = [&](const char* flag, const std::string& value) {
    command.insert(command.end(), {flag, value});
  };
  hand_on("--traces-endpoint", options.server.traces_endpoint);
  hand_on("--weights-endpoint", options.server.weights_endpoint);
  hand_on("--state-dir", options.server.state_dir);
  hand_on("--keys", options.server.keys_folder());
  if (options.server.retention_hours > 0)
    hand_on("--retention-hours", fmt::format("{}", options.server.retention_hours));
  if (!options.server.model.empty()) hand_on("--model", options.server.model);
  command.insert(command.end(), trainer_flags.begin(), trainer_flags.end());
  block_stop_signals();  // before any thread
  TrainerProcess process(std::move(command));
  ServerHooks hooks;
  hooks.ready = [&] { process.start(); };
  int status = run_server(options, hooks);
  process.stop();
  return status;
}

const Subcommand kUp{"up", "server and trainer on one machine", up_main, 12};

}  // namespace
}  // namespace foretoken
