// The routes: what each URL does. Sits between the HTTP server (sockets) and the engine. Its state
// is the published backend, null while the model loads, and a draining flag; any I/O thread may
// call it.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
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
  // After the HTTP server has stopped, before the engine goes: ends the work at hand and drops the
  // rest. Idempotent.
  void stop() { worker_.reset(); }
  void sample();  // takes a point of the history; call every few seconds

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

  // Runs it on the worker, so that a large prompt (JSON, template, tokeniser) never holds up other
  // clients' streams on the I/O threads; or answers that there is no room.
  void on_worker(const std::shared_ptr<Exchange>& exchange, std::function<void()> work);
  void complete(HttpRequest request, std::shared_ptr<Exchange> exchange, bool chat);
  void begin_completion(const HttpRequest& request, const std::shared_ptr<Exchange>& exchange,
                        bool chat, std::chrono::steady_clock::time_point arrived);
  // Routes that answer at once.
  template <auto Member>
  static void reply(Service& s, HttpRequest&& request, std::shared_ptr<Exchange> to);
  template <auto Action>
  static void operate(Service& s, HttpRequest&& request, std::shared_ptr<Exchange> to);
  HttpReply health(const HttpRequest& request) const;
  HttpReply models(std::string_view only) const;
  HttpReply version(const HttpRequest& request) const;
  HttpReply stats(const HttpRequest& request) const;
  HttpReply metrics_text(const HttpRequest& request);
  HttpReply speculator(Status (*action)(LearnedControl&)) const;
  HttpReply dashboard(const HttpRequest& request) const;
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
  std::atomic<std::size_t> waiting_{0};            // for the worker
  std::unique_ptr<boost::asio::thread_pool> worker_ = std::make_unique<boost::asio::thread_pool>(1);
};

}  // namespace foretoken
