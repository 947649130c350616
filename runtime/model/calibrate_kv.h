// Calibration of a loaded model: its forward pass over a text, observed for a KvCalibrator.
// Called once a model, before serving; owns its cache and workspace while it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/kv/calibration.h"

namespace foretoken {

class Model;

struct KvCalibrateOptions {
  int window_tokens = 2048;  // contexts begin anew after so many tokens
  std::int64_t max_offset =
      40000;  // positions are moved by random offsets up to here (and the model's context)
  int offsets_per_block = 2;  // each block of 256 tokens is observed at so many of them
  int max_tokens = 16384;     // of a longer text, windows from all over it
  std::uint64_t seed = 1;
};

// The bundled text, calibration_text.txt: prose, code, dialogue, several languages; written for
// this. Mixed on purpose: calibrating on one genre costs the others (a quarter more KL in our
// trials).
std::string_view kv_calibration_text();

// tokens: the text in the model's own tokenizer; at least 256. progress (may be null) is called
// with 0..1. Deterministic: the same model, tokens, options and kernels give the same transforms.
Result<std::shared_ptr<const KvCalibration>> calibrate_kv(const Model& model,
                                                          std::span<const TokenId> tokens,
                                                          const KvCalibrateOptions& options,
                                                          kernels::ThreadPool& pool,
                                                          std::function<void(double)> progress);

}  // namespace foretoken
