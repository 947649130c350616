#include "trainer/objective/objective.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace foretoken::trainer {

// Each in the file of its name.
using Row = std::span<const float>;
double overlap_loss(Row p, Row q, std::span<float> gradient);
double forward_kl_loss(Row p, Row q, std::span<float> gradient);
double cross_entropy_loss(Row p, Row q, std::span<float> gradient);
double hybrid_loss(Row p, Row q, std::span<float> gradient);

namespace {

constexpr std::array kObjectives = {
    Objective{"overlap", "-log of the chance that a draft is accepted", overlap_loss},
    Objective{"forward-kl", "the divergence of q from p", forward_kl_loss},
    Objective{"cross-entropy", "-log q of the target's most probable token", cross_entropy_loss},
    Objective{"hybrid", "divergence while little is accepted, total variation later", hybrid_loss},
};

}  // namespace

std::span<const Objective> objectives() { return kObjectives; }

std::string objective_help() {
  std::string help;
  for (const Objective& row : kObjectives)
    help += fmt::format("{}{} ({})", help.empty() ? "" : "; ", row.name, row.what);
  return help;
}

double row_objective(const Objective& objective, std::span<const float> p, std::span<const float> q,
                     std::span<float> gradient) {
  std::ranges::fill(gradient, 0.0f);
  return objective.loss(p, q, gradient);
}

}  // namespace foretoken::trainer
