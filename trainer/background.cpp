#include "trainer/background.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

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
  return Ok{};
}

}  // namespace foretoken::trainer
