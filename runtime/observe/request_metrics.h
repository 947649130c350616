// What the HTTP side measures of requests, with Prometheus' own types under vLLM's names (prefix
// foretoken:). Any thread. Monotonic clocks only; the engine's loop is not involved.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace prometheus {
class Registry;
}

namespace foretoken {

struct FinishedRequest {
  std::string finished_reason;  // "stop", "length", "abort", "error"
  double e2e_s = 0, queue_s = 0, prefill_s = 0, decode_s = 0;
  std::int64_t prompt_tokens = 0, generated_tokens = 0, max_tokens = 0;
  int n = 1;
};

class RequestMetrics {
 public:
  explicit RequestMetrics(const std::string& model_name);
  ~RequestMetrics();
  void first_token(double seconds_since_arrival);
  void token_gap(
      double seconds);  // between two streamed events of one choice (each may hold several tokens)
  void finished(const FinishedRequest& request);
  void http(const std::string& handler, const std::string& method, int status, double seconds);
  prometheus::Registry& registry();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
