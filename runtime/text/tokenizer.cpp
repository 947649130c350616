#include "runtime/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "runtime/text/bpe.h"
#include "runtime/text/pretokenizer.h"
#include "runtime/text/special_tokens.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

// tokenizer.ggml.token_type
enum TokenType : std::int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// The largest published vocabularies hold about 260,000 tokens.
constexpr std::size_t kMaxTokens = 4'000'000;

// Tokens that end an answer whatever the file calls its end token; chat models are trained with one
// of them and often name another.
constexpr std::array kEndSpellings = {"<|endoftext|>", "<|im_end|>", "<|end_of_text|>",
                                      "<|eot_id|>",    "<|eom_id|>", "<|end|>",
                                      "<end_of_turn>", "</s>"};

class BpeTokenizer final : public Tokenizer {
 public:
  Status fill(const GgufFile& file);

  Result<std::vector<TokenId>> encode(std::string_view text, bool parse_special) const override;

  std::string_view bytes(TokenId token, bool special) const override {
    if (token < 0 || token >= vocabulary_size()) return {};
    const Piece& piece = pieces_[std::size_t(token)];
    return piece.hidden && !special ? std::string_view() : std::string_view(piece.bytes);
  }

  std::string decode(std::span<const TokenId> tokens, bool special) const override {
    std::string out;
    for (const TokenId token : tokens) out += bytes(token, special);
    return out;
  }

  int vocabulary_size() const override { return static_cast<int>(pieces_.size()); }

  std::optional<TokenId> find(std::string_view piece) const override {
    if (const auto it = special_ids_.find(piece); it != special_ids_.end()) return it->second;
    if (const auto it = word_ids_.find(piece); it != word_ids_.end()) return it->second;
    return std::nullopt;
  }

  std::optional<TokenId> bos() const override { return bos_; }
  bool add_bos() const override { return add_bos_; }
  const std::vector<TokenId>& end_of_generation() const override { return ends_; }

 private:
  struct Piece {
    std::string bytes;
    bool hidden = false;  // control, unknown and unused tokens: not part of an answer's text
  };

  Status read_vocabulary(const GgufFile& file);
  Status read_merges(const GgufFile& file);
  Status read_roles(const GgufFile& file);
  Status encode_plain(std::string_view text, std::vector<TokenId>& out) const;

  std::vector<Piece> pieces_;  // never resized once filled: the maps below point into it
  std::unordered_map<std::string_view, TokenId> word_ids_;     // by bytes, of normal tokens
  std::unordered_map<std::string_view, TokenId> special_ids_;  // control and user-defined tokens
  std::array<TokenId, 256> byte_ids_{};                        // -1: the vocabulary lacks this byte
  MergeTable merges_;
  std::unique_ptr<Pretokenizer> pretokenizer_;
  SpecialTokens always_;   // user-defined tokens
  SpecialTokens special_;  // these and the control tokens
  std::optional<TokenId> bos_;
  bool add_bos_ = false;
  std::vector<TokenId> ends_;
};

Error bad(const GgufFile& file, ErrorCode code, const std::string& message) {
  return {code, fmt::format("{}: {}", file.path(), message)};
}

Status BpeTokenizer::fill(const GgufFile& file) {
  const auto model = file.get_string("tokenizer.ggml.model");
  if (!model)
    return bad(file, ErrorCode::kInvalidInput, "tokenizer.ggml.model: absent or not a string");
  if (*model != "gpt2")
    return bad(file, ErrorCode::kUnsupported,
               fmt::format("tokenizer.ggml.model: {} found, \"gpt2\" (byte-level BPE) wanted",
                           file.describe("tokenizer.ggml.model")));
  const auto pre = file.get_string("tokenizer.ggml.pre");
  if (!pre) return bad(file, ErrorCode::kUnsupported, "tokenizer.ggml.pre: absent or not a string");
  auto pretokenizer = Pretokenizer::by_name(*pre);
  if (!pretokenizer) return bad(file, pretokenizer.error().code, pretokenizer.error().message);
  pretokenizer_ = std::move(*pretokenizer);
  if (Status s = read_vocabulary(file); !s) return s;
  if (Status s = read_merges(file); !s) return s;
  return read_roles(file);
}

Status BpeTokenizer::read_vocabulary(const GgufFile& file) {
  const auto tokens = file.get_strings("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty() || tokens->size() > kMaxTokens)
    return bad(file, ErrorCode::kInvalidInput,
               fmt::format("tokenizer.ggml.tokens: {} found, 1 to {} strings wanted",
                           file.describe("tokenizer.ggml.tokens"), kMaxTokens));
  const auto types = file.get_ints("tokenizer.ggml.token_type");
  if (!types || types->size() != tokens->size())
    return bad(
        file, ErrorCode::kInvalidInput,
        fmt::format("tokenizer.ggml.token_type: {} found, one integer for each of {} tokens wanted",
                    file.describe("tokenizer.ggml.token_type"), tokens->size()));
  pieces_.resize(tokens->size());
  for (std::size_t i = 0; i < tokens->size(); ++i) {
    const std::int64_t type = (*types)[i];
    const std::string_view text = (*tokens)[i];
    const auto id = static_cast<TokenId>(i);
    Piece& piece = pieces_[i];
    if (type < kNormal || type > kByte)
      return bad(file, ErrorCode::kInvalidInput,
                 fmt::format("tokenizer.ggml.token_type[{}]: {} found, {} to {} wanted", i, type,
                             int(kNormal), int(kByte)));
    const bool normal = type == kNormal || type == kByte;
    if (text.empty() && normal)
      return bad(file, ErrorCode::kInvalidInput,
                 fmt::format("tokenizer.ggml.tokens[{}]: an empty token", i));
    auto spelled = normal ? bytes_of_spelling(text) : std::nullopt;
    piece.bytes = spelled ? *std::move(spelled) : std::string(text);
    piece.hidden = !normal && type != kUserDefined;
    if (normal) word_ids_.emplace(piece.bytes, id);
    if (type == kControl || type == kUserDefined) {
      special_ids_.emplace(piece.bytes, id);
      special_.add(piece.bytes, id);
    }
    if (type == kUserDefined) always_.add(piece.bytes, id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const auto it = word_ids_.find(std::string_view(&text, 1));
    byte_ids_[std::size_t(byte)] = it == word_ids_.end() ? -1 : it->second;
  }
  return Ok{};
}

Status BpeTokenizer::read_merges(const GgufFile& file) {
  const auto merges = file.get_strings("tokenizer.ggml.merges");
  if (!merges || merges->size() > kMaxTokens)
    return bad(file, ErrorCode::kInvalidInput,
               fmt::format("tokenizer.ggml.merges: {} found, at most {} strings wanted",
                           file.describe("tokenizer.ggml.merges"), kMaxTokens));
  merges_ = MergeTable(merges->size());
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const auto wrong = [&](const char* wanted) {
      return bad(file, ErrorCode::kInvalidInput,
                 fmt::format("tokenizer.ggml.merges[{}]: '{}' found, {} wanted", i,
                             merge.substr(0, 80), wanted));
    };
    const std::size_t space = merge.find(' ');
    if (space == std::string_view::npos) return wrong("two tokens with a space between");
    const auto left = bytes_of_spelling(merge.substr(0, space));
    const auto right = bytes_of_spelling(merge.substr(space + 1));
    if (!left || !right || left->empty() || right->empty())
      return wrong("two tokens in GPT-2's spelling of bytes");
    const auto left_id = word_ids_.find(*left), right_id = word_ids_.find(*right);
    const auto result_id = word_ids_.find(*left + *right);
    if (left_id == word_ids_.end() || right_id == word_ids_.end() || result_id == word_ids_.end())
      return wrong("both tokens and their concatenation in the vocabulary");
    merges_.add(left_id->second, right_id->second,
                {static_cast<std::int32_t>(i), result_id->second});
  }
  return Ok{};
}

Status BpeTokenizer::read_roles(const GgufFile& file) {
  const auto role = [&](const char* key, std::optional<TokenId>& out) -> Status {
    if (file.describe(key) == "(absent)") return Ok{};
    const auto id = file.get_uint(key);
    if (!id || *id >= pieces_.size())
      return bad(file, ErrorCode::kInvalidInput,
                 fmt::format("{}: {} found, a token below {} wanted", key, file.describe(key),
                             pieces_.size()));
    out = static_cast<TokenId>(*id);
    return Ok{};
  };
  if (Status s = role("tokenizer.ggml.bos_token_id", bos_); !s) return s;
  add_bos_ =
      bos_ &&
      file.get_bool("tokenizer.ggml.add_bos_token").value_or(pretokenizer_->adds_bos_by_default());
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    std::optional<TokenId> id;
    if (Status s = role(key, id); !s) return s;
    if (id) ends_.push_back(*id);
  }
  for (const char* spelling : kEndSpellings)
    if (const auto it = special_ids_.find(spelling); it != special_ids_.end())
      ends_.push_back(it->second);
  std::sort(ends_.begin(), ends_.end());
  ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
  return Ok{};
}

Status BpeTokenizer::encode_plain(std::string_view text, std::vector<TokenId>& out) const {
  if (text.empty()) return Ok{};
  std::string composed;
  if (pretokenizer_->wants_nfc()) {
    composed = to_nfc(text);
    text = composed;
  }
  std::vector<std::string_view> words;
  if (Status s = pretokenizer_->split(text, words); !s) return s;
  std::vector<TokenId> symbols;
  for (const std::string_view word : words) {
    if (pretokenizer_->whole_words())
      if (const auto it = word_ids_.find(word); it != word_ids_.end()) {
        out.push_back(it->second);
        continue;
      }
    symbols.clear();
    // A byte the vocabulary lacks (SmolLM2 has no U+0004, for one) is dropped, as by the published
    // tokenizers.
    for (const char c : word)
      if (const TokenId id = byte_ids_[static_cast<unsigned char>(c)]; id >= 0)
        symbols.push_back(id);
    merge_word(merges_, symbols, out);
  }
  return Ok{};
}

Result<std::vector<TokenId>> BpeTokenizer::encode(std::string_view text, bool parse_special) const {
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos)
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("text: byte {:#04x} at offset {} found, UTF-8 wanted",
                             static_cast<unsigned char>(text[at]), at)};
  const SpecialTokens& special = parse_special ? special_ : always_;
  std::vector<TokenId> out;
  for (std::size_t at = 0; at < text.size();) {
    const auto match = special.find(text, at);
    const std::size_t end = std::min(match.begin, text.size());
    if (Status s = encode_plain(text.substr(at, end - at), out); !s) return s.error();
    if (match.token < 0) break;
    out.push_back(match.token);
    at = match.begin + match.bytes;
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_gguf(const GgufFile& file) {
  auto tokenizer = std::make_unique<BpeTokenizer>();
  if (Status s = tokenizer->fill(file); !s) return s.error();
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace foretoken
