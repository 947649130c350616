#include "runtime/observe/dashboard.h"

namespace foretoken {

const std::string& dashboard_html() {
  static const std::string html =
#include "dashboard_html.inc"  // written by CMake from dashboard.html
      ;
  return html;
}

}  // namespace foretoken
