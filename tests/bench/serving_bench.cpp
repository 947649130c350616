// What everything around a round costs it, measured in one process on a real model:
//   serving_bench MODEL.gguf capture [--pairs 30]
//       trace capture on against off, nobody listening
//   serving_bench MODEL.gguf trainer FORETOKEN-TRAINER [--pairs 30]
//       the trainer running against stopped (SIGSTOP)
//   serving_bench MODEL.gguf speculation [--pairs 30]
//       speculation on against off where it is in vain (law 3): tokens drawn evenly from 64, so
//       that n-grams match at every step and one draft in 64 is right
//   serving_bench MODEL.gguf swaps [--swaps 100]
//       hot swaps under load: pauses, and tokens changed
// All but swaps: alternating blocks, the order within a pair drawn at random. Capture: of the
// same requests and without speculation, because what is captured enters the n-gram store as well
// and would be drafted better the second time; trainer and speculation: every block of new
// requests. The figure is the median over pairs of the ratio of time per token, its 95 % interval
// from the order statistics; it wants a machine with nothing else to do. JSON on standard output.
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>

#include "runtime/server/server.h"
#include "runtime/speculate/learned.h"

extern char** environ;

namespace foretoken {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Options {
  std::string model, mode, trainer;
  int pairs = 30, swaps = 100, requests = 6, in_flight = 2, max_tokens = 48, prompt_tokens = 24;
  SpecType spec = spec_type("auto");
};

int fail(const std::string& message) {
  fmt::print(stderr, "serving_bench: {}\n", message);
  return 1;
}

// The requests of one block: a function of its number alone.
EngineRequest request_of(const Options& options, std::int64_t n_vocab, int block, int i) {
  EngineRequest r;
  std::mt19937_64 random(static_cast<std::uint64_t>(block) * 1000 + static_cast<std::uint64_t>(i));
  for (int t = 0; t < options.prompt_tokens; ++t)
    r.prompt.push_back(static_cast<TokenId>(random() % static_cast<std::uint64_t>(n_vocab)));
  r.sampling.temperature = i % 2 ? .7f : 0;
  r.sampling.seed = random();
  r.max_tokens = options.max_tokens;
  r.domain = "bench";
  if (options.mode == "speculation") {
    r.sampling.temperature = 100;  // beside the bias, logits are nothing
    for (TokenId token = 1000; token < 1064; ++token)
      r.sampling.logit_bias.emplace_back(token, 5000.0f);
  }
  return r;
}

// How a block is served.
struct Arm {
  bool trace = true, speculation = true;
};

struct Block {
  double seconds = 0;
  std::int64_t tokens = 0;
  std::vector<std::vector<TokenId>> outputs;
  double ms_per_token() const { return 1000 * seconds / static_cast<double>(tokens); }
};

Block run_block(Engine& engine, const Options& options, std::int64_t n_vocab, int block, Arm arm) {
  Block result;
  result.outputs.resize(static_cast<std::size_t>(options.requests));
  std::mutex mutex;
  std::condition_variable changed;
  int done = 0;
  const auto begin = Clock::now();
  for (int i = 0; i < options.requests; ++i) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return i < done + options.in_flight; });
    }
    EngineRequest r = request_of(options, n_vocab, block, i);
    r.id = engine.next_request_id();
    r.trace = arm.trace;
    r.speculation = arm.speculation;
    r.sink = [&, i](EngineEvent&& event) {
      std::lock_guard lock(mutex);
      auto& out = result.outputs[static_cast<std::size_t>(i)];
      out.insert(out.end(), event.tokens.begin(), event.tokens.end());
      if (event.finish) {
        ++done;
        changed.notify_all();
      }
    };
    if (Status status = engine.submit(std::move(r)); !status) {
      fail(status.error().message);
      std::exit(1);
    }
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done == options.requests; });
  result.seconds = seconds_since(begin);
  for (const auto& out : result.outputs) result.tokens += static_cast<std::int64_t>(out.size());
  return result;
}

// The median and the order statistics between which it lies with at least 95 %.
json::object median_json(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  double below = 0, term = std::pow(.5, static_cast<double>(n));  // P(Binomial(n, 1/2) < low)
  std::size_t low = 0;
  while (low < n / 2 && below + term <= .025) {
    below += term;
    term *= static_cast<double>(n - low) / static_cast<double>(low + 1);
    ++low;
  }
  const double median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  const std::size_t first = low > 0 ? low - 1 : 0;
  return {{"value", median},
          {"ci95", json::array{values[first], values[n - 1 - first]}},
          {"pairs", n},
          {"least", values.front()},
          {"most", values.back()}};
}

json::array numbers(const std::vector<double>& values) {
  json::array out;
  for (const double v : values) out.push_back(v);
  return out;
}

// Alternating blocks; set(on) prepares a block of either kind.
template <class Set>
json::object alternate(Engine& engine, const Options& options, std::int64_t n_vocab,
                       const Set& set) {
  std::mt19937_64 random(1);
  std::vector<double> ratios, on_ms, off_ms;
  std::int64_t changed = 0;
  const bool renewed = options.mode != "capture";
  run_block(engine, options, n_vocab, -1, {});  // caches, the controller's first measurements
  for (int pair = 0; pair < options.pairs; ++pair) {
    Block blocks[2];
    const int first = static_cast<int>(random() % 2);
    for (const int arm : {first, 1 - first}) {
      const Arm how = set(arm == 1);
      const int requests = renewed ? 2 * pair + arm : pair;
      blocks[arm] = run_block(engine, options, n_vocab, requests, how);
    }
    on_ms.push_back(blocks[1].ms_per_token());
    off_ms.push_back(blocks[0].ms_per_token());
    ratios.push_back(on_ms.back() / off_ms.back());
    changed += !renewed && blocks[0].outputs != blocks[1].outputs;
    fmt::print(stderr, "\rpair {} of {}: {:.4f} ", pair + 1, options.pairs, ratios.back());
  }
  fmt::print(stderr, "\n");
  return {{"ratio", median_json(ratios)},
          {"ms_per_token_on", median_json(on_ms)},
          {"ms_per_token_off", median_json(off_ms)},
          {"blocks_that_differ", changed},
          {"ratios", numbers(ratios)}};
}

pid_t spawn(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& a : command) arguments.push_back(const_cast<char*>(a.c_str()));
  arguments.push_back(nullptr);
  pid_t child = -1;
  if (posix_spawn(&child, arguments[0], nullptr, nullptr, arguments.data(), environ) != 0)
    return -1;
  return child;
}

int run(const Options& options) {
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("foretoken-serving-bench-{}", ::getpid());
  fs::create_directories(folder);
  struct Cleanup {
    fs::path folder;
    ~Cleanup() {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  } cleanup{folder};

  Server::Options server_options;
  server_options.model = options.model;
  server_options.state_dir = (folder / "state").string();
  server_options.calibration = false;
  server_options.http.port = 0;
  server_options.engine.spec_type = options.spec;
  server_options.engine.max_num_seqs = 4;
  server_options.engine.max_model_len = 1024;
  server_options.engine.plain_fraction = 0;
  std::vector<std::string> command;
  if (options.mode == "trainer") {
    server_options.traces_endpoint = fmt::format("ipc://{}/t", folder.string());
    server_options.weights_endpoint = fmt::format("ipc://{}/w", folder.string());
    command = {options.trainer,
               "--traces-endpoint",
               server_options.traces_endpoint,
               "--weights-endpoint",
               server_options.weights_endpoint,
               "--state-dir",
               server_options.state_dir,
               "--log-level",
               "warn"};
  }
  Server server(server_options);
  if (Status started = server.start(); !started) return fail(started.error().message);
  Engine* const engine = &server.engine();
  const std::int64_t n_vocab = server.model().config().n_vocab;

  json::object out{{"schema", "foretoken.serving_bench/1"},
                   {"mode", options.mode},
                   {"model", server.model().config().name},
                   {"threads", engine->options().threads},
                   {"requests_in_flight", options.in_flight}};
  if (options.mode == "capture") {
    out["capture"] = alternate(*engine, options, n_vocab, [](bool on) { return Arm{on, true}; });
    out["wanted"] = "the interval of the median ratio below 1.01";
  } else if (options.mode == "speculation") {
    out["speculation"] = alternate(*engine, options, n_vocab, [](bool on) {
      return Arm{true, on};
    });
    const AcceptanceStats acceptance = engine->stats().acceptance;
    out["drafted"] = acceptance.drafted;
    out["accepted"] = acceptance.accepted;
    out["wanted"] = "the interval of the median ratio below 1.02";
  } else if (options.mode == "trainer") {
    const pid_t child = spawn(command);
    if (child < 0) return fail(options.trainer + ": cannot be started");
    // Something to learn from, and its first steps taken: an idle trainer costs nothing.
    for (int i = 0; i < 6; ++i) run_block(*engine, options, n_vocab, 1000 + i, {});
    std::this_thread::sleep_for(std::chrono::seconds(2));
    out["trainer"] = alternate(*engine, options, n_vocab, [&](bool on) {
      ::kill(child, on ? SIGCONT : SIGSTOP);
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      return Arm{};
    });
    ::kill(child, SIGCONT);
    ::kill(child, SIGTERM);
    ::waitpid(child, nullptr, 0);
    const LinkStats stats = server.backend().learned->link_stats();
    out["trainer_step"] = stats.trainer_step ? json::value(*stats.trainer_step) : nullptr;
    out["traces_sent"] = stats.traces_sent;
    out["wanted"] = "median at most 1.10 on shared cores";
  } else {
    const Block wanted = run_block(*engine, options, n_vocab, 0, {});
    const std::int64_t before = engine->stats().swaps;
    std::atomic<bool> stop{false};
    std::thread swapper([&] {
      for (std::uint64_t v = 1; !stop; ++v) {
        auto weights = std::make_shared<LearnedWeights>();
        weights->version = {v};
        for (float& bias : weights->fusion.bias) bias *= 1 - .5f * static_cast<float>(v % 5);
        engine->set_learned({std::move(weights)});
        std::this_thread::sleep_for(std::chrono::milliseconds(40));
      }
    });
    std::int64_t changed = 0, tokens = 0;
    while (engine->stats().swaps - before < options.swaps) {
      const Block block = run_block(*engine, options, n_vocab, 0, {});
      for (std::size_t i = 0; i < block.outputs.size(); ++i) {
        const auto &a = block.outputs[i], &b = wanted.outputs[i];
        const auto [at, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
        changed += static_cast<std::int64_t>(std::max(a.end() - at, b.end() - other));
        tokens += static_cast<std::int64_t>(a.size());
      }
    }
    stop = true;
    swapper.join();
    const EngineStats stats = engine->stats();
    out["swaps"] = stats.swaps - before;
    out["tokens"] = tokens;
    out["tokens_changed"] = changed;
    out["pause_ms"] = json::object{{"p50", stats.swap_pause_p50_ms},
                                   {"p99", stats.swap_pause_p99_ms},
                                   {"max", stats.swap_pause_max_ms}};
    const double round_ms = stats.round_ms_by_rows.empty() ? 0 : stats.round_ms_by_rows[0];
    out["round_ms"] = round_ms;
    out["wanted"] = "p99 at most 2 ms or 10 % of a round; 0 tokens changed";
    out["holds"] = stats.swap_pause_p99_ms <= std::max(2.0, .1 * round_ms) && changed == 0;
  }
  fmt::print("{}\n", json::serialize(out));
  return 0;
}

}  // namespace
}  // namespace foretoken

int main(int argc, char** argv) {
  using namespace foretoken;
  Options options;
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::atoi(argv[++i]) : 0; };
    if (word == "--pairs")
      options.pairs = std::max(2, value());
    else if (word == "--swaps")
      options.swaps = std::max(1, value());
    else if (word == "--requests")
      options.requests = std::max(1, value());
    else if (word == "--max-tokens")
      options.max_tokens = std::max(2, value());
    else if (word == "--no-speculation")
      options.spec = spec_type("none");
    else
      words.push_back(word);
  }
  if (words.size() >= 2) options.model = words[0], options.mode = words[1];
  if (words.size() == 3) options.trainer = words[2];
  if (options.mode == "capture") options.spec = spec_type("none");
  const bool known =
      (options.mode == "capture" || options.mode == "speculation" || options.mode == "swaps") &&
      words.size() == 2;
  if (!known && !(options.mode == "trainer" && words.size() == 3))
    return fail(
        "usage: serving_bench MODEL.gguf capture | speculation | swaps | trainer "
        "FORETOKEN-TRAINER");
  return run(options);
}
