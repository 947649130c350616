#include "trainer/examples/step_schedule.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "foretoken/kernels/splitmix64.h"

namespace foretoken::trainer {
namespace {

struct Offered {
  std::uint64_t domain, sequence;
};

constexpr std::size_t kManyWaiting = 16;

std::uint64_t mix(std::uint64_t z) { return kernels::splitmix64(z + kernels::kSplitMixStep); }

}  // namespace

std::uint64_t StepSchedule::draw() { return mix(options_.seed ^ mix(draws_++)); }

std::optional<std::uint64_t> StepSchedule::draw_request() {
  const std::uint64_t oldest = source_.oldest_sequence();
  double total = 0;
  const auto weight = [&](const Domain& domain) {
    return std::pow(double(domain.requests.size()), options_.domain_power);
  };
  for (Domain& domain : domains_) {
    while (!domain.requests.empty() && domain.requests.front() < oldest)
      domain.requests.pop_front();
    if (!domain.requests.empty()) total += weight(domain);
  }
  double at = draw_uniform() * total;
  const Domain* drawn = nullptr;
  for (const Domain& domain : domains_) {
    if (domain.requests.empty()) continue;
    drawn = &domain;
    if ((at -= weight(domain)) < 0) break;
  }
  if (drawn == nullptr) return std::nullopt;
  return drawn->requests[draw() % drawn->requests.size()];
}

void StepSchedule::observe(std::uint64_t sequence, std::optional<Piece> starts, std::int64_t tokens,
                           std::uint64_t domain) {
  if (!starts) return;
  tokens_ += tokens;
  entry_of_domain(domains_, domain).requests.push_back(sequence);
  for (std::int64_t done = 0; done < starts->count; done += options_.tokens_per_step) {
    const std::int64_t count =
        std::min<std::int64_t>(options_.tokens_per_step, starts->count - done);
    fresh_.push_back({sequence, starts->start + done, count});
    fresh_chains_ += count;
  }
}

void StepSchedule::watch(std::uint64_t domain, double predicted, bool accepted) {
  if (!is_fresh_) return;
  if (watched_.empty() || watched_.back().domain != domain) watched_.push_back({domain, 0, 0, 0});
  watched_.back().predicted += predicted;
  watched_.back().accepted += accepted ? 1 : 0;
  watched_.back().positions += 1;
}

void StepSchedule::end() {
  for (const Watched& w : std::exchange(watched_, {})) {
    if (options_.drift_tokens == 0 ||
        !drift_.observe(w.domain, w.predicted, w.accepted, w.positions) ||
        tokens_ < options_.early_tokens)
      continue;
    if (!hurried())
      spdlog::info("traffic has changed after {} tokens: learning faster for a while", tokens_);
    hurry_until_ = tokens_ + options_.drift_tokens;
    converged_ = false;
  }
}

void StepSchedule::judged(std::int64_t trained_tokens, bool gained) {
  if (gained) {
    proven_tokens_ = trained_tokens;
  } else {
    const double enough =
        options_.converged_growth * double(std::max(options_.early_tokens, proven_tokens_));
    if (trained_tokens < hurry_until_ || double(trained_tokens) < enough) return;
    if (!converged_) {
      spdlog::info("nothing more is gained after {} tokens: learning less until traffic changes",
                   tokens_);
    }
  }
  converged_ = !gained;
}

bool StepSchedule::begin(std::size_t fresh_waiting, const StartsOf& starts_of) {
  batch_.clear();
  watched_.clear();  // of a step that was stopped half way
  at_ = 0;
  taken_ = 0;
  // A step closes with the piece that brings it nearest to tokens_per_step.
  const std::int64_t enough = options_.tokens_per_step * 9 / 10;
  std::int64_t chains = 0;
  if (fresh_chains_ >= enough) {
    is_fresh_ = true;
    while (!fresh_.empty() && chains < enough) {
      chains += fresh_.front().count;
      batch_.push_back(fresh_.front());
      fresh_.pop_front();
    }
    fresh_chains_ -= chains;
    const double passes = hurried()    ? options_.drift_passes
                          : converged_ ? options_.converged_passes
                                       : options_.passes;
    owed_chains_ += (passes - 1) * double(chains);
  } else if (owed_chains_ >= double(options_.tokens_per_step)) {
    if (fresh_waiting > kManyWaiting) {
      owed_chains_ = 0;
      return false;
    }
    is_fresh_ = false;
    // Some are damaged since; a buffer of those alone must not hold us.
    for (int tries = 0; chains < enough && tries < 64; ++tries) {
      const auto sequence = draw_request();
      if (!sequence) break;
      const auto starts = starts_of(*sequence);
      if (!starts || starts->count == 0) continue;
      const std::int64_t count = std::min<std::int64_t>(options_.tokens_per_step, starts->count);
      const auto room = std::uint64_t(starts->count - count);
      const std::uint64_t skip = room ? draw() % (room + 1) : 0;
      batch_.push_back({*sequence, starts->start + std::int64_t(skip), count});
      chains += count;
    }
    owed_chains_ = chains ? owed_chains_ - double(chains) : 0;
  }
  return !batch_.empty();
}

std::optional<Piece> StepSchedule::take(std::int64_t room) {
  if (!under_way()) return std::nullopt;
  const Piece& piece = batch_[at_];
  const Piece part{piece.sequence, piece.start + taken_, std::min(room, piece.count - taken_)};
  taken_ += part.count;
  if (taken_ >= piece.count) ++at_, taken_ = 0;
  return part;
}

void StepSchedule::save(StateMap& map, const std::string& name) const {
  map.put_one(name + ".tokens", tokens_);
  map.put(name + ".drift", drift_.state());
  map.put_one(name + ".hurry_until", hurry_until_);
  map.put_one(name + ".proven_tokens", proven_tokens_);
  map.put_one(name + ".converged", std::uint8_t(converged_));
  map.put_one(name + ".draws", draws_);
  map.put_one(name + ".owed", owed_chains_);
  std::vector<Offered> offered;
  for (const Domain& domain : domains_) {
    for (const std::uint64_t sequence : domain.requests) offered.push_back({domain.name, sequence});
  }
  map.put(name + ".offered", offered);
  map.put(name + ".fresh", std::vector<Piece>(fresh_.begin(), fresh_.end()));
  map.put(name + ".batch", under_way() ? batch_ : std::vector<Piece>());
  map.put_one(name + ".step_is_fresh", std::uint8_t(is_fresh_));
}

bool StepSchedule::restore(const StateMap& map, const std::string& name) {
  if (!drift_.restore(map.get<DriftDetector::Domain>(name + ".drift"))) return false;
  tokens_ = map.get_one<std::int64_t>(name + ".tokens", 0);
  hurry_until_ = map.get_one<std::int64_t>(name + ".hurry_until", 0);
  proven_tokens_ = map.get_one<std::int64_t>(name + ".proven_tokens", 0);
  converged_ = map.get_one<std::uint8_t>(name + ".converged", 0) != 0;
  draws_ = map.get_one<std::uint64_t>(name + ".draws", 0);
  owed_chains_ = map.get_one<double>(name + ".owed", 0);
  for (const Offered& offered : map.get<Offered>(name + ".offered"))
    entry_of_domain(domains_, offered.domain).requests.push_back(offered.sequence);
  for (const Piece& piece : map.get<Piece>(name + ".fresh")) {
    fresh_.push_back(piece);
    fresh_chains_ += piece.count;
  }
  batch_ = map.get<Piece>(name + ".batch");
  is_fresh_ = map.get_one<std::uint8_t>(name + ".step_is_fresh", 1) != 0;
  return true;
}

}  // namespace foretoken::trainer
