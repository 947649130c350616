// foretoken-trainer as a child process: found beside this binary, started, restarted with back-off
// when it dies, ended with this process whatever happens to it (the kernel signals the child when
// its parent goes).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

// The trainer's path: beside this binary, else in the build tree's trainer folder, else found on
// PATH.
Result<std::string> find_trainer();

class TrainerProcess {
 public:
  explicit TrainerProcess(std::vector<std::string> command) : command_(std::move(command)) {}
  ~TrainerProcess() { stop(); }
  void start();
  void stop();  // SIGTERM, after ten seconds SIGKILL; returns when it is gone; idempotent

 private:
  void supervise();
  const std::vector<std::string> command_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace foretoken
