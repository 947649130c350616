// The engine that a ServerLink under test tells what drafts: a function.
#pragma once

#include <functional>

#include "runtime/trace/server_link.h"

namespace foretoken {

struct ToldEngine final : LinkedEngine {
  explicit ToldEngine(std::function<void(const SpeculatorChoice&)> told) : told(std::move(told)) {}
  void draft_with(SpeculatorChoice choice) override { told(choice); }
  std::function<void(const SpeculatorChoice&)> told;
};

}  // namespace foretoken
