#include "trainer/ingest/background.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace foretoken::trainer {

Status set_scheduling(const std::string& manner) {
  if (manner == "normal") return Ok{};
  const sched_param parameters{};
  const int policy = manner == "idle" ? SCHED_IDLE : SCHED_BATCH;
  errno = 0;
  // Both apply to this thread and are inherited by those it starts: call it first.
  if (sched_setscheduler(0, policy, &parameters) != 0 || setpriority(PRIO_PROCESS, 0, 10) != 0) {
    return Error{ErrorCode::kIo, fmt::format("--scheduling {}: {}", manner, std::strerror(errno))};
  }
  // Where the kernel makes a scheduling group of every session (autogroup), a policy ranks a thread
  // among its own session's alone. A session that is only this process's is put behind the others
  // as a whole; best effort: the file is missing where there are no such groups.
  if (getsid(0) == getpid()) std::ofstream("/proc/self/autogroup") << 19;
  return Ok{};
}

}  // namespace foretoken::trainer
