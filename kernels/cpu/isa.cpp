#include "foretoken/kernels/isa.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <atomic>
#include <cstdlib>

namespace foretoken::kernels {
namespace {

constexpr std::array<std::string_view, 6> kNames = {
    "scalar", "avx2", "avx512", "avx512-vnni", "avx512-vnni-bf16", "avx512-amx"};

struct Supported {
  std::array<Isa, 6> isas{};
  std::size_t count = 0;
};

// Tiles of bytes and of bf16, and the system's leave to use them: Linux gives it to a process that
// asks, for their 8 KiB of state would otherwise enlarge every signal frame.
bool has_amx() {
#if defined(__linux__) && defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kTile) == 0 || (d & kInt8) == 0 || (d & kBf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

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
  if (!has_amx()) return s;
  s.isas[s.count++] = Isa::kAvx512Amx;
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
