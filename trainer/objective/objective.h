// What is minimised: how far q (the speculator's distribution) is from p (the target's) at a
// position. One file an objective and one row of the table in objective.cpp; the flag --objective,
// its help and the tests read the table. Plain C++ on a row: over a vocabulary of thousands only
// the teacher's few tokens matter, and autograd would carry whole rows for them. Stateless; any
// thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace foretoken::trainer {

struct Objective {
  std::string_view name;  // as in --objective
  std::string_view what;  // one line for the flag's help
  // p, q: [n], probabilities of the same tokens, 0 where there is none; what is missing from 1 is
  // elsewhere. gradient: [n], zeros on entry, receives d loss / d log q. Returns the loss in nats.
  // A token with q = 0 keeps gradient 0: nothing can raise what the vocabulary lacks.
  double (*loss)(std::span<const float> p, std::span<const float> q, std::span<float> gradient);
};

inline constexpr float kMinQ = 1e-20f;  // below, logarithms are held

std::span<const Objective> objectives();  // the first is the default
std::string objective_help();             // "overlap (...); forward-kl (...); ..."

// Of one row; gradient need not be cleared.
double row_objective(const Objective& objective, std::span<const float> p, std::span<const float> q,
                     std::span<float> gradient);

}  // namespace foretoken::trainer
