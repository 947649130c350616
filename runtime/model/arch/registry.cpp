#include <array>

#include "runtime/model/arch/architecture.h"

namespace foretoken {

extern const Architecture kLlama, kOlmo2, kQwen2, kQwen3;

namespace {

constexpr std::array kArchitectures = {
    &kLlama,  // Llama 1 to 3.3, Mistral 7B and Small, SmolLM2, Hermes, R1-Distill-Llama
    &kOlmo2,  // OLMo 2
    &kQwen2,  // Qwen 2, 2.5, 2.5 Coder, R1-Distill-Qwen
    &kQwen3,  // Qwen 3 dense, 0.6B to 32B; R1-0528-Qwen3-8B
};

}  // namespace

std::span<const Architecture* const> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture* a : kArchitectures) {
    if (name == a->name) return a;
  }
  return nullptr;
}

std::string architecture_names() {
  std::string names;
  for (const Architecture* a : kArchitectures)
    names += (names.empty() ? "" : ", ") + std::string(a->name);
  return names;
}

}  // namespace foretoken
