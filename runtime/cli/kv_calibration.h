// The KV calibration of a model: kept in the state directory by fingerprint, made at first start.
#pragma once

#include <memory>
#include <string>

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {

struct KvCalibrationChoice {
  bool calibrate = true;  // false: the data-free recipe
  std::string text_file;  // empty: the bundled text
  std::string state_dir;
  int threads = 0;
};

// Null in modes that need none.
Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, KvMode mode, const KvCalibrationChoice& choice);

}  // namespace foretoken
