#include "trainer/head/head_batch.h"

#include <cmath>
#include <limits>

#include "trainer/head/adam.h"

namespace foretoken::trainer {
namespace {

constexpr float kAbsent = -std::numeric_limits<float>::infinity();

// The column of a token in a row: the vocabulary's, else that of a candidate outside it, else -1.
struct Columns {
  const HeadVocabulary& vocabulary;
  std::span<const Candidate> candidates;
  std::span<const std::int32_t> candidate_columns;

  std::int32_t of(TokenId token) const {
    const std::int32_t slot = vocabulary.slot_of[std::size_t(token)];
    if (slot >= 0) return slot;
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      if (candidates[c].token == token) return candidate_columns[c];
    }
    return -1;
  }
};

std::span<const Candidate> candidates_of(const HeadBatch::Row& row) {
  const auto at = std::size_t(row.predicted);
  return {&row.example->candidates[at * kMaxCandidates], row.example->n_candidates[at]};
}

}  // namespace

HeadBatch make_head_batch(std::span<const ChainRange> ranges, int n_steps,
                          const VocabularyRows& model) {
  const std::int64_t hidden = model.hidden(), width = kHeadTaps * hidden;
  HeadBatch batch;
  batch.n_steps = n_steps;
  for (const ChainRange& range : ranges) {
    batch.n += range.count;
    batch.kept.push_back(range.example);
  }
  const auto values = torch::empty({batch.n, width}, torch::kFloat16);
  const auto scales = torch::empty({batch.n, kHeadTaps, 1});
  const auto embedded = torch::zeros({n_steps, batch.n, hidden});
  batch.rows.resize(std::size_t(n_steps * batch.n));
  std::int64_t chain = 0;
  for (const ChainRange& range : ranges) {
    const HeadExample& example = *range.example;
    const std::int64_t row = range.start - example.first;
    std::copy_n(&example.features[std::size_t(row * width)], range.count * width,
                reinterpret_cast<std::uint16_t*>(values.data_ptr<c10::Half>()) + chain * width);
    std::copy_n(&example.scales[std::size_t(row * kHeadTaps)], range.count * kHeadTaps,
                scales.data_ptr<float>() + chain * kHeadTaps);
    for (std::int32_t c = 0; c < range.count; ++c, ++chain) {
      for (int s = 0; s < n_steps; ++s) {
        const std::int32_t newest = range.start + c + s;
        if (newest + 1 >= example.n) break;
        batch.rows[std::size_t(s * batch.n + chain)] = {&example, newest + 1};
        model.embedding(example.tokens[std::size_t(newest)],
                        embedded.data_ptr<float>() + (s * batch.n + chain) * hidden);
      }
    }
  }
  batch.x = unit_rms(values.view({batch.n, kHeadTaps, hidden}).to(torch::kFloat32) * scales)
                .view({batch.n, width});
  const auto unit = unit_rms(embedded);
  for (int s = 0; s < n_steps; ++s) batch.embedded.push_back(unit.select(0, s));
  return batch;
}

HeadScores head_scores(const HeadParameters& head, const HeadVocabulary& vocabulary,
                       const HeadBatch& batch, const torch::Tensor& r) {
  torch::NoGradGuard no_grad;
  const std::int64_t n_rows = r.size(0), n_vocab = vocabulary.rows.size(0),
                     width = n_vocab + HeadBatch::kSlots;
  HeadScores out;
  out.scores = torch::empty({n_rows, width});
  auto base = out.scores.narrow(1, 0, n_vocab);
  if (vocabulary.rows.scalar_type() == torch::kFloat32) {
    at::mm_out(base, r, vocabulary.rows.t());
    base.mul_(head.gain);
  } else {
    at::mul_out(base, torch::mm(r.to(vocabulary.rows.scalar_type()), vocabulary.rows.t()),
                head.gain);
  }
  out.scores.narrow(1, n_vocab, HeadBatch::kSlots).fill_(kAbsent);
  const auto source_terms = torch::mm(r, head.source.t());  // [rows, kHeadSources]
  const float* bias = head.bias.data_ptr<float>();
  const float outside = head.outside.item<float>(), gain = head.gain.item<float>();
  const float* candidate_gain = head.candidate_gain.data_ptr<float>();
  out.columns.resize(std::size_t(n_rows));
  out.raw.resize(std::size_t(n_rows));
  bool scaled = false;
  for (std::int64_t i = 0; i < n_rows; ++i) {
    const HeadBatch::Row& row = batch.rows[std::size_t(i)];
    if (!row.example) continue;
    float* scores = out.scores.data_ptr<float>() + i * width;
    const float* terms = source_terms.data_ptr<float>() + i * kHeadSources;
    const auto candidates = candidates_of(row);
    auto& columns = out.columns[std::size_t(i)];
    std::int32_t n_extra = 0;
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      const Columns known{vocabulary, candidates.first(c), columns};
      std::int32_t column = known.of(candidates[c].token);
      if (column < 0) {
        column = std::int32_t(n_vocab) + n_extra++;
        scores[column] = outside;
      }
      columns[c] = column;
      out.raw[std::size_t(i)][c] = column < n_vocab ? scores[column] / gain : 0.0f;
    }
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      const int source = head_source(candidates[c].fusion_class);
      scores[columns[c]] += bias[candidates[c].fusion_class] + terms[source] +
                            candidate_gain[source] * out.raw[std::size_t(i)][c];
    }
    scaled |= row.example->inverse_temperature != 1.0f;
  }
  if (scaled) {
    auto factor = torch::ones({n_rows, 1});
    for (std::int64_t i = 0; i < n_rows; ++i) {
      if (const auto* example = batch.rows[std::size_t(i)].example)
        factor.data_ptr<float>()[i] = example->inverse_temperature;
    }
    out.scores.mul_(factor);
  }
  return out;
}

HeadLoss head_loss(const Objective& objective, const HeadParameters& head,
                   const HeadVocabulary& vocabulary, const HeadBatch& batch,
                   const torch::Tensor& r_in, std::span<const double> row_weight,
                   double refused_weight) {
  torch::NoGradGuard no_grad;
  const auto r = r_in.detach();
  const HeadScores scored = head_scores(head, vocabulary, batch, r);
  const std::int64_t n_rows = r.size(0), n_vocab = vocabulary.rows.size(0),
                     width = n_vocab + HeadBatch::kSlots;
  const auto q = torch::softmax(scored.scores, 1);
  const auto factor = torch::zeros({n_rows, 1});
  std::vector<float> gradient(std::size_t(n_rows) * kTeacherTokens);
  std::vector<std::int32_t> teacher_columns(gradient.size(), -1);
  HeadLoss loss;
  const auto first_choice = q.narrow(0, 0, batch.n).max(1);
  const auto chosen_q = std::get<0>(first_choice), chosen = std::get<1>(first_choice);
  loss.predicted.assign(std::size_t(batch.n), 0.0f);
  loss.accepted.assign(std::size_t(batch.n), false);
  std::array<float, kTeacherTokens> p{}, q_of{};
  for (std::int64_t i = 0; i < n_rows; ++i) {
    const HeadBatch::Row& row = batch.rows[std::size_t(i)];
    if (!row.example) continue;
    const float* q_row = q.data_ptr<float>() + i * width;
    const Columns columns{vocabulary, candidates_of(row), scored.columns[std::size_t(i)]};
    const auto at = std::size_t(row.predicted) * kTeacherTokens;
    std::int32_t* to = &teacher_columns[std::size_t(i) * kTeacherTokens];
    for (std::size_t t = 0; t < kTeacherTokens; ++t) {
      const TokenId token = row.example->teacher_ids[at + t];
      to[t] = token < 0 ? -1 : columns.of(token);
      p[t] = row.example->teacher_p[at + t];
      q_of[t] = to[t] < 0 ? 0.0f : q_row[to[t]];
    }
    if (i < batch.n) {
      const TokenId emitted = row.example->tokens[std::size_t(row.predicted)];
      loss.predicted[std::size_t(i)] = chosen_q.data_ptr<float>()[i];
      loss.accepted[std::size_t(i)] = chosen.data_ptr<std::int64_t>()[i] == columns.of(emitted);
    }
    const double weight = row_weight[std::size_t(i / batch.n)] *
                          (row.example->refused[std::size_t(row.predicted)] ? refused_weight : 1);
    std::span<float> g(&gradient[std::size_t(i) * kTeacherTokens], kTeacherTokens);
    loss.sum += weight * row_objective(objective, p, q_of, g);
    loss.weight += weight;
    // d loss / d logit_v = g_v - q_v * sum g; the scale of T and the row's weight go with both.
    const auto scale = static_cast<float>(weight) * row.example->inverse_temperature;
    float sum = 0;
    for (float& value : g) sum += value *= scale;
    factor.data_ptr<float>()[i] = -sum;
  }
  auto logit_gradient = q.mul(factor);  // [rows, V + slots]
  auto source_gradient = torch::zeros({n_rows, kHeadSources});
  auto bias_gradient = torch::zeros({kFusionClasses}), outside_gradient = torch::zeros({1}),
       own_gradient = torch::zeros({kHeadSources});
  const float gain = head.gain.item<float>();
  const float* candidate_gain = head.candidate_gain.data_ptr<float>();
  for (std::int64_t i = 0; i < n_rows; ++i) {
    const HeadBatch::Row& row = batch.rows[std::size_t(i)];
    if (!row.example) continue;
    float* g = logit_gradient.data_ptr<float>() + i * width;
    for (std::size_t t = 0; t < kTeacherTokens; ++t) {
      const auto at = std::size_t(i) * kTeacherTokens + t;
      if (teacher_columns[at] >= 0) g[teacher_columns[at]] += gradient[at];
    }
    const auto candidates = candidates_of(row);
    std::int32_t next_extra = std::int32_t(n_vocab);
    std::array<float, kMaxCandidates> through_own{};
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      const std::int32_t column = scored.columns[std::size_t(i)][c];
      const int s = head_source(candidates[c].fusion_class);
      own_gradient.data_ptr<float>()[s] += g[column] * scored.raw[std::size_t(i)][c];
      if (column < n_vocab) through_own[c] = g[column] * candidate_gain[s] / gain;
      bias_gradient.data_ptr<float>()[candidates[c].fusion_class] += g[column];
      source_gradient.data_ptr<float>()[i * kHeadSources + s] += g[column];
      if (column == next_extra) {  // its first candidate: the slot begins at `outside`
        *outside_gradient.data_ptr<float>() += g[column];
        ++next_extra;
      }
    }
    // Of gain * (row . r), which a candidate's own gain raises as well.
    for (std::size_t c = 0; c < candidates.size(); ++c)
      g[scored.columns[std::size_t(i)][c]] += through_own[c];
  }
  const auto through_rows =
      product(logit_gradient.narrow(1, 0, n_vocab), vocabulary.rows.t());  // [rows, H]
  add_gradient(head.gain, (through_rows * r).sum().reshape({1}) -
                              torch::dot(head.candidate_gain, own_gradient) / gain);
  add_gradient(head.candidate_gain, own_gradient);
  add_gradient(head.bias, bias_gradient);
  add_gradient(head.outside, outside_gradient);
  add_gradient(head.source, torch::mm(source_gradient.t(), r));
  loss.r_gradient = through_rows.mul(head.gain) + torch::mm(source_gradient, head.source);
  return loss;
}

}  // namespace foretoken::trainer
