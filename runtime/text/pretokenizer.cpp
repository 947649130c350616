#include "runtime/text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <string>

namespace foretoken {
namespace {

// The patterns are the published ones of GPT-2, SmolLM2, Qwen2 and Llama 3. Two things differ
// between the engine they were published for (Oniguruma, as PyPI's `tokenizers` uses it) and PCRE2:
// - \s there is Unicode's White_Space; PCRE2's \s with UCP also takes U+180E. So white space is
// spelled out.
// - Both fold case by Unicode in (?i:...): 's also matches an apostrophe and U+017F. PCRE2 does so
// with UTF. \p{L} and \p{N} agree except for characters that one library's Unicode version does not
// know yet.
#define WHITE                                                                                   \
  "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
  "\\x{205f}\\x{3000}"
#define SPACE "[" WHITE "]"
#define NOT_SPACE "[^" WHITE "]"

constexpr const char* kDigit = "\\p{N}";
constexpr const char* kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WHITE
                              "\\p{L}\\p{N}]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+";
constexpr const char* kQwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WHITE
    "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+";
constexpr const char* kLlama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" WHITE
    "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+";

#undef NOT_SPACE
#undef SPACE
#undef WHITE

// One row a name that tokenizer.ggml.pre may have. Every match of `first` is a word, before the
// second pattern sees what lies between.
struct Recipe {
  const char* name;
  const char* first;
  const char* second;
  bool nfc, whole_words, bos;
};
constexpr Recipe kRecipes[] = {
    {"gpt-2", nullptr, kGpt2, false, false, false},
    {"smollm", kDigit, kGpt2, false, false, false},
    {"qwen2", nullptr, kQwen2, true, false, false},
    {"deepseek-r1-qwen", nullptr, kQwen2, true, false, false},
    {"llama-bpe", nullptr, kLlama3, false, true, true},
};

class Pattern {
 public:
  explicit Pattern(const char* source) {
    int code = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source), PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr));
    if (code_)
      pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without it pcre2_match interprets
  }
  bool ok() const { return code_ != nullptr; }

  // Calls emit(words) for matches and for what lies between, `matched` telling which.
  template <class Emit>
  Status each(std::string_view text, Emit emit) const {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
    if (!match) return Error{ErrorCode::kInternal, "pre-tokeniser: out of memory"};
    std::size_t at = 0;
    while (at < text.size()) {
      const int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                 text.size(), at, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0)
        return Error{
            ErrorCode::kOutOfRange,
            fmt::format("pre-tokeniser: the text at byte {} is too long a word (PCRE2 error {})",
                        at, rc)};
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
      if (span[1] <= span[0]) return Error{ErrorCode::kInternal, "pre-tokeniser: an empty match"};
      if (span[0] > at)
        if (Status s = emit(text.substr(at, span[0] - at), false); !s) return s;
      if (Status s = emit(text.substr(span[0], span[1] - span[0]), true); !s) return s;
      at = span[1];
    }
    if (at < text.size()) return emit(text.substr(at), false);
    return Ok{};
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

class RegexPretokenizer final : public Pretokenizer {
 public:
  explicit RegexPretokenizer(const Recipe& recipe) : recipe_(recipe), second_(recipe.second) {
    if (recipe.first) first_ = std::make_unique<Pattern>(recipe.first);
  }
  bool ok() const { return second_.ok() && (!first_ || first_->ok()); }

  Status split(std::string_view text, std::vector<std::string_view>& words) const override {
    const auto add = [&](std::string_view word, bool) -> Status {
      words.push_back(word);
      return Ok{};
    };
    if (!first_) return second_.each(text, add);
    // The second pattern's lookahead ends where its segment ends: "a  1" is "a", "  ", "1".
    return first_->each(text, [&](std::string_view part, bool matched) -> Status {
      return matched ? add(part, true) : second_.each(part, add);
    });
  }
  bool wants_nfc() const override { return recipe_.nfc; }
  bool whole_words() const override { return recipe_.whole_words; }
  bool adds_bos_by_default() const override { return recipe_.bos; }

 private:
  const Recipe& recipe_;
  std::unique_ptr<Pattern> first_;
  Pattern second_;
};

}  // namespace

Result<std::unique_ptr<Pretokenizer>> Pretokenizer::by_name(std::string_view name) {
  std::string known;
  for (const Recipe& recipe : kRecipes) {
    known += (known.empty() ? "" : ", ") + std::string(recipe.name);
    if (name != recipe.name) continue;
    auto made = std::make_unique<RegexPretokenizer>(recipe);
    if (!made->ok())
      return Error{ErrorCode::kInternal,
                   fmt::format("pre-tokeniser {}: PCRE2 refused its pattern", name)};
    return std::unique_ptr<Pretokenizer>(std::move(made));
  }
  return Error{
      ErrorCode::kUnsupported,
      fmt::format("tokenizer.ggml.pre: '{}' found, one of {} wanted", name.substr(0, 64), known)};
}

}  // namespace foretoken
