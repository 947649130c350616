// Reads the metadata of one architecture ("llama.*") and remembers what was asked for, so that a
// key which nobody asked for is found. The first thing that is wrong is kept; what is returned
// after it is of the right kind, and meaningless.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/failure.h"
#include "runtime/model/config.h"

namespace foretoken {

class ConfigReader {
 public:
  // config.architecture is the prefix of all keys.
  ConfigReader(const GgufFile& file, ModelConfig& config) : file_(file), config_(config) {}

  // Without `absent` the key is required. An integer does for a number, an array never does.
  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high,
                       std::optional<std::int64_t> absent = {});
  double number(std::string_view key, double low, double high, std::optional<double> absent = {});
  std::string text(std::string_view key, std::string_view absent);
  // A small tensor that belongs to the configuration; empty: the file has none.
  std::vector<float> tensor(const std::string& name, std::int64_t n);

  // "attention.*" of layers that are all alike: heads, sizes, scale, the rotary embedding with its
  // scaling (which becomes one of ModelConfig::ropes).
  AttentionSpec attention(bool rope_interleaved);
  // All layers alike: attention and a gated feed-forward part, "feed_forward_length" wide.
  void uniform_layers(const AttentionSpec& attention, Presence ffn_bias, Norms norms);

  ModelConfig& config() { return config_; }
  template <class... Args>
  void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (status_)
      status_ =
          failure(code, "{}: {}", file_.path(), fmt::format(text, std::forward<Args>(args)...));
  }
  // Whether all was well; a key of this architecture that nobody read is an error, unless it is
  // known to change nothing or says "none" (0, false).
  Status finish();

 private:
  std::string full(std::string_view key);  // marks it as read
  template <class T, class Read>
  T bounded(std::string_view key, T low, T high, std::optional<T> absent, const char* kind,
            const Read& read);
  RopeScaling rope_scaling();

  const GgufFile& file_;
  ModelConfig& config_;
  Status status_ = Ok{};
  std::set<std::string, std::less<>> read_;
};

}  // namespace foretoken
