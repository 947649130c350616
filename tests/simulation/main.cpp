// Runs schedules of faults and says which seed broke which law.
//   foretoken_simulation --schedules 10000 [--first 1] [--threads 2]
//   foretoken_simulation --seed 4711        one schedule again, with the log
//   foretoken_simulation --controls         deliberate bugs, each of which a law must notice
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include "tests/simulation/world.h"

namespace foretoken::simulation {
namespace {

namespace fs = std::filesystem;

// Memory, where there is any: thousands of schedules, each of some hundred synced files.
fs::path scratch() {
  std::error_code ignored;
  const fs::path memory = "/dev/shm";
  const fs::path root =
      ::access(memory.c_str(), W_OK) == 0 ? memory : fs::temp_directory_path(ignored);
  return root / fmt::format("foretoken-simulation-{}", ::getpid());
}

void add(Report& total, const Report& one) {
  total.ticks += one.ticks;
  total.requests += one.requests;
  total.crashes += one.crashes;
  total.full_disks += one.full_disks;
  total.attacks += one.attacks;
  total.published += one.published;
  total.swaps += one.swaps;
  total.rollbacks += one.rollbacks;
  for (const auto& [reason, n] : one.refused) total.refused[reason] += n;
}

void print(const Report& report) {
  fmt::print(
      "  {} ticks, {} requests, {} crashes, {} full disks, {} attacks; {} versions "
      "published, {} swaps, {} rollbacks; refused:",
      report.ticks, report.requests, report.crashes, report.full_disks, report.attacks,
      report.published, report.swaps, report.rollbacks);
  for (const auto& [reason, n] : report.refused) fmt::print(" {} {}", reason, n);
  fmt::print("\n");
}

int run_many(std::uint64_t first, std::uint64_t schedules, int threads) {
  std::atomic<std::uint64_t> next{first};
  std::atomic<int> failed{0};
  std::mutex mutex;
  Report total;
  std::vector<std::thread> workers;
  for (int worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      const std::string folder = (scratch() / std::to_string(worker)).string();
      for (std::uint64_t seed; failed < 10 && (seed = next++) < first + schedules;) {
        const Report report = run_schedule(seed, Bug::kNone, folder);
        const std::lock_guard lock(mutex);
        add(total, report);
        if (report.violations.empty()) continue;
        ++failed;
        fmt::print("FAILED: seed {} (again: --seed {})\n", seed, seed);
        for (const std::string& what : report.violations) fmt::print("  {}\n", what);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  fmt::print("{} schedules from seed {}, {} broke a law\n",
             std::min(next.load() - first, schedules), first, failed.load());
  print(total);
  // The laws were put to the test, every one of them.
  const char* const kReasons[] = {"checksum", "signature", "fingerprint", "version", "non-finite"};
  bool tested = total.published > 0 && total.swaps > 0 && total.crashes > 0;
  for (const char* reason : kReasons) tested = tested && total.refused[reason] > 0;
  if (!tested && schedules >= 1000) fmt::print("FAILED: some faults never happened\n");
  return failed > 0 || (!tested && schedules >= 1000) ? 1 : 0;
}

int run_one(std::uint64_t seed) {
  const Report report = run_schedule(seed, Bug::kNone, (scratch() / "one").string());
  print(report);
  for (const std::string& what : report.violations) fmt::print("FAILED: {}\n", what);
  return report.violations.empty() ? 0 : 1;
}

int run_controls() {
  constexpr std::uint64_t kMost = 400;
  int missed = 0;
  for (const Bug bug : kBugs) {
    std::uint64_t seed = 1;
    std::string noticed;
    for (; seed <= kMost && noticed.empty(); ++seed) {
      const Report report = run_schedule(seed, bug, (scratch() / "control").string());
      for (const std::string& what : report.violations) {
        if (what.starts_with(law_that_notices(bug))) noticed = what;
      }
    }
    fmt::print("{}: {} after {} schedules: {}\n", name(bug),
               noticed.empty() ? "NOT noticed" : "noticed", seed - 1, noticed);
    missed += noticed.empty();
  }
  return missed > 0 ? 1 : 0;
}

int run(int argc, char** argv) {
  CLI::App app("Server and trainer under simulated faults", "foretoken_simulation");
  std::uint64_t schedules = 1000, first = 1, seed = 0;
  int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  bool controls = false;
  app.add_option("--schedules", schedules, "how many")->capture_default_str();
  app.add_option("--first", first, "the first seed")->capture_default_str();
  app.add_option("--threads", threads)->check(CLI::Range(1, 256))->capture_default_str();
  auto* one = app.add_option("--seed", seed, "this schedule alone, with the log");
  app.add_flag("--controls", controls, "deliberate bugs must be noticed");
  CLI11_PARSE(app, argc, argv);
  if (!*one) spdlog::set_level(spdlog::level::off);
  int status = 0;
  if (*one) {
    status = run_one(seed);
  } else if (controls) {
    status = run_controls();
  } else {
    status = run_many(first, schedules, threads);
  }
  std::error_code ignored;
  fs::remove_all(scratch(), ignored);
  return status;
}

}  // namespace
}  // namespace foretoken::simulation

int main(int argc, char** argv) { return foretoken::simulation::run(argc, argv); }
