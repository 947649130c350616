#include "runtime/cli/server.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "foretoken/kernels/isa.h"
#include "foretoken/protocol/control.h"
#include "runtime/cli/kv_calibration.h"
#include "runtime/cli/progress.h"
#include "runtime/cli/spec_head.h"
#include "runtime/model/model.h"
#include "runtime/observe/activity_log.h"
#include "runtime/observe/build_info.h"
#include "runtime/serve/service.h"
#include "runtime/speculate/learned.h"
#include "runtime/trace/server_link.h"
#include "runtime/trace/traffic_files.h"

namespace foretoken {
namespace {

using SteadyClock = std::chrono::steady_clock;

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Waits at most this long; true: a stop signal came.
bool wait_for_stop(std::chrono::milliseconds at_most) {
  sigset_t set = stop_signals();
  timespec time{at_most.count() / 1000, (at_most.count() % 1000) * 1000000};
  return sigtimedwait(&set, nullptr, &time) > 0;
}

int fail(const Error& error) {
  spdlog::error("{}", error.message);
  return error.code == ErrorCode::kInvalidInput || error.code == ErrorCode::kNotFound ||
                 error.code == ErrorCode::kUnsupported
             ? 2
             : 1;
}

std::string_view spec_name(SpecType type) {
  switch (type) {
    case SpecType::kNone:
      return "none";
    case SpecType::kNgram:
      return "ngram";
    case SpecType::kModel:
      return "model";
    case SpecType::kHead:
      return "head";
    case SpecType::kAuto:
      return "auto";
  }
  return "?";
}

std::string mebibytes(double bytes) { return fmt::format("{:.0f} MiB", bytes / (1024.0 * 1024)); }

// Everything that has to do with the model, in the order it must be destroyed (last first).
struct Loaded {
  std::shared_ptr<const Model> model, draft_model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<ServerLink> link;
  std::unique_ptr<Engine> engine;
};

// The share of the last second (or a little more) in which the engine ran rounds.
class BusyShare {
 public:
  float of(const Engine& engine) {
    const std::lock_guard lock(mutex_);
    const auto now = SteadyClock::now();
    const double passed_s = std::chrono::duration<double>(now - since_).count();
    if (passed_s >= 0.9) {
      const double busy_s = engine.busy_s();
      share_ = static_cast<float>(std::clamp((busy_s - busy_s_) / passed_s, 0.0, 1.0));
      busy_s_ = busy_s;
      since_ = now;
    }
    return share_;
  }

 private:
  std::mutex mutex_;
  SteadyClock::time_point since_ = SteadyClock::now();
  double busy_s_ = 0;
  float share_ = 0;
};

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

Result<std::shared_ptr<const Model>> load_model(const std::string& path, int threads,
                                                const char* what, Service* service) {
  Progress progress(fmt::format("loading {}", what));
  ModelLoadOptions options;
  options.threads = threads;
  options.progress = [&](double fraction) {
    progress(fraction);
    if (service) service->set_loading_progress(fraction);
  };
  return Model::load(path, options);
}

Status load(const ServeFlags& flags, Service& service, Loaded& loaded) {
  auto model = load_model(flags.model, flags.engine.threads, "model", &service);
  if (!model) return model.error();
  loaded.model = *model;
  auto tokenizer = Tokenizer::from_gguf(loaded.model->file());
  if (!tokenizer) return tokenizer.error();
  loaded.tokenizer = std::move(*tokenizer);
  auto chat_template = load_chat_template(loaded.model->file(), *loaded.tokenizer);
  if (chat_template)
    loaded.chat_template = std::move(*chat_template);
  else
    spdlog::warn("the model's chat template cannot be used, /v1/chat/completions is off: {}",
                 chat_template.error().message);
  if (!flags.spec_draft_model.empty()) {
    auto draft = load_model(flags.spec_draft_model, flags.engine.threads, "draft model", nullptr);
    if (!draft) return draft.error();
    loaded.draft_model = *draft;
  }
  KvCalibrationChoice choice{flags.calibration, flags.kv_calibration, flags.calibration_text,
                             flags.state_dir, flags.engine.threads};
  auto calibration =
      obtain_kv_calibration(*loaded.model, *loaded.tokenizer, flags.engine.kv_cache_dtype, choice);
  if (!calibration) return calibration.error();
  std::shared_ptr<const KvCalibration> draft_calibration;
  if (loaded.draft_model) {
    choice.file = flags.draft_kv_calibration;
    auto made = obtain_kv_calibration(*loaded.draft_model, *loaded.tokenizer,
                                      flags.engine.draft_kv_cache_dtype, choice);
    if (!made) return made.error();
    draft_calibration = *made;
  }
  ServerLinkOptions link;
  link.endpoints.traces = flags.traces_endpoint;
  link.endpoints.weights = flags.weights_endpoint;
  auto keys = flags.load_keys();
  if (!keys) return keys.error();
  link.trusted_signers = keys->signers;
  link.endpoints.keys = keys->link;
  link.model_fingerprint = loaded.model->fingerprint();
  link.state_root = flags.state_dir;
  link.trace_dir = flags.trace_dir;
  link.trace_dir_max_bytes = flags.trace_dir_max_bytes;
  link.trace_dir_max_age_s = 3600 * flags.retention_hours;
  link.forget = [&loaded](const std::string& key_id) {
    if (loaded.engine) loaded.engine->forget_traffic(key_id);
  };
  link.activity = [&loaded, busy = std::make_shared<BusyShare>()] {
    ServerActivity activity;
    if (!loaded.engine) return activity;
    activity.busy = busy->of(*loaded.engine);
    const EngineStats stats = loaded.engine->stats();
    activity.requests_running = static_cast<std::uint32_t>(stats.requests_running);
    activity.head_start_ms = static_cast<float>(stats.head_start_ms);
    activity.head_step_ms = static_cast<float>(stats.head_step_ms);
    activity.round_ms.assign(stats.round_ms_by_rows.begin(), stats.round_ms_by_rows.end());
    return activity;
  };
  auto vocabulary = VocabularyRows::of(loaded.model);
  if (vocabulary)
    link.vocabulary = std::move(*vocabulary);
  else
    spdlog::warn("only fusion tables are taken, no heads: {}", vocabulary.error().message);
  EngineOptions engine_options = flags.engine;
  if (!flags.spec_head.empty()) {
    auto given = load_spec_head(flags.spec_head, link.vocabulary);
    if (!given) return given.error();
    if (auto s = probe_spec_head(*given, *loaded.model, *loaded.tokenizer, flags.engine.threads);
        !s)
      return s;
    engine_options.head_taps = link.head_taps = given->taps;
    link.versions.given = given->given;
  }
  link.versions.canary_fraction = flags.canary_fraction;
  const SpecType spec = flags.engine.spec_type;
  const bool learned = spec == SpecType::kAuto || spec == SpecType::kHead;
  link.shadow.kinds = {spec == SpecType::kAuto || spec == SpecType::kNgram, learned, learned};
  link.shadow.max_draft = flags.engine.spec_draft_n_max;
  link.idle = [&loaded] { return !loaded.engine || !loaded.engine->serving(); };
  link.pause_trainer = [&loaded] { return loaded.engine && loaded.engine->plain_now(); };
  auto opened = ServerLink::create(link);
  if (!opened) return opened.error();
  loaded.link = std::move(*opened);
  auto engine = Engine::create(loaded.model, *calibration, loaded.draft_model, draft_calibration,
                               engine_options, loaded.link->sink());
  if (!engine) return engine.error();
  loaded.engine = std::move(*engine);
  Engine* running = loaded.engine.get();
  if (const auto state = loaded.link->state_dir()) {
    read_forget_notes(state->folder(), [](const std::string&) {});
    const auto saved = load_traffic_files(state->traffic_folder(),
                                          static_cast<std::size_t>(flags.engine.max_num_seqs) + 1,
                                          3600 * flags.retention_hours);
    for (const Error& error : running->restore_traffic(saved))
      spdlog::warn("a traffic store starts empty: {}", error.message);
  }
  loaded.link->start(
      [running](SpeculatorChoice choice) { running->set_learned(std::move(choice)); });
  return Ok{};
}

std::shared_ptr<Backend> describe(const ServeFlags& flags, const Loaded& loaded) {
  auto backend = std::make_shared<Backend>();
  const ModelConfig& config = loaded.model->config();
  backend->engine = loaded.engine.get();
  backend->tokenizer = loaded.tokenizer.get();
  backend->chat_template = loaded.chat_template.get();
  backend->names = flags.served_model_names;
  backend->architecture = config.architecture;
  backend->fingerprint_hex = to_hex(loaded.model->fingerprint());
  backend->kv_mode = std::string(kv_mode_name(loaded.engine->options().kv_cache_dtype));
  backend->isa = std::string(kernels::isa_name(kernels::active_isa()));
  backend->n_vocab = config.n_vocab;
  backend->n_ctx = loaded.engine->options().max_model_len;
  backend->n_ctx_train = config.context_length;
  backend->weight_bytes = static_cast<std::int64_t>(loaded.model->weight_bytes());
  for (const GgufTensor& tensor : loaded.model->file().tensors()) {
    std::int64_t n = 1;
    for (std::int64_t extent : tensor.shape) n *= extent;
    backend->n_params += n;
  }
  backend->created_unix_s = std::chrono::duration_cast<std::chrono::seconds>(
                                std::chrono::system_clock::now().time_since_epoch())
                                .count();
  return backend;
}

void print_summary(const ServeFlags& flags, const Loaded& loaded, const Backend& backend,
                   int port) {
  const EngineOptions& o = loaded.engine->options();
  const KvStats kv = loaded.engine->stats().kv;
  const ModelConfig& config = loaded.model->config();
  fmt::print(
      stderr,
      "foretoken {} ({})\n"
      "  model       {} ({}, {:.0f}M parameters, {} in memory, fingerprint {})\n"
      "  kernels     {}, {} threads\n"
      "  context     {} tokens, up to {} requests at once\n"
      "  KV cache    {}: {:.0f} bytes a token{}, pool {}\n"
      "  speculator  {}{}, drafts up to {}, {} sampling\n"
      "  trainer     {}\n"
      "  listening   http://{}:{} (dashboard: http://{}:{}/dashboard)\n",
      build_version(), build_git(), backend.names.front(), config.architecture,
      static_cast<double>(backend.n_params) / 1e6,
      mebibytes(static_cast<double>(backend.weight_bytes)), backend.fingerprint_hex.substr(0, 12),
      backend.isa, o.threads, o.max_model_len, o.max_num_seqs, backend.kv_mode,
      o.kv_cache_dtype == KvMode::kBf16 ? kv.bytes_per_token_bf16 : kv.bytes_per_token_sealed,
      o.kv_cache_dtype == KvMode::kBf16
          ? std::string()
          : fmt::format(" (bf16 would be {:.0f})", kv.bytes_per_token_bf16),
      mebibytes(static_cast<double>(kv.pool_bytes)), spec_name(o.spec_type),
      (loaded.draft_model ? " with draft model " + loaded.draft_model->config().name
                          : std::string()) +
          (flags.spec_head.empty() ? std::string() : " with head " + flags.spec_head),
      o.spec_draft_n_max,
      o.spec_sampling == SpecSampling::kInvariant ? "drafter-invariant" : "rejection",
      flags.traces_endpoint.empty() ? std::string("none") : flags.traces_endpoint, flags.http.host,
      port, flags.http.host, port);
}

void set_up_logging(const std::string& level) {
  auto logger = spdlog::get("foretoken");
  if (!logger) logger = spdlog::stderr_color_mt("foretoken");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
  spdlog::set_level(spdlog::level::from_str(level));
}

int check(const ServeFlags& flags) {
  auto file = GgufFile::open(flags.model);
  if (!file) return fail(file.error());
  auto tokenizer = Tokenizer::from_gguf(**file);
  if (!tokenizer) return fail(tokenizer.error());
  auto chat_template = load_chat_template(**file, **tokenizer);
  if (!flags.spec_head.empty()) {
    auto rows = VocabularyRows::of(**file);
    if (!rows) return fail(rows.error());
    if (auto head = load_spec_head(flags.spec_head, *rows); !head) return fail(head.error());
  }
  fmt::print(
      "model          {}\narchitecture   {}\ntensors        {}\nfile           {}\nvocabulary     "
      "{}\nchat template  {}\n"
      "kernels        {}\nKV cache       {}\nspeculator     {}\nwould listen   http://{}:{}\nstate "
      "folder   {}\n",
      flags.model, (*file)->get_string("general.architecture").value_or("?"),
      (*file)->tensors().size(), mebibytes(static_cast<double>((*file)->file_bytes())),
      (*tokenizer)->vocabulary_size(),
      !chat_template   ? "unusable: " + chat_template.error().message
      : *chat_template ? "yes"
                       : "none",
      kernels::isa_name(kernels::active_isa()), kv_mode_name(flags.engine.kv_cache_dtype),
      spec_name(flags.engine.spec_type), flags.http.host, flags.http.port, flags.state_dir);
  return 0;
}

// New requests are refused, open ones finish until the time is over or a second signal comes.
void drain(const ServeFlags& flags, Service& service, HttpServer& server, Engine& engine) {
  spdlog::info(
      "stopping: refusing new requests, finishing {} in flight (at most {} s; a second signal "
      "stops at once)",
      server.open_exchanges(), flags.shutdown_timeout_s);
  service.drain();
  server.drain();
  engine.drain();
  auto deadline = SteadyClock::now() + std::chrono::duration<double>(flags.shutdown_timeout_s);
  while ((!engine.idle() || server.open_exchanges() > 0) && SteadyClock::now() < deadline)
    if (wait_for_stop(std::chrono::milliseconds(20))) {
      spdlog::warn("second signal: stopping at once");
      break;
    }
}

}  // namespace

void block_stop_signals() {
  sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int run_server(const ServeFlags& flags, const ServerHooks& hooks) {
  set_up_logging(flags.log_level);
  if (sodium_init() < 0) return fail({ErrorCode::kInternal, "libsodium cannot start"});
  if (flags.check) return check(flags);
  block_stop_signals();
  signal(SIGPIPE, SIG_IGN);
  std::error_code ignored;
  std::filesystem::create_directories(flags.state_dir,
                                      ignored);  // its use says what is wrong with it

  Loaded loaded;
  ServiceOptions options;
  options.model_name = flags.served_model_names.front();
  options.stall_after_s = flags.health_stall_timeout_s;
  options.max_admission_queue = static_cast<std::size_t>(flags.engine.max_queue);
  if (!flags.api_key_file.empty()) {
    auto keys = ApiKeys::from_file(flags.api_key_file);
    if (!keys) return fail(keys.error());
    options.api_keys = std::move(*keys);
  } else if (flags.http.host != "127.0.0.1" && flags.http.host != "::1" &&
             flags.http.host != "localhost") {
    spdlog::warn("--host {} without --api-key-file: anybody who can reach it may use this server",
                 flags.http.host);
  }
  std::atomic<ServerLink*> link{nullptr};
  options.link_stats = [&link] {
    ServerLink* open = link;
    return open ? open->stats() : LinkStats{};
  };
  options.trace_opted_out = [&link] {
    if (ServerLink* open = link) open->count_opted_out();
  };
  options.speculator = [&link]() -> SpeculatorControl {
    ServerLink* open = link;
    if (!open) return {};
    return {[open] { return open->versions().state(); },
            [open] { return open->versions().rollback("by an operator"); },
            [open] { open->versions().freeze(); }, [open] { open->versions().unfreeze(); }};
  };
  Service service(std::move(options));
  // Listening comes first, so that a port in use is known at once and /health can say "loading".
  auto server = HttpServer::start(flags.http, service);
  if (!server) return fail(server.error());

  // While loading, a signal ends the process in the default way: there is nothing to finish.
  sigset_t stop = stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &stop, nullptr);
  Status status = load(flags, service, loaded);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  int exit_status = 0;
  if (!status) {
    exit_status = fail(status.error());
  } else {
    link = loaded.link.get();
    auto backend = describe(flags, loaded);
    service.publish(backend);
    print_summary(flags, loaded, *backend, (*server)->port());
    spdlog::info("ready");
    if (hooks.ready) hooks.ready();
    ActivityLog activity;
    activity.line(loaded.engine->stats());
    while (!wait_for_stop(std::chrono::seconds(5))) {
      service.sample();
      if (auto line = activity.line(loaded.engine->stats())) spdlog::info("{}", *line);
    }
    if (hooks.stopping) hooks.stopping();
    drain(flags, service, **server, *loaded.engine);
  }
  (*server)->stop();
  service.stop();
  if (loaded.engine && loaded.link && exit_status == 0) {
    if (const auto state = loaded.link->state_dir())
      save_traffic_files(state->traffic_folder(), loaded.engine->save_traffic());
  }
  if (loaded.link) loaded.link->stop();
  loaded.engine.reset();
  link = nullptr;
  if (exit_status == 0) spdlog::info("stopped");
  return exit_status;
}

}  // namespace foretoken
