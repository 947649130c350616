// What this binary is: for --version, /version and the build_info metric.
#pragma once

namespace foretoken {

const char* build_version();  // "0.1.0"
const char* build_git();      // short commit, "unknown" outside a checkout; "+" if it was modified
const char* build_compiler();

}  // namespace foretoken
