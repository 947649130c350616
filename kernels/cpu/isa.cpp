#include "foretoken/kernels/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>

namespace foretoken::kernels {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"scalar", "avx2", "avx512", "avx512-vnni",
                                                    "avx512-vnni-bf16"};

struct Supported {
  std::array<Isa, 5> isas{};
  std::size_t count = 0;
};

// Each level includes the one below, so the list is a prefix of the enum. __builtin_cpu_supports
// also asks the operating system whether it saves the wider registers.
Supported detect() {
  Supported s;
  s.isas[s.count++] = Isa::kScalar;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return s;
  }
  s.isas[s.count++] = Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return s;
  }
  s.isas[s.count++] = Isa::kAvx512;
  if (!__builtin_cpu_supports("avx512vnni")) return s;
  s.isas[s.count++] = Isa::kAvx512Vnni;
  if (!__builtin_cpu_supports("avx512bf16")) return s;
  s.isas[s.count++] = Isa::kAvx512VnniBf16;
  return s;
}

const Supported& supported() {
  static const Supported s = detect();
  return s;
}

bool find(std::string_view name, Isa* isa) {
  for (Isa candidate : supported_isas()) {
    if (isa_name(candidate) == name) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

Isa initial_isa() {
  Isa isa = supported_isas().back();
  if (const char* forced = std::getenv("FORETOKEN_ISA")) find(forced, &isa);
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

std::string_view isa_name(Isa isa) { return kNames[static_cast<std::size_t>(isa)]; }

std::span<const Isa> supported_isas() { return {supported().isas.data(), supported().count}; }

Isa active_isa() { return active().load(std::memory_order_relaxed); }

bool set_isa(std::string_view name) {
  Isa isa;
  if (!find(name, &isa)) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

bool isa_environment_is_valid() {
  const char* forced = std::getenv("FORETOKEN_ISA");
  Isa isa;
  return forced == nullptr || find(forced, &isa);
}

}  // namespace foretoken::kernels
