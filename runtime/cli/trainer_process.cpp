#include "runtime/cli/trainer_process.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

namespace foretoken {
namespace {

using SteadyClock = std::chrono::steady_clock;

// The child may only make system calls (this process has threads); everything is prepared before.
pid_t spawn(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  sigset_t none;
  sigemptyset(&none);
  pid_t parent = getpid();
  pid_t child = vfork();  // not fork: it would copy the page tables of a large model while serving
  if (child != 0) return child;
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  setpgid(0, 0);  // the terminal's Ctrl-C goes to the parent, which ends the child in order
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(0);  // the parent died in between
  execv(argv[0], argv.data());
  _exit(127);
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was ended by signal {}", WTERMSIG(status));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

}  // namespace

Result<std::string> find_trainer() {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path self = fs::read_symlink("/proc/self/exe", error);
  std::vector<fs::path> places = {
      self.parent_path() / "foretoken-trainer",
      self.parent_path().parent_path() / "trainer" / "foretoken-trainer"};
  if (const char* path = std::getenv("PATH")) {
    std::istringstream folders(path);
    for (std::string folder; std::getline(folders, folder, ':');)
      if (!folder.empty()) places.push_back(fs::path(folder) / "foretoken-trainer");
  }
  for (const fs::path& place : places)
    if (access(place.c_str(), X_OK) == 0) return place.string();
  return Error{ErrorCode::kNotFound, fmt::format("foretoken-trainer is neither beside {} nor on "
                                                 "PATH; it is built with -DFORETOKEN_TRAINER=ON",
                                                 self.string())};
}

void TrainerProcess::start() {
  thread_ = std::thread([this] { supervise(); });
}

void TrainerProcess::stop() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
}

// One thread starts, watches and ends the child: the death signal is bound to the thread that
// forked.
void TrainerProcess::supervise() {
  constexpr auto kTick = std::chrono::milliseconds(50);
  double wait_s = 1;
  while (!stopping_) {
    auto started = SteadyClock::now();
    pid_t child = spawn(command_);
    if (child < 0) {
      spdlog::error("cannot start the trainer: {}", std::strerror(errno));
    } else {
      spdlog::info("trainer started (process {})", child);
      int status = 0;
      pid_t ended = 0;
      while (!stopping_ && (ended = waitpid(child, &status, WNOHANG)) == 0)
        std::this_thread::sleep_for(kTick);
      if (ended == 0) {
        kill(child, SIGTERM);
        auto deadline = SteadyClock::now() + std::chrono::seconds(10);
        while ((ended = waitpid(child, &status, WNOHANG)) == 0 && SteadyClock::now() < deadline)
          std::this_thread::sleep_for(kTick);
        if (ended == 0) {
          spdlog::warn("the trainer does not end; killing it");
          kill(child, SIGKILL);
          waitpid(child, &status, 0);
        }
        return;
      }
      spdlog::warn("the trainer {}; serving goes on, starting it again in {} s",
                   how_it_ended(status), wait_s);
    }
    // A trainer that keeps dying is tried ever more rarely, one that ran well for a while at once.
    if (SteadyClock::now() - started > std::chrono::seconds(60)) wait_s = 1;
    auto again = SteadyClock::now() + std::chrono::duration<double>(wait_s);
    wait_s = std::min(wait_s * 2, 30.0);
    while (!stopping_ && SteadyClock::now() < again) std::this_thread::sleep_for(kTick);
  }
}

}  // namespace foretoken
