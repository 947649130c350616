#include "runtime/cli/kv_calibration.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "foretoken/protocol/state_folder.h"
#include "runtime/cli/progress.h"
#include "runtime/kv/calibrate.h"

namespace foretoken {
namespace {

Result<std::string> calibration_text(const std::string& file) {
  if (file.empty()) return std::string(kv_calibration_text());
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  if (!stream || !(text << stream.rdbuf()))
    return Error{ErrorCode::kNotFound, fmt::format("--calibration-text {}: cannot be read", file)};
  return text.str();
}

}  // namespace

Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, KvMode mode,
    const KvCalibrationChoice& choice) {
  if (mode == KvMode::kBf16) return std::shared_ptr<const KvCalibration>();
  if (!choice.calibrate) return KvCalibration::data_free(model.kv_geometry());
  // A text of the user's own has a file of its own: asking for it once must not change later
  // starts.
  const std::filesystem::path folder = model_state_folder(choice.state_dir, model.fingerprint());
  const std::filesystem::path path =
      folder / (choice.text_file.empty() ? "kv.calibration" : "kv-own-text.calibration");
  if (choice.text_file.empty()) {
    auto kept = KvCalibration::load(path, model.kv_geometry(), model.fingerprint());
    if (kept) return kept;
    if (kept.error().code != ErrorCode::kNotFound)
      spdlog::warn("{}; calibrating anew", kept.error().message);
  }
  auto text = calibration_text(choice.text_file);
  if (!text) return text.error();
  auto tokens = tokenizer.encode(*text, false);
  if (!tokens)
    return Error{tokens.error().code, fmt::format("calibration text: {}", tokens.error().message)};
  const int threads = choice.threads > 0
                          ? choice.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  kernels::ThreadPool pool(threads);
  Progress progress("calibrating the KV cache (once a model)");
  auto made = calibrate_kv(model, *tokens, {}, pool, [&](double fraction) { progress(fraction); });
  if (!made) return made.error();
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  if (Status saved = (*made)->save(path, model.fingerprint()); !saved)
    spdlog::warn("the calibration could not be kept, the next start makes it again: {}",
                 saved.error().message);
  return made;
}

}  // namespace foretoken
