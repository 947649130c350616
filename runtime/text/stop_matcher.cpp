// Knuth-Morris-Pratt, one automaton a stop string, fed byte by byte: linear whatever the text and
// the stop strings, and by construction the same for any division of the text into chunks.
#include <algorithm>
#include <utility>

#include "runtime/text/tokenizer.h"

namespace foretoken {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    Automaton automaton{std::move(stop), {}, 0};
    // failure[i]: the longest proper prefix of text that is a suffix of text[0..i].
    const std::string& text = automaton.text;
    automaton.failure.resize(text.size());
    for (std::size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = automaton.failure[k - 1];
      if (text[i] == text[k]) ++k;
      automaton.failure[i] = k;
    }
    automata_.push_back(std::move(automaton));
  }
}

StopMatcher::Output StopMatcher::push(std::string_view text) {
  held_ += text;
  const std::size_t old = held_.size() - text.size();
  for (std::size_t at = old; at < held_.size(); ++at) {
    const Automaton* found = nullptr;
    for (Automaton& a : automata_) {
      while (a.matched > 0 && held_[at] != a.text[a.matched]) a.matched = a.failure[a.matched - 1];
      if (held_[at] == a.text[a.matched]) ++a.matched;
      if (a.matched < a.text.size()) continue;
      // Of stop strings that end here the longest: it begins first.
      if (!found || a.text.size() > found->text.size()) found = &a;
    }
    if (!found) continue;
    Output out{held_.substr(0, at + 1 - found->text.size()), found->text};
    held_.clear();
    for (Automaton& a : automata_) a.matched = 0;
    return out;
  }
  std::size_t keep = 0;
  for (const Automaton& a : automata_) keep = std::max(keep, a.matched);
  Output out{held_.substr(0, held_.size() - keep), std::nullopt};
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::finish() {
  for (Automaton& a : automata_) a.matched = 0;
  return std::exchange(held_, {});
}

}  // namespace foretoken
