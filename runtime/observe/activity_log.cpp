#include "runtime/observe/activity_log.h"

#include <fmt/format.h>

namespace foretoken {

std::optional<std::string> ActivityLog::line(const EngineStats& now) {
  EngineStats before = last_.value_or(EngineStats{});
  last_ = now;
  double seconds = now.uptime_s - before.uptime_s;
  std::int64_t prompt = now.prompt_tokens - before.prompt_tokens;
  std::int64_t generated = now.generated_tokens - before.generated_tokens;
  if (seconds <= 0 ||
      (prompt == 0 && generated == 0 && now.requests_running == 0 && now.requests_waiting == 0))
    return std::nullopt;
  AcceptanceStats span = now.acceptance;
  span.drafting_rounds -= before.acceptance.drafting_rounds;
  span.drafted -= before.acceptance.drafted;
  span.accepted -= before.acceptance.accepted;
  std::string out = fmt::format(
      "prompt {:.1f} tok/s, generation {:.1f} tok/s, running {}, waiting {}, KV {:.1f} %",
      static_cast<double>(prompt) / seconds, static_cast<double>(generated) / seconds,
      now.requests_running, now.requests_waiting, 100 * now.kv.occupancy());
  if (span.drafting_rounds > 0)
    out += fmt::format(", acceptance length {:.2f} (draft {:.1f}, version {})",
                       span.acceptance_length(), span.draft_length(), now.version.value);
  if (now.speedup_last_minute)
    out += fmt::format(", speedup {:.2f} [{:.2f}, {:.2f}]", now.speedup_last_minute->value,
                       now.speedup_last_minute->low, now.speedup_last_minute->high);
  return out;
}

}  // namespace foretoken
