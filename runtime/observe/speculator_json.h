// GET /v1/speculator: what serves, what is on trial, what came before, and what drafting costs.
#pragma once

#include <boost/json.hpp>

#include "runtime/observe/speculator_state.h"
#include "runtime/observe/stats.h"

namespace foretoken {

boost::json::object speculator_json(const SpeculatorState& state, const EngineStats& stats);
boost::json::value gain_json(const GainFigures& gain);         // null below two requests
boost::json::value canary_json(const SpeculatorState& state);  // null: none

}  // namespace foretoken
