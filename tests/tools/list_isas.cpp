// Prints the instruction sets the kernels can run on here, one a line, widest last: tests/run
// forces each in turn.
#include <cstdio>
#include <string>

#include "foretoken/kernels/isa.h"

int main() {
  for (const auto isa : foretoken::kernels::supported_isas())
    std::puts(std::string(foretoken::kernels::isa_name(isa)).c_str());
}
