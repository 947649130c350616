#include "runtime/cli/kv_calibration.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "foretoken/protocol/state_folder.h"
#include "runtime/kv/calibrate.h"

namespace foretoken {
namespace {

Result<std::string> read_text(const std::string& path) {
  // Far more than is used (KvCalibrateOptions::max_tokens); a device or a huge file by mistake ends
  // here.
  constexpr std::size_t kMaxBytes = 64 << 20;
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return Error{ErrorCode::kNotFound, fmt::format("{}: {}", path, error.message())};
  if (size > kMaxBytes) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("{}: {} bytes, wanted at most {}", path, size, kMaxBytes)};
  }
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void show_progress(double share) {
  if (isatty(STDERR_FILENO) == 0) return;
  constexpr int kWidth = 40;
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\rKV calibration [{:<{}}] {:3.0f} %{}", std::string(filled, '#'), kWidth,
             100 * share, share >= 1 ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace

Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, KvMode mode,
    const KvCalibrationChoice& choice) {
  if (!kv_mode_needs_calibration(mode)) return std::shared_ptr<const KvCalibration>();
  if (!choice.calibrate) return KvCalibration::data_free(model.kv_geometry());
  const std::filesystem::path path =
      model_state_folder(choice.state_dir, model.fingerprint()) / "kv.calibration";
  if (choice.text_file.empty()) {
    auto kept = KvCalibration::load(path, model.kv_geometry(), model.fingerprint(), mode);
    if (kept) return kept;
    if (kept.error().code != ErrorCode::kNotFound)
      spdlog::warn("{}; made anew", kept.error().message);
  }

  std::string text(kv_calibration_text());
  if (!choice.text_file.empty()) {
    auto own = read_text(choice.text_file);
    if (!own) return own.error();
    text = std::move(*own);
  }
  auto tokens = tokenizer.encode(text, false);
  if (!tokens) return tokens.error();
  const auto begin = std::chrono::steady_clock::now();
  kernels::ThreadPool pool(
      choice.threads > 0 ? choice.threads
                         : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  auto made = calibrate_kv(model, *tokens, {}, pool, show_progress);
  if (!made) return made.error();
  spdlog::info("KV calibration of {} made from {} in {:.1f} s", model.config().name,
               choice.text_file.empty() ? "the bundled text" : choice.text_file,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (const Status saved = (*made)->save(path, model.fingerprint()); !saved) {
    spdlog::warn("KV calibration not kept: {}", saved.error().message);
  }
  return made;
}

}  // namespace foretoken
