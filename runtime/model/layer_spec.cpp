#include "runtime/model/layer_spec.h"

#include <fmt/format.h>

namespace foretoken {

std::optional<std::string> unsupported(const LayerSpec& layer) {
  if (std::holds_alternative<RecurrentSpec>(layer.mixer)) return "a recurrent layer";
  const auto& attention = std::get<AttentionSpec>(layer.mixer);
  if (attention.window > 0)
    return fmt::format("a sliding window of {} positions", attention.window);
  if (attention.sinks) return "attention sinks";
  if (attention.soft_cap > 0) return fmt::format("a soft cap of {} on scores", attention.soft_cap);
  if (const auto* routed = std::get_if<RoutedFfnSpec>(&layer.ffn))
    return fmt::format("a mixture of {} experts", routed->n_experts);
  return std::nullopt;
}

}  // namespace foretoken
