// GET /dashboard: one self-contained page (dashboard.html, embedded by CMake) that polls /stats.
#pragma once

#include <string>

namespace foretoken {

const std::string& dashboard_html();

}  // namespace foretoken
