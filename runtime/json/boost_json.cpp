// Boost.JSON, compiled once for the whole program (Debian has headers only for 1.81 without its
// -json package). Who uses it links runtime/json.
#include <boost/json/src.hpp>
