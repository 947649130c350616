// What `foretoken evaluate --quality` measured, as a table, as JSON and as a plot. Pure: no model
// runs here.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "runtime/evaluate/needles.h"
#include "runtime/evaluate/quality.h"

namespace foretoken {

struct QualityReport {
  std::string model, fingerprint;  // hexadecimal
  KvQualityOptions options;
  std::vector<std::string> windows;    // of which texts
  std::vector<KvQuality> modes;        // bf16 first
  std::vector<NeedleFigures> needles;  // by length; found[i] is of modes[i]
};

// Schema "foretoken.kv_quality/1".
boost::json::object quality_json(const QualityReport& report);

std::string quality_table(const QualityReport& report);

// A self-contained SVG: a row a mode; KL to bf16 with two standard errors, needles found by length,
// bytes a token.
std::string quality_svg(const QualityReport& report);

}  // namespace foretoken
