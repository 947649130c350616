#include "runtime/cli/kv_calibration.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>

#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer&, KvMode mode, const KvCalibrationChoice& choice) {
  if (mode == KvMode::kBf16) return std::shared_ptr<const KvCalibration>();
  if (!choice.calibrate) return KvCalibration::data_free(model.kv_geometry());
  const std::filesystem::path path = model_state_folder(choice.state_dir, model.fingerprint()) / "kv.calibration";
  auto kept = KvCalibration::load(path, model.kv_geometry(), model.fingerprint());
  if (kept) return kept;
  return KvCalibration::data_free(model.kv_geometry());
}

}  // namespace foretoken
