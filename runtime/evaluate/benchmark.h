// What a model costs on this machine, measured by driving the forward pass and the KV cache
// directly, without server, batching or speculation; beside it the two bounds no implementation
// passes: reading the weights in the file's format at the machine's bandwidth, and the
// multiply-adds at its int8 peak.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <string>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct BenchmarkOptions {
  std::string model, draft_model;    // GGUF files; draft_model may be ""
  std::int64_t draft_vocab = 24576;  // tokens it chooses among (DraftVocabulary); 0: all
  int threads = 0;                   // 0: all cores
  int repeats = 7;                   // of every figure; the median is reported, and the spread
  int max_rows = 8;
  // Shape of a recurrent head to time beside it, with random weights; inner 0: leave out.
  std::int64_t head_inner = 512, head_vocab = 4096;
  std::int64_t prefill_tokens = 512, chunk = 256;
  std::int64_t depth = 4096;                         // 0: leave out
  std::int64_t attention_depth = 16384;              // of attention alone; 0: leave out
  std::function<void(const std::string&)> progress;  // what is being measured
};

// {"machine", "model", "load", "decode", "rows", "prefill", "head"?, "depth"?, "attention"?,
// "draft"?, "memory"}; times in ms.
Result<boost::json::object> run_benchmark(const BenchmarkOptions& options);

}  // namespace foretoken
