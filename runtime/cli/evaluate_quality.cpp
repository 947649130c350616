// foretoken evaluate --quality MODEL --text FILE: what each KV mode costs this model on this text.
#include "runtime/cli/evaluate_quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/signing.h"
#include "foretoken/protocol/state_folder.h"
#include "runtime/cli/command.h"
#include "runtime/cli/progress.h"
#include "runtime/evaluate/needles.h"
#include "runtime/evaluate/quality_report.h"
#include "runtime/flags/flags.h"
#include "runtime/server/kv_calibration.h"

namespace foretoken {
namespace {

struct QualityOptions {
  std::string model, json_file, plot;
  std::vector<std::string> texts, modes;
  std::int64_t context = 4096;
  int windows_per_text = 1, needle_questions = 64;
  std::vector<std::int64_t> needles{1024, 4096};
  std::uint64_t seed = 1;
  KvQualityOptions quality;
  KvCalibrationChoice calibration;
};

Error bad_input(std::string text) { return Error{ErrorCode::kInvalidInput, std::move(text)}; }

// Modes, and the controls that show what the calibration is worth.
Result<std::vector<KvQualityCase>> cases_of(const QualityOptions& options, const Model& model,
                                            const Tokenizer& tokenizer) {
  std::vector<KvQualityCase> cases;
  std::vector<std::string> names = options.modes;
  if (names.empty()) {
    for (const KvMode mode : kv_modes()) names.emplace_back(kv_mode_name(mode));
  }
  for (const std::string& name : names) {
    if (name == "bf16") continue;  // always there
    KvQualityCase c{name, KvMode::kInt2, nullptr};
    if (name == "naive") {
      c.calibration = KvCalibration::naive(model.kv_geometry());
    } else if (name == "hadamard") {
      c.calibration = KvCalibration::hadamard(model.kv_geometry());
    } else {
      const auto mode = parse_kv_mode(name);
      if (!mode) {
        return bad_input(
            fmt::format("--modes: found \"{}\", wanted {}, or the controls naive or hadamard", name,
                        kv_mode_names()));
      }
      c.mode = *mode;
      auto calibration =
          obtain_kv_calibration(model, tokenizer, c.mode, options.calibration, ProgressBars());
      if (!calibration) return calibration.error();
      c.calibration = std::move(*calibration);
    }
    cases.push_back(std::move(c));
  }
  return cases;
}

struct Text {
  std::string name, text;
  std::vector<TokenId> tokens;
};

Result<std::vector<Text>> read_texts(const QualityOptions& options, const Tokenizer& tokenizer) {
  std::vector<Text> texts;
  for (const std::string& path : options.texts) {
    auto text = read_text(path);
    if (!text) return text.error();
    auto tokens = tokenizer.encode(*text, false);
    if (!tokens)
      return Error{tokens.error().code, fmt::format("{}: {}", path, tokens.error().message)};
    const auto wanted = static_cast<std::size_t>(options.context * options.windows_per_text);
    if (tokens->size() < wanted) {
      return bad_input(fmt::format("{}: {} tokens, wanted at least {} ({} windows of --context {})",
                                   path, tokens->size(), wanted, options.windows_per_text,
                                   options.context));
    }
    texts.push_back({path, std::move(*text), std::move(*tokens)});
  }
  return texts;
}

// Windows in the middle of equal parts of the text.
std::vector<KvQualityWindow> windows_of(const QualityOptions& options, const Tokenizer& tokenizer,
                                        const std::vector<Text>& texts) {
  std::vector<KvQualityWindow> windows;
  const auto n = static_cast<std::size_t>(options.windows_per_text);
  for (const Text& text : texts) {
    const std::size_t part = text.tokens.size() / n;
    for (std::size_t i = 0; i < n; ++i) {
      KvQualityWindow window{text.name, {}};
      if (tokenizer.add_bos() && tokenizer.bos()) window.tokens.push_back(*tokenizer.bos());
      const std::size_t length = static_cast<std::size_t>(options.context) - window.tokens.size();
      const auto begin =
          text.tokens.begin() + static_cast<std::ptrdiff_t>(part * i + (part - length) / 2);
      window.tokens.insert(window.tokens.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
      windows.push_back(std::move(window));
    }
  }
  return windows;
}

Result<std::vector<NeedleContext>> needle_contexts(const QualityOptions& options,
                                                   std::int64_t length, const Tokenizer& tokenizer,
                                                   const std::vector<Text>& texts) {
  std::vector<NeedleContext> contexts;
  std::size_t asked = 0;
  const auto wanted = static_cast<std::size_t>(options.needle_questions);
  while (asked < wanted) {
    auto context = make_needle_context(tokenizer, texts[contexts.size() % texts.size()].text,
                                       length, options.quality, options.seed + contexts.size());
    if (!context) return context.error();
    context->questions.resize(std::min(context->questions.size(), wanted - asked));
    asked += context->questions.size();
    contexts.push_back(std::move(*context));
  }
  return contexts;
}

Result<QualityReport> evaluate_kv(const QualityOptions& options) {
  if (options.texts.empty())
    return bad_input("--text: missing, wanted files that neither calibration nor you tuned on");
  Progress loading("loading");
  auto loaded = Model::load(
      options.model, {.threads = options.calibration.threads, .progress = std::ref(loading)});
  if (!loaded) return loaded.error();
  const Model& model = **loaded;
  auto tokenizer = Tokenizer::from_gguf(model.file());
  if (!tokenizer) return tokenizer.error();
  auto texts = read_texts(options, **tokenizer);
  if (!texts) return texts.error();
  std::vector<std::vector<NeedleContext>> needles;
  for (const std::int64_t length : options.needles) {
    if (options.needle_questions == 0) break;
    auto contexts = needle_contexts(options, length, **tokenizer, *texts);
    if (!contexts) return contexts.error();
    needles.push_back(std::move(*contexts));
  }
  const std::vector<KvQualityWindow> windows = windows_of(options, **tokenizer, *texts);
  auto cases = cases_of(options, model, **tokenizer);
  if (!cases) return cases.error();

  QualityReport report{.model = model.config().name,
                       .fingerprint = to_hex(model.fingerprint()),
                       .options = options.quality};
  for (const KvQualityWindow& window : windows) report.windows.push_back(window.name);
  kernels::ThreadPool pool(threads_or_all(options.calibration.threads));
  Progress progress("KV quality");
  auto modes =
      measure_kv_quality(model, windows, *cases, options.quality, pool, std::ref(progress));
  if (!modes) return modes.error();
  report.modes = std::move(*modes);
  cases->insert(cases->begin(), {"bf16", KvMode::kBf16, nullptr});
  for (const auto& contexts : needles) {
    Progress looking(fmt::format("needles at {}", contexts.front().length));
    auto found = measure_needles(model, contexts, *cases, options.quality, pool, std::ref(looking));
    if (!found) return found.error();
    report.needles.push_back(std::move(*found));
  }
  return report;
}

}  // namespace

bool asks_for_quality(int argc, char** argv) {
  return std::any_of(argv + 1, argv + argc, [](std::string_view argument) {
    return argument == "--quality" || argument.starts_with("--quality=");
  });
}

int evaluate_quality_main(int argc, char** argv) {
  QualityOptions options;
  options.calibration.state_dir = default_state_root().string();
  Flags flags(argv[0],
              "What each KV cache mode costs a model on your text, through the real cache, against "
              "bf16: perplexity, KL divergence, the same most likely token; facts found among "
              "near-duplicates in a long context; bytes and tokens a second.");
  flags.option("quality", options.model, "the model, a GGUF file")->required();
  flags.option("text", options.texts,
               "UTF-8 files of the kind you serve; not what it was calibrated on");
  flags
      .option(
          "modes", options.modes,
          "KV cache dtypes, default: all; int2's controls naive and hadamard; bf16 is always there")
      ->delimiter(',');
  flags.number("context", options.context, 640, 1 << 20, "tokens of a window");
  flags.number("windows", options.windows_per_text, 1, 1000, "of each text");
  flags.number("first-scored", options.quality.first_scored, 0, 1 << 20,
               "position in a window, from 0");
  flags
      .option("needles", options.needles,
              "context lengths to find facts in; 8192 and beyond take a while")
      ->delimiter(',')
      ->check(CLI::Range(640, 1 << 20));
  flags.number("needle-questions", options.needle_questions, 0, 100000, "at each length; 0: none");
  flags.option("seed", options.seed, "of the needles");
  flags.number("kv-sink", options.quality.sink_tokens, 0, 1 << 20, "as of serve");
  flags.number("kv-window", options.quality.window_tokens, 64, 1 << 20, "as of serve");
  flags.option("kv-calibration", options.calibration.file,
               "a file of foretoken calibrate; default: the state directory's, made when missing");
  flags.toggle("calibration", options.calibration.calibrate, "as of serve");
  flags.option("state-dir", options.calibration.state_dir, "as of serve");
  flags.number("threads", options.calibration.threads, 0, 1024, "kernel threads, 0: all cores");
  flags.option("json", options.json_file,
               "write JSON to this file, -: print it instead of the table");
  flags.option("plot", options.plot, "write a plot to this file, SVG");
  if (const auto status = flags.parse(argc, argv)) return *status;
  const auto report = evaluate_kv(options);
  Status done = report ? Status(Ok{}) : Status(report.error());
  if (report) {
    if (options.json_file != "-") fmt::print("{}", quality_table(*report));
    if (!options.json_file.empty())
      done = write_report(options.json_file, boost::json::serialize(quality_json(*report)) + "\n");
    if (done && !options.plot.empty()) done = write_report(options.plot, quality_svg(*report));
  }
  return exit_status(argv[0], done);
}

}  // namespace foretoken
