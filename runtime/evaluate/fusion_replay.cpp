#include "runtime/evaluate/fusion_replay.h"

#include <algorithm>
#include <cmath>

namespace foretoken {
namespace {

// log of the normaliser of the filtered distribution at temperature T, in the scale of logit / T.
double log_normaliser(const GeneratedTokenTrace& generated, TokenId emitted, double temperature) {
  const auto found = std::find(generated.top_ids.begin(), generated.top_ids.end(), emitted);
  if (found != generated.top_ids.end()) {
    const auto rank = std::size_t(found - generated.top_ids.begin());
    return double(generated.top_logits[rank]) / temperature - double(generated.logprob);
  }
  // The emitted token is not among the top: no filter cut inside them. The tail's mass at T = 1 is
  // known; at T < 1 it is largest when its tokens lie as high as they can, at the last logged
  // logit: an upper bound, and tight.
  const double last = generated.top_logits.back(), first = generated.top_logits.front();
  double sum = 0, mass = 0;
  for (const float logit : generated.top_logits) {
    sum += std::exp((double(logit) - first) / temperature);
    mass += std::exp(double(logit) - generated.log_sum_exp);
  }
  const double tail_tokens = std::max(0.0, 1.0 - mass) * std::exp(generated.log_sum_exp - last);
  sum += tail_tokens * std::exp((last - first) / temperature);
  return first / temperature + std::log(sum);
}

struct Scores {
  std::array<double, kMaxCandidates> q{};
  double q_other = 0;
};

Scores table_probabilities(const FusionPosition& position, const FusionTable& table) {
  Scores scores;
  std::array<double, kMaxCandidates> logits{};
  for (int c = 0; c < position.n_candidates; ++c)
    logits[position.token_of[std::size_t(c)]] += table.bias[position.fusion_class[std::size_t(c)]];
  const double scale = position.inverse_temperature;
  double top = double(table.other) * scale;
  for (int i = 0; i < position.n_tokens; ++i) top = std::max(top, logits[std::size_t(i)] * scale);
  double sum = scores.q_other = std::exp(double(table.other) * scale - top);
  for (int i = 0; i < position.n_tokens; ++i)
    sum += scores.q[std::size_t(i)] = std::exp(logits[std::size_t(i)] * scale - top);
  scores.q_other /= sum;
  for (int i = 0; i < position.n_tokens; ++i) scores.q[std::size_t(i)] /= sum;
  return scores;
}

}  // namespace

std::vector<float> target_probabilities(const GeneratedTokenTrace& generated, TokenId emitted,
                                        float temperature, const std::vector<TokenId>& tokens) {
  std::vector<float> p(tokens.size(), 0.0f);
  if (temperature <= 0 || generated.top_ids.empty()) {
    for (std::size_t i = 0; i < tokens.size(); ++i) p[i] = tokens[i] == emitted ? 1.0f : 0.0f;
    return p;
  }
  const double normaliser = log_normaliser(generated, emitted, temperature);
  const auto put = [&](TokenId token, double value) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] == token) p[i] = float(std::min(value, 1.0));
    }
  };
  put(emitted, std::exp(double(generated.logprob)));
  // What passes 1 by more than rounding was filtered away.
  constexpr double kRounding = 1e-3;
  double cumulative = 0;
  for (std::size_t rank = 0; rank < generated.top_ids.size(); ++rank) {
    const double value = std::exp(double(generated.top_logits[rank]) / temperature - normaliser);
    cumulative += value;
    if (cumulative > 1.0 + kRounding) break;
    put(generated.top_ids[rank], value);
  }
  const float total = [&] {
    float sum = 0;
    for (const float value : p) sum += value;
    return sum;
  }();
  if (total > 1.0f) {
    for (float& value : p) value /= total;
  }
  return p;
}

std::vector<FusionPosition> fusion_positions(const RequestTrace& trace) {
  std::vector<FusionPosition> positions;
  positions.reserve(trace.generated.size());
  std::vector<TokenId> tokens;
  for (std::size_t i = 0; i < trace.generated.size(); ++i) {
    const GeneratedTokenTrace& generated = trace.generated[i];
    if (generated.candidates.empty()) continue;
    FusionPosition position;
    tokens.clear();
    for (const Candidate& candidate : generated.candidates) {
      const auto found = std::find(tokens.begin(), tokens.end(), candidate.token);
      position.fusion_class[position.n_candidates] = candidate.fusion_class;
      position.token_of[position.n_candidates++] = std::uint8_t(found - tokens.begin());
      if (found == tokens.end()) tokens.push_back(candidate.token);
    }
    position.n_tokens = std::uint8_t(tokens.size());
    const TokenId emitted = trace.tokens[std::size_t(trace.n_prompt) + i];
    const auto p = target_probabilities(generated, emitted, trace.sampling.temperature, tokens);
    float sum = 0;
    for (std::size_t t = 0; t < p.size(); ++t) sum += position.p[t] = p[t];
    position.p_other = std::max(0.0f, 1.0f - sum);
    position.inverse_temperature =
        trace.sampling.temperature > 0 ? 1.0f / trace.sampling.temperature : 1.0f;
    positions.push_back(position);
  }
  return positions;
}

double overlap(const FusionPosition& position, const FusionTable& table) {
  const Scores scores = table_probabilities(position, table);
  double sum = std::min(double(position.p_other), scores.q_other);
  for (int i = 0; i < position.n_tokens; ++i)
    sum += std::min(double(position.p[std::size_t(i)]), scores.q[std::size_t(i)]);
  return sum;
}

}  // namespace foretoken
