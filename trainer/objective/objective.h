// What is minimised, by name: how far q (the speculator's) is from p (the target's) at a position.
// - overlap: -log sum_v min(p(v), q(v)), the chance that a draft is accepted; it learned fastest in
//   our trials.
// - forward-kl: sum_v p(v) log(p(v) / q(v)).
// - cross-entropy: -log q(most probable token of p).
// - hybrid: l KL + (1 - l) (1 - a), a the overlap, l = exp(-3 a) held fixed in the gradient: the
//   divergence while little is accepted, total variation once much is (LK loss, arXiv 2602.23881).
#pragma once

#include "trainer/head/torch_headers.h"
#include "trainer/objective/objective_kind.h"

namespace foretoken::trainer {

// p, log_q: [n, m]; log_q may be -inf where p is 0. Returns the loss of each row, [n].
torch::Tensor objective(ObjectiveKind kind, const torch::Tensor& p, const torch::Tensor& log_q);

}  // namespace foretoken::trainer
