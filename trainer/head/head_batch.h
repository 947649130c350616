// Chains of some examples as tensors, the target's frozen rows looked up; and what a head makes of
// them: scores, loss and its gradient. One of the few headers that name torch.
#pragma once

#include <memory>
#include <span>

#include "trainer/examples/head_example.h"
#include "trainer/head/recurrent_head.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {

// Chains that start at generated tokens start .. start + count - 1 of an example.
struct ChainRange {
  std::shared_ptr<const HeadExample> example;
  std::int32_t start = 0, count = 0;
};

// Rows are step-major: row s * n + c is step s of chain c, which predicts generated token
// start + 1 + s of its request; rows past the request's end have weight 0 and nothing else.
struct HeadBatch {
  static constexpr int kSlots = kMaxCandidates;  // extra slots a row, after the vocabulary's

  std::int64_t n = 0;
  int n_steps = 0;
  torch::Tensor x;                      // [n, 4H], each tap's rms one
  std::vector<torch::Tensor> embedded;  // n_steps of [n, H], each row's rms one
  // Where a row's prediction is in its example; null past the end.
  struct Row {
    const HeadExample* example = nullptr;
    std::int32_t predicted = 0;
  };
  std::vector<Row> rows;                                 // [n_steps * n]
  std::vector<std::shared_ptr<const HeadExample>> kept;  // what rows point into
};
HeadBatch make_head_batch(std::span<const ChainRange> ranges, int n_steps,
                          const VocabularyRows& model);

// Scores of every row: [rows, V + kSlots], candidates added, times 1 / T; a slot after the
// vocabulary's is a candidate token outside it (-inf where there is none). r: [rows, H].
struct HeadScores {
  torch::Tensor scores;
  // Of each row's candidates: its column in scores.
  std::vector<std::array<std::int32_t, kMaxCandidates>> columns;
  // And its output row . r, before the gain; 0 outside the vocabulary.
  std::vector<std::array<float, kMaxCandidates>> raw;
};
HeadScores head_scores(const HeadParameters& head, const HeadVocabulary& vocabulary,
                       const HeadBatch& batch, const torch::Tensor& r);

// The weighted sum of the rows' losses and its gradients. row_weight: of each step, [n_steps];
// refused_weight: a factor where a draft was refused.
// Gradients of the parameters that act here are added to their .grad; that of r is returned.
struct HeadLoss {
  double sum = 0, weight = 0;  // weight: of the rows that exist
  torch::Tensor r_gradient;    // [rows, H]
  // Of each chain's first step: the head's probability of its first choice, and whether that was
  // what came.
  std::vector<float> predicted;  // [n]; 0 where there is no row
  std::vector<bool> accepted;
};
HeadLoss head_loss(const Objective& objective, const HeadParameters& head,
                   const HeadVocabulary& vocabulary, const HeadBatch& batch, const torch::Tensor& r,
                   std::span<const double> row_weight, double refused_weight = 1);

}  // namespace foretoken::trainer
