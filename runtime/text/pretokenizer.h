// The first stage of byte-level BPE: cuts text into words that merges never cross, by the pattern
// the model was trained with. Immutable; any thread.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

class Pretokenizer {
 public:
  // By the name in tokenizer.ggml.pre; another name is kUnsupported and lists those known.
  static Result<std::unique_ptr<Pretokenizer>> by_name(std::string_view name);
  virtual ~Pretokenizer() = default;

  // Appends the words of well-formed UTF-8, in order; together they are the whole text.
  virtual Status split(std::string_view text, std::vector<std::string_view>& words) const = 0;
  virtual bool wants_nfc() const = 0;    // the text is composed (NFC) before it is split
  virtual bool whole_words() const = 0;  // a word that is itself a token is not built by merges
  virtual bool adds_bos_by_default() const = 0;
};

}  // namespace foretoken
