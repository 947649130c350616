// Manners of a background process (law 4): what it may take from a server on the same cores.
#pragma once

#include <string>

#include "foretoken/protocol/result.h"

namespace foretoken::trainer {

// - "batch": SCHED_BATCH at nice 10: a tenth of a core where the server wants all of it, and it
//   never preempts a thread that wakes.
// - "idle": SCHED_IDLE: only what nobody else wants; it starves on a full machine.
// - "normal": as it was started.
Status set_scheduling(const std::string& manner);

}  // namespace foretoken::trainer
