// Which instruction set the kernels run on. Detected once; FORETOKEN_ISA forces one (an unknown or
// unsupported name is an error the caller prints). The choice is one pointer to a
// table of kernels (cpu/cpu_ops.h), which every operation reads.
#pragma once

#include <span>
#include <string_view>

namespace foretoken::kernels {

enum class Device { kCpu, kCuda };

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Vnni, kAvx512VnniBf16, kAvx512Amx };

std::string_view isa_name(
    Isa isa);  // "scalar", "avx2", "avx512", "avx512-vnni", "avx512-vnni-bf16", "avx512-amx"
std::span<const Isa> supported_isas();  // of this machine, ascending
Isa active_isa();                     // the widest supported, or what FORETOKEN_ISA / set_isa chose
bool set_isa(std::string_view name);  // false: unknown or unsupported here. Not while kernels run.
bool isa_environment_is_valid();  // false if FORETOKEN_ISA names something unknown or unsupported

}  // namespace foretoken::kernels
