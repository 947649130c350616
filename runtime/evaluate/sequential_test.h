// Is a candidate faster than what serves? An any-time-valid test on paired costs: both drafters are
// scored on the same requests (predicted time, or rounds, for the same tokens), the request is the
// independent unit, and one may look after every request.
// - Gain = sum of served costs / sum of candidate costs - 1: a ratio of means; the residual of one
//   request is served - (1 + gain) * candidate.
// - Bounds: the one-sided asymptotic confidence sequence (Waudby-Smith et al., Ann. Statist. 2024;
//   Robbins' normal mixture, one-sided in Howard et al., Ann. Statist. 2021): for all n at once
//   with probability 1 - alpha, m = sqrt(n r + 1) / (2 alpha),
//     |error| < estimated deviation / sqrt(n) * sqrt(2 (n r + 1) / (n r) * log(1 + m))
//   Betting tests need a bound on one request's cost, which no server has. For small n, nothing is
//   decided below kLeastRequests, and the factor becomes Student's t of the same tail.
// - Domains: *every* domain must be shown no worse than -margin, each at the full alpha (an
//   intersection-union test: nothing is to be divided). "Not shown to be harmed" would let a harm
//   through whenever few of its requests have come. A domain counts alone from domain_requests on;
//   until then promotion waits for it, or, where its share is shown to be small
//   (SequentialTest::waits_for), judges it in a pool of the small ones.
// Plain state, pure functions, no clock: the same requests in the same order give the same verdict.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace foretoken {

// What is kept of any number of paired requests.
struct PairedSums {
  std::int64_t requests = 0;
  double candidate = 0, served = 0;  // sums of costs
  double candidate_squares = 0, served_squares = 0, products = 0;

  // Costs of one request, any unit, both > 0.
  void add(double candidate_cost, double served_cost);
  void add(const PairedSums& other);
  double gain() const;       // 0 while there are no requests
  double deviation() const;  // of one request's residual, relative to the mean candidate cost
  bool operator==(const PairedSums&) const = default;
};

inline constexpr int kLeastRequests = 30;

// One-sided, each with error alpha over all n >= kLeastRequests together; -1 and infinity below 2
// requests.
double lower_bound(const PairedSums& sums, double alpha);
double upper_bound(const PairedSums& sums, double alpha);

// The errors of a day over its candidates, k = 1, 2, ...: 0.01 / (k (k + 1)), which sums to 0.01
// however many there are. The first gets half of it, the hundredth still 1e-6: that widens its
// bounds by less than a half, because they grow with sqrt(log(1 / alpha)).
inline constexpr double kErrorsPerDay = 0.01;
double alpha_of_candidate(int number_in_day);

enum class Verdict : std::uint8_t {
  kUndecided,
  kPromoted,
  kInferior,  // a domain is shown to be worse than -margin, or all together to be slower
  kFutile,    // its gain is shown to be less than most_requests could show
  kStale,     // most_requests have come
};
const char* name(Verdict verdict);

struct SequentialOptions {
  double alpha = 0.005;          // of a promotion that is wrong, see alpha_of_candidate
  double futility_alpha = 0.02;  // of giving up a candidate that could have been shown: costs time
  double least_gain = 0;         // promoted when the lower bound is above this
  double domain_margin = 0.02;   // and every domain's above -this
  int least_requests = kLeastRequests;   // fewer: the bounds are asymptotic, so for tests alone
  int domain_requests = kLeastRequests;  // from here on a domain counts alone
  // A small domain is pooled once it is shown to be less than a fifth of the traffic (one of a
  // fifth has its 30 requests within the 150 that promotion may take); a pool too small to be
  // judged is left to the test of all together once it is shown to be less than a tenth.
  double domain_share = 0.2, pool_share = 0.1;
  int most_requests = 1000;
};

// A domain's name for people and JSON: "(none)" where a request had none, printable, at most 64
// bytes and a few.
std::string domain_label(const std::string& domain);

struct DomainFigures {
  std::string domain;
  std::int64_t requests = 0;
  double gain = 0, low = 0, high = 0;  // 95 %, any-time valid
};

struct SequentialFigures {
  Verdict verdict = Verdict::kUndecided;
  DomainFigures all;
  std::vector<DomainFigures> domains;  // by name; the pool of the small ones last, as "(others)"
  std::string because;                 // what the verdict hangs on, in words
};

class SequentialTest {
 public:
  explicit SequentialTest(const SequentialOptions& options) : options_(options) {}

  // A domain that recent traffic had, so that promotion does not come before its requests do.
  void expect(const std::string& domain);
  // One scored request; a cost of 0 or less (nothing was decoded) is not scored.
  void add(const std::string& domain, double candidate_cost, double served_cost);
  // After any request.
  SequentialFigures judge() const;

  const SequentialOptions& options() const { return options_; }
  // Domain names are the clients': at most kMostDomains are told apart, later ones share
  // "(others)".
  static constexpr std::size_t kMostDomains = 64;
  const std::map<std::string, PairedSums>& domains() const { return domains_; }
  void restore(std::map<std::string, PairedSums> domains) { domains_ = std::move(domains); }
  std::int64_t requests() const;

 private:
  bool waits_for(std::int64_t requests, double share) const;
  PairedSums& sums_of(const std::string& domain);
  SequentialOptions options_;
  std::map<std::string, PairedSums> domains_;
};

}  // namespace foretoken
