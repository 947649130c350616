#include "runtime/observe/speedup.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "foretoken/kernels/splitmix64.h"
#include "foretoken/protocol/signing.h"
#include "runtime/observe/student_t.h"

namespace foretoken {
namespace {

int context_stratum(double context) {
  int stratum = 0;
  for (double edge = 128; stratum < SpeedupSums::kContextStrata - 1 && context >= edge; edge *= 2)
    ++stratum;
  return stratum;
}

std::size_t triangle(std::size_t i, std::size_t j, std::size_t n) {  // i <= j
  return i * n - i * (i + 1) / 2 + j;
}

// A stratum needs a few control rounds before its mean means anything; below that its tokens are
// left out of both sums.
constexpr double kMinStratumControl = 4;
constexpr double kMinStratumClusters = 3;

}  // namespace

bool ControlCoin::toss() { return kernels::next_uniform(state_) < fraction_; }

void SpeedupSums::record(const SpeedupRound& round) {
  if (round.sequences < 1 || round.tokens < 1 || !(round.ms > 0) || !std::isfinite(round.ms))
    return;
  if (!(round.probability > 0 && round.probability < 1)) return;
  const int row = std::min(round.sequences, kSequenceStrata) - 1;
  Stratum& s =
      strata_[static_cast<std::size_t>(row * kContextStrata + context_stratum(round.context))];
  const double weight = round.control ? 1.0 / round.probability : 1.0 / (1.0 - round.probability);
  s.open[round.control ? kControlMs : kMs] += weight * round.ms;
  s.open[round.control ? kControlTokens : kTokens] += weight * static_cast<double>(round.tokens);
  s.open_rounds += 1;
  s.open_control += round.control ? 1 : 0;
  if (s.open_rounds < kClusterRounds) return;
  for (std::size_t i = 0; i < kArms; ++i) {
    s.sum[i] += s.open[i];
    for (std::size_t j = i; j < kArms; ++j)
      s.square[triangle(i, j, kArms)] += s.open[i] * s.open[j];
  }
  s.clusters += 1;
  s.rounds += s.open_rounds;
  s.control_rounds += s.open_control;
  s.open = {};
  s.open_rounds = s.open_control = 0;
}

SpeedupSums SpeedupSums::operator-(const SpeedupSums& earlier) const {
  SpeedupSums out;
  for (std::size_t h = 0; h < kStrata; ++h) {
    const Stratum& a = strata_[h];
    const Stratum& b = earlier.strata_[h];
    Stratum& d = out.strata_[h];
    for (std::size_t i = 0; i < d.sum.size(); ++i) d.sum[i] = a.sum[i] - b.sum[i];
    for (std::size_t i = 0; i < d.square.size(); ++i) d.square[i] = a.square[i] - b.square[i];
    d.clusters = a.clusters - b.clusters;
    d.rounds = a.rounds - b.rounds;
    d.control_rounds = a.control_rounds - b.control_rounds;
  }
  return out;
}

bool SpeedupSums::counts(const Stratum& s) {
  return s.control_rounds >= kMinStratumControl && s.clusters >= kMinStratumClusters &&
         s.rounds > s.control_rounds && s.sum[kControlTokens] > 0 && s.sum[kMs] > 0;
}

std::optional<Interval> SpeedupSums::estimate() const {
  double without = 0, with = 0, rounds = 0, control = 0;
  for (const Stratum& s : strata_) {
    if (!counts(s)) continue;
    without += s.sum[kTokens] * s.sum[kControlMs] / s.sum[kControlTokens];
    with += s.sum[kMs];
    rounds += s.rounds;
    control += s.control_rounds;
  }
  if (control < static_cast<double>(kMinControl)) return std::nullopt;

  double variance = 0, degrees = 0;
  for (const Stratum& s : strata_) {
    if (!counts(s)) continue;
    const double per_token = s.sum[kControlMs] / s.sum[kControlTokens];
    const double share = s.sum[kTokens] / s.sum[kControlTokens];
    std::array<double, kArms> gradient{};  // of log S by the stratum's totals
    gradient[kControlMs] = share / without;
    gradient[kControlTokens] = -share * per_token / without;
    gradient[kTokens] = per_token / without;
    gradient[kMs] = -1.0 / with;
    double squares = 0, mean = 0;
    for (std::size_t i = 0; i < kArms; ++i) {
      mean += gradient[i] * s.sum[i] / s.clusters;
      for (std::size_t j = i; j < kArms; ++j) {
        squares += (i == j ? 1 : 2) * gradient[i] * gradient[j] * s.square[triangle(i, j, kArms)];
      }
    }
    // Between clusters, with the factor that makes few clusters unbiased. Control rounds are what
    // is scarce: the finite-sample factor is theirs.
    const double between = std::max(0.0, squares - s.clusters * mean * mean);
    variance += between * s.clusters / (s.clusters - 1) * s.control_rounds / (s.control_rounds - 1);
    degrees += std::min(s.clusters, s.control_rounds) - 1;
  }
  Interval interval;
  interval.value = without / with;
  const double half = student_t_quantile(degrees) * std::sqrt(variance);
  interval.low = interval.value * std::exp(-half);
  interval.high = interval.value * std::exp(half);
  interval.rounds = static_cast<std::int64_t>(rounds);
  interval.control_rounds = static_cast<std::int64_t>(control);
  return interval;
}

std::int64_t SpeedupSums::rounds() const {
  double sum = 0;
  for (const Stratum& s : strata_) sum += s.rounds + s.open_rounds;
  return static_cast<std::int64_t>(sum);
}

std::int64_t SpeedupSums::control_rounds() const {
  double sum = 0;
  for (const Stratum& s : strata_) sum += s.control_rounds + s.open_control;
  return static_cast<std::int64_t>(sum);
}

double SpeedupSums::coverage() const {
  double counted = 0, all = 0;
  for (const Stratum& s : strata_) {
    all += s.sum[kTokens];
    if (counts(s)) counted += s.sum[kTokens];
  }
  return all > 0 ? counted / all : 0;
}

std::string SpeedupSums::text() const {
  static_assert(std::is_trivially_copyable_v<Stratum> && sizeof(Stratum) % sizeof(double) == 0);
  return to_hex({reinterpret_cast<const std::uint8_t*>(strata_.data()), sizeof strata_});
}

Result<SpeedupSums> SpeedupSums::from_text(std::string_view text) {
  SpeedupSums sums;
  auto bytes = bytes_from_hex(text);
  if (!bytes) return Error{bytes.error().code, "speedup sums: " + bytes.error().message};
  if (bytes->size() != sizeof sums.strata_) {
    return Error{ErrorCode::kInvalidInput, "speedup sums: found " + std::to_string(bytes->size()) +
                                               " bytes, wanted " +
                                               std::to_string(sizeof sums.strata_)};
  }
  for (std::size_t at = 0; at < bytes->size(); at += sizeof(double)) {
    double value;
    std::memcpy(&value, bytes->data() + at, sizeof value);
    if (!std::isfinite(value) || value < 0) {
      return Error{ErrorCode::kInvalidInput, "speedup sums: a value is negative or not finite"};
    }
  }
  std::memcpy(sums.strata_.data(), bytes->data(), bytes->size());
  return sums;
}

int SpeedupEstimator::label(std::string_view name) {
  for (std::size_t i = 0; i < labels_.size(); ++i) {
    if (labels_[i].first == name) return static_cast<int>(i);
  }
  if (labels_.size() >= kMaxLabels) return -1;
  labels_.emplace_back(name, SpeedupSums{});
  return static_cast<int>(labels_.size()) - 1;
}

void SpeedupEstimator::record(const SpeedupRound& round, double now_s,
                              std::span<const int> labels) {
  const std::size_t last = (ring_next_ + kSnapshots - 1) % kSnapshots;
  if (ring_.empty() || now_s - ring_[std::min(last, ring_.size() - 1)].at_s >= kSnapshotSeconds) {
    if (ring_.size() < kSnapshots) {
      if (ring_.empty()) ring_.reserve(kSnapshots);
      ring_.push_back({now_s, total_});
    } else {
      ring_[ring_next_] = {now_s, total_};
    }
    ring_next_ = (ring_next_ + 1) % kSnapshots;
  }
  total_.record(round);
  for (int label : labels) {
    if (label >= 0) labels_[static_cast<std::size_t>(label)].second.record(round);
  }
}

std::optional<Interval> SpeedupEstimator::last_minute(double now_s) const {
  // The youngest snapshot at least a minute old, else the oldest there is.
  const Snapshot* from = nullptr;
  for (const Snapshot& snapshot : ring_) {
    if (from == nullptr) {
      from = &snapshot;
      continue;
    }
    const bool old = now_s - snapshot.at_s >= 60, from_old = now_s - from->at_s >= 60;
    if (old != from_old ? old : (old ? snapshot.at_s > from->at_s : snapshot.at_s < from->at_s))
      from = &snapshot;
  }
  if (from == nullptr) return std::nullopt;
  return (total_ - from->sums).estimate();
}

std::optional<Interval> SpeedupEstimator::by_label(std::string_view name) const {
  for (const auto& [label, sums] : labels_) {
    if (label == name) return sums.estimate();
  }
  return std::nullopt;
}

}  // namespace foretoken
