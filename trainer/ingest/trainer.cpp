#include "trainer/ingest/trainer.h"

#include <spdlog/spdlog.h>
#include <time.h>

#include <limits>

namespace foretoken::trainer {
namespace {

constexpr std::chrono::seconds kStatusInterval{1};
constexpr std::chrono::seconds kLongestPause{
    10};  // hellos come every second: none for so long is none
// Messages taken before training gets its turn: a backlog is first moved to the buffer on disk.
constexpr int kMessagesPerTurn = 64;

using namespace std::chrono_literals;

// What all threads had of the cores: with one thread, a slice's wall time less what it waited.
std::chrono::nanoseconds process_cpu() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

}  // namespace

Result<std::unique_ptr<Trainer>> Trainer::create(const TrainerOptions& options, Link link,
                                                 const Clock& clock) {
  std::unique_ptr<Trainer> trainer(new Trainer(options, std::move(link), clock));
  if (options.model_fingerprint) {
    if (auto s = trainer->open_session(*options.model_fingerprint); !s) return s.error();
  }
  return trainer;
}

Trainer::Trainer(const TrainerOptions& options, Link link, const Clock& clock)
    : options_(options),
      link_(std::move(link)),
      clock_(clock),
      run_(random_run_id()),
      pace_(options.cpu_share) {}

Status Trainer::open_session(const ModelFingerprint& fingerprint) {
  auto session = TrainingSession::open(options_.state_root, fingerprint, options_.session, clock_);
  if (!session) return session.error();
  session_ = std::move(session).value();
  return Ok{};
}

bool Trainer::turn() {
  bool busy = false;
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    const auto message = link_.receiver->try_receive();
    if (!message) break;
    busy = true;
    handle(*message);
  }
  const auto begun = clock_.monotonic(), cpu_begun = process_cpu();
  if (session_) {
    if (begun >= rest_until_ && !paused() && session_->work()) {
      busy = true;
      const auto ended = clock_.monotonic();
      const auto worked = ended - begun, had = process_cpu() - cpu_begun;
      rest_until_ = ended + pace_.rest_after(worked, worked > had ? worked - had : 0ns, ended);
    }
    session_->pump(*link_.sender);
  }
  const auto now = clock_.monotonic();
  if (!last_status_ || now - *last_status_ >= kStatusInterval) {
    last_status_ = now;
    if (session_) session_->expire();
    link_.sender->try_send(serialize(status()));
  }
  return busy;
}

std::chrono::nanoseconds Trainer::idle_for() const {
  const auto now = clock_.monotonic();
  const std::chrono::nanoseconds longest = std::chrono::milliseconds(250);
  return rest_until_ > now ? std::min(longest, rest_until_ - now) : longest;
}

void Trainer::handle(const Message& message) {
  auto type = check_envelope(message);
  if (!type) return refuse(type.error());
  if (*type == MessageType::kServerHello) {
    auto hello = parse_server_hello(message);
    return hello ? hear(*hello) : refuse(hello.error());
  }
  if (*type != MessageType::kTrace) {
    return refuse(Error{ErrorCode::kInvalidInput, "protocol: a message that only a trainer sends"});
  }
  auto trace = parse_trace(message);
  if (!trace) return refuse(trace.error());
  // A trace names its model too: it may overtake the first hello.
  if (!session_ && !options_.model_fingerprint) {
    if (auto s = open_session(trace->model_fingerprint); !s) return refuse(s.error());
  }
  if (!session_) return refuse(Error{ErrorCode::kUnavailable, "fingerprint: trace: no session"});
  if (auto s = session_->ingest(message, *trace); !s) refuse(s.error());
}

// The server measures plain serving: these cores are its own until it says otherwise, or is gone.
bool Trainer::paused() const { return paused_until_ && clock_.monotonic() < *paused_until_; }

void Trainer::hear(const ServerHello& hello) {
  paused_until_.reset();
  if (hello.pause) paused_until_ = clock_.monotonic() + kLongestPause;
  if (server_run_ != hello.run) {
    server_run_ = hello.run;
    spdlog::info("server run {:016x}: model {}, serves version {}", hello.run,
                 to_hex(hello.model_fingerprint).substr(0, 16), hello.served.value);
    if (options_.model_fingerprint && *options_.model_fingerprint != hello.model_fingerprint)
      spdlog::error("the server's model is not this trainer's: nothing is learned from it");
  }
  if (!session_ || session_->fingerprint() != hello.model_fingerprint) {
    if (options_.model_fingerprint) {
      return refuse(
          Error{ErrorCode::kInvalidInput,
                fmt::format("fingerprint: hello: the server's model is {}, this trainer's {}",
                            to_hex(hello.model_fingerprint), to_hex(*options_.model_fingerprint))});
    }
    if (session_) {
      if (auto s = session_->checkpoint(); !s) spdlog::warn("{}", s.error().message);
      session_.reset();
    }
    if (auto s = open_session(hello.model_fingerprint); !s) return refuse(s.error());
  }
  pace_.heard(hello, clock_.monotonic());
  session_->heard(hello);
}

void Trainer::refuse(const Error& error) {
  const std::int64_t count = ++refused_[error.message.substr(0, error.message.find(':'))];
  if ((count & (count - 1)) == 0) spdlog::warn("refused ({} so far): {}", count, error.message);
}

TrainerStatus Trainer::status() const {
  TrainerStatus status;
  status.loss = std::numeric_limits<double>::quiet_NaN();
  if (session_) status = session_->status();
  status.run = run_;
  for (const auto& [reason, count] : refused_) status.traces_refused += count;
  return status;
}

}  // namespace foretoken::trainer
