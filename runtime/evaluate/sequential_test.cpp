#include "runtime/evaluate/sequential_test.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "runtime/observe/student_t.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

// Where the bounds are tightest: a candidate of +10 % is to be shown within 150 requests and a
// domain is half of them. The price elsewhere is small: at 10 times as many requests the bound is
// 5 % wider than one tuned for them.
constexpr double kTunedAt = 100;
constexpr double kReportedAlpha = 0.025;  // each side of an interval of 95 %
const char* const kPool = "(others)";

// The boundary in standard errors, after n requests.
double boundary(double n, double alpha) {
  // The mixture's variance that is (nearly) optimal at kTunedAt, one-sided: their equation for rho
  // with 2 alpha.
  const double l = -2 * std::log(2 * alpha);
  const double v = n * (l + std::log(l + 1)) / kTunedAt;
  const double z = std::sqrt(2 * (v + 1) / v * std::log1p(std::sqrt(v + 1) / (2 * alpha)));
  return student_t_expansion(z, n - 1);
}

double half_width(const PairedSums& sums, double alpha) {
  const auto n = double(sums.requests);
  return sums.deviation() / std::sqrt(n) * boundary(n, alpha);
}

DomainFigures figures_of(const std::string& domain, const PairedSums& sums) {
  return {domain, sums.requests, sums.gain(), lower_bound(sums, kReportedAlpha),
          upper_bound(sums, kReportedAlpha)};
}

}  // namespace

void PairedSums::add(double candidate_cost, double served_cost) {
  ++requests;
  candidate += candidate_cost;
  served += served_cost;
  candidate_squares += candidate_cost * candidate_cost;
  served_squares += served_cost * served_cost;
  products += candidate_cost * served_cost;
}

void PairedSums::add(const PairedSums& other) {
  requests += other.requests;
  candidate += other.candidate;
  served += other.served;
  candidate_squares += other.candidate_squares;
  served_squares += other.served_squares;
  products += other.products;
}

double PairedSums::gain() const { return candidate > 0 ? served / candidate - 1 : 0; }

double PairedSums::deviation() const {
  if (requests < 2 || candidate <= 0) return std::numeric_limits<double>::infinity();
  const double ratio = 1 + gain();
  const double squares = served_squares - 2 * ratio * products + ratio * ratio * candidate_squares;
  const auto n = double(requests);
  return std::sqrt(std::max(0.0, squares) / (n - 1)) / (candidate / n);
}

double lower_bound(const PairedSums& sums, double alpha) {
  return sums.requests < 2 ? -1.0 : std::max(-1.0, sums.gain() - half_width(sums, alpha));
}

double upper_bound(const PairedSums& sums, double alpha) {
  return sums.requests < 2 ? std::numeric_limits<double>::infinity()
                           : sums.gain() + half_width(sums, alpha);
}

double alpha_of_candidate(int number_in_day) {
  const double k = std::max(1, number_in_day);
  return kErrorsPerDay / (k * (k + 1));
}

const char* name(Verdict verdict) {
  constexpr const char* kNames[] = {"undecided", "promoted", "inferior", "futile", "stale"};
  return kNames[std::size_t(verdict)];
}

std::string domain_label(const std::string& domain) {
  return domain.empty() ? "(none)" : printable(std::string_view(domain).substr(0, 64));
}

void SequentialTest::add(const std::string& domain, double candidate_cost, double served_cost) {
  if (!(candidate_cost > 0) || !(served_cost > 0) || !std::isfinite(candidate_cost + served_cost))
    return;
  sums_of(domain).add(candidate_cost, served_cost);
}

void SequentialTest::expect(const std::string& domain) { sums_of(domain); }

PairedSums& SequentialTest::sums_of(const std::string& domain) {
  const auto found = domains_.find(domain);
  if (found != domains_.end()) return found->second;
  return domains_.try_emplace(domains_.size() < kMostDomains ? domain : kPool).first->second;
}

std::int64_t SequentialTest::requests() const {
  std::int64_t sum = 0;
  for (const auto& [domain, sums] : domains_) sum += sums.requests;
  return sum;
}

// Its share of the traffic may be `share` or more: the 99.9 % upper bound of a Poisson count, n +
// 3.1 sqrt(n + 1) + 3.9 (exactly 6.9, 9.2, 16.5, 24, 38 for n = 0, 1, 5, 10, 20).
bool SequentialTest::waits_for(std::int64_t in_domain, double share) const {
  const auto n = double(in_domain);
  return n + 3.1 * std::sqrt(n + 1) + 3.9 >= share * double(requests());
}

SequentialFigures SequentialTest::judge() const {
  SequentialFigures figures;
  PairedSums all, pool;
  bool pooled = false;
  std::optional<std::string> waiting, harmed, unproven;  // a name may be empty
  const auto judge_domain = [&](const std::string& domain, const PairedSums& sums) {
    if (upper_bound(sums, options_.alpha) < -options_.domain_margin) {
      harmed = domain;
    } else if (lower_bound(sums, options_.alpha) <= -options_.domain_margin) {
      unproven = domain;
    }
  };
  for (const auto& [domain, sums] : domains_) {
    all.add(sums);
    if (sums.requests >= options_.domain_requests && domain != kPool) {
      figures.domains.push_back(figures_of(domain, sums));
      judge_domain(domain, sums);
    } else {
      pool.add(sums);
      pooled = true;
      if (waits_for(sums.requests, options_.domain_share)) waiting = domain;
    }
  }
  if (pool.requests > 0) figures.domains.push_back(figures_of(kPool, pool));
  if (pooled) {
    if (pool.requests >= options_.domain_requests) {
      judge_domain(kPool, pool);
    } else if (waits_for(pool.requests, options_.pool_share)) {
      if (!waiting) waiting = kPool;
    }
  }
  // One that nobody has heard of yet.
  if (!waiting && waits_for(0, options_.domain_share)) waiting = "what may come";
  figures.all = figures_of("", all);

  const double low = lower_bound(all, options_.alpha);
  const double high = upper_bound(all, options_.futility_alpha);
  // What a gain must be for its bound to lie above least_gain at the last request.
  const auto last = double(std::max(options_.most_requests, options_.least_requests));
  const double shown =
      options_.least_gain + all.deviation() / std::sqrt(last) * boundary(last, options_.alpha);
  const auto decide = [&](Verdict verdict, std::string because) {
    figures.verdict = verdict;
    figures.because = std::move(because);
    return figures;
  };
  if (all.requests < options_.least_requests)
    return decide(Verdict::kUndecided, "too few requests");
  if (harmed)
    return decide(Verdict::kInferior,
                  fmt::format("worse than {:+.0f} % on {}", -100 * options_.domain_margin,
                              domain_label(*harmed)));
  if (low > options_.least_gain && !unproven && !waiting)
    return decide(Verdict::kPromoted, "faster, and no domain is given up");
  if (upper_bound(all, options_.alpha) < options_.least_gain)
    return decide(Verdict::kInferior, "slower");
  if (high < shown)
    return decide(Verdict::kFutile,
                  fmt::format("its gain is below the {:+.1f} % that {} requests can show",
                              100 * shown, options_.most_requests));
  std::string open = low <= options_.least_gain ? "not shown to be faster"
                     : unproven ? fmt::format("{} not shown to be held", domain_label(*unproven))
                                : fmt::format("too few requests of {}", domain_label(*waiting));
  if (all.requests >= options_.most_requests) return decide(Verdict::kStale, std::move(open));
  return decide(Verdict::kUndecided, std::move(open));
}

}  // namespace foretoken
