// foretoken head: published EAGLE-3 heads into weight bundles, and out of them, in either format.
#include <fmt/format.h>
#include <sodium.h>

#include <filesystem>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/keys.h"
#include "foretoken/protocol/state_folder.h"
#include "foretoken/protocol/transport.h"
#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config.h"
#include "runtime/model/fingerprint.h"
#include "runtime/server/spec_head.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/eagle3_head.h"
#include "runtime/speculate/head/head_bundle.h"

namespace foretoken {
namespace {

struct HeadFlags {
  std::string from, output, model, keys = (default_state_root() / "keys").string(), format,
                                   verifier;
  std::uint64_t version = 1;
};

Status import_head(const HeadFlags& flags) {
  auto checkpoint = read_eagle3(flags.from);
  if (!checkpoint) return checkpoint.error();
  auto rows = VocabularyRows::open(flags.model);
  if (!rows) return rows.error();
  auto parts = eagle3_parts(*checkpoint);
  if (!parts) return parts.error();
  const HeadTerms terms = HeadTerms::none(parts->config.hidden);
  // Whether it fits the model is found here, not when it is to serve.
  if (auto head = Eagle3Head::create(*checkpoint, terms, *rows); !head) return head.error();
  kernels::ThreadPool pool(1);
  auto fingerprint = fingerprint_of(*(*rows)->file(), 0, pool);
  if (!fingerprint) return fingerprint.error();
  const KeyFolder folder(flags.keys);
  if (auto s = folder.make(true, true); !s) return s;
  auto keys = folder.trainer();
  if (!keys) return keys.error();
  Bundle bundle = bundle_of(FusionTable::initial());
  add_eagle3(bundle, *checkpoint, terms);
  bundle.version = {flags.version};
  bundle.model_fingerprint = *fingerprint;
  bundle.created_unix_ms = system_clock().unix_ms();
  bundle.verdict = "imported, no gate has judged it";
  if (auto s = write_file_atomically(flags.output, serialize(bundle, keys->signing)); !s) return s;
  fmt::print("{}: an EAGLE-3 head of {} draft tokens in the {} format, signed by {}\n",
             flags.output, parts->config.n_draft_vocab, eagle3_format_name(parts->config.format),
             key_id(keys->signing.public_key()));
  return Ok{};
}

Status export_head(const HeadFlags& flags) {
  Eagle3Checkpoint checkpoint;
  std::error_code error;
  if (std::filesystem::is_directory(flags.from, error)) {
    auto read = read_eagle3(flags.from);
    if (!read) return read.error();
    checkpoint = std::move(*read);
  } else {
    auto bundle = read_bundle(flags.from);
    if (!bundle) return bundle.error();
    auto held = eagle3_of(*bundle);
    if (!held) return at(flags.from, held.error());
    checkpoint = std::move(held->checkpoint);
  }
  if (!flags.format.empty()) {
    const Eagle3Format to =
        flags.format == "eagle3" ? Eagle3Format::kEagle3 : Eagle3Format::kSpeculators;
    Eagle3Verifier verifier;
    if (!flags.model.empty()) {
      auto file = GgufFile::open(flags.model);
      if (!file) return file.error();
      auto config = read_model_config(**file);
      if (!config) return config.error();
      verifier = {flags.verifier.empty() ? config->name : flags.verifier,
                  find_architecture(config->architecture)->transformers_class, config->n_layers};
    } else {
      auto config = parse_eagle3_config(checkpoint.config);
      if (!config) return config.error();
      if (config->format != to) {
        return Error{ErrorCode::kInvalidInput,
                     "--model: missing, wanted the target's GGUF file: another format names its "
                     "layers and architecture"};
      }
    }
    auto made = converted(checkpoint, to, verifier);
    if (!made) return made.error();
    checkpoint = std::move(*made);
  }
  if (auto s = write_eagle3(checkpoint, flags.output); !s) return s;
  fmt::print("{}: config.json and model.safetensors, {} tensors\n", flags.output,
             checkpoint.tensors.size());
  return Ok{};
}

int head_main(int argc, char** argv) {
  Flags flags(argv[0],
              "Published EAGLE-3 heads (config.json and model.safetensors, as SGLang and vLLM have "
              "them) into weight bundles, and back without a changed bit.");
  HeadFlags f;
  auto* in = flags.app().add_subcommand("import", "a folder into a signed bundle");
  auto* out = flags.app().add_subcommand("export", "a bundle, or another folder, into a folder");
  in->add_option("DIR", f.from, "folder with config.json and model.safetensors")->required();
  in->add_option("--model", f.model, "the target, a GGUF file")->required();
  in->add_option("--output", f.output, "the bundle to write")->required();
  in->add_option("--keys", f.keys, "folder of keys; the trainer's signs (foretoken keys)")
      ->capture_default_str();
  in->add_option("--version", f.version, "the bundle's version number")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 62))
      ->capture_default_str();
  out->add_option("BUNDLE", f.from, "a bundle of kind eagle3, or a folder with a head")->required();
  out->add_option("--output", f.output, "the folder to write")->required();
  out->add_option("--format", f.format, "eagle3 (SGLang, vLLM) or speculators (vLLM); as it is")
      ->check(CLI::IsMember({"eagle3", "speculators"}));
  out->add_option("--model", f.model, "the target's GGUF file, for another format");
  out->add_option("--verifier", f.verifier,
                  "what the speculators format calls the target, as in org/model");
  flags.app().require_subcommand(1);
  if (const auto status = flags.parse(argc, argv)) return *status;
  if (sodium_init() < 0) return 1;
  return exit_status(argv[0], *in ? import_head(f) : export_head(f));
}

const Subcommand kHead{"head", "convert EAGLE-3 heads to and from weight bundles", head_main, 46};

}  // namespace
}  // namespace foretoken
