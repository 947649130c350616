#include "runtime/observe/build_info.h"

#include "build_version.h"  // written by CMake

namespace foretoken {

const char* build_version() { return FORETOKEN_VERSION; }
const char* build_git() { return FORETOKEN_GIT; }
const char* build_compiler() { return "g++ " __VERSION__; }

}  // namespace foretoken
