// The KV calibration of a model: a file that was named, or kept in the state directory by
// fingerprint and made at first start.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/calibrate_kv.h"
#include "runtime/model/model.h"
#include "runtime/server/server_options.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {

struct KvCalibrationChoice {
  bool calibrate = true;  // false: the data-free recipe
  std::string file;       // of `foretoken calibrate`; nothing else is looked at
  std::string text_file;  // empty: the bundled text
  std::string state_dir;
  int threads = 0;
};

// Null in modes that need none. A named file that does not fit the model is an error.
Result<std::shared_ptr<const KvCalibration>> obtain_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, KvMode mode, const KvCalibrationChoice& choice,
    const TaskProgress& progress);

// text_files: none: the bundled text. threads 0: all cores.
Result<std::shared_ptr<const KvCalibration>> make_kv_calibration(
    const Model& model, const Tokenizer& tokenizer, const std::vector<std::string>& text_files,
    const KvCalibrateOptions& options, int threads, const TaskProgress& progress);

// A regular file of at most 64 MiB.
Result<std::string> read_text(const std::string& path);

int threads_or_all(int threads);  // 0: as many as the machine has

}  // namespace foretoken
