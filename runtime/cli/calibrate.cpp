// foretoken calibrate MODEL --text FILE -o FILE: the KV calibration of a model, from the user's own
// text.
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/cli/command.h"
#include "runtime/cli/progress.h"
#include "runtime/flags/flags.h"
#include "runtime/server/kv_calibration.h"

namespace foretoken {
namespace {

struct CalibrateOptions {
  std::string model, output;
  std::vector<std::string> texts;
  KvCalibrateOptions calibrate;
  int threads = 0;
};

Status calibrate(const CalibrateOptions& options) {
  // Before the minutes of work, not after them.
  const std::filesystem::path folder = std::filesystem::absolute(options.output).parent_path();
  if (::access(folder.c_str(), W_OK) != 0) {
    return Error{ErrorCode::kIo,
                 fmt::format("--output: {} is not a folder that can be written", folder.string())};
  }
  ProgressBars bars;
  auto model =
      Model::load(options.model, {.threads = options.threads,
                                  .progress = [&](double fraction) { bars("loading", fraction); }});
  if (!model) return model.error();
  auto tokenizer = Tokenizer::from_gguf((*model)->file());
  if (!tokenizer) return tokenizer.error();
  auto made = make_kv_calibration(**model, **tokenizer, options.texts, options.calibrate,
                                  options.threads, std::ref(bars));
  if (!made) return made.error();
  if (const Status saved = (*made)->save(options.output, (*model)->fingerprint()); !saved)
    return saved.error();
  std::error_code error;
  fmt::print("{}: {:.1f} MB, for {} alone: foretoken serve --kv-calibration {}\n", options.output,
             static_cast<double>(std::filesystem::file_size(options.output, error)) / 1e6,
             (*model)->config().name, options.output);
  return Ok{};
}

int calibrate_main(int argc, char** argv) {
  CalibrateOptions options;
  Flags flags(argv[0],
              "Fits a model's low-bit KV modes to text: at first start the server does so with a "
              "bundled text; your own is better where your traffic is of one kind.");
  flags.app().add_option("MODEL", options.model, "a GGUF file")->required();
  flags.option(
      "text", options.texts,
      "a text file like the traffic, UTF-8; several are joined; default: the bundled text");
  flags.option("output", options.output, "the file to write", 'o')->required();
  flags.number("max-tokens", options.calibrate.max_tokens, 256, 1 << 20,
               "of a longer text, so many tokens in pieces from all over it");
  flags.option("seed", options.calibrate.seed, "of the random positions");
  flags.number("threads", options.threads, 0, 1024, "kernel threads, 0: all cores");
  if (const auto status = flags.parse(argc, argv)) return *status;
  return exit_status(argv[0], calibrate(options));
}

const Subcommand kCalibrate{"calibrate", "fit a model's KV cache modes to your own text",
                            calibrate_main, 44};

}  // namespace
}  // namespace foretoken
