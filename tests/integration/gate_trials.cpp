// gate_trials TRACES [BUNDLE MODEL]: the gate on trial, on recorded requests of two domains. Many
// variants of the learned weights are replayed over the log once (noise, one-domain training,
// staleness, features of a shifted tap); every ordered pair of them whose true effect on this log
// says what the gate must do is then tried 1,000 times, each time on requests drawn from the log in
// a new order:
//   at least 5 % slower in some domain         -> never promoted
//   at least 10 % faster, no domain slower      -> promoted within 150 requests in 95 % of trials
//   at least 3 % faster, no domain slower       -> promoted within 1,000 requests in 95 %
// And what a server does with weights that were forced past the gate, 1,000 times as well:
//   at least 20 % slower -> taken back within 200 requests; 5 % -> within 1,000; over those
//   requests less than 2 % of the time is lost, on average
// Prints JSON; exits with 1 if a pair did otherwise, 2 if the log does not offer every kind.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "foretoken/protocol/transport.h"
#include "runtime/evaluate/evaluation.h"
#include "runtime/evaluate/fusion_replay.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/evaluate/sequential_test.h"
#include "runtime/versions/version_keeper.h"

namespace foretoken {
namespace {

namespace json = boost::json;

constexpr int kTrials = 1000, kDraftLength = 4;
constexpr int kPairsOfAKind = 8;  // tried, of each kind of harm and of gain

struct Variant {
  std::string name, kind;  // kind: what was done to it
  std::shared_ptr<const LearnedWeights> weights;
  bool head = false, shifted_taps = false;
  std::unique_ptr<PortfolioReplay> replay;
  std::vector<double> ms;  // by request
  std::vector<std::int64_t> rounds, tokens;
};

struct Corpus {
  std::vector<RequestTrace> traces;  // without features and logits
  std::vector<int> domain;           // of each
  std::vector<std::string> domains;
};

// Plain gradient descent on cross-entropy over the positions of one domain: q - p.
FusionTable trained(const std::vector<std::vector<FusionPosition>>& requests, int passes) {
  FusionTable table = FusionTable::initial();
  std::array<double, kFusionClasses + 1> squares{};
  const auto step = [&](float& value, std::size_t i, double gradient) {
    squares[i] += gradient * gradient;
    value -= static_cast<float>(0.1 * gradient / std::sqrt(squares[i] + 1e-8));
  };
  for (int pass = 0; pass < passes; ++pass) {
    for (const auto& positions : requests) {
      for (const FusionPosition& position : positions) {
        std::array<double, kMaxCandidates> score{};
        for (int c = 0; c < position.n_candidates; ++c)
          score[position.token_of[std::size_t(c)]] +=
              table.bias[position.fusion_class[std::size_t(c)]];
        double sum = std::exp(double(table.other));
        for (int t = 0; t < position.n_tokens; ++t)
          sum += score[std::size_t(t)] = std::exp(score[std::size_t(t)]);
        for (int c = 0; c < position.n_candidates; ++c) {
          const std::size_t t = position.token_of[std::size_t(c)];
          const std::size_t k = position.fusion_class[std::size_t(c)];
          step(table.bias[k], k, score[t] / sum - double(position.p[t]));
        }
        step(table.other, kFusionClasses,
             std::exp(double(table.other)) / sum - double(position.p_other));
      }
    }
  }
  return table;
}

FusionTable mixed(const FusionTable& a, const FusionTable& b, float of_b) {
  FusionTable out = a;
  for (std::size_t i = 0; i < out.bias.size(); ++i)
    out.bias[i] = (1 - of_b) * a.bias[i] + of_b * b.bias[i];
  out.other = (1 - of_b) * a.other + of_b * b.other;
  return out;
}

class Variants {
 public:
  void add(std::string kind, std::string name, const FusionTable& table) {
    auto weights = std::make_shared<LearnedWeights>();
    weights->fusion = table;
    add(std::move(kind), std::move(name), std::move(weights), false, false);
  }
  void add(std::string kind, std::string name, std::shared_ptr<const LearnedWeights> weights,
           bool head, bool shifted_taps) {
    Variant variant;
    variant.name = std::move(name);
    variant.kind = std::move(kind);
    variant.weights = std::move(weights);
    variant.head = head;
    variant.shifted_taps = shifted_taps;
    // The learned kinds alone: with the n-gram rule beside it a harmed table is hardly used, and
    // the harm that the gate is to find is gone before it looks.
    variant.replay = std::make_unique<PortfolioReplay>(
        head ? spec_type("head") : kinds_named("fusion"), variant.weights.get());
    all.push_back(std::move(variant));
  }
  std::vector<Variant> all;
};

// Each tap's features where the next one's belong.
void shift_taps(RequestTrace& trace) {
  const auto width = std::size_t(trace.tap_width);
  const auto taps = std::size_t(trace.n_taps);
  if (taps < 2 || width == 0) return;
  const std::size_t positions = trace.tap_values.size() / (taps * width);
  for (std::size_t p = 0; p < positions; ++p) {
    const auto values = trace.tap_values.begin() + std::ptrdiff_t(p * taps * width);
    std::rotate(values, values + std::ptrdiff_t(width), values + std::ptrdiff_t(taps * width));
    const auto scales = trace.tap_scales.begin() + std::ptrdiff_t(p * taps);
    std::rotate(scales, scales + 1, scales + std::ptrdiff_t(taps));
  }
}

// The weights of the head's blocks moved at random by up to `step` of 127, or by as much of
// Q4_0's 8.
Bundle noisy_head(const Bundle& bundle, int step, std::uint64_t seed) {
  Bundle out = bundle;
  std::mt19937_64 random(seed);
  for (auto& [name, tensor] : out.tensors) {
    const auto moved = [&] { return int(random() % std::uint64_t(2 * step + 1)) - step; };
    if (tensor.type == TensorType::kQ4_0) {
      // A step of these is sixteen of those: rounded by chance, or small moves would be none.
      const auto code = [&](int q) {
        return std::clamp(q + ((moved() + int(random() % 16)) >> 4), 0, 15);
      };
      for (std::size_t i = 0; i < tensor.bytes.size(); ++i) {
        if (i % 18 < 2) continue;  // the block's scale
        const int both = int(tensor.bytes[i]);
        tensor.bytes[i] = static_cast<std::byte>(code(both & 15) | code(both >> 4) << 4);
      }
    }
    if (tensor.type != TensorType::kQ8_0) continue;
    for (std::size_t i = 0; i < tensor.bytes.size(); ++i) {
      if (i % 34 < 2) continue;
      const int value = static_cast<std::int8_t>(tensor.bytes[i]) + moved();
      tensor.bytes[i] =
          static_cast<std::byte>(static_cast<std::int8_t>(std::clamp(value, -127, 127)));
    }
  }
  return out;
}

struct Pair {
  const Variant *served, *candidate;
  double gain = 0;                   // true on this log, all together
  std::vector<double> domain_gains;  // and by domain
  double worst() const { return *std::min_element(domain_gains.begin(), domain_gains.end()); }
};

Pair pair_of(const Variant& served, const Variant& candidate, const Corpus& corpus) {
  Pair pair{&served, &candidate, 0, {}};
  std::vector<PairedSums> sums(corpus.domains.size() + 1);
  for (std::size_t i = 0; i < candidate.ms.size(); ++i) {
    if (!(candidate.ms[i] > 0) || !(served.ms[i] > 0)) continue;
    sums[std::size_t(corpus.domain[i])].add(candidate.ms[i], served.ms[i]);
    sums.back().add(candidate.ms[i], served.ms[i]);
  }
  pair.gain = sums.back().gain();
  for (std::size_t d = 0; d < corpus.domains.size(); ++d)
    pair.domain_gains.push_back(sums[d].gain());
  return pair;
}

struct Outcome {
  int promoted = 0, within = 0;
  std::vector<std::int64_t> requests;  // that promotions took
};

Outcome try_pair(const Pair& pair, const Corpus& corpus, std::int64_t limit) {
  Outcome outcome;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::mt19937_64 random(std::uint64_t(trial) * 2654435761u + 17);
    SequentialOptions options;
    options.alpha = alpha_of_candidate(1);
    SequentialTest test(options);
    for (const std::string& domain : corpus.domains) test.expect(domain);
    for (;;) {
      const std::size_t i = random() % corpus.domain.size();
      test.add(corpus.domains[std::size_t(corpus.domain[i])], pair.candidate->ms[i],
               pair.served->ms[i]);
      const Verdict verdict = test.judge().verdict;
      if (verdict == Verdict::kUndecided) continue;
      if (verdict == Verdict::kPromoted) {
        ++outcome.promoted;
        outcome.within += test.requests() <= limit;
        outcome.requests.push_back(test.requests());
      }
      break;
    }
  }
  std::sort(outcome.requests.begin(), outcome.requests.end());
  return outcome;
}

struct Forced {
  int taken_back = 0;                  // within the limit
  std::vector<std::int64_t> requests;  // that it took
  double lost = 0, most_lost = 0;  // of the time of the limit's requests: mean, and of one trial
};

// The server's own keeper of versions, given the pair's candidate as if a trainer had published it.
Forced force(const Pair& pair, const Corpus& corpus, std::int64_t limit) {
  Forced forced;
  ManualClock clock;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::mt19937_64 random(std::uint64_t(trial) * 2654435761u + 29);
    auto made = VersionKeeper::create({}, pair.served->weights, std::nullopt, clock);
    if (!made) return forced;
    VersionKeeper& keeper = **made;
    VersionKeeperHooks hooks;
    auto candidate = std::make_shared<LearnedWeights>(*pair.candidate->weights);
    candidate->version = {1};
    hooks.prepare = [&](const Bundle&) -> Result<LearnedPointer> {
      return LearnedPointer(candidate);
    };
    hooks.publish = [](SpeculatorChoice) {};
    std::size_t i = 0;  // the request that is being played
    hooks.replay = [&](const RequestTrace&, const LearnedPointer& a, const LearnedPointer& b) {
      const auto ms = [&](const LearnedPointer& weights) {
        return (weights == candidate ? pair.candidate : pair.served)->ms[i];
      };
      return std::optional(PairedCosts{ms(a), ms(b)});
    };
    keeper.restore(hooks);
    Bundle bundle;
    bundle.version = {1};
    if (!keeper.offer(bundle, {})) return forced;
    double lost = 0, all = 0;
    bool back = false;
    for (std::int64_t requests = 1; requests <= limit; ++requests) {
      i = random() % corpus.domain.size();
      auto trace = std::make_unique<RequestTrace>();
      trace->request = RequestId{random()};
      const bool serves =
          !back && (keeper.served().value == 1 ||
                    is_canary(trace->request, {1}, VersionKeeperOptions{}.canary_fraction));
      const Variant& drafts = serves ? *pair.candidate : *pair.served;
      lost += drafts.ms[i] - pair.served->ms[i];
      all += pair.served->ms[i];
      if (back || drafts.rounds[i] == 0) continue;
      trace->rounds.resize(std::size_t(drafts.rounds[i]));
      for (RoundTrace& round : trace->rounds) round.version = {serves ? 1u : 0u};
      trace->rounds[0].accepted = std::int32_t(drafts.tokens[i] - drafts.rounds[i]);
      keeper.observe(std::move(trace));
      while (keeper.judge()) {
      }
      if (keeper.served().value != 0 || keeper.canary().value != 0) continue;
      back = true;
      forced.requests.push_back(requests);
    }
    forced.taken_back += back;
    forced.lost += lost / all / kTrials;
    forced.most_lost = std::max(forced.most_lost, lost / all);
  }
  std::sort(forced.requests.begin(), forced.requests.end());
  return forced;
}

int fail(const std::string& text) {
  fmt::print(stderr, "gate_trials: {}\n", text);
  return 2;
}

int run(int argc, char** argv) {
  if (argc != 2 && argc != 4) return fail("usage: gate_trials TRACES [BUNDLE MODEL]");
  Corpus corpus;
  CostsOfLog log_costs;
  const auto read = [&](auto visit) {
    return read_segments(argv[1], 0, [&](std::uint64_t, Message message) {
      auto trace = parse_trace(message);
      if (trace && !trace->gap && trace->generated.size() > 1) visit(std::move(trace).value());
      return true;
    });
  };
  std::vector<std::vector<std::vector<FusionPosition>>> positions;  // by domain
  const auto first = read([&](RequestTrace trace) {
    log_costs.add(trace);
    auto found = std::find(corpus.domains.begin(), corpus.domains.end(), trace.domain);
    if (found == corpus.domains.end()) {
      corpus.domains.push_back(trace.domain);
      positions.emplace_back();
      found = corpus.domains.end() - 1;
    }
    const auto d = found - corpus.domains.begin();
    corpus.domain.push_back(int(d));
    positions[std::size_t(d)].push_back(fusion_positions(trace));
  });
  if (!first) return fail(first.error().message);
  if (corpus.domains.size() < 2) return fail("the log must have two domains");
  const RoundCosts costs = log_costs.fit().value_or(RoundCosts::typical());

  // What was learned from each domain, from all, and from the first tenth.
  std::vector<std::vector<FusionPosition>> everything, early;
  std::vector<FusionTable> one_domain;
  for (const auto& domain : positions) {
    everything.insert(everything.end(), domain.begin(), domain.end());
    early.insert(early.end(), domain.begin(), domain.begin() + std::ssize(domain) / 10);
    one_domain.push_back(trained(domain, 2));
  }
  const FusionTable full = trained(everything, 2);
  Variants variants;
  variants.add("trained", "trained on everything", full);
  variants.add("stale", "as shipped", FusionTable::initial());
  variants.add("stale", "trained on the first tenth", trained(early, 1));
  for (const float much : {2.0f, 4.0f, 8.0f})
    variants.add("stale", fmt::format("as shipped, {:.0f} times as far", much),
                 mixed(full, FusionTable::initial(), much));
  for (std::size_t d = 0; d < one_domain.size(); ++d) {
    variants.add("one-domain", "trained on " + corpus.domains[d], one_domain[d]);
    for (const float much : {3.0f, 6.0f, 12.0f, 24.0f})
      variants.add("one-domain",
                   fmt::format("trained on {}, {:.0f} times as far", corpus.domains[d], much),
                   mixed(full, one_domain[d], much));
  }
  for (const float deviation : {0.25f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f}) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      std::mt19937_64 random(seed);
      std::normal_distribution<float> normal(0, deviation);
      FusionTable table = full;
      for (float& bias : table.bias) bias += normal(random);
      variants.add("noise", fmt::format("noise {:.2f}, seed {}", deviation, seed), table);
    }
  }
  if (argc == 4) {
    auto rows = VocabularyRows::open(argv[3]);
    if (!rows) return fail(rows.error().message);
    auto bytes = read_file(argv[2], kMaxBundleBytes);
    if (!bytes) return fail(bytes.error().message);
    auto bundle = parse_bundle_of_anyone(*bytes);
    if (!bundle) return fail(bundle.error().message);
    const auto add = [&](const char* kind, std::string name, const Bundle& of, bool shifted) {
      auto weights = learned_from_bundle(of, *rows);
      if (weights)
        variants.add(kind, std::move(name), *weights, (*weights)->head != nullptr, shifted);
      return weights.ok();
    };
    if (!add("trained", "the bundle", *bundle, false)) return fail("the bundle does not load");
    add("shifted-tap", "the bundle on shifted taps", *bundle, true);
    for (const int step : {4, 8, 16, 32, 64})
      add("noise", fmt::format("the bundle with noise of {} in its head", step),
          noisy_head(*bundle, step, 1), false);
  }
  const auto second = read([&](const RequestTrace& trace) {
    RequestTrace shifted;
    if (argc == 4) {
      shifted = trace;
      shift_taps(shifted);
    }
    for (Variant& variant : variants.all) {
      const PortfolioWalk walk =
          variant.replay->walk_fixed(variant.shifted_taps ? shifted : trace, kDraftLength, &costs);
      variant.ms.push_back(walk.predicted_ms);
      variant.rounds.push_back(walk.stats.rounds);
      variant.tokens.push_back(walk.stats.emitted);
    }
  });
  if (!second) return fail(second.error().message);

  std::vector<Pair> harmed, tenth, third, fifth_slower, slower;
  std::map<std::string, int> of_kind;
  for (const Variant& served : variants.all) {
    for (const Variant& candidate : variants.all) {
      if (&served == &candidate) continue;
      const Pair pair = pair_of(served, candidate, corpus);
      if (pair.gain <= -0.20)
        fifth_slower.push_back(pair);
      else if (pair.gain <= -0.05)
        slower.push_back(pair);
      if (pair.worst() <= -0.05) {
        // Near the border first: great harm is easy to see. And what gains elsewhere above all.
        if (pair.worst() >= -0.12 || pair.gain > 0 || candidate.kind == "shifted-tap")
          harmed.push_back(pair);
      } else if (pair.worst() >= 0 && pair.gain >= 0.10) {
        tenth.push_back(pair);
      } else if (pair.worst() >= 0 && pair.gain >= 0.03) {
        third.push_back(pair);
      }
    }
  }
  std::sort(harmed.begin(), harmed.end(),
            [](const Pair& a, const Pair& b) { return a.gain > b.gain; });
  std::erase_if(harmed,
                [&](const Pair& pair) { return ++of_kind[pair.candidate->kind] > kPairsOfAKind; });
  const auto hardest = [](std::vector<Pair>& pairs) {
    std::sort(pairs.begin(), pairs.end(),
              [](const Pair& a, const Pair& b) { return std::abs(a.gain) < std::abs(b.gain); });
    if (pairs.size() > kPairsOfAKind) pairs.resize(kPairsOfAKind);
  };
  hardest(tenth);
  hardest(third);
  hardest(fifth_slower);
  hardest(slower);

  bool held = true;
  json::array results;
  const auto judge = [&](const char* what, const std::vector<Pair>& pairs, std::int64_t limit) {
    for (const Pair& pair : pairs) {
      const Outcome outcome = try_pair(pair, corpus, limit);
      const bool ok = limit == 0 ? outcome.promoted == 0 : outcome.within >= kTrials * 95 / 100;
      held = held && ok;
      json::object domains;
      for (std::size_t d = 0; d < corpus.domains.size(); ++d)
        domains[corpus.domains[d]] = pair.domain_gains[d];
      json::object result{{"kind", what},
                          {"served", pair.served->name},
                          {"candidate", pair.candidate->name},
                          {"done_to_candidate", pair.candidate->kind},
                          {"true_gain", pair.gain},
                          {"true_gain_by_domain", std::move(domains)},
                          {"trials", kTrials},
                          {"promoted", outcome.promoted},
                          {"held", ok}};
      if (limit > 0) {
        result["limit_requests"] = limit;
        result["promoted_within_limit"] = outcome.within;
      }
      if (!outcome.requests.empty()) {
        result["requests_median"] = outcome.requests[outcome.requests.size() / 2];
        result["requests_p95"] = outcome.requests[outcome.requests.size() * 95 / 100];
      }
      fmt::print(stderr,
                 "{:8} {} -> {}: true {:+.1f} % (worst domain {:+.1f} %), promoted {} of {}{}\n",
                 what, pair.served->name, pair.candidate->name, 100 * pair.gain, 100 * pair.worst(),
                 limit > 0 ? outcome.within : outcome.promoted, kTrials, ok ? "" : "  BROKEN");
      results.emplace_back(std::move(result));
    }
  };
  judge("harmed", harmed, 0);
  judge("ten", tenth, 150);
  judge("three", third, 1000);
  const auto judge_forced = [&](const char* what, const std::vector<Pair>& pairs,
                                std::int64_t limit) {
    for (const Pair& pair : pairs) {
      const Forced forced = force(pair, corpus, limit);
      const bool ok = forced.taken_back == kTrials && forced.lost < 0.02;
      held = held && ok;
      json::object result{{"kind", what},
                          {"served", pair.served->name},
                          {"forced", pair.candidate->name},
                          {"true_gain", pair.gain},
                          {"trials", kTrials},
                          {"limit_requests", limit},
                          {"taken_back_within_limit", forced.taken_back},
                          {"time_lost", forced.lost},
                          {"most_time_lost", forced.most_lost},
                          {"held", ok}};
      if (!forced.requests.empty()) {
        result["requests_median"] = forced.requests[forced.requests.size() / 2];
        result["requests_most"] = forced.requests.back();
      }
      fmt::print(
          stderr,
          "{:8} {} -> {}: true {:+.1f} %, taken back {} of {}, {:.2f} % lost (at most {:.2f}){}\n",
          what, pair.served->name, pair.candidate->name, 100 * pair.gain, forced.taken_back,
          kTrials, 100 * forced.lost, 100 * forced.most_lost, ok ? "" : "  BROKEN");
      results.emplace_back(std::move(result));
    }
  };
  judge_forced("forced20", fifth_slower, 200);
  judge_forced("forced5", slower, 1000);
  json::object out{{"requests", corpus.domain.size()},
                   {"draft_length", kDraftLength},
                   {"held", held},
                   {"pairs", std::move(results)}};
  fmt::print("{}\n", json::serialize(out));
  if (harmed.empty() || tenth.empty() || third.empty() || fifth_slower.empty() || slower.empty())
    return fail("the log offers no pair of some kind");
  return held ? 0 : 1;
}

}  // namespace
}  // namespace foretoken

int main(int argc, char** argv) {
  spdlog::set_level(spdlog::level::off);  // standard output is for the figures
  return foretoken::run(argc, argv);
}
