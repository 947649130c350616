#include "runtime/server/server.h"

#include <fmt/format.h>
#include <sodium.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "foretoken/kernels/isa.h"
#include "foretoken/protocol/control.h"
#include "runtime/observe/activity_log.h"
#include "runtime/serve/service.h"
#include "runtime/server/kv_calibration.h"
#include "runtime/server/spec_head.h"
#include "runtime/trace/server_link.h"
#include "runtime/trace/traffic_files.h"

namespace foretoken {
namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr std::chrono::seconds kSampleInterval{5};

bool loopback(const std::string& host) {
  return host == "127.0.0.1" || host == "::1" || host == "localhost";
}

// The engine as the link to the trainer sees it. Link thread.
class EngineOfLink final : public LinkedEngine {
 public:
  explicit EngineOfLink(Engine& engine) : engine_(engine) {}
  void draft_with(SpeculatorChoice choice) override { engine_.set_learned(std::move(choice)); }
  bool idle() const override { return !engine_.serving(); }
  bool pause_trainer() const override { return engine_.plain_now(); }
  void forget(const std::string& key_id) override { engine_.forget_traffic(key_id); }
  ServerActivity activity() override {
    const EngineStats stats = engine_.stats();
    ServerActivity activity;
    activity.busy = busy_share();
    activity.requests_running = static_cast<std::uint32_t>(stats.requests_running);
    activity.head_start_ms = static_cast<float>(stats.head_start_ms);
    activity.head_step_ms = static_cast<float>(stats.head_step_ms);
    activity.round_ms.assign(stats.round_ms_by_rows.begin(), stats.round_ms_by_rows.end());
    return activity;
  }

 private:
  // The share of the last second (or a little more) in which the engine ran rounds.
  float busy_share() {
    const auto now = SteadyClock::now();
    const double passed_s = std::chrono::duration<double>(now - since_).count();
    if (passed_s >= 0.9) {
      const double busy_s = engine_.busy_s();
      share_ = static_cast<float>(std::clamp((busy_s - busy_s_) / passed_s, 0.0, 1.0));
      busy_s_ = busy_s;
      since_ = now;
    }
    return share_;
  }

  Engine& engine_;
  SteadyClock::time_point since_ = SteadyClock::now();
  double busy_s_ = 0;
  float share_ = 0;
};

// The link as the HTTP routes see it. Any thread.
class LinkOfService final : public LearnedControl {
 public:
  explicit LinkOfService(ServerLink& link) : link_(link) {}
  LinkStats link_stats() const override { return link_.stats(); }
  void count_opted_out() override { link_.count_opted_out(); }
  SpeculatorState state() const override { return link_.versions().state(); }
  Status rollback() override { return link_.versions().rollback("by an operator"); }
  void freeze() override { link_.versions().freeze(); }
  void unfreeze() override { link_.versions().unfreeze(); }

 private:
  ServerLink& link_;
};

// Calls `task` every few seconds on a thread of its own, until it is destroyed.
class Ticker {
 public:
  explicit Ticker(std::function<void()> task)
      : thread_([this, task = std::move(task)](std::stop_token stop) {
          std::unique_lock lock(mutex_);
          const auto stopping = [&] { return stop.stop_requested(); };
          while (!wake_.wait_for(lock, stop, kSampleInterval, stopping)) task();
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;  // ends before what it waits on
};

}  // namespace

Result<std::unique_ptr<ChatTemplate>> load_chat_template(const GgufFile& file,
                                                         const Tokenizer& tokenizer) {
  auto source = file.get_string("tokenizer.chat_template");
  if (!source) return std::unique_ptr<ChatTemplate>();
  std::string bos, eos;
  if (auto id = tokenizer.bos()) bos = std::string(tokenizer.bytes(*id, true));
  if (auto id = file.get_uint("tokenizer.ggml.eos_token_id");
      id && *id < static_cast<std::uint64_t>(tokenizer.vocabulary_size()))
    eos = std::string(tokenizer.bytes(static_cast<TokenId>(*id), true));
  return ChatTemplate::parse(*source, bos, eos);
}

// What start() made.
class Server::Running {
 public:
  explicit Running(const ServerOptions& options) : options_(options) {}
  ~Running() { stop(); }

  Status start();
  void drain(double finish_s, const std::function<bool()>& hurry);
  const HttpServer& http() const { return *http_; }
  Engine& engine() { return *engine_; }
  const Model& model() const { return *model_; }
  const Model* draft_model() const { return draft_model_.get(); }
  const Backend& backend() const { return *backend_; }

 private:
  void stop();
  Status listen();
  Status load_models();
  Status load_calibrations();
  Status open_link();
  Status start_engine();
  void describe();
  Result<std::shared_ptr<const Model>> load_model(const std::string& path, const char* what);

  const ServerOptions& options_;
  ActivityLog activity_;
  // Destroyed last first: the engine's open requests hold connections of the HTTP server, whose
  // handler is the service; the engine's traces go to the link.
  std::shared_ptr<const Model> model_, draft_model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  std::shared_ptr<const KvCalibration> calibration_, draft_calibration_;
  std::optional<std::array<int, 4>> head_taps_;  // of the head that was given
  std::unique_ptr<ServerLink> link_;
  std::unique_ptr<LinkOfService> link_of_service_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineOfLink> engine_of_link_;
  std::unique_ptr<Ticker> ticker_;
};

Status Server::Running::start() {
  if (sodium_init() < 0) return Error{ErrorCode::kInternal, "libsodium cannot start"};
  std::error_code ignored;  // its use says what is wrong with it
  std::filesystem::create_directories(options_.state_dir, ignored);
  for (const auto step : {&Running::listen, &Running::load_models, &Running::load_calibrations,
                          &Running::open_link, &Running::start_engine}) {
    if (Status done = (this->*step)(); !done) return done;
  }
  describe();
  service_->publish(backend_);
  activity_.line(engine_->stats());
  ticker_ = std::make_unique<Ticker>([this] {
    service_->sample();
    if (auto line = activity_.line(engine_->stats())) spdlog::info("{}", *line);
  });
  return Ok{};
}

Status Server::Running::listen() {
  ServiceOptions service;
  service.model_name = options_.served_model_names.front();
  service.stall_after_s = options_.health_stall_timeout_s;
  service.max_admission_queue = static_cast<std::size_t>(options_.engine.max_queue);
  if (!options_.api_key_file.empty()) {
    auto keys = ApiKeys::from_file(options_.api_key_file);
    if (!keys) return keys.error();
    service.api_keys = std::move(*keys);
  } else if (!loopback(options_.http.host)) {
    spdlog::warn("--host {} without --api-key-file: anybody who can reach it may use this server",
                 options_.http.host);
  }
  service_ = std::make_unique<Service>(std::move(service));
  auto http = HttpServer::start(options_.http, *service_);
  if (!http) return http.error();
  http_ = std::move(*http);
  return Ok{};
}

Result<std::shared_ptr<const Model>> Server::Running::load_model(const std::string& path,
                                                                 const char* what) {
  ModelLoadOptions load;
  load.threads = options_.engine.threads;
  load.progress = [&](double fraction) {
    if (options_.progress) options_.progress(fmt::format("loading {}", what), fraction);
    if (!model_) service_->set_loading_progress(fraction);
  };
  return Model::load(path, load);
}

Status Server::Running::load_models() {
  auto model = load_model(options_.model, "model");
  if (!model) return model.error();
  model_ = std::move(*model);
  auto tokenizer = Tokenizer::from_gguf(model_->file());
  if (!tokenizer) return tokenizer.error();
  tokenizer_ = std::move(*tokenizer);
  if (auto chat_template = load_chat_template(model_->file(), *tokenizer_))
    chat_template_ = std::move(*chat_template);
  else
    spdlog::warn("the model's chat template cannot be used, /v1/chat/completions is off: {}",
                 chat_template.error().message);
  if (options_.spec_draft_model.empty()) return Ok{};
  auto draft = load_model(options_.spec_draft_model, "draft model");
  if (!draft) return draft.error();
  draft_model_ = std::move(*draft);
  return Ok{};
}

Status Server::Running::load_calibrations() {
  KvCalibrationChoice choice{options_.calibration, options_.kv_calibration,
                             options_.calibration_text, options_.state_dir,
                             options_.engine.threads};
  auto made = obtain_kv_calibration(*model_, *tokenizer_, options_.engine.kv_cache_dtype, choice,
                                    options_.progress);
  if (!made) return made.error();
  calibration_ = std::move(*made);
  if (!draft_model_) return Ok{};
  choice.file = options_.draft_kv_calibration;
  made = obtain_kv_calibration(*draft_model_, *tokenizer_, options_.engine.draft_kv_cache_dtype,
                               choice, options_.progress);
  if (!made) return made.error();
  draft_calibration_ = std::move(*made);
  return Ok{};
}

Status Server::Running::open_link() {
  ServerLinkOptions link;
  link.endpoints.traces = options_.traces_endpoint;
  link.endpoints.weights = options_.weights_endpoint;
  auto keys = options_.load_keys();
  if (!keys) return keys.error();
  link.trusted_signers = keys->signers;
  link.endpoints.keys = keys->link;
  link.model_fingerprint = model_->fingerprint();
  link.state_root = options_.state_dir;
  link.trace_dir = options_.trace_dir;
  link.trace_dir_max_bytes = options_.trace_dir_max_bytes;
  link.trace_dir_max_age_s = 3600 * options_.retention_hours;
  if (auto vocabulary = VocabularyRows::of(model_))
    link.vocabulary = std::move(*vocabulary);
  else
    spdlog::warn("only fusion tables are taken, no heads: {}", vocabulary.error().message);
  if (!options_.spec_head.empty()) {
    auto given = load_spec_head(options_.spec_head, link.vocabulary);
    if (!given) return given.error();
    if (auto s = probe_spec_head(*given, *model_, *tokenizer_, options_.engine.threads); !s)
      return s;
    head_taps_ = link.head_taps = given->taps;
    link.versions.given = given->given;
  }
  link.versions.canary_fraction = options_.canary_fraction;
  link.shadow.kinds = options_.engine.spec_type;
  link.shadow.max_draft = options_.engine.spec_draft_n_max;
  auto opened = ServerLink::create(link);
  if (!opened) return opened.error();
  link_ = std::move(*opened);
  return Ok{};
}

Status Server::Running::start_engine() {
  EngineOptions engine_options = options_.engine;
  if (head_taps_) engine_options.head_taps = head_taps_;
  auto engine = Engine::create(model_, calibration_, draft_model_, draft_calibration_,
                               engine_options, link_->sink());
  if (!engine) return engine.error();
  engine_ = std::move(*engine);
  if (const auto state = link_->state_dir()) {
    read_forget_notes(state->folder(), [](const std::string&) {});
    const auto saved = load_traffic_files(
        state->traffic_folder(), static_cast<std::size_t>(options_.engine.max_num_seqs) + 1,
        3600 * options_.retention_hours);
    for (const Error& error : engine_->restore_traffic(saved))
      spdlog::warn("a traffic store starts empty: {}", error.message);
  }
  engine_of_link_ = std::make_unique<EngineOfLink>(*engine_);
  link_->start(*engine_of_link_);
  return Ok{};
}

void Server::Running::describe() {
  backend_ = std::make_shared<Backend>();
  link_of_service_ = std::make_unique<LinkOfService>(*link_);
  const ModelConfig& config = model_->config();
  backend_->engine = engine_.get();
  backend_->learned = link_of_service_.get();
  backend_->tokenizer = tokenizer_.get();
  backend_->chat_template = chat_template_.get();
  backend_->names = options_.served_model_names;
  backend_->architecture = config.architecture;
  backend_->fingerprint_hex = to_hex(model_->fingerprint());
  backend_->kv_mode = std::string(kv_mode_name(engine_->options().kv_cache_dtype));
  backend_->isa = std::string(kernels::isa_name(kernels::active_isa()));
  backend_->n_vocab = config.n_vocab;
  backend_->n_ctx = engine_->options().max_model_len;
  backend_->n_ctx_train = config.context_length;
  backend_->weight_bytes = static_cast<std::int64_t>(model_->weight_bytes());
  for (const GgufTensor& tensor : model_->file().tensors()) {
    std::int64_t n = 1;
    for (std::int64_t extent : tensor.shape) n *= extent;
    backend_->n_params += n;
  }
  backend_->created_unix_s = std::chrono::duration_cast<std::chrono::seconds>(
                                 std::chrono::system_clock::now().time_since_epoch())
                                 .count();
}

void Server::Running::drain(double finish_s, const std::function<bool()>& hurry) {
  service_->drain();
  http_->drain();
  engine_->drain();
  const auto deadline = SteadyClock::now() + std::chrono::duration<double>(finish_s);
  while ((!engine_->idle() || http_->open_exchanges() > 0) && SteadyClock::now() < deadline) {
    if (hurry && hurry()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void Server::Running::stop() {
  const bool served = ticker_ != nullptr;
  ticker_.reset();
  if (http_) http_->stop();
  if (service_) service_->stop();
  if (served) {
    if (const auto state = link_->state_dir())
      save_traffic_files(state->traffic_folder(), engine_->save_traffic());
  }
  if (link_) link_->stop();
  engine_.reset();
}

Server::Server(Options options) : options_(std::move(options)) {}
Server::~Server() { stop(); }

Status Server::start() {
  if (running_) return Error{ErrorCode::kInvalidInput, "the server runs already"};
  if (Status done = options_.complete(); !done) return done;
  auto running = std::make_unique<Running>(options_);
  if (Status done = running->start(); !done) return done;
  running_ = std::move(running);
  return Ok{};
}

void Server::stop(double finish_s, const std::function<bool()>& hurry) {
  if (!running_) return;
  running_->drain(finish_s, hurry);
  running_.reset();
}

int Server::port() const { return running_->http().port(); }
int Server::open_requests() const { return running_->http().open_exchanges(); }
Engine& Server::engine() { return running_->engine(); }
const Model& Server::model() const { return running_->model(); }
const Model* Server::draft_model() const { return running_->draft_model(); }
const Backend& Server::backend() const { return running_->backend(); }

}  // namespace foretoken
