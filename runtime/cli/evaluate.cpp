// foretoken evaluate TRACES (--quality MODEL: evaluate_quality.cpp): what each portfolio of
// speculators would have made of recorded requests, offline: tokens a round and predicted speed, by
// domain, with 95 % intervals; and of two bundles, which the trainer's gate would serve. No model
// runs; of --model only the rows that a head shares with its target are read.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "runtime/cli/command.h"
#include "runtime/cli/evaluate_quality.h"
#include "runtime/cli/progress.h"
#include "runtime/evaluate/evaluation.h"
#include "runtime/flags/flags.h"
#include "runtime/server/spec_head.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

namespace json = boost::json;

// Requests before the first that is counted, to learn the portfolios' calibration from.
constexpr std::int64_t kWarmRequests = 64;

struct EvaluateOptions {
  std::string traces, bundle, against, model, rounds = "both", round_ms;
  std::int64_t from_request = 0, to_request = 0;
  int draft_length = 4, max_draft = 8;
  float head_start_ms = 0, head_step_ms = 0;
  bool as_json = false;
};

Error invalid(std::string text) { return Error{ErrorCode::kInvalidInput, std::move(text)}; }

struct Loaded {
  Bundle bundle;  // without tensors
  std::shared_ptr<const LearnedWeights> weights;
};

Result<Loaded> load(const std::string& path, const std::shared_ptr<const VocabularyRows>& rows) {
  auto bundle = read_bundle(path);
  if (!bundle) return bundle.error();
  if (bundle->kind != "fusion" && !rows) {
    return invalid(fmt::format(
        "{}: its head shares rows with the target: give the model's GGUF file with --model", path));
  }
  auto weights = learned_from_bundle(*bundle, rows);
  if (!weights) return at(path, weights.error());
  bundle->tensors.clear();
  return Loaded{std::move(bundle).value(), std::move(weights).value()};
}

Result<RoundCosts> costs_of_flags(const EvaluateOptions& options) {
  std::vector<float> values;
  std::size_t at = 0;
  while (at <= options.round_ms.size()) {
    const std::size_t comma = std::min(options.round_ms.find(',', at), options.round_ms.size());
    const std::string item = options.round_ms.substr(at, comma - at);
    char* end = nullptr;
    const float value = std::strtof(item.c_str(), &end);
    if (item.empty() || *end != 0 || !(value > 0) || !std::isfinite(value)) {
      return invalid(fmt::format(
          "--round-ms: found \"{}\", wanted milliseconds by rows, as in 20,21,23", item));
    }
    values.push_back(value);
    at = comma + 1;
  }
  return RoundCosts::measured(values, options.head_start_ms, options.head_step_ms);
}

// What the log holds and what it costs: the first pass.
struct Survey {
  std::int64_t requests = 0, refused = 0, other_models = 0;
  ModelFingerprint model{};
  CostsOfLog costs;
};

template <class Visit>
Status each_request(const std::string& path, Survey* survey, Visit visit) {
  std::int64_t index = 0;
  const auto read = read_segments(path, 0, [&](std::uint64_t, Message message) {
    const auto trace = parse_trace(message);
    if (!trace) {
      if (survey) ++survey->refused;
      return true;
    }
    return visit(index++, *trace);
  });
  if (!read) return read.error();
  return Ok{};
}

Result<Survey> survey_of(const EvaluateOptions& options,
                         const std::optional<ModelFingerprint>& wanted) {
  std::error_code error;
  if (!std::filesystem::exists(options.traces, error))
    return Error{ErrorCode::kNotFound, fmt::format("{}: no such file or folder", options.traces)};
  Survey survey;
  if (wanted) survey.model = *wanted;
  const auto read = each_request(options.traces, &survey, [&](std::int64_t i, const auto& trace) {
    if (i == 0 && !wanted) survey.model = trace.model_fingerprint;
    survey.other_models += trace.model_fingerprint != survey.model;
    survey.costs.add(trace);
    survey.requests = i + 1;
    return true;
  });
  if (!read) return read.error();
  if (survey.requests == 0) {
    return invalid(fmt::format("{}: no readable request{}", options.traces,
                               survey.refused ? fmt::format(" ({} refused)", survey.refused) : ""));
  }
  if (survey.other_models == survey.requests) {
    return invalid(fmt::format("{}: none of its {} requests is of the bundle's model {}",
                               options.traces, survey.requests,
                               to_hex(survey.model).substr(0, 16)));
  }
  if (options.from_request >= survey.requests) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("--from-request: found {}, but {} holds {} requests",
                             options.from_request, options.traces, survey.requests)};
  }
  return survey;
}

json::value number(double value) {
  return std::isfinite(value) ? json::value(value) : json::value(nullptr);
}

json::object estimate_json(const PairedSums& sums) {
  const RatioEstimate estimate = ratio_estimate(sums);
  return {{"value", number(estimate.value)},
          {"ci95", json::array{number(estimate.low), number(estimate.high)}}};
}

json::object portfolio_json(const PortfolioFigures& figures) {
  return {{"tokens_per_round", estimate_json(figures.tokens_per_round)},
          {"predicted_speedup", estimate_json(figures.speedup)},
          {"drafted", figures.drafted},
          {"accepted", figures.accepted}};
}

json::object domain_json(const Evaluation& evaluation, const Evaluation::Domain& domain) {
  json::object portfolios;
  for (std::size_t i = 0; i < kPortfolios.size(); ++i) {
    if (evaluation.has(i)) portfolios[kPortfolios[i].name] = portfolio_json(domain.portfolios[i]);
  }
  return {{"requests", domain.requests},
          {"tokens", domain.tokens},
          {"portfolios", std::move(portfolios)},
          {"auto_over_ngram", estimate_json(domain.learned_gain)}};
}

json::object plan_json(const Evaluation& evaluation) {
  json::object out = domain_json(evaluation, evaluation.all());
  json::object domains;
  for (const auto& [name, domain] : evaluation.domains())
    domains[domain_label(name)] = domain_json(evaluation, domain);
  out["domains"] = std::move(domains);
  out["requests_without_features"] = evaluation.without_features();
  out["requests_skipped"] = evaluation.skipped();
  return out;
}

json::object bundle_json(const std::string& path, const Bundle& bundle) {
  return {{"file", path},
          {"kind", printable(bundle.kind)},
          {"version", bundle.version.value},
          {"trained_requests", bundle.trained_requests},
          {"trained_tokens", bundle.trained_tokens},
          {"verdict", printable(bundle.verdict)}};
}

json::object comparison_json(const BundleComparison& comparison) {
  const SequentialFigures figures = comparison.figures();
  const auto domain_of = [](const DomainFigures& domain) {
    return json::object{{"gain", number(domain.gain)},
                        {"any_time_ci95", json::array{number(domain.low), number(domain.high)}},
                        {"requests", domain.requests}};
  };
  json::object domains;
  for (const DomainFigures& domain : figures.domains)
    domains[domain_label(domain.domain)] = domain_of(domain);
  json::object out = domain_of(figures.all);
  out["verdict"] = name(comparison.verdict());
  out["because"] = comparison.because();
  out["decided_after_requests"] = comparison.decided_after();
  out["domains"] = std::move(domains);
  return out;
}

std::string cell(const PairedSums& sums) {
  const RatioEstimate e = ratio_estimate(sums);
  if (!std::isfinite(e.value)) return "-";
  if (!std::isfinite(e.low)) return fmt::format("{:.3f}", e.value);
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", e.value, e.low, e.high);
}

void print_domain(const Evaluation& evaluation, const std::string& name,
                  const Evaluation::Domain& domain) {
  fmt::print("{}: {} requests, {} tokens\n", name, domain.requests, domain.tokens);
  fmt::print("  {:<12} {:<24} {}\n", "portfolio", "tokens a round", "predicted speed-up");
  for (std::size_t i = 0; i < kPortfolios.size(); ++i) {
    if (!evaluation.has(i)) continue;
    const PortfolioFigures& figures = domain.portfolios[i];
    fmt::print("  {:<12} {:<24} {}\n", kPortfolios[i].name, cell(figures.tokens_per_round),
               cell(figures.speedup));
  }
}

std::string describe(RoundPlan plan, const EvaluateOptions& options) {
  switch (plan) {
    case RoundPlan::kByCost:
      return fmt::format("Drafts as long as they pay, up to {}", options.max_draft);
    case RoundPlan::kLogged:
      return "The logged rounds";
    case RoundPlan::kFixed:
      break;
  }
  return fmt::format("Drafts of up to {}", options.draft_length);
}

EvaluationOptions evaluation_options(const EvaluateOptions& options, RoundPlan plan,
                                     const RoundCosts& costs) {
  return {plan, plan == RoundPlan::kByCost ? options.max_draft : options.draft_length, costs};
}

Result<json::object> evaluate(const EvaluateOptions& options) {
  std::shared_ptr<const VocabularyRows> rows;
  if (!options.model.empty()) {
    auto opened = VocabularyRows::open(options.model);
    if (!opened) return opened.error();
    rows = std::move(opened).value();
  }
  std::optional<Loaded> bundle, against;
  for (const auto& [path, to] :
       {std::pair(&options.bundle, &bundle), {&options.against, &against}}) {
    if (path->empty()) continue;
    auto loaded = load(*path, rows);
    if (!loaded) return loaded.error();
    *to = std::move(loaded).value();
  }
  if (bundle && against && bundle->bundle.model_fingerprint != against->bundle.model_fingerprint)
    return invalid(fmt::format("{} and {} are of two models", options.bundle, options.against));
  std::optional<ModelFingerprint> model;
  if (bundle) model = bundle->bundle.model_fingerprint;
  auto survey = survey_of(options, model);
  if (!survey) return survey.error();

  std::string costs_from = "flags";
  RoundCosts costs;
  if (!options.round_ms.empty()) {
    auto given = costs_of_flags(options);
    if (!given) return given.error();
    costs = *given;
  } else if (const auto fitted = survey->costs.fit()) {
    costs = *fitted;
    costs_from = "the log's rounds";
  } else {
    costs = RoundCosts::typical();
    costs_from = "typical ratios: the log has too few rounds that ran alone";
  }

  const auto weights = bundle ? bundle->weights : initial_weights();
  std::vector<std::pair<RoundPlan, std::unique_ptr<Evaluation>>> evaluations;
  for (const RoundPlan plan : {RoundPlan::kFixed, RoundPlan::kByCost, RoundPlan::kLogged}) {
    const bool both = options.rounds == "both" && plan != RoundPlan::kLogged;
    if (!both && options.rounds != name(plan)) continue;
    evaluations.emplace_back(
        plan, std::make_unique<Evaluation>(evaluation_options(options, plan, costs), weights));
  }
  std::optional<BundleComparison> comparison;
  if (against) {
    // As the gate's, but where another plan is asked for.
    const RoundPlan plan = evaluations.size() == 1 ? evaluations.front().first : RoundPlan::kByCost;
    comparison.emplace(evaluation_options(options, plan, costs), SequentialOptions{}, weights,
                       against->weights);
  }

  const std::int64_t end =
      options.to_request > 0 ? std::min(options.to_request, survey->requests) : survey->requests;
  const std::int64_t from =
      options.from_request >= 0
          ? options.from_request
          : std::max<std::int64_t>(0, survey->requests + options.from_request);
  const std::int64_t begin = std::max<std::int64_t>(0, from - kWarmRequests);
  Progress progress("evaluate");
  const auto read =
      each_request(options.traces, nullptr, [&](std::int64_t i, const RequestTrace& trace) {
        if (i >= end) return false;
        if (i < begin || trace.model_fingerprint != survey->model) return true;
        for (auto& [plan, evaluation] : evaluations) {
          if (i < from)
            evaluation->warm(trace);
          else
            evaluation->add(trace);
        }
        if (comparison && i >= from) comparison->add(trace);
        progress(double(i + 1 - begin) / double(std::max<std::int64_t>(end - begin, 1)));
        return true;
      });
  if (!read) return read.error();
  progress(1);

  json::object out{{"schema", 1},
                   {"traces", options.traces},
                   {"model_fingerprint", to_hex(survey->model)},
                   {"requests_in_log", survey->requests},
                   {"requests_of_other_models", survey->other_models},
                   {"messages_refused", survey->refused},
                   {"from_request", from},
                   {"to_request", end},
                   {"draft_length", options.draft_length},
                   {"max_draft", options.max_draft},
                   {"costs", json::object{{"from", costs_from},
                                          {"round_ms", json::value_from(costs.rounds)},
                                          {"head_start_ms", costs.head_start},
                                          {"head_step_ms", costs.head_step}}}};
  if (bundle) out["bundle"] = bundle_json(options.bundle, bundle->bundle);
  json::object plans;
  for (const auto& [plan, evaluation] : evaluations) plans[name(plan)] = plan_json(*evaluation);
  out["rounds"] = std::move(plans);
  if (against) out["against"] = bundle_json(options.against, against->bundle);
  if (comparison) out["comparison"] = comparison_json(*comparison);
  if (options.as_json) return out;

  fmt::print("{} requests of {}; costs of rounds from {}: {:.3g} ms a row, {:.3g} of {}\n",
             end - from, options.traces, costs_from, costs.round(1),
             costs.round(1 + options.draft_length), 1 + options.draft_length);
  for (const auto& [plan, evaluation] : evaluations) {
    fmt::print("\n{}\n", describe(plan, options));
    print_domain(*evaluation, "all", evaluation->all());
    if (evaluation->domains().size() > 1) {
      for (const auto& [name, domain] : evaluation->domains())
        print_domain(*evaluation, domain_label(name), domain);
    }
    fmt::print("auto over ngram alone, predicted speed: {}\n",
               cell(evaluation->all().learned_gain));
    if (evaluation->without_features() > 0)
      fmt::print("{} requests were logged without features: the head stood still there\n",
                 evaluation->without_features());
  }
  if (comparison) {
    const SequentialFigures figures = comparison->figures();
    fmt::print(
        "\nAs the gate sees it: {}{} ({}): speed {:+.2f} % [{:+.2f}, {:+.2f}] (any-time 95 %)"
        " over {} requests\n",
        name(comparison->verdict()),
        comparison->decided_after() ? fmt::format(" after {} requests", comparison->decided_after())
                                    : "",
        comparison->because(), 100 * figures.all.gain, 100 * figures.all.low,
        100 * figures.all.high, figures.all.requests);
    for (const DomainFigures& domain : figures.domains)
      fmt::print("  {:<12} {:+.2f} % [{:+.2f}, {:+.2f}] over {}\n", domain_label(domain.domain),
                 100 * domain.gain, 100 * domain.low, 100 * domain.high, domain.requests);
  }
  return out;
}

int evaluate_main(int argc, char** argv) {
  if (asks_for_quality(argc, argv)) return evaluate_quality_main(argc, argv);
  EvaluateOptions options;
  Flags flags(argv[0],
              "What each portfolio of speculators would have made of recorded traces, offline. "
              "Of KV cache modes: --quality MODEL, see --quality MODEL --help.");
  flags.app()
      .add_option("TRACES", options.traces, "a trace segment or a folder of segments")
      ->required();
  flags.option("bundle", options.bundle,
               "weight bundle of the learned speculator; else as shipped");
  flags.option("against", options.against, "another bundle: compare as the trainer's gate does");
  flags.option("model", options.model, "the target's GGUF file (bundles with a head)");
  flags.option("from-request", options.from_request,
               "count from this request of the log on; negative: the last so many");
  flags.option("to-request", options.to_request, "up to before this one; 0: to the end")
      ->check(CLI::NonNegativeNumber);
  flags.option("rounds", options.rounds, "fixed drafts, by cost, both, or the logged rounds")
      ->check(CLI::IsMember({"fixed", "cost", "both", "logged"}));
  flags.number("draft-length", options.draft_length, 1, 16,
               "drafted tokens a round at most, where fixed");
  flags.number("spec-draft-n-max", options.max_draft, 1, 16,
               "drafted tokens a round at most, by cost");
  flags.option("round-ms", options.round_ms,
               "cost of a round by rows, as in 20,21,23; else from the log");
  flags.option("head-start-ms", options.head_start_ms,
               "the head's cost of a draft (with --round-ms)");
  flags.option("head-step-ms", options.head_step_ms, "and of each of its steps");
  flags.app().add_flag("--json", options.as_json, "print JSON");
  if (const auto status = flags.parse(argc, argv)) return *status;
  const auto found = evaluate(options);
  if (!found) return exit_status(argv[0], found.error());
  if (options.as_json) fmt::print("{}\n", json::serialize(*found));
  return 0;
}

const Subcommand kEvaluate{"evaluate",
                           "score a speculator on recorded traces, or KV modes (--quality)",
                           evaluate_main, 42};

}  // namespace
}  // namespace foretoken
