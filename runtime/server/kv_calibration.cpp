#include "runtime/server/kv_calibration.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Result<std::string> read_text(const std::string& path) {
  // A device or a huge file by mistake ends here.
  constexpr std::size_t kMaxBytes = 64 << 20;
  const auto bytes = read_file(path, kMaxBytes);
  if (!bytes) return Error{bytes.error().code, fmt::format("{}: {}", path, bytes.error().message)};
  return std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
}

int threads_or_all(int threads) {
  return threads > 0 ? threads
                     : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

Result<std::shared_ptr<const KvCalibration>> make_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, const std::vector<std::string>& text_files,
    const KvCalibrateOptions& options, int threads, const TaskProgress& progress) {
  std::vector<TokenId> tokens;
  std::string from;
  const auto add = [&](const std::string& name, std::string_view text) -> Status {
    auto more = tokenizer.encode(text, false);
    if (!more) return Error{more.error().code, fmt::format("{}: {}", name, more.error().message)};
    tokens.insert(tokens.end(), more->begin(), more->end());
    from += (from.empty() ? "" : ", ") + name;
    return Ok{};
  };
  for (const std::string& file : text_files) {
    auto text = read_text(file);
    if (!text) return text.error();
    if (auto s = add(file, *text); !s) return s.error();
  }
  if (text_files.empty()) {
    if (auto s = add("the bundled text", kv_calibration_text()); !s) return s.error();
  }
  const auto begin = std::chrono::steady_clock::now();
  kernels::ThreadPool pool(threads_or_all(threads));
  auto made = calibrate_kv(model, tokens, options, pool, [&](double fraction) {
    if (progress) progress("KV calibration", fraction);
  });
  if (!made) return made.error();
  spdlog::info("KV calibration of {} made from {} of {} tokens of {} in {:.1f} s",
               model.config().name, std::min<std::size_t>(tokens.size(), options.max_tokens),
               tokens.size(), from,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return made;
}

Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, KvMode mode, const KvCalibrationChoice& choice,
    const TaskProgress& progress) {
  if (!kv_mode_needs_calibration(mode)) return std::shared_ptr<const KvCalibration>();
  if (!choice.file.empty()) {
    auto named = KvCalibration::load(choice.file, model.kv_geometry(), model.fingerprint(), mode);
    if (named) return named;
    return Error{named.error().code,
                 fmt::format("{}; wanted one that foretoken calibrate made for {}",
                             named.error().message, model.config().name)};
  }
  if (!choice.calibrate) return KvCalibration::data_free(model.kv_geometry());
  const std::filesystem::path path =
      model_state_folder(choice.state_dir, model.fingerprint()) / "kv.calibration";
  if (choice.text_file.empty()) {
    auto kept = KvCalibration::load(path, model.kv_geometry(), model.fingerprint(), mode);
    if (kept) return kept;
    if (kept.error().code != ErrorCode::kNotFound)
      spdlog::warn("{}; made anew", kept.error().message);
  }
  std::vector<std::string> texts;
  if (!choice.text_file.empty()) texts.push_back(choice.text_file);
  auto made = make_kv_calibration(model, tokenizer, texts, {}, choice.threads, progress);
  if (!made) return made.error();
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (const Status saved = (*made)->save(path, model.fingerprint()); !saved) {
    spdlog::warn("KV calibration not kept: {}", saved.error().message);
  }
  return made;
}

}  // namespace foretoken
