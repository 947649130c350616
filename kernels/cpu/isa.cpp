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

// __builtin_cpu_supports also asks the operating system whether it saves the wider registers.
#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
bool has_avx2() { return HAS("avx2") && HAS("fma") && HAS("f16c"); }
bool has_avx512() {
  return HAS("avx512f") && HAS("avx512bw") && HAS("avx512vl") && HAS("avx512dq");
}
bool has_vnni() { return HAS("avx512vnni"); }
bool has_bf16() { return HAS("avx512bf16"); }
#undef HAS

struct Row {
  Isa isa;
  std::string_view name;
  bool (*here)();  // what it needs beyond the row before
  CpuOps ops;
};
#define FORETOKEN_OPS(isa, shared)                                                      \
  {                                                                                     \
    isa::kLinear, isa::kAttention, isa::kPeak, shared::kElementwise, shared::kSampling, \
        shared::seal_page                                                               \
  }
// Ascending: each set includes those before it.
constexpr Row kRows[] = {
    {Isa::kScalar, "scalar", [] { return true; }, FORETOKEN_OPS(scalar, scalar)},
    {Isa::kAvx2, "avx2", has_avx2, FORETOKEN_OPS(avx2, avx2)},
    {Isa::kAvx512, "avx512", has_avx512, FORETOKEN_OPS(avx512, avx512)},
    {Isa::kAvx512Vnni, "avx512-vnni", has_vnni, FORETOKEN_OPS(avx512_vnni, avx512)},
    // Its bf16 products would round what is float (README).
    {Isa::kAvx512VnniBf16, "avx512-vnni-bf16", has_bf16, FORETOKEN_OPS(avx512_vnni, avx512)},
    {Isa::kAvx512Amx, "avx512-amx", has_amx, FORETOKEN_OPS(avx512_amx, avx512)},
};
#undef FORETOKEN_OPS
constexpr auto kIsas = [] {
  std::array<Isa, std::size(kRows)> isas{};
  for (std::size_t i = 0; i < isas.size(); ++i) isas[i] = kRows[i].isa;
  return isas;
}();
static_assert([] {
  for (std::size_t i = 0; i < kIsas.size(); ++i)
    if (kIsas[i] != static_cast<Isa>(i)) return false;
  return true;
}());

// A prefix of kRows.
std::size_t supported() {
  static const std::size_t count = [] {
    __builtin_cpu_init();
    std::size_t n = 0;
    while (n < kIsas.size() && kRows[n].here()) ++n;
    return n;
  }();
  return count;
}

const Row* find(std::string_view name) {
  for (const Row& row : std::span(kRows).first(supported()))
    if (row.name == name) return &row;
  return nullptr;
}

// Of a name that is none, or not this machine's, the caller prints an error before any kernel runs.
const Row* first_choice() {
  const char* forced = std::getenv("FORETOKEN_ISA");
  const Row* row = forced ? find(forced) : nullptr;
  return row ? row : &kRows[supported() - 1];
}

std::atomic<const Row*>& chosen() {
  static std::atomic<const Row*> row{first_choice()};
  return row;
}

}  // namespace

std::string_view isa_name(Isa isa) { return kRows[static_cast<std::size_t>(isa)].name; }

std::span<const Isa> supported_isas() { return std::span(kIsas).first(supported()); }

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
