#include "runtime/evaluate/needles.h"

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <string>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/sampling.h"
#include "foretoken/protocol/failure.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {
namespace {

constexpr std::size_t kMostAsked = 32;  // of one context: the prefill is what costs
// Of the tokens between sink and window, what facts may take: the rest is text.
constexpr double kShareOfFacts = 0.5;
constexpr int kGroup = 4;  // a fact and its three near-duplicates, each asked like any other

constexpr std::array kColours = {"amber", "blue",   "copper", "green", "grey",
                                 "ivory", "orange", "purple", "red",   "white"};
constexpr std::array kThings = {"barrel", "basket", "cabinet", "chest",  "crate",
                                "drawer", "ladder", "lantern", "parcel", "trunk"};
constexpr std::array kPlaces = {"attic",   "bakery",  "cellar",  "chapel", "harbour",
                                "library", "orchard", "stables", "tower",  "workshop"};

struct Fact {
  int colour, thing, place;
  std::string number;
  std::string prompt() const {
    return fmt::format("The number of the {} {} in the {} is", kColours[colour], kThings[thing],
                       kPlaces[place]);
  }
  std::string sentence() const { return fmt::format("{} {}.\n", prompt(), number); }
};

// Uniform below n, the same everywhere (the standard's distributions are not).
int below(std::mt19937_64& random, int n) { return int(random() % n); }

template <class T>
void shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[below(random, int(i))]);
}

std::vector<Fact> make_facts(int groups, std::mt19937_64& random) {
  std::vector<Fact> facts;
  std::set<std::array<int, 3>> taken;
  while (int(facts.size()) < groups * kGroup) {
    const std::array<int, 3> first{below(random, kColours.size()), below(random, kThings.size()),
                                   below(random, kPlaces.size())};
    std::vector<std::array<int, 3>> group{first};
    for (int word = 0; word < 3; ++word) {
      std::array<int, 3> other = first;
      other[word] = (other[word] + 1 + below(random, 9)) % 10;
      group.push_back(other);
    }
    if (std::any_of(group.begin(), group.end(), [&](const auto& g) { return taken.contains(g); }))
      continue;
    taken.insert(group.begin(), group.end());
    // Five digits: two that the group shares, a third of its own each, two at random.
    const std::string shared = fmt::format("{:02}", 10 + below(random, 90));
    std::vector<int> thirds{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    shuffle(thirds, random);
    for (int i = 0; i < kGroup; ++i) {
      facts.push_back({group[i][0], group[i][1], group[i][2],
                       fmt::format("{}{}{:02}", shared, thirds[i], below(random, 100))});
    }
  }
  shuffle(facts, random);
  return facts;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
    if (text.substr(0, end).find_first_not_of(" \t\r\n") != std::string_view::npos)
      lines.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return lines;
}

}  // namespace

Result<NeedleContext> make_needle_context(const Tokenizer& tokenizer, std::string_view text,
                                          std::int64_t length, const KvQualityOptions& options,
                                          std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<std::string_view> lines = lines_of(text);
  if (lines.empty()) return Error{ErrorCode::kInvalidInput, "needles: the text has no lines"};
  const auto encode = [&](std::string_view piece) { return tokenizer.encode(piece, false); };
  // What a fact and a question take at most.
  auto longest = encode(Fact{7, 7, 7, "99999"}.sentence());
  if (!longest) return longest.error();
  const auto fact_tokens = std::int64_t(longest->size()) + 2;
  const std::int64_t context = length - 2 * fact_tokens;
  // A question at `context` reads page p sealed if p < context / 64 - window / 64.
  const std::int64_t begin = options.sink_tokens,
                     end = context / kernels::kPageTokens * kernels::kPageTokens -
                           options.window_tokens;
  const auto groups = int(kShareOfFacts * double(end - begin) / double(kGroup * fact_tokens));
  // A hundred groups leave many of the thousand things unused.
  if (groups < 1 || groups > 100) {
    return failure(ErrorCode::kInvalidInput,
                   "needles: contexts of {} tokens are {}, wanted {} to {}", length,
                   groups < 1 ? "too short" : "too long",
                   options.sink_tokens + options.window_tokens + 11 * fact_tokens + 64,
                   std::int64_t(800 * fact_tokens));
  }

  NeedleContext out;
  const std::vector<Fact> facts = make_facts(groups, random);
  std::size_t line = std::size_t(below(random, int(lines.size())));
  const auto n_facts = std::int64_t(facts.size());
  const auto add = [&](std::string_view piece) -> Status {
    auto tokens = encode(piece);
    if (!tokens) return tokens.error();
    out.tokens.insert(out.tokens.end(), tokens->begin(), tokens->end());
    return Ok{};
  };
  // Text up to a position, by whole lines where they fit; a long line is cut.
  const auto fill = [&](std::int64_t position) -> Status {
    while (std::int64_t(out.tokens.size()) < position) {
      if (auto s = add(lines[line]); !s) return s;
      line = (line + 1) % lines.size();
    }
    if (std::int64_t(out.tokens.size()) > position) {
      out.tokens.resize(std::size_t(position));
      if (auto s = add("\n"); !s) return s;
    }
    return Ok{};
  };
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < n_facts; ++i) {
    // Evenly, each somewhere in its share.
    const std::int64_t share = (end - begin) / n_facts, room = share - fact_tokens;
    if (auto s = fill(begin + i * share + below(random, int(room))); !s) return s.error();
    positions.push_back(std::int64_t(out.tokens.size()));
    if (auto s = add(facts[i].sentence()); !s) return s.error();
  }
  if (auto s = fill(context); !s) return s.error();
  out.length = length;
  out.n_facts = int(n_facts);

  std::vector<int> order(facts.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = int(i);
  shuffle(order, random);
  order.resize(std::min(order.size(), kMostAsked));
  for (const int i : order) {
    const std::string prompt = facts[i].prompt();
    auto all = encode(prompt + " " + facts[i].number);
    if (!all) return all.error();
    auto head = encode(prompt);
    if (!head) return head.error();
    // How far the prompt alone has the same tokens: a tokenizer may join what follows to its end.
    const auto same = std::mismatch(head->begin(), head->end(), all->begin(), all->end()).second;
    out.questions.push_back({{all->begin(), same}, {same, all->end()}, positions[i]});
  }
  return out;
}

Result<NeedleFigures> measure_needles(const Model& model, std::span<const NeedleContext> contexts,
                                      std::span<const KvQualityCase> cases,
                                      const KvQualityOptions& options, kernels::ThreadPool& pool,
                                      std::function<void(double)> progress) {
  NeedleFigures figures;
  figures.found.assign(cases.size(), 0);
  std::int64_t longest = 0;
  for (const NeedleContext& context : contexts) {
    longest = std::max(longest, std::int64_t(context.tokens.size()));
    figures.length = std::max(figures.length, context.length);
    figures.asked += int(context.questions.size());
  }
  auto made = make_quality_caches(model, cases, options, longest, kQualityChunkRows);
  if (!made) return made.error();
  const auto caches = std::move(made).value();
  auto workspace = model.make_workspace(kQualityChunkRows, kQualityChunkRows);
  const auto logits = model.make_logit_rows(kQualityChunkRows);
  std::size_t done = 0;
  for (const NeedleContext& context : contexts) {
    const auto end = std::int64_t(context.tokens.size());
    for (std::size_t c = 0; c < cases.size(); ++c) {
      SequenceMemory& cache = *caches[c];
      cache.open();
      if (!cache.reserve(0, end + kQualityChunkRows))
        return Error{ErrorCode::kInternal, "needles: their own cache is too small"};
      for (std::int64_t first = 0; first < end; first += kQualityChunkRows) {
        const int n = int(std::min<std::int64_t>(kQualityChunkRows, end - first));
        model.forward_one({.tokens = std::span(context.tokens).subspan(first, n)}, 0, first, cache,
                          *workspace, pool);
        cache.commit(0, first + n);
      }
      for (const NeedleContext::Question& question : context.questions) {
        std::vector<TokenId> tokens = question.prompt;
        tokens.insert(tokens.end(), question.answer.begin(), question.answer.end() - 1);
        const auto n = int(tokens.size());
        // Not committed: the next question overwrites these rows, as a rejected draft is.
        std::vector<int> wanted;
        for (int i = int(question.prompt.size()) - 1; i < n; ++i) wanted.push_back(i);
        model.forward_one({.tokens = tokens, .logit_rows = wanted, .logits = logits.get()}, 0, end,
                          cache, *workspace, pool);
        bool found = true;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          const std::span<const float> row = logits->host_row(int(i));
          found &= kernels::argmax(row.data(), std::ssize(row)) == question.answer[i];
        }
        figures.found[c] += found ? 1 : 0;
      }
      cache.close(0);
      ++done;
      if (progress) progress(double(done) / double(contexts.size() * cases.size()));
    }
  }
  return figures;
}

}  // namespace foretoken
