#include "trainer/examples/head_example.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "foretoken/protocol/frame.h"
#include "runtime/evaluate/fusion_replay.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken::trainer {

namespace {

// The target's distribution of temperature 1 at another one: p^(1/T) over its sum. Of the tokens
// that were not logged the mass is known; they are taken to be as likely as the last that was,
// which is exact at 1 and says too little of the logged ones below.
void teach(const GeneratedTokenTrace& generated, double temperature, std::span<float> p) {
  const double power = 1 / temperature;
  double listed = 0, sum = 0, last = 1;
  for (const float logit : generated.top_logits) {
    last = std::min(1.0, std::exp(double(logit) - generated.log_sum_exp));
    listed += last;
    sum += std::pow(last, power);
  }
  sum += std::max(0.0, 1 - listed) * std::pow(last, power - 1);
  for (std::size_t t = 0; t < p.size(); ++t) {
    const double of_one = std::exp(double(generated.top_logits[t]) - generated.log_sum_exp);
    p[t] = sum > 0 ? float(std::pow(std::min(1.0, of_one), power) / sum) : 0.0f;
  }
}

}  // namespace

std::size_t HeadExample::bytes() const {
  return sizeof *this + tokens.size() * sizeof(TokenId) + features.size() * 2 + scales.size() * 4 +
         teacher_ids.size() * sizeof(TokenId) + teacher_p.size() * 4 + n_candidates.size() +
         refused.size() + candidates.size() * sizeof(Candidate);
}

std::optional<HeadExample> head_example(const RequestTrace& trace, std::int64_t hidden,
                                        std::int64_t n_vocab, double greedy_temperature) {
  if (trace.n_taps != kHeadTaps || trace.tap_width != hidden) return std::nullopt;
  const std::int64_t rows = trace.tap_positions();
  const auto n = std::int64_t(trace.generated.size());
  const std::int64_t before = trace.n_prompt - 1;  // the position before generated token 0
  // Tap rows are of the positions tap_first .. tap_first + rows - 1.
  const std::int64_t first = std::max<std::int64_t>(0, trace.tap_first - before);
  const std::int64_t end = std::min(n, trace.tap_first + rows - before);  // generated, exclusive
  if (before < 0 || end - first < 2) return std::nullopt;

  HeadExample example;
  example.n = std::int32_t(end);
  example.first = std::int32_t(first);
  example.hidden = std::int32_t(hidden);
  example.tap_layers = trace.tap_layers;
  example.domain = content_hash(std::as_bytes(std::span(trace.domain)));
  const float temperature = trace.sampling.temperature;
  example.inverse_temperature = temperature > 0 ? 1.0f / temperature : 1.0f;
  example.tokens.assign(trace.tokens.begin() + trace.n_prompt,
                        trace.tokens.begin() + trace.n_prompt + end);
  const std::size_t from = std::size_t(before + first - trace.tap_first),
                    width = std::size_t(kHeadTaps * hidden);
  const auto n_rows = std::size_t(end - first);
  example.features.assign(trace.tap_values.begin() + std::ptrdiff_t(from * width),
                          trace.tap_values.begin() + std::ptrdiff_t((from + n_rows) * width));
  example.scales.assign(trace.tap_scales.begin() + std::ptrdiff_t(from * kHeadTaps),
                        trace.tap_scales.begin() + std::ptrdiff_t((from + n_rows) * kHeadTaps));

  example.teacher_ids.assign(std::size_t(end) * kTeacherTokens, -1);
  example.teacher_p.assign(std::size_t(end) * kTeacherTokens, 0.0f);
  example.refused.assign(std::size_t(end), 0);
  for (const RoundTrace& round : trace.rounds) {
    const std::int64_t at = std::int64_t(round.start) + round.accepted - trace.n_prompt;
    if (std::size_t(round.accepted) < round.drafted.size() && at >= 0 && at < end)
      example.refused[std::size_t(at)] = 1;
  }
  example.n_candidates.assign(std::size_t(end), 0);
  example.candidates.assign(std::size_t(end) * kMaxCandidates, {});
  for (std::size_t i = 0; i < std::size_t(end); ++i) {
    const GeneratedTokenTrace& generated = trace.generated[i];
    const std::size_t k = std::min<std::size_t>(kTeacherTokens, generated.top_ids.size());
    TokenId* ids = &example.teacher_ids[i * kTeacherTokens];
    float* p = &example.teacher_p[i * kTeacherTokens];
    std::copy_n(generated.top_ids.begin(), k, ids);
    if (k == 0) {  // no top logits were logged: the emitted token is all that is known
      ids[0] = example.tokens[i];
      p[0] = 1;
    } else if (temperature > 0) {
      const std::vector<TokenId> tokens(ids, ids + k);
      const auto all = target_probabilities(generated, example.tokens[i], temperature, tokens);
      std::copy(all.begin(), all.end(), p);
    } else {
      teach(generated, greedy_temperature, {p, k});
    }
    const std::size_t c = std::min<std::size_t>(kMaxCandidates, generated.candidates.size());
    example.n_candidates[i] = std::uint8_t(c);
    std::copy_n(generated.candidates.begin(), c, &example.candidates[i * kMaxCandidates]);
  }
  // A trace is a stranger's: an id that this model does not have would index past its tables.
  const auto known = [&](TokenId token) { return token >= 0 && token < n_vocab; };
  if (!std::ranges::all_of(example.tokens, known) ||
      !std::ranges::all_of(example.teacher_ids, [&](TokenId t) { return t == -1 || known(t); }) ||
      !std::ranges::all_of(example.candidates, [&](const Candidate& c) {
        return known(c.token) && c.fusion_class < kFusionClasses;
      })) {
    return std::nullopt;
  }
  return example;
}

}  // namespace foretoken::trainer
