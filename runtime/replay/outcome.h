// What became of one replayed request: measured by the client, and what the server said of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace foretoken {

struct RequestOutcome {
  std::size_t index = 0;  // in the log
  std::string domain;
  int status = 0;     // HTTP; 0: no answer at all
  std::string error;  // "" if the answer is whole: status 200, a finish reason, [DONE]
  bool ok() const { return error.empty(); }

  double due_s = 0,
         sent_s = 0;  // since the replay began; due_s is when the log (open loop) wanted it sent
  double ttft_ms = 0, e2e_ms = 0;  // from sending to the first text, and to the end of the answer
  std::vector<double>
      gaps_ms;  // between streamed pieces, each of which may hold several tokens (ITL)

  std::int64_t prompt_tokens = 0, completion_tokens = 0;
  std::string text, finish_reason;
  std::optional<std::uint64_t> seed;  // as the server chose or was told it
  // From `timings` and `foretoken`, where the server sends them.
  std::int64_t draft_n = 0, draft_n_accepted = 0, rounds = 0, drafting_rounds = 0;
  double predicted_ms = 0;
  std::uint64_t speculator_version = 0;

  // (E2E - TTFT) / (tokens - 1), vLLM's definition; 0 where there is none.
  double tpot_ms() const {
    return completion_tokens > 1 ? (e2e_ms - ttft_ms) / static_cast<double>(completion_tokens - 1)
                                 : 0;
  }
};

}  // namespace foretoken
