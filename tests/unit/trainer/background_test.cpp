// What the trainer does to its own scheduling, seen from the kernel's side, in a child process.
#include "trainer/ingest/background.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace foretoken::trainer {
namespace {

std::string autogroup() {  // "/autogroup-123 nice 0"; empty where the kernel makes none
  std::string line;
  std::getline(std::ifstream("/proc/self/autogroup"), line);
  return line;
}

int status_of_child(int (*body)()) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Background, IdleIsIdleAndASessionOfItsOwnRanksLast) {
  EXPECT_EQ(status_of_child([] {
              setsid();
              const bool grouped = !autogroup().empty();
              if (!set_scheduling("idle")) return 1;
              if (sched_getscheduler(0) != SCHED_IDLE) return 2;
              return grouped && !autogroup().ends_with(" nice 19") ? 3 : 0;
            }),
            0);
}

TEST(Background, ASharedSessionKeepsItsRank) {
  EXPECT_EQ(status_of_child([] {
              setsid();
              return status_of_child([] {  // not the session's leader
                const std::string before = autogroup();
                if (!set_scheduling("idle")) return 1;
                return autogroup() == before ? 0 : 2;
              });
            }),
            0);
}

}  // namespace
}  // namespace foretoken::trainer
