#include "tests/simulation/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <random>

#include "runtime/speculate/learned.h"
#include "runtime/trace/server_link.h"
#include "tests/simulation/disk_faults.h"
#include "tests/simulation/sim_learner.h"
#include "tests/simulation/sim_traffic.h"
#include "tests/support/linked_engine.h"
#include "tests/support/memory_network.h"
#include "tests/support/test_keys.h"
#include "trainer/ingest/trainer.h"

namespace foretoken::simulation {
namespace {

using namespace std::chrono_literals;
using trainer::test_fingerprint;
namespace fs = std::filesystem;

constexpr int kHighWaterMark = 50;
constexpr std::size_t kBufferBytes = 96 << 10;

// What the schedule will be like, drawn once.
struct Weather {
  MemoryFaults network;
  int ticks = 0;
  double request = 0.5, crash = 0, come_back = 0.2, attack = 0, full_disk = 0, wall_jump = 0;
  VersionKeeperOptions versions;
};

class World {
 public:
  World(std::uint64_t seed, Bug bug, fs::path folder)
      : random_(seed),
        bug_(bug),
        folder_(std::move(folder)),
        network_(clock_, seed + 1),
        server_disk_(seed + 2),
        trainer_disk_(seed + 3) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    server_disk_.on_death = [this] { network_.crash_server(); };
    trainer_disk_.on_death = [this] { network_.crash_trainer(); };
    draw_weather();
  }
  ~World() {
    server_.reset();
    trainer_.reset();
    fs::remove_all(folder_);
  }

  Report run() {
    network_.set_faults(weather_.network);
    for (int i = 0; i < weather_.ticks && report_.violations.empty(); ++i) stormy_tick();
    if (report_.violations.empty()) calm();
    if (server_) count_refusals();
    return std::move(report_);
  }

 private:
  // A server process: the state machines as shipped, or a naive twin.
  struct ServerProcess {
    std::unique_ptr<ServerLink> link;
    std::int64_t pushed = 0;  // requests the engine logged
    std::uint64_t served = 0;
    std::int64_t falls = 0, rolled_back = 0;
    // Of Bug::kNoVersionCheck.
    Link naive_link;
    BundleAssembler naive_assembler;
    std::optional<std::chrono::nanoseconds> naive_hello;
  };

  // The trainer's sender, with a tap: what goes onto the wire is what it published.
  class TappedSender final : public Sender {
   public:
    TappedSender(World& world, std::unique_ptr<Sender> sender)
        : world_(world), sender_(std::move(sender)) {}
    bool try_send(Message message) override {
      if (world_.trainer_disk_.dead()) return false;
      if (auto chunk = parse_bundle_chunk(message)) {
        if (world_.bug_ == Bug::kNeverResends &&
            !world_.sent_once_.emplace(chunk->version.value, chunk->offset).second)
          return true;
        world_.on_published(*chunk, message);
      }
      return sender_->try_send(std::move(message));
    }

   private:
    World& world_;
    std::unique_ptr<Sender> sender_;
  };

  // Of Bug::kForgetsRequests: what comes twice is not recognised.
  class ForgetfulReceiver final : public Receiver {
   public:
    explicit ForgetfulReceiver(std::unique_ptr<Receiver> receiver)
        : receiver_(std::move(receiver)) {}
    std::optional<Message> try_receive() override {
      auto message = receiver_->try_receive();
      if (!message) return message;
      auto trace = parse_trace(*message);
      if (!trace) return message;
      trace->server_run = ++run_;
      return serialize(*trace);
    }
    bool wait(std::chrono::milliseconds at_most) override { return receiver_->wait(at_most); }

   private:
    std::unique_ptr<Receiver> receiver_;
    std::uint64_t run_ = 0;
  };

  double uniform() { return double(random_() >> 11) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  std::size_t below(std::size_t n) { return std::size_t(random_() % n); }

  void violation(const char* law, const std::string& what) {
    report_.violations.push_back(fmt::format("{}: {} (tick {})", law, what, report_.ticks));
  }

  void draw_weather() {
    weather_.ticks = 40 + int(below(80));
    weather_.request = 0.3 + 0.6 * uniform();
    if (chance(0.7)) {
      weather_.network.loss = 0.2 * uniform();
      weather_.network.duplicate = 0.2 * uniform();
      weather_.network.corrupt = 0.1 * uniform();
      weather_.network.delay_max = std::chrono::milliseconds(below(3000));
      weather_.network.reorder = chance(0.7);
    }
    // A canary needs dozens of requests; most schedules are about the link and the disk.
    weather_.versions.canary_fraction = chance(0.2) ? 0.25 : 0;
    weather_.versions.most_requests = kLeastRequests;
    if (chance(0.8)) weather_.crash = 0.06 * uniform();
    weather_.come_back = 0.05 + 0.5 * uniform();
    if (chance(0.6)) weather_.attack = 0.2 * uniform();
    if (chance(0.4)) weather_.full_disk = 0.03 * uniform();
    if (chance(0.5)) weather_.wall_jump = 0.05 * uniform();
  }

  // ---- the two processes

  void start_server() {
    if (bug_ == Bug::kForgetsServed) fs::remove_all(folder_ / "server");
    server_disk_.start();
    const OnDisk on(server_disk_);
    auto process = std::make_unique<ServerProcess>();
    TrustedSigners trusted = test_signers();
    if (bug_ == Bug::kTrustsEverybody) trusted.push_back(test_signing_key(2).public_key());
    if (bug_ == Bug::kNoVersionCheck) {
      process->naive_link = network_.open_server(kHighWaterMark);
      server_ = std::move(process);
      return;
    }
    ServerLinkOptions options;
    options.model_fingerprint = test_fingerprint();
    options.trusted_signers = trusted;
    options.state_root = folder_ / "server";
    options.versions = weather_.versions;
    auto link = ServerLink::create(options, network_.open_server(kHighWaterMark), clock_);
    if (!link) {  // no room on the disk, or it died on the way up
      network_.crash_server();
      return;
    }
    process->link = std::move(link).value();
    server_ = std::move(process);
    server_->link->restore(engine_);
    check_restored();
  }

  void start_trainer() {
    if (bug_ == Bug::kForgetsNumbers) fs::remove_all(folder_ / "trainer");
    trainer_disk_.start();
    const OnDisk on(trainer_disk_);
    trainer::TrainerOptions options;
    options.state_root = folder_ / "trainer";
    options.session.signing_key = test_signing_key();
    options.session.gate.set_least_requests(4);
    options.session.gate.least_trained_requests = 2;
    options.session.buffer_bytes = kBufferBytes;
    options.session.make_learner = [this](const trainer::TraceSource&) {
      return std::make_unique<SimLearner>([this](std::uint64_t request) {
        if (!trainer_disk_.dead())
          violation("once", fmt::format("request {} is learned from twice", request));
      });
    };
    Link link = network_.open_trainer(kHighWaterMark);
    link.sender = std::make_unique<TappedSender>(*this, std::move(link.sender));
    if (bug_ == Bug::kForgetsRequests)
      link.receiver = std::make_unique<ForgetfulReceiver>(std::move(link.receiver));
    auto trainer = trainer::Trainer::create(options, std::move(link), clock_);
    if (!trainer) {
      network_.crash_trainer();
      return;
    }
    trainer_ = std::move(trainer).value();
  }

  void bury_server() {
    ++report_.crashes;
    network_.crash_server();
    server_disk_.disarm();
    count_refusals();
    server_.reset();
  }
  void bury_trainer() {
    ++report_.crashes;
    network_.crash_trainer();
    trainer_disk_.disarm();
    trainer_.reset();  // as SIGKILL: nothing is written on the way out
  }

  void count_refusals() {
    if (!server_ || !server_->link) return;
    for (const auto& [reason, n] : server_->link->stats().bundles_rejected)
      report_.refused[reason] += n;
  }

  // ---- one tick

  void stormy_tick() {
    clock_.advance(250ms);
    if (chance(weather_.wall_jump))
      clock_.jump_wall_clock(std::int64_t(below(7'200'000)) - 3'600'000);
    for (Disk* disk : {&server_disk_, &trainer_disk_}) {
      if (chance(weather_.full_disk)) {
        disk->set_full(true);
        ++report_.full_disks;
      } else if (chance(0.2)) {
        disk->set_full(false);
      }
    }
    if (chance(weather_.attack)) attack();
    if (server_ && chance(weather_.crash)) server_disk_.arm(int(below(10)));
    if (trainer_ && chance(weather_.crash)) trainer_disk_.arm(int(below(10)));
    step(chance(weather_.request));
    // Between two changes of the disk, too.
    if (server_ && chance(weather_.crash / 3)) bury_server();
    if (trainer_ && chance(weather_.crash / 3)) bury_trainer();
    if (!server_ && chance(weather_.come_back)) start_server();
    if (!trainer_ && chance(weather_.come_back)) start_trainer();
    if (server_ && server_disk_.dead()) bury_server();
    if (trainer_ && trainer_disk_.dead()) bury_trainer();
  }

  void step(bool request) {
    ++report_.ticks;
    if (server_) {
      {
        const OnDisk on(server_disk_);
        if (request) log_request();
        turn_server();
      }
      if (server_disk_.dead()) {
        bury_server();
      } else {
        check_counted();
        check_falls();
      }
    }
    if (trainer_) {
      {
        const OnDisk on(trainer_disk_);
        for (int i = 0; i < 8 && trainer_->turn(); ++i) {
        }
      }
      if (trainer_disk_.dead()) bury_trainer();
    }
    if (network_.in_flight() > 2 * (kHighWaterMark + 1))
      violation("bounded", fmt::format("{} messages in flight", network_.in_flight()));
  }

  void log_request() {
    auto trace = std::make_unique<RequestTrace>(traffic_.next(20));
    trace->server_run = 0;  // the link's to say
    add_rounds(*trace);
    ++report_.requests;
    ++server_->pushed;
    if (!server_->link) {
      trace->server_run = 7;
      server_->naive_link.sender->try_send(serialize(*trace));
      return;
    }
    if (bug_ == Bug::kDropsSilently && random_() % 20 == 0) return;
    server_->link->sink()(std::move(trace));
  }

  // The rounds as they may have run: one token at a time by the version that serves or is on trial.
  void add_rounds(RequestTrace& trace) {
    if (!server_->link || weather_.versions.canary_fraction <= 0) return;
    const std::uint64_t canary = server_->link->versions().canary().value;
    const bool on_trial = canary > 0 && chance(weather_.versions.canary_fraction);
    for (int i = 1; i < int(trace.generated.size()); ++i) {
      RoundTrace& round = trace.rounds.emplace_back();
      round.start = trace.n_prompt + i;
      round.version = {on_trial ? canary : server_->served};
      round.rows = 1;
    }
  }

  void turn_server() {
    if (server_->link) return server_->link->turn();
    // The naive twin.
    while (auto message = server_->naive_link.receiver->try_receive()) {
      auto chunk = parse_bundle_chunk(*message);
      if (!chunk) continue;
      auto whole = server_->naive_assembler.add(std::move(chunk).value());
      if (!whole || !whole->has_value()) continue;
      const auto bundle = parse_bundle(**whole, test_signers());
      if (!bundle || bundle->model_fingerprint != test_fingerprint()) continue;
      if (const auto table = fusion_table_of(*bundle)) on_served(bundle->version, *table);
    }
    const auto now = clock_.monotonic();
    if (server_->naive_hello && now - *server_->naive_hello < 1s) return;
    server_->naive_hello = now;
    ServerHello hello;
    hello.run = 7;
    hello.model_fingerprint = test_fingerprint();
    hello.served = {server_->served};
    server_->naive_link.sender->try_send(serialize(hello));
  }

  // ---- the laws

  static std::uint64_t content_of(const FusionTable& table) {
    std::vector<float> values(table.bias.begin(), table.bias.end());
    values.push_back(table.other);
    return content_hash(std::as_bytes(std::span(values)));
  }

  void on_published(const BundleChunk& chunk, const Message& message) {
    const auto [known, fresh] = wire_.emplace(chunk.version.value, chunk.bundle_hash);
    if (known->second != chunk.bundle_hash)
      violation("content", fmt::format("version {} goes out with two contents", known->first));
    history_.push_back(message);
    if (history_.size() > 64) history_.erase(history_.begin());
    if (!fresh || chunk.bytes.size() != chunk.total_bytes) return;
    ++report_.published;
    const auto bundle = parse_bundle(chunk.bytes, test_signers());
    const auto table = bundle ? fusion_table_of(*bundle) : Result<FusionTable>(bundle.error());
    if (!table || bundle->verdict.find("promoted") == std::string::npos) {
      violation("unproven", fmt::format("version {} is published without a verdict or damaged",
                                        chunk.version.value));
      return;
    }
    published_[chunk.version.value] = content_of(*table);
  }

  void check_content(SpeculatorVersion version, const FusionTable& table) {
    if (version.value == 0 || server_disk_.dead()) return;
    const auto known = published_.find(version.value);
    if (known == published_.end()) {
      violation("unproven",
                fmt::format("version {} serves and was never published", version.value));
    } else if (known->second != content_of(table)) {
      violation("content", fmt::format("version {} serves with another content", version.value));
    }
  }

  void on_served(SpeculatorVersion version, const FusionTable& table) {
    if (server_disk_.dead() || !server_ || version.value == server_->served) return;
    ++report_.swaps;
    check_content(version, table);
    if (version.value < server_->served) {
      ++server_->falls;
      kept_ = std::min(kept_, version.value);
    }
    server_->served = version.value;
    // What the disk refused to keep may be gone after the next start.
    if (server_disk_.take_refused()) kept_all_ = false;
    if (kept_all_) kept_ = version.value;
    last_served_ = std::max(last_served_, version.value);
  }

  void check_falls() {
    const std::int64_t rolled_back =
        server_->link ? server_->link->versions().state().rolled_back : 0;
    report_.rollbacks += rolled_back - server_->rolled_back;
    server_->rolled_back = rolled_back;
    if (server_->falls > rolled_back)
      violation("monotone", fmt::format("version {} serves after a newer one", server_->served));
  }

  void check_restored() {
    if (server_disk_.dead()) return;
    if (server_->served < kept_) {
      violation("monotone", fmt::format("version {} serves after a restart, it was {}",
                                        server_->served, kept_));
    }
    kept_all_ = true;
    server_disk_.take_refused();
    kept_ = server_->served;
  }

  void check_counted() {
    if (!server_->link) return;
    const LinkStats stats = server_->link->stats();
    std::int64_t accounted = stats.traces_sent;
    for (const auto& [reason, n] : stats.traces_dropped) {
      if (reason != "disk") accounted += n;
    }
    if (accounted != server_->pushed) {
      violation("counted",
                fmt::format("{} requests logged, {} accounted for", server_->pushed, accounted));
    }
  }

  std::size_t files_in(const fs::path& folder, const std::string& extension) const {
    std::size_t n = 0;
    for (auto at = fs::recursive_directory_iterator(folder, ignored_);
         at != fs::recursive_directory_iterator(); ++at)
      n += at->path().extension() == extension;
    return n;
  }

  // ---- the attacker: somebody on the trainer's end of the wire

  void attack() {
    ++report_.attacks;
    const std::uint64_t next = std::max(last_served_, std::uint64_t{0}) + 1 + below(3);
    FusionTable table = FusionTable::initial();
    table.bias[1] = 6.66f;
    Bundle bundle = bundle_of(table);
    bundle.version = {next};
    bundle.model_fingerprint = test_fingerprint();
    bundle.verdict = "promoted: trust me";
    const auto send = [this](SpeculatorVersion version, std::span<const std::byte> bytes) {
      for (Message& message : chunk_bundle(version, bytes)) network_.inject_to_server(message);
    };
    switch (below(8)) {
      case 0: {  // unsigned
        auto bytes = serialize(bundle, test_signing_key(2));
        bytes.resize(bytes.size() - 96);
        std::fill_n(bytes.begin() + 24, 4, std::byte(0));
        return send(bundle.version, bytes);
      }
      case 1:  // signed by a stranger
        return send(bundle.version, serialize(bundle, test_signing_key(2)));
      case 2:  // signed by the trainer, for another model
        bundle.model_fingerprint = test_fingerprint(9);
        return send(bundle.version, serialize(bundle, test_signing_key()));
      case 3: {  // signed by the trainer's key, not finite, of a number that is taken
        if (last_served_ == 0) return;
        bundle.version = {last_served_};
        bundle.tensors["fusion.other"] =
            BundleTensor::f32({1}, std::vector<float>{std::numeric_limits<float>::quiet_NaN()});
        return send(bundle.version, serialize(bundle, test_signing_key()));
      }
      case 4:
      case 5:  // what was said once is said again
        if (!history_.empty()) network_.inject_to_server(history_[below(history_.size())]);
        return;
      case 6: {  // one bit of a real version, envelope and chunk hash made to fit
        if (history_.empty()) return;
        auto chunk = parse_bundle_chunk(history_[below(history_.size())]);
        chunk->bytes[below(chunk->bytes.size())] ^= std::byte(1u << below(8));
        return send(chunk->version, chunk->bytes);
      }
      default: {  // pieces of what will never be whole
        for (int i = 0; i < 5; ++i) {
          network_.inject_to_server(serialize(BundleChunk{
              {next}, kMaxBundleBytes, below(1 << 20), random_(), std::vector<std::byte>(64)}));
        }
        return;
      }
    }
  }

  // ---- afterwards

  // The faults stop: everything must come right by itself. A version is sent again after a minute
  // at the latest.
  void calm() {
    network_.set_faults({});
    server_disk_.set_full(false);
    trainer_disk_.set_full(false);
    server_disk_.disarm();
    trainer_disk_.disarm();
    // Not even a number is left over from an attack: the server starts afresh, in some schedules.
    if (server_ && chance(0.3)) bury_server();
    if (!server_) start_server();
    if (!trainer_) start_trainer();
    if (!server_ || !trainer_) return violation("converges", "a process does not come up");
    const int requests = chance(0.5) ? 0 : int(below(40));
    for (int i = 0; i < requests && report_.violations.empty(); ++i) {
      clock_.advance(1s);
      step(true);
    }
    for (int i = 0; i < 130 && report_.violations.empty(); ++i) {
      clock_.advance(1s);
      step(false);
      if (i > 10 && quiet()) break;
    }
    if (!report_.violations.empty()) return;
    const std::uint64_t current = trainer_->status().current.value;
    if (!settled())
      violation("converges", fmt::format("version {} serves, the newest published is {}",
                                         server_->served, current));
    if (server_->link && !server_->link->stats().trainer_connected)
      violation("converges", "the trainer is not connected");
    if (trainer_->status().buffer_bytes > std::int64_t(kBufferBytes))
      violation("bounded", "the buffer on disk is over its bound");
    for (const char* side : {"server", "trainer"}) {
      if (const auto n = files_in(folder_ / side, ".tmp"); n > 0)
        violation("bounded", fmt::format("{} half-written files stay in the {}'s folder", n, side));
    }
    if (files_in(folder_ / "trainer", ".bundle") > 80)
      violation("bounded", "old versions are not deleted");
  }

  bool quiet() const { return network_.in_flight() == 0 && settled(); }
  // The newest published version serves, is on trial, or was rolled back there.
  bool settled() const {
    const std::uint64_t current = trainer_->status().current.value;
    if (server_->served == current) return true;
    if (!server_->link || weather_.versions.canary_fraction <= 0) return false;
    const SpeculatorState state = server_->link->versions().state();
    return server_->link->versions().canary().value == current ||
           std::find(state.banned.begin(), state.banned.end(), current) != state.banned.end();
  }

  std::mt19937_64 random_;
  const Bug bug_;
  const fs::path folder_;
  mutable std::error_code ignored_;
  Report report_;
  Weather weather_;
  ManualClock clock_;
  MemoryNetwork network_;
  SimTraffic traffic_;
  Disk server_disk_, trainer_disk_;
  ToldEngine engine_{[this](const SpeculatorChoice& choice) {
    if (choice.canary) check_content(choice.canary->version, choice.canary->fusion);
    on_served(choice.served->version, choice.served->fusion);
  }};
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<trainer::Trainer> trainer_;
  std::map<std::uint64_t, std::uint64_t> wire_;       // version -> hash of its bytes
  std::map<std::uint64_t, std::uint64_t> published_;  // version -> hash of its table
  std::set<std::pair<std::uint64_t, std::uint64_t>> sent_once_;
  std::vector<Message> history_;
  std::uint64_t kept_ = 0, last_served_ = 0;
  bool kept_all_ = true;
};

}  // namespace

const char* name(Bug bug) {
  switch (bug) {
    case Bug::kNone:
      return "none";
    case Bug::kTrustsEverybody:
      return "trusts everybody";
    case Bug::kNoVersionCheck:
      return "no version check";
    case Bug::kForgetsServed:
      return "forgets what it served";
    case Bug::kForgetsNumbers:
      return "forgets its numbers";
    case Bug::kNeverResends:
      return "never sends again";
    case Bug::kDropsSilently:
      return "drops silently";
    case Bug::kForgetsRequests:
      return "forgets requests";
  }
  return "?";
}

const char* law_that_notices(Bug bug) {
  switch (bug) {
    case Bug::kNone:
      return "";
    case Bug::kTrustsEverybody:
      return "unproven";
    case Bug::kNoVersionCheck:
    case Bug::kForgetsServed:
      return "monotone";
    case Bug::kForgetsNumbers:
      return "content";
    case Bug::kNeverResends:
      return "converges";
    case Bug::kDropsSilently:
      return "counted";
    case Bug::kForgetsRequests:
      return "once";
  }
  return "";
}

Report run_schedule(std::uint64_t seed, Bug bug, const std::string& folder) {
  return World(seed, bug, folder).run();
}

}  // namespace foretoken::simulation
