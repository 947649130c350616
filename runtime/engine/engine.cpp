#include "runtime/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <thread>

#include <spdlog/spdlog.h>

#include "foretoken/protocol/failure.h"
#include "runtime/engine/core.h"

namespace foretoken {
namespace {

// The inbox is the only thing the engine thread shares with submitters; it is held for a few moves
// at a time.
class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(std::unique_ptr<EngineCore> core, std::shared_ptr<const Model> model)
      : core_(std::move(core)), model_(std::move(model)) {
    beat();
    core_->fill(snapshot_);
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), "engine");
  }

  ~ThreadedEngine() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  RequestId next_request_id() override { return RequestId{++next_id_}; }

  Status submit(EngineRequest request) override {
    const EngineOptions& o = core_->options();
    const auto n = std::int64_t(request.prompt.size());
    if (n == 0)
      return Error{ErrorCode::kInvalidInput, "the prompt is empty, wanted at least one token"};
    for (const TokenId token : request.prompt) {
      if (token < 0 || token >= model_->config().n_vocab) {
        return failure(ErrorCode::kInvalidInput,
                       "prompt token {} is outside the vocabulary of {} tokens", token,
                       model_->config().n_vocab);
      }
    }
    if (auto limit = token_limit(n, request.max_tokens, o.max_model_len); !limit)
      return limit.error();
    auto sequence = core_->sequence_of(std::move(request));
    {
      std::lock_guard lock(mutex_);
      if (draining_ || stop_)
        return Error{ErrorCode::kUnavailable, "the server is draining: no new requests"};
      if (std::int64_t(inbox_.size()) + waiting_ >= o.max_queue) {
        ++rejected_;
        return failure(ErrorCode::kUnavailable, "the queue is full: {} requests are waiting",
                       o.max_queue);
      }
      inbox_.push_back(std::move(sequence));
      idle_ = false;
    }
    wake_.notify_one();
    return Ok{};
  }

  void cancel(RequestId id) override { end(id, FinishReason::kAborted); }
  void stop(RequestId id) override { end(id, FinishReason::kStop); }

  void drain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
  }

  bool idle() const override {
    std::lock_guard lock(mutex_);
    return idle_ && inbox_.empty();
  }

  void set_learned(SpeculatorChoice choice) override {
    // Destroyed when this returns, on the caller's thread: unmapping megabytes takes a while.
    std::vector<LearnedPointer> retired;
    {
      std::lock_guard lock(mutex_);
      retired.swap(retired_);
      std::swap(choice, swap_);  // what was chosen and never served leaves with the argument
    }
    wake_.notify_one();
  }

  std::vector<SavedTraffic> save_traffic() override {
    std::vector<SavedTraffic> saved;
    on_engine_thread([&](EngineCore& core) { saved = core.save_traffic(); });
    return saved;
  }

  std::vector<Error> restore_traffic(std::vector<SavedTraffic> saved) override {
    std::vector<Error> errors;
    on_engine_thread([&](EngineCore& core) { errors = core.restore_traffic(saved); });
    return errors;
  }

  void forget_traffic(const std::string& key_id) override {
    on_engine_thread([&](EngineCore& core) { core.forget_traffic(key_id); });
  }

  bool serving() const override { return serving_.load(std::memory_order_relaxed); }

  double busy_s() const override { return 1e-9 * double(busy_ns_.load(std::memory_order_relaxed)); }

  bool plain_now() const override { return plain_now_.load(std::memory_order_relaxed); }

  EngineStats stats() const override {
    std::lock_guard lock(snapshot_mutex_);
    EngineStats copy = snapshot_;
    copy.requests_rejected = rejected_;
    return copy;
  }

  double heartbeat_age_s() const override {
    const auto now = core_->now().time_since_epoch();
    return seconds_of(now - SteadyTime::duration(beat_.load(std::memory_order_relaxed)));
  }

  const EngineOptions& options() const override { return core_->options(); }

 private:
  void beat() { beat_.store(core_->now().time_since_epoch().count(), std::memory_order_relaxed); }

  void end(RequestId id, FinishReason reason) {
    {
      std::lock_guard lock(mutex_);
      ends_.emplace_back(id, reason);
    }
    wake_.notify_one();
  }

  // Runs `task` between two rounds and waits for it. One caller at a time.
  void on_engine_thread(const std::function<void(EngineCore&)>& task) {
    std::lock_guard one(task_mutex_);
    std::unique_lock lock(mutex_);
    if (stop_) return;
    task_ = &task;
    wake_.notify_one();
    task_done_.wait(lock, [this] { return task_ == nullptr; });
  }

  void publish(bool now) {
    // Statistics are assembled at most ten times a second: the figures are for people, the round is
    // not.
    const auto time = core_->now();
    if (!now && time - published_ < std::chrono::milliseconds(100)) return;
    published_ = time;
    EngineStats stats;
    core_->fill(stats);
    std::lock_guard lock(snapshot_mutex_);
    std::swap(snapshot_, stats);
  }

  void run() {
    std::vector<std::unique_ptr<Sequence>> arrived;
    std::vector<std::pair<RequestId, FinishReason>> ends;
    std::vector<LearnedPointer> retired;
    for (;;) {
      SpeculatorChoice swap;
      {
        std::unique_lock lock(mutex_);
        if (!core_->has_work() && inbox_.empty() && ends_.empty() && !swap_.served && !task_ &&
            !stop_) {
          idle_ = true;
          lock.unlock();
          publish(true);
          lock.lock();
          // Wakes once a second to show it is alive (readiness).
          wake_.wait_for(lock, std::chrono::seconds(1), [&] {
            return !inbox_.empty() || !ends_.empty() || swap_.served || task_ || stop_;
          });
        }
        if (const auto* task = task_) {
          lock.unlock();
          (*task)(*core_);
          lock.lock();
          task_ = nullptr;
          task_done_.notify_all();
        }
        if (stop_) break;
        arrived.swap(inbox_);
        ends.swap(ends_);
        std::swap(swap, swap_);
        waiting_ = core_->n_waiting() + std::int64_t(arrived.size());
        idle_ = arrived.empty() && !core_->has_work();
      }
      beat();
      for (auto& s : arrived) core_->enqueue(std::move(s));
      for (const auto& [id, reason] : ends) core_->end(id, reason);
      arrived.clear();
      ends.clear();
      if (swap.served) {
        const auto begin = core_->now();
        core_->set_learned(std::move(swap), retired);
        {
          std::lock_guard lock(mutex_);
          std::ranges::move(retired, std::back_inserter(retired_));
        }
        retired.clear();
        core_->swap_took(ms_of(core_->now() - begin));
      }
      serving_.store(core_->has_work(), std::memory_order_relaxed);
      if (core_->has_work()) {
        const auto begin = core_->now();
        core_->round();
        busy_ns_.fetch_add((core_->now() - begin).count(), std::memory_order_relaxed);
      }
      serving_.store(core_->has_work(), std::memory_order_relaxed);
      plain_now_.store(core_->plain_now() && core_->has_work(), std::memory_order_relaxed);
      {
        // Those admitted or cancelled by now wait no more: an idle engine must not refuse anybody.
        std::lock_guard lock(mutex_);
        waiting_ = core_->n_waiting();
      }
      publish(false);
    }
    for (auto& s : inbox_) core_->enqueue(std::move(s));
    core_->abort_all();
  }

  std::unique_ptr<EngineCore> core_;
  std::shared_ptr<const Model> model_;
  std::atomic<std::uint64_t> next_id_{0};
  std::atomic<std::int64_t> rejected_{0};
  std::atomic<std::int64_t> beat_{0};

  mutable std::mutex mutex_;  // guards everything down to idle_
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  std::vector<std::pair<RequestId, FinishReason>> ends_;
  SpeculatorChoice swap_;                // served null: none waits
  std::vector<LearnedPointer> retired_;  // for a caller to destroy
  const std::function<void(EngineCore&)>* task_ = nullptr;
  std::condition_variable task_done_;
  std::mutex task_mutex_;
  std::atomic<bool> plain_now_{false}, serving_{false};
  std::atomic<std::int64_t> busy_ns_{0};
  std::int64_t waiting_ = 0;
  bool draining_ = false, stop_ = false, idle_ = true;

  mutable std::mutex snapshot_mutex_;
  EngineStats snapshot_;
  SteadyTime published_;
  std::thread thread_;
};

}  // namespace

Result<std::int64_t> token_limit(std::int64_t n_prompt, std::optional<std::int64_t> max_tokens,
                                 std::int64_t context) {
  const std::int64_t left = context - n_prompt;
  if (left < 1) {
    return failure(ErrorCode::kOutOfRange,
                   "This model's maximum context length is {} tokens. However, your "
                   "prompt resulted in {} tokens.",
                   context, n_prompt);
  }
  if (max_tokens && *max_tokens < 1)
    return failure(ErrorCode::kInvalidInput, "max_tokens is {}, wanted at least 1", *max_tokens);
  if (max_tokens && *max_tokens > left) {
    return failure(ErrorCode::kOutOfRange,
                   "This model's maximum context length is {} tokens. However, you "
                   "requested {} tokens ({} in the prompt, {} in the completion).",
                   context, n_prompt + *max_tokens, n_prompt, *max_tokens);
  }
  return max_tokens.value_or(left);
}

Result<std::unique_ptr<Engine>> Engine::create(
    std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
    std::shared_ptr<const Model> draft_model,
    std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& options,
    TraceSink trace_sink, const Clock& clock) {
  auto core =
      EngineCore::create(model, std::move(calibration), std::move(draft_model),
                         std::move(draft_calibration), options, std::move(trace_sink), clock);
  if (!core) return core.error();
  return std::unique_ptr<Engine>(
      std::make_unique<ThreadedEngine>(std::move(*core), std::move(model)));
}

}  // namespace foretoken
