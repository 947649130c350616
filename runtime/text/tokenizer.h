// Byte-level BPE tokenizer made from a GGUF file's own vocabulary and merges.
// Immutable after creation; any thread may use it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"

namespace foretoken {

class Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> from_gguf(const GgufFile& file);
  virtual ~Tokenizer() = default;

  // Invalid UTF-8 is an error that names the byte offset. With parse_special, control tokens
  // spelled out in the text (<|im_start|>) become their ids; without, they are plain text
  // (user-defined tokens such as <tool_call> are matched either way). Does not add bos().
  virtual Result<std::vector<TokenId>> encode(std::string_view text, bool parse_special) const = 0;
  // The token's bytes (may be part of a character). Control tokens give "" unless `special`.
  virtual std::string_view bytes(TokenId token, bool special = false) const = 0;
  virtual std::string decode(std::span<const TokenId> tokens, bool special = false) const = 0;
  virtual int vocabulary_size() const = 0;
  // The token that is exactly these bytes: a control or user-defined token's spelling, or a normal
  // token's bytes.
  virtual std::optional<TokenId> find(std::string_view piece) const = 0;
  virtual std::optional<TokenId> bos() const = 0;
  virtual bool add_bos() const = 0;
  virtual const std::vector<TokenId>& end_of_generation()
      const = 0;  // eos, eot, <|im_end|>, <|endoftext|> ...
};

// Incremental UTF-8: tokens in, only whole characters out; an incomplete tail is held back and
// becomes U+FFFD at finish(). One a stream; not thread-safe.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string push(TokenId token);
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

// Finds stop strings across token and chunk borders; text that may be the beginning of one is held
// back. Of several the one that ends first is found, of those the longest; how the text is divided
// into chunks does not matter. One a stream; not thread-safe.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // empty ones are ignored
  struct Output {
    std::string text;  // safe to show
    std::optional<std::string>
        matched;  // the stop string found; never part of text. Feed no more after it.
  };
  Output push(std::string_view text);
  std::string finish();  // what was held back

 private:
  struct Automaton {
    std::string text;
    std::vector<std::size_t> failure;
    std::size_t matched = 0;  // < text.size() between calls
  };
  std::vector<Automaton> automata_;
  std::string held_;  // its size is the largest `matched`
};

}  // namespace foretoken
