#include "runtime/replay/player.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

namespace foretoken {
namespace {

using Clock = std::chrono::steady_clock;
// A mark or a sample must not wait for a server that hangs.
constexpr double kStatsTimeoutSeconds = 10;
// Enough requests for a mean that is not one long answer's, few enough to be a small part of a run.
constexpr std::size_t kWarmup = 24;
constexpr auto kProgressEvery = std::chrono::milliseconds(200);

class Player {
 public:
  Player(const std::vector<LoggedRequest>& log, const ReplayOptions& options,
         const std::function<void(const ReplayProgress&)>& on_progress,
         const std::atomic<bool>& stop)
      : log_(log),
        options_(options),
        on_progress_(on_progress),
        stop_(stop),
        start_(Clock::now()) {}

  ReplayResult run() {
    wait_for_model();
    phase_ = "replay";
    expected_ = log_.size();
    std::thread watcher([this] { watch(); });
    mark();
    if (options_.load > 0)
      at_load();
    else
      options_.open_loop ? open_loop() : closed_loop();
    result_.wall_s = elapsed_s();
    mark();
    {
      HttpClient client(options_.url, options_.api_key, kStatsTimeoutSeconds);
      result_.speculator = get_json(client, "/v1/speculator").value_or(nullptr);
    }
    if (options_.check > 0 && !stop_) check();
    {
      std::lock_guard lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    watcher.join();
    result_.interrupted = stop_;
    return std::move(result_);
  }

 private:
  double elapsed_s() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // A server that still loads its model says so (503 from /health): its requests are not failures.
  // Whatever else is said, or nothing, is for the requests to find out.
  void wait_for_model() {
    HttpClient client(options_.url, options_.api_key, kStatsTimeoutSeconds, &stop_);
    while (!stop_) {
      const auto health = client.call("/health", nullptr, [](std::string_view) {});
      if (!health || health->status != 503) break;
      if (on_progress_) on_progress_({.phase = "loading", .elapsed_s = elapsed_s()});
      std::this_thread::sleep_for(kProgressEvery);
    }
    start_ = Clock::now();
  }

  void mark() {
    HttpClient client(options_.url, options_.api_key, kStatsTimeoutSeconds);
    result_.marks.push_back(mark_stats(client, elapsed_s()));
  }

  RequestOutcome send(HttpClient& client, std::size_t index, double due_s, const AskOptions& how) {
    RequestOutcome outcome;
    outcome.index = index;
    outcome.domain = log_[index].domain;
    outcome.sent_s = elapsed_s();
    outcome.due_s = options_.open_loop || options_.load > 0 ? due_s : outcome.sent_s;
    ask(client, log_[index], how, outcome);
    return outcome;
  }

  void record(RequestOutcome outcome) {
    if (stop_ && !outcome.ok()) return;  // cut short by the interrupt, not by the server
    std::lock_guard lock(mutex_);
    ++completed_;
    failed_ += !outcome.ok();
    completion_tokens_ += outcome.completion_tokens;
    result_.outcomes.push_back(std::move(outcome));
  }

  void closed_loop() {
    ClosedPlan plan(log_.size(), options_.limit_s, options_.concurrency);
    const auto worker = [&] {
      HttpClient client(options_.url, options_.api_key, options_.timeout_s, &stop_);
      while (!stop_) {
        std::size_t index;
        {
          std::lock_guard lock(mutex_);
          const auto next = plan.next(elapsed_s(), completed_);
          expected_ = plan.expected_total();
          if (!next) return;
          index = *next;
          ++sent_;
          const int quarter = quarter_of(index, log_.size());
          for (; quarter_ < quarter; ++quarter_)
            mark();  // the other workers wait with their next request
        }
        record(send(client, index, 0, options_.ask));
      }
    };
    run_at_once(options_.concurrency, worker);
  }

  template <class Work>
  static void run_at_once(int n, const Work& work) {
    std::vector<std::thread> workers;
    for (int i = 0; i < std::max(1, n); ++i) workers.emplace_back(work);
    for (std::thread& w : workers) w.join();
  }

  void enter(const char* phase, std::size_t expected) {
    std::lock_guard lock(mutex_);
    phase_ = phase;
    expected_ = expected;
  }

  // A thread a request, started at its time. The clients' own limit on threads is the operating
  // system's.
  void open_loop() {
    const std::size_t n = log_.size();
    const auto time_s = [&](std::size_t i) {
      return options_.rate > 0 ? static_cast<double>(i) / options_.rate
                               : log_[i].timestamp_ms.value_or(0) / 1000;
    };
    const double duration_s = time_s(n - 1);
    const bool thin = options_.limit_s > 0 && duration_s > options_.limit_s;
    // Thinned to a fraction f, the times shrink by f too: requests a second stay what they were.
    const double fraction = thin ? options_.limit_s / duration_s : 1;
    const auto chosen = thin_evenly(
        n, std::max<std::size_t>(1, static_cast<std::size_t>(static_cast<double>(n) * fraction)));
    enter("replay", chosen.size());
    std::vector<std::thread> threads;
    for (const std::size_t index : chosen)
      if (!send_at(index, time_s(index) * fraction, threads)) break;
    for (std::thread& t : threads) t.join();
  }

  // Random arrivals (Poisson), as independent clients make them: there are gaps, in which a trainer
  // can work, and bursts, in which requests share rounds.
  void at_load() {
    const std::size_t n = log_.size();
    std::vector<bool> was_sent(n);
    // The warm-up: some of the first quarter's requests, so many in flight. It is part of the run.
    const auto warm = thin_evenly(std::max<std::size_t>(1, n / kQuarters), kWarmup);
    for (const std::size_t i : warm) was_sent[i] = true;
    enter("warm-up", warm.size());
    std::size_t next = 0;
    const auto worker = [&] {
      HttpClient client(options_.url, options_.api_key, options_.timeout_s, &stop_);
      while (!stop_) {
        std::size_t index;
        {
          std::lock_guard lock(mutex_);
          if (next == warm.size()) return;
          index = warm[next++];
          ++sent_;
        }
        record(send(client, index, elapsed_s(), options_.ask));
      }
    };
    run_at_once(options_.concurrency, worker);
    const double warm_s = elapsed_s();
    result_.capacity = static_cast<double>(warm.size()) / std::max(1e-3, warm_s);
    result_.rate = options_.load * result_.capacity;

    // Each quarter's part of the time that is left, and as many of its requests as that takes.
    const double quarter_s = std::max(0.0, options_.limit_s - warm_s) / kQuarters;
    std::vector<std::size_t> chosen;
    for (int q = 0; q < kQuarters; ++q) {
      const std::vector<std::size_t> unsent = unsent_of_quarter(q, was_sent);
      const auto fits = static_cast<std::size_t>(std::max(1.0, quarter_s * result_.rate));
      for (const std::size_t i : thin_evenly(unsent.size(), fits)) chosen.push_back(unsent[i]);
    }
    enter("replay", warm.size() + chosen.size());
    std::vector<std::thread> threads;
    // Given their number, the arrivals of a Poisson process are uniform: sorted, one a request. A
    // quarter too short of requests for the rate stays within its time.
    std::mt19937_64 random(1);
    std::vector<double> due;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const int q = quarter_of(chosen[i], n);
      due.push_back(warm_s + (q + std::uniform_real_distribution<double>()(random)) * quarter_s);
    }
    std::sort(due.begin(), due.end());
    for (std::size_t i = 0; i < chosen.size(); ++i)
      if (!send_at(chosen[i], due[i], threads)) break;
    for (std::thread& t : threads) t.join();
  }

  // Waits for its time, marks the quarters that begin with it, and sends it from a thread of its
  // own. false: stopped.
  bool send_at(std::size_t index, double due_s, std::vector<std::thread>& threads) {
    std::unique_lock lock(mutex_);
    while (!stop_ && elapsed_s() < due_s)
      wake_.wait_for(lock, std::chrono::duration<double>(std::min(0.1, due_s - elapsed_s())));
    if (stop_) return false;
    ++sent_;
    for (const int quarter = quarter_of(index, log_.size()); quarter_ < quarter; ++quarter_) mark();
    lock.unlock();
    threads.emplace_back([this, index, due_s] {
      HttpClient client(options_.url, options_.api_key, options_.timeout_s, &stop_);
      record(send(client, index, due_s, options_.ask));
    });
    return true;
  }

  // Evenly over what was answered, the long ones first.
  std::vector<std::size_t> choose_checks() const {
    std::vector<std::size_t> lengthy, rest;
    for (std::size_t i = 0; i < result_.outcomes.size(); ++i) {
      const RequestOutcome& o = result_.outcomes[i];
      if (!o.ok()) continue;
      (o.prompt_tokens + o.completion_tokens > options_.check_long_tokens ? lengthy : rest)
          .push_back(i);
    }
    std::vector<std::size_t> chosen;
    for (const std::size_t i :
         thin_evenly(lengthy.size(), std::min(options_.check_long, options_.check)))
      chosen.push_back(lengthy[i]);
    for (const std::size_t i : thin_evenly(rest.size(), options_.check - chosen.size()))
      chosen.push_back(rest[i]);
    return chosen;
  }

  void check() {
    const std::vector<std::size_t> chosen = choose_checks();
    std::size_t next = 0;
    enter("check", chosen.size());
    {
      std::lock_guard lock(mutex_);
      sent_ = completed_ = 0;
    }
    const auto worker = [&] {
      HttpClient client(options_.url, options_.api_key, options_.timeout_s, &stop_);
      while (!stop_) {
        std::unique_lock lock(mutex_);
        if (next == chosen.size()) return;
        const RequestOutcome& before = result_.outcomes[chosen[next++]];
        ++sent_;
        lock.unlock();
        AskOptions how = options_.ask;
        how.speculation = false;
        how.trace = false;
        how.seed = before.seed;
        const RequestOutcome after = send(client, before.index, 0, how);
        CheckedRequest checked{.index = before.index,
                               .tokens = before.prompt_tokens + before.completion_tokens,
                               .error = after.error};
        checked.equal = after.ok() && after.text == before.text &&
                        after.completion_tokens == before.completion_tokens &&
                        after.finish_reason == before.finish_reason;
        if (!checked.equal) {
          checked.text = before.text;
          checked.again = after.text;
        }
        lock.lock();
        ++completed_;
        if (!stop_ || after.ok()) result_.checks.push_back(std::move(checked));
      }
    };
    run_at_once(options_.open_loop ? 1 : options_.concurrency, worker);
  }

  // Progress, and the time series of /stats.
  void watch() {
    HttpClient client(options_.url, options_.api_key, kStatsTimeoutSeconds);
    double sampled_s = -1e9;
    std::optional<StatsSample> newest;
    std::unique_lock lock(mutex_);
    while (!done_) {
      wake_.wait_for(lock, kProgressEvery, [this] { return done_; });
      ReplayProgress progress{phase_,   elapsed_s(),        sent_, completed_, failed_, expected_,
                              quarter_, completion_tokens_, newest};
      lock.unlock();
      if (on_progress_) on_progress_(progress);
      if (options_.stats_every_s > 0 && elapsed_s() - sampled_s >= options_.stats_every_s) {
        sampled_s = elapsed_s();
        if (auto sample = read_stats(client, sampled_s)) {
          newest = sample;
          result_.samples.push_back(
              std::move(*sample));  // read by nobody else until this thread is joined
        }
      }
      lock.lock();
    }
  }

  const std::vector<LoggedRequest>& log_;
  const ReplayOptions& options_;
  const std::function<void(const ReplayProgress&)>& on_progress_;
  const std::atomic<bool>& stop_;
  Clock::time_point start_;  // set anew before any other thread runs

  std::mutex mutex_;  // everything below
  std::condition_variable wake_;
  bool done_ = false;
  const char* phase_ = "";
  std::size_t sent_ = 0, completed_ = 0, failed_ = 0, expected_ = 0;
  int quarter_ = 0;
  std::int64_t completion_tokens_ = 0;
  ReplayResult result_;
};

}  // namespace

Result<ReplayResult> play(const std::vector<LoggedRequest>& log, const ReplayOptions& options,
                          const std::function<void(const ReplayProgress&)>& on_progress,
                          const std::atomic<bool>& stop) {
  if (log.empty()) return Error{ErrorCode::kInvalidInput, "the log has no request"};
  if (options.load > 0 && options.limit_s <= 0)
    return Error{ErrorCode::kInvalidInput, "--load needs --limit-minutes"};
  if (options.open_loop && options.load <= 0 && options.rate <= 0 && !log.front().timestamp_ms)
    return Error{ErrorCode::kInvalidInput,
                 "an open loop needs a timestamp for every request of the log, or --rate"};
  return Player(log, options, on_progress, stop).run();
}

}  // namespace foretoken
