// `suffix`: what followed the longest suffix of the request's own tokens that occurred in them
// before, of any length, found by a suffix automaton (Blumer et al. 1985; for drafts: SAM Decoding,
// Hu et al. 2024, arXiv 2411.10666) in amortised constant time a token. As sure as matches of that
// length were right. ngram knows at most six tokens of context: where a text repeats itself within
// what is copied, as edited code does, the longer match alone tells which copy goes on.
#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {
namespace {

// Of one text. A state is a class of substrings that end at the same places, and stands for the
// longest of them; its link is the longest suffix that ends at more places; state 0 is the empty
// string. Below reserve() nothing allocates.
class SuffixAutomaton {
 public:
  // A suffix of what was read, as the state it led to.
  struct Match {
    int state = 0, length = 0;
  };

  void reserve(std::size_t n_tokens) {  // memory only: a short text touches little of it
    const std::size_t n_edges = 3 * n_tokens + 4;
    states_.reserve(2 * n_tokens + 2);
    edges_.reserve(n_edges);
    slots_.reserve(std::bit_ceil(std::max(2 * n_edges, kFewSlots)));
  }
  void clear() {
    states_.assign(1, {});
    edges_.clear();
    slots_.assign(kFewSlots, kFree);
    last_ = 0;
  }

  void append(TokenId token) {
    // Of the shorter ones some are left with what followed earlier.
    at(last_).next = token;
    if (at(last_).link >= 0) at(at(last_).link).next = token;
    const int state = make({at(last_).length + 1, 0, kNone, kNone});
    int from = last_, known = kNone;
    for (; from >= 0 && (known = find(from, token)) < 0; from = at(from).link)
      add_edge(from, token, state);
    if (from >= 0) {
      const bool whole = at(known).length == at(from).length + 1;
      const int link = whole ? known : split(from, token, known);
      at(state).link = link;
    }
    last_ = state;
  }

  // The longest suffix of the text that occurred before.
  Match longest_repeat() const {
    const int link = std::max(0, at(last_).link);
    return {link, at(link).length};
  }
  // The longest suffix of the match and `token` that occurs.
  Match step(Match match, TokenId token) const {
    int next = kNone;
    while (match.state >= 0 && (next = find(match.state, token)) < 0) {
      match.state = at(match.state).link;
      if (match.state >= 0) match.length = at(match.state).length;
    }
    return next < 0 ? Match{} : Match{next, match.length + 1};
  }
  // The longest part of it that something followed, and a token that did, of late.
  Match going_on(Match match) const {
    while (match.state > 0 && at(match.state).next < 0) {
      match.state = at(match.state).link;
      match.length = at(match.state).length;
    }
    return match;
  }
  TokenId next(const Match& match) const { return at(match.state).next; }

 private:
  static constexpr int kNone = -1;
  struct State {
    int length = 0, link = kNone, first_edge = kNone;
    TokenId next = kNone;
  };
  struct Edge {
    int from;
    TokenId token;
    int to, next_edge;
  };
  static constexpr std::size_t kFewSlots = 256;
  static constexpr std::int32_t kFree = 0;  // a slot holds 1 + an edge

  State& at(int state) { return states_[static_cast<std::size_t>(state)]; }
  const State& at(int state) const { return states_[static_cast<std::size_t>(state)]; }
  Edge& edge(int i) { return edges_[static_cast<std::size_t>(i)]; }
  const Edge& edge(int i) const { return edges_[static_cast<std::size_t>(i)]; }

  int make(const State& state) {
    states_.push_back(state);
    return static_cast<int>(states_.size()) - 1;
  }
  // Where the edge is, or would be.
  std::size_t slot_of(int from, TokenId token) const {
    const auto key = static_cast<std::uint64_t>(static_cast<std::uint32_t>(from)) << 32 |
                     static_cast<std::uint32_t>(token);
    const std::uint64_t mixed = key * 0x9e3779b97f4a7c15u;
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>(mixed ^ mixed >> 29) & mask;
    for (; slots_[slot] != kFree; slot = (slot + 1) & mask) {
      const Edge& there = edge(slots_[slot] - 1);
      if (there.from == from && there.token == token) break;
    }
    return slot;
  }
  int find(int from, TokenId token) const {
    const std::int32_t found = slots_[slot_of(from, token)];
    return found == kFree ? kNone : edge(found - 1).to;
  }
  void add_edge(int from, TokenId token, int to) {
    edges_.push_back({from, token, to, at(from).first_edge});
    const auto n = static_cast<std::int32_t>(edges_.size());
    at(from).first_edge = n - 1;
    if (2 * edges_.size() <= slots_.size()) {
      slots_[slot_of(from, token)] = n;
      return;
    }
    slots_.assign(2 * slots_.size(), kFree);
    for (std::int32_t i = 0; i < n; ++i) slots_[slot_of(edge(i).from, edge(i).token)] = i + 1;
  }
  // The shorter strings of `known`, to which `token` leads from `from` and those it links to, get a
  // state of their own.
  int split(int from, TokenId token, int known) {
    const State old = at(known);
    const int shorter = make({at(from).length + 1, old.link, kNone, old.next});
    for (int i = old.first_edge; i >= 0; i = edge(i).next_edge)
      add_edge(shorter, edge(i).token, edge(i).to);
    at(known).link = shorter;
    for (; from >= 0 && find(from, token) == known; from = at(from).link)
      edge(slots_[slot_of(from, token)] - 1).to = shorter;
    return shorter;
  }

  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<std::int32_t> slots_;
  int last_ = 0;
};

class SuffixSpeculator final : public Speculator {
 public:
  explicit SuffixSpeculator(const DraftSourcesOptions& options)
      : sequences_(static_cast<std::size_t>(options.max_sequences)) {
    const auto n_draft = static_cast<std::size_t>(options.max_draft) + 1;
    for (Sequence& s : sequences_) {
      s.own.reserve(static_cast<std::size_t>(options.max_tokens) + n_draft);
      s.path.reserve(n_draft);
      s.path_tokens.reserve(n_draft);
    }
  }

  void open(const DraftContext& context) override {
    Sequence& s = at(context.slot);
    s.own.clear();
    for (const TokenId token : context.tokens) s.own.append(token);
    s.forget_draft();
  }
  void commit(int slot, TokenId token) override {
    Sequence& s = at(slot);
    s.own.append(token);
    s.forget_draft();
  }
  Proposal propose(const DraftPosition& position) override {
    Sequence& s = at(position.context.slot);
    const auto match = s.own.going_on(look_up(s, position.drafted));
    if (match.length < kLeastMatch) return {};
    const auto length_class =
        std::upper_bound(kLengths.begin(), kLengths.end(), match.length) - kLengths.begin();
    return {s.own.next(match), kPriors[static_cast<std::size_t>(length_class)],
            static_cast<std::uint8_t>(length_class), true, speculator_kind("suffix")};
  }

 private:
  // Shorter ones are as well known to ngram.
  static constexpr int kLeastMatch = 5;
  static constexpr std::array<int, 5> kLengths = {7, 10, 15, 24, 40};  // classes end before these
  static constexpr std::array<float, 6> kPriors = {0.6f, 0.7f, 0.75f, 0.8f, 0.85f, 0.9f};

  using Match = SuffixAutomaton::Match;
  struct Sequence {
    SuffixAutomaton own;
    std::vector<TokenId> path_tokens;  // the draft that was looked up last
    std::vector<Match> path;           // path[i]: before path_tokens[i]; one more at its end
    void forget_draft() {
      path_tokens.clear();
      path.clear();
    }
  };

  static Match look_up(Sequence& s, std::span<const TokenId> drafted) {
    const auto common = static_cast<std::size_t>(
        std::mismatch(drafted.begin(), drafted.end(), s.path_tokens.begin(), s.path_tokens.end())
            .first -
        drafted.begin());
    s.path_tokens.resize(std::min(s.path_tokens.size(), common));
    s.path.resize(std::min(s.path.size(), common + 1));
    if (s.path.empty()) s.path.push_back(s.own.longest_repeat());
    while (s.path.size() <= drafted.size()) {
      const TokenId token = drafted[s.path.size() - 1];
      s.path_tokens.push_back(token);
      s.path.push_back(s.own.step(s.path.back(), token));
    }
    return s.path[drafted.size()];
  }
  Sequence& at(int slot) { return sequences_[static_cast<std::size_t>(slot)]; }

  std::vector<Sequence> sequences_;
};

}  // namespace

std::unique_ptr<Speculator> make_suffix(const DraftSourcesOptions& options) {
  return std::make_unique<SuffixSpeculator>(options);
}

}  // namespace foretoken
