#include "runtime/cli/run_server.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>

#include "foretoken/kernels/isa.h"
#include "runtime/cli/progress.h"
#include "runtime/observe/build_info.h"
#include "runtime/server/server.h"
#include "runtime/server/spec_head.h"

namespace foretoken {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Waits at most this long; the stop signal that came, 0: none.
int wait_for_stop(std::chrono::milliseconds at_most) {
  sigset_t set = stop_signals();
  timespec time{at_most.count() / 1000, (at_most.count() % 1000) * 1000000};
  return std::max(0, sigtimedwait(&set, nullptr, &time));
}

// As if it had never been blocked.
[[noreturn]] void die_of(int signal) {
  ::signal(signal, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  raise(signal);
  std::abort();
}

int fail(const Error& error) {
  spdlog::error("{}", error.message);
  return error.code == ErrorCode::kInvalidInput || error.code == ErrorCode::kNotFound ||
                 error.code == ErrorCode::kUnsupported
             ? 2
             : 1;
}

std::string mebibytes(double bytes) { return fmt::format("{:.0f} MiB", bytes / (1024.0 * 1024)); }

void print_summary(Server& server) {
  const ServerOptions& options = server.options();
  const Backend& backend = server.backend();
  const EngineOptions& o = server.engine().options();
  const KvStats kv = server.engine().stats().kv;
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
      build_version(), build_git(), backend.names.front(), backend.architecture,
      static_cast<double>(backend.n_params) / 1e6,
      mebibytes(static_cast<double>(backend.weight_bytes)), backend.fingerprint_hex.substr(0, 12),
      backend.isa, o.threads, o.max_model_len, o.max_num_seqs, backend.kv_mode,
      o.kv_cache_dtype == KvMode::kBf16 ? kv.bytes_per_token_bf16 : kv.bytes_per_token_sealed,
      o.kv_cache_dtype == KvMode::kBf16
          ? std::string()
          : fmt::format(" (bf16 would be {:.0f})", kv.bytes_per_token_bf16),
      mebibytes(static_cast<double>(kv.pool_bytes)), o.spec_type.name,
      (server.draft_model() ? " with draft model " + server.draft_model()->config().name
                            : std::string()) +
          (options.spec_head.empty() ? std::string() : " with head " + options.spec_head),
      o.spec_draft_n_max,
      o.spec_sampling == SpecSampling::kInvariant ? "drafter-invariant" : "rejection",
      options.traces_endpoint.empty() ? std::string("none") : options.traces_endpoint,
      options.http.host, server.port(), options.http.host, server.port());
}

void set_up_logging(const std::string& level) {
  auto logger = spdlog::get("foretoken");
  if (!logger) logger = spdlog::stderr_color_mt("foretoken");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
  spdlog::set_level(spdlog::level::from_str(level));
}

int check(const ServerOptions& options) {
  auto file = GgufFile::open(options.model);
  if (!file) return fail(file.error());
  auto tokenizer = Tokenizer::from_gguf(**file);
  if (!tokenizer) return fail(tokenizer.error());
  auto chat_template = load_chat_template(**file, **tokenizer);
  if (!options.spec_head.empty()) {
    auto rows = VocabularyRows::of(**file);
    if (!rows) return fail(rows.error());
    if (auto head = load_spec_head(options.spec_head, *rows); !head) return fail(head.error());
  }
  fmt::print(
      "model          {}\narchitecture   {}\ntensors        {}\nfile           {}\nvocabulary     "
      "{}\nchat template  {}\n"
      "kernels        {}\nKV cache       {}\nspeculator     {}\nwould listen   http://{}:{}\nstate "
      "folder   {}\n",
      options.model, (*file)->get_string("general.architecture").value_or("?"),
      (*file)->tensors().size(), mebibytes(static_cast<double>((*file)->file_bytes())),
      (*tokenizer)->vocabulary_size(),
      !chat_template   ? "unusable: " + chat_template.error().message
      : *chat_template ? "yes"
                       : "none",
      kernels::isa_name(kernels::active_isa()), kv_mode_name(options.engine.kv_cache_dtype),
      options.engine.spec_type.name, options.http.host, options.http.port, options.state_dir);
  return 0;
}

}  // namespace

void block_stop_signals() {
  sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int run_server(const ServeFlags& flags, const ServerHooks& hooks) {
  set_up_logging(flags.log_level);
  if (flags.check) return check(flags.server);
  block_stop_signals();  // of every thread of the server, too
  signal(SIGPIPE, SIG_IGN);
  ServerOptions options = flags.server;
  options.progress = ProgressBars();
  Server server(std::move(options));
  // On another thread, so that a signal is seen meanwhile: then there is nothing to finish.
  auto started = std::async(std::launch::async, [&server] { return server.start(); });
  while (started.wait_for(std::chrono::seconds(0)) != std::future_status::ready)
    if (const int signal = wait_for_stop(std::chrono::milliseconds(10))) die_of(signal);
  if (const Status status = started.get(); !status) return fail(status.error());
  print_summary(server);
  spdlog::info("ready");
  if (hooks.ready) hooks.ready();
  while (!wait_for_stop(std::chrono::hours(1))) {
  }
  if (hooks.stopping) hooks.stopping();
  spdlog::info(
      "stopping: refusing new requests, finishing {} in flight (at most {} s; a second signal "
      "stops at once)",
      server.open_requests(), flags.shutdown_timeout_s);
  server.stop(flags.shutdown_timeout_s, [] {
    const bool again = wait_for_stop(std::chrono::milliseconds(0)) != 0;
    if (again) spdlog::warn("second signal: stopping at once");
    return again;
  });
  spdlog::info("stopped");
  return 0;
}

}  // namespace foretoken
