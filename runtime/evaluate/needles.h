// Retrieval from a long context through the real cache. Facts, each the number of a thing, lie
// among lines of text; every fact has three near-duplicates that differ from it in one word of the
// thing and in the last digits of the number, so that a blurred key finds a neighbour's number.
// Plain passkeys do not tell modes apart: every one of them finds a passkey. A fact counts as found
// if greedy decoding gives its whole number: each digit is the most likely token after those before
// it. All facts lie where every question reads sealed pages: past the sink, before the window.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/evaluate/quality.h"

namespace foretoken {

class Tokenizer;

struct NeedleContext {
  std::int64_t length = 0;  // with a question and its answer: what was asked for
  std::vector<TokenId> tokens;
  struct Question {
    std::vector<TokenId> prompt, answer;  // the answer's tokens follow the prompt's
    std::int64_t position = 0;            // of the fact's first token
  };
  std::vector<Question> questions;  // of some of the facts, in random order
  int n_facts = 0;
};

// At most `length` tokens, a question and its answer included. The lines between the facts are of
// `text`, from a random line on. Deterministic in the seed.
Result<NeedleContext> make_needle_context(const Tokenizer& tokenizer, std::string_view text,
                                          std::int64_t length, const KvQualityOptions& options,
                                          std::uint64_t seed);

struct NeedleFigures {
  std::int64_t length = 0;  // of the longest context
  int asked = 0;
  std::vector<int> found;  // by case
};

// Every question of every context, once a case. progress may be null.
Result<NeedleFigures> measure_needles(const Model& model, std::span<const NeedleContext> contexts,
                                      std::span<const KvQualityCase> cases,
                                      const KvQualityOptions& options, kernels::ThreadPool& pool,
                                      std::function<void(double)> progress);

}  // namespace foretoken
