#include "trainer/examples/draft_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace foretoken::trainer {
namespace {

// A prompt's words come back in its answer, but most of a prompt is never said again.
constexpr float kPromptWeight = 0.25f;

}  // namespace

void VocabularyCounts::observe(const RequestTrace& trace) {
  const auto add = [&](TokenId token, float mass) {
    if (token >= 0 && std::size_t(token) < mass_.size()) mass_[std::size_t(token)] += mass;
  };
  for (std::int32_t i = 0; i < trace.n_prompt; ++i)
    add(trace.tokens[std::size_t(i)], kPromptWeight);
  for (std::size_t i = 0; i < trace.generated.size(); ++i) {
    const GeneratedTokenTrace& generated = trace.generated[i];
    add(trace.tokens[std::size_t(trace.n_prompt) + i], 1.0f);
    for (std::size_t t = 0; t < generated.top_ids.size(); ++t) {
      add(generated.top_ids[t],
          std::min(1.0f, std::exp(generated.top_logits[t] - generated.log_sum_exp)));
    }
  }
}

std::vector<TokenId> VocabularyCounts::most_frequent(std::size_t size) const {
  std::vector<TokenId> ids(mass_.size());
  std::iota(ids.begin(), ids.end(), 0);
  size = std::min(size, ids.size());
  std::nth_element(ids.begin(), ids.begin() + std::ptrdiff_t(size), ids.end(),
                   [&](TokenId a, TokenId b) {
                     const float x = mass_[std::size_t(a)], y = mass_[std::size_t(b)];
                     return x != y ? x > y : a < b;
                   });
  ids.resize(size);
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<TokenId> VocabularyCounts::frequent(const std::vector<TokenId>& vocab,
                                                double share) const {
  const double least = share * std::accumulate(mass_.begin(), mass_.end(), 0.0);
  std::vector<TokenId> ids = vocab;
  std::stable_sort(ids.begin(), ids.end(), [&](TokenId a, TokenId b) {
    return mass_[std::size_t(a)] > mass_[std::size_t(b)];
  });
  const auto n = std::size_t(std::ranges::count_if(
      ids, [&](TokenId token) { return mass_[std::size_t(token)] >= least; }));
  ids.resize(std::min(ids.size(), std::max<std::size_t>(16, (n + 15) / 16 * 16)));
  std::sort(ids.begin(), ids.end());
  return ids;
}

double VocabularyCounts::coverage(const std::vector<TokenId>& vocab) const {
  double total = 0, held = 0;
  for (const float m : mass_) total += m;
  for (const TokenId token : vocab) held += mass_[std::size_t(token)];
  return total > 0 ? held / total : 1;
}

bool VocabularyCounts::restore(std::vector<float> mass) {
  if (mass.size() != mass_.size()) return false;
  mass_ = std::move(mass);
  return true;
}

}  // namespace foretoken::trainer
