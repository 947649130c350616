// The routes: what each URL does. Sits between the HTTP server (sockets) and the engine. Its state
// is the published backend, null while the model loads, and a draining flag; any I/O thread may
// call it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "runtime/observe/history.h"
#include "runtime/observe/request_metrics.h"
#include "runtime/observe/stats.h"
#include "runtime/serve/api_keys.h"
#include "runtime/serve/backend.h"
#include "runtime/serve/completion_job.h"
#include "runtime/serve/http_server.h"
#include "runtime/serve/worker.h"

namespace foretoken {

struct ServiceOptions {
  std::string model_name = "model";  // label of the metrics
  ApiKeys api_keys;
  double stall_after_s = 30;  // engine heartbeat older than this: not ready
  std::size_t max_admission_queue = 256;
};

class Service final : public HttpHandler {
 public:
  explicit Service(ServiceOptions options);
  ~Service() override { stop(); }

  void set_loading_progress(double fraction) { loading_ = fraction; }
  void publish(std::shared_ptr<const Backend> backend);  // loading is done
  void drain() { draining_ = true; }
  void stop() { worker_.stop(); }  // after the HTTP server has stopped, before the engine goes
  void sample();                   // takes a point of the history; call every few seconds

  std::optional<HttpReply> answer_early(const HttpRequest& head) override;
  void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override;
  void answered(const std::string& method, const std::string& path, int status,
                double seconds) override;

  RequestMetrics& metrics() { return metrics_; }

 private:
  std::shared_ptr<const Backend> backend() const { return std::atomic_load(&backend_); }
  struct Route;
  static std::span<const Route> routes();
  static const Route* find_route(std::string_view path);  // null: there is none

  void complete(const HttpRequest& request, std::shared_ptr<Exchange> exchange, bool chat);
  HttpReply health(bool live_only) const;
  HttpReply models(std::string_view only) const;
  HttpReply version() const;
  HttpReply stats(const std::string& query) const;
  HttpReply metrics_text();
  HttpReply speculator(Status (*action)(LearnedControl&)) const;
  static HttpReply dashboard();
  HttpReply tokenize(const HttpRequest& request) const;
  HttpReply detokenize(const HttpRequest& request) const;
  std::optional<HttpReply> not_ready() const;
  void warn_ignored(const std::vector<std::string>& fields);
  std::string bounded_domain(const std::string& domain);

  ServiceOptions options_;
  RequestMetrics metrics_;
  History history_;
  std::shared_ptr<const Backend> backend_;  // through std::atomic_load / store
  std::atomic<bool> draining_{false};
  std::atomic<double> loading_{0};
  std::mutex mutex_;
  std::set<std::string> warned_fields_, domains_;  // guarded by mutex_, bounded
  Worker worker_;
};

}  // namespace foretoken
