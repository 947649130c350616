// foretoken forget --key K: what was kept of one key's traffic is gone when this returns: its
// records in the trainer's buffer and in trace segments are overwritten, its n-gram store is
// emptied and deleted. Works whether server and trainer run or not: records are overwritten in
// place under their eyes, and a note in the state folder tells a server (this one, or the next that
// starts) to empty the store it holds.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "foretoken/protocol/state_folder.h"
#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"
#include "runtime/serve/api_keys.h"
#include "runtime/trace/traffic_files.h"

namespace foretoken {
namespace {

namespace fs = std::filesystem;

// The server looks for notes once a second.
constexpr std::chrono::seconds kServerAnswers{4};

int forget_main(int argc, char** argv) {
  Flags flags(
      argv[0],
      "Purges what was kept of one API key's traffic: buffer, trace segments, n-gram store.");
  std::string key, state_dir = default_state_root().string();
  std::vector<std::string> trace_dirs;
  bool shared = false;
  flags.option("key", key, "the key, or its label (key-xxxxxxxx) as statistics and traces name it");
  flags.toggle("shared", shared, "instead: traffic that came without a key");
  flags.option("state-dir", state_dir, "of server and trainer");
  flags.option("trace-dir", trace_dirs, "folders of trace segments; may be repeated");
  if (auto status = flags.parse(argc, argv)) return *status;
  const auto fail = [&](const Error& error) { return exit_status(argv[0], error); };
  if (key.empty() != shared)
    return fail({ErrorCode::kInvalidInput, "wanted either --key or --shared"});
  const std::string label = shared ? std::string() : ApiKeys::label_of(key);

  // Notes first: the server writes out what it still holds of finished requests meanwhile.
  std::error_code error;
  std::vector<fs::path> models, notes;
  for (const auto& entry : fs::directory_iterator(state_dir, error)) {
    if (!fs::is_directory(entry.path() / "server", error) &&
        !fs::is_directory(entry.path() / "trainer", error))
      continue;
    models.push_back(entry.path());
    if (!fs::is_directory(entry.path() / "server", error)) continue;
    if (auto note = leave_forget_note(entry.path() / "server", label); note)
      notes.push_back(*note);
    else
      return fail(note.error());
  }
  const auto deadline = std::chrono::steady_clock::now() + kServerAnswers;
  const auto unread = [&] {
    return std::ranges::any_of(notes, [&](const fs::path& n) { return fs::exists(n, error); });
  };
  while (unread() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));

  std::uint64_t records = 0;
  std::size_t stores = 0;
  for (const fs::path& model : models) {
    stores += fs::remove(traffic_file(model / "server" / "traffic", label), error);
    trace_dirs.push_back((model / "trainer" / "buffer").string());
  }
  for (const std::string& folder : trace_dirs) {
    if (!fs::exists(folder, error)) continue;
    auto forgotten = forget_records(folder, [&](std::span<const Frame> message) {
      const auto trace = parse_trace(message);
      return !trace || trace->key_id == label;
    });
    if (!forgotten) return fail(forgotten.error());
    records += *forgotten;
  }
  fmt::print("{}: {} records overwritten, {} stores deleted{}\n",
             shared ? "traffic without a key" : label, records, stores,
             unread()        ? "; no server is running: the next one starts without its store"
             : notes.empty() ? ""
                             : "; the running server has emptied its store");
  return 0;
}

const Subcommand kForget{"forget", "purge what was kept of one API key's traffic", forget_main, 45};

}  // namespace
}  // namespace foretoken
