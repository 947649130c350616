#include "runtime/versions/lineage.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/failure.h"

namespace foretoken {
namespace json = boost::json;
namespace {

std::string time_text(std::int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", utc, std::abs(unix_ms % 1000));
}

// Fields of another type than wanted are as if they were not there.
std::int64_t integer(const json::object& o, const char* name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_int64() ? v->get_int64() : 0;
}
double number(const json::object& o, const char* name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_number() ? v->to_number<double>() : 0;
}
std::string text(const json::object& o, const char* name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_string() ? std::string(v->get_string()) : std::string();
}
SpeculatorVersion version(const json::object& o, const char* name) {
  return {std::uint64_t(std::max<std::int64_t>(0, integer(o, name)))};
}
json::value finite(double x) { return std::isfinite(x) ? json::value(x) : json::value(nullptr); }

}  // namespace

json::object to_json(const LineageEvent& e) {
  json::object out{{"time", time_text(e.unix_ms)},
                   {"unix_ms", e.unix_ms},
                   {"event", e.event},
                   {"version", e.version.value},
                   {"parent", e.parent.value},
                   {"served", e.served.value},
                   {"frozen", e.frozen}};
  if (!e.kind.empty()) {
    out["kind"] = e.kind;
    out["trained_requests"] = e.trained_requests;
    out["trained_tokens"] = e.trained_tokens;
    out["loss"] = finite(e.loss);
  }
  if (!e.verdict.empty()) out["verdict"] = e.verdict;
  if (!e.reason.empty()) out["reason"] = e.reason;
  if (e.judged_requests > 0) {
    out["judged_requests"] = e.judged_requests;
    out["predicted_speed_gain"] = finite(e.gain);
    out["ci"] = json::array{finite(e.low), finite(e.high)};
  }
  return out;
}

Result<LineageEvent> lineage_event_from_json(const json::value& value) {
  const json::object* o = value.if_object();
  if (!o) return Error{ErrorCode::kInvalidInput, "lineage: a line is not a JSON object"};
  LineageEvent e;
  e.event = text(*o, "event");
  if (e.event.empty()) return Error{ErrorCode::kInvalidInput, "lineage: event: missing"};
  e.unix_ms = integer(*o, "unix_ms");
  e.version = version(*o, "version");
  e.parent = version(*o, "parent");
  e.served = version(*o, "served");
  if (const json::value* v = o->if_contains("frozen"); v && v->is_bool()) e.frozen = v->get_bool();
  e.kind = text(*o, "kind");
  e.trained_requests = integer(*o, "trained_requests");
  e.trained_tokens = integer(*o, "trained_tokens");
  e.loss = number(*o, "loss");
  e.verdict = text(*o, "verdict");
  e.reason = text(*o, "reason");
  e.judged_requests = integer(*o, "judged_requests");
  // Its name until it was called what it is.
  constexpr const char *kGain = "predicted_speed_gain", *kOld = "tokens_per_round_difference";
  e.gain = number(*o, o->contains(kGain) ? kGain : kOld);
  if (const json::value* ci = o->if_contains("ci"); ci && ci->is_array()) {
    const json::array& a = ci->get_array();
    if (a.size() == 2 && a[0].is_number() && a[1].is_number()) {
      e.low = a[0].to_number<double>();
      e.high = a[1].to_number<double>();
    }
  }
  return e;
}

void LineageState::apply(const LineageEvent& e) {
  served = e.served;
  frozen = e.frozen;
  highest = std::max({highest, e.version, e.served});
  const bool ends = e.event == "promoted" || e.event == "rolled_back" || e.event == "refused" ||
                    e.event == "superseded" || e.event == "damaged";
  if (e.event == "received") waiting = e.version;
  if (waiting == e.version && e.event != "received") waiting.reset();
  if (e.event == "canary") canary = e.version;
  if (ends && canary == e.version) canary.reset();
  if (e.event == "rolled_back" || e.event == "refused") banned.insert(e.version.value);
  if (e.event == "damaged") lost.insert(e.version.value);
  if (e.event == "received") lost.erase(e.version.value);
  if (ends) std::erase(proven, e.version);
  if (e.event == "promoted" && e.version.value > 0) proven.push_back(e.version);
  if (e.event == "given") {
    given = e.version;
    given_digest = e.verdict;
    proven.push_back(e.version);
  }
  // An operator may return to an older version: what came after it is no longer proven to be
  // better.
  if (e.event == "rolled_back" && served != e.version && !banned.contains(served.value))
    std::erase_if(proven, [&](SpeculatorVersion v) { return v > served; });
}

Result<Lineage> Lineage::open(const std::filesystem::path& path) {
  Lineage lineage;
  lineage.path_ = path;
  auto bytes = read_file(path, kMaxBytes);
  if (!bytes) {
    if (bytes.error().code == ErrorCode::kNotFound) return lineage;
    return bytes.error();
  }
  const std::string_view all(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  std::size_t at = 0;
  while (at < all.size()) {
    const std::size_t end = all.find('\n', at);
    if (end == std::string_view::npos) break;
    json::error_code code;
    const json::value value = json::parse(all.substr(at, end - at), code);
    at = end + 1;
    auto event = code ? Result<LineageEvent>(Error{ErrorCode::kInvalidInput, code.message()})
                      : lineage_event_from_json(value);
    if (event)
      lineage.remember(std::move(*event));
    else
      ++lineage.skipped_;
  }
  // A line that a crash tore: never synced whole, so nothing was done on its strength.
  if (at < all.size() && ::truncate(path.c_str(), static_cast<off_t>(at)) != 0) {
    return failure(ErrorCode::kIo, "{}: cannot cut off a torn line: {}", path.string(),
                   std::strerror(errno));
  }
  return lineage;
}

void Lineage::remember(LineageEvent event) {
  state_.apply(event);
  events_.push_back(std::move(event));
  if (events_.size() > kRemembered) events_.pop_front();
}

Status Lineage::append(LineageEvent event) {
  const std::string line = json::serialize(to_json(event)) + "\n";
  remember(std::move(event));
  if (path_.empty()) return Ok{};
  const auto failed = [&](const char* what) {
    return failure(ErrorCode::kIo, "{}: {}: {}", path_.string(), what, std::strerror(errno));
  };
  const int file = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) return failed("cannot open");
  struct stat before {};
  const bool known = ::fstat(file, &before) == 0;
  const ssize_t n = ::write(file, line.data(), line.size());
  if (n != static_cast<ssize_t>(line.size()) || ::fsync(file) != 0) {
    const Error error = failed("cannot append");
    // Half a line (a full disk) must not stand before the next one.
    if (known && ::ftruncate(file, before.st_size) != 0) {
    }
    ::close(file);
    return error;
  }
  ::close(file);
  return Ok{};
}

}  // namespace foretoken
