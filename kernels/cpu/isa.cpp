#include "foretoken/kernels/isa.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>

#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

struct Row {
  Isa isa;
  std::string_view name;
  CpuOps ops;
};
#define FORETOKEN_OPS(isa, shared)                                                      \
  {                                                                                     \
    isa::kLinear, isa::kAttention, isa::kPeak, shared::kElementwise, shared::kSampling, \
        shared::seal_page                                                               \
  }
// Ascending: each set includes those before it.
constexpr Row kRows[] = {
    {Isa::kScalar, "scalar", FORETOKEN_OPS(scalar, scalar)},
    {Isa::kAvx2, "avx2", FORETOKEN_OPS(avx2, avx2)},
    {Isa::kAvx512, "avx512", FORETOKEN_OPS(avx512, avx512)},
    {Isa::kAvx512Vnni, "avx512-vnni", FORETOKEN_OPS(avx512_vnni, avx512)},
    // Its bf16 products would round what is float (README).
    {Isa::kAvx512VnniBf16, "avx512-vnni-bf16", FORETOKEN_OPS(avx512_vnni, avx512)},
    {Isa::kAvx512Amx, "avx512-amx", FORETOKEN_OPS(avx512_amx, avx512)},
};
#undef FORETOKEN_OPS
constexpr std::size_t kIsas = std::size(kRows);
constexpr bool in_order() {
  for (std::size_t i = 0; i < kIsas; ++i)
    if (kRows[i].isa != static_cast<Isa>(i)) return false;
  return true;
}
static_assert(in_order());

struct Supported {
  std::array<Isa, kIsas> isas{};
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

// A prefix of kRows. __builtin_cpu_supports also asks the operating system whether it saves the
// wider registers.
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

const Row* find(std::string_view name) {
  for (const Row& row : std::span(kRows).first(supported().count))
    if (row.name == name) return &row;
  return nullptr;
}

// Of a name that is none, or not this machine's, the caller prints an error before any kernel runs.
const Row* first_choice() {
  const char* forced = std::getenv("FORETOKEN_ISA");
  const Row* row = forced ? find(forced) : nullptr;
  return row ? row : &kRows[supported().count - 1];
}

std::atomic<const Row*>& chosen() {
  static std::atomic<const Row*> row{first_choice()};
  return row;
}

}  // namespace

std::string_view isa_name(Isa isa) { return kRows[static_cast<std::size_t>(isa)].name; }

std::span<const Isa> supported_isas() { return {supported().isas.data(), supported().count}; }

Isa active_isa() { return chosen().load(std::memory_order_relaxed)->isa; }

const CpuOps& cpu_ops() { return chosen().load(std::memory_order_relaxed)->ops; }

bool set_isa(std::string_view name) {
  const Row* row = find(name);
  if (row) chosen().store(row, std::memory_order_relaxed);
  return row != nullptr;
}

bool isa_environment_is_valid() {
  const char* forced = std::getenv("FORETOKEN_ISA");
  return forced == nullptr || find(forced) != nullptr;
}

}  // namespace foretoken::kernels
