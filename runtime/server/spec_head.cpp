#include "runtime/server/spec_head.h"

#include <fmt/format.h>
#include <sodium.h>
#include <spdlog/spdlog.h>

#include <array>
#include <filesystem>
#include <thread>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/control.h"
#include "runtime/evaluate/tap_check.h"
#include "runtime/model/calibrate_kv.h"
#include "runtime/speculate/head/eagle3_head.h"

namespace foretoken {
namespace {

// Of what a head is: configuration, names, shapes and bytes.
std::string digest_of(const Eagle3Checkpoint& checkpoint) {
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, 32);
  const auto add = [&](const void* bytes, std::size_t n) {
    const std::uint64_t length = n;
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&length), 8);
    crypto_generichash_update(&state, static_cast<const unsigned char*>(bytes), n);
  };
  add(checkpoint.config.data(), checkpoint.config.size());
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const std::string facts = fmt::format("{} {}", name, safetensor_type_name(tensor.type));
    add(facts.data(), facts.size());
    add(tensor.shape.data(), tensor.shape.size() * sizeof tensor.shape[0]);
    add(tensor.bytes.data(), tensor.bytes.size());
  }
  std::array<std::uint8_t, 32> out;
  crypto_generichash_final(&state, out.data(), out.size());
  return to_hex(out);
}

std::string digest_of(std::span<const std::byte> bytes) {
  std::array<std::uint8_t, 32> out;
  crypto_generichash(out.data(), out.size(), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size(), nullptr, 0);
  return to_hex(out);
}

}  // namespace

Error at(const std::string& path, Error error) {
  if (error.message.find(path) == std::string::npos)
    error.message = fmt::format("{}: {}", path, error.message);
  return error;
}

Result<Bundle> read_bundle(const std::string& path) {
  auto bytes = read_file(path, kMaxBundleBytes);
  if (!bytes) return at(path, bytes.error());
  auto bundle = parse_bundle_of_anyone(*bytes);
  if (!bundle) return at(path, bundle.error());
  return bundle;
}

Result<SpecHead> load_spec_head(const std::string& path,
                                const std::shared_ptr<const VocabularyRows>& rows) {
  LearnedWeights weights;
  // Its table, if it has one, is what ships: silent beside the fixed rule.
  weights.initial = true;
  SpecHead out;
  out.given.source = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    auto checkpoint = read_eagle3(path);
    if (!checkpoint) return at(path, checkpoint.error());
    auto parts = eagle3_parts(*checkpoint);
    if (!parts) return at(path, parts.error());
    auto head = Eagle3Head::create(*checkpoint, HeadTerms::none(parts->config.hidden), rows);
    if (!head) return at(path, head.error());
    weights.head = *head;
    out.given.digest = digest_of(*checkpoint);
  } else {
    auto bundle = read_bundle(path);
    if (!bundle) return bundle.error();
    auto learned = learned_from_bundle(*bundle, rows);
    if (!learned) return at(path, learned.error());
    if (!(*learned)->head) {
      return Error{ErrorCode::kInvalidInput,
                   fmt::format("{}: kind: a bundle of kind \"{}\", wanted one with a head", path,
                               bundle->kind.substr(0, 64))};
    }
    weights = **learned;
    weights.initial = false;
    auto bytes = read_file(path, kMaxBundleBytes);
    if (!bytes) return at(path, bytes.error());
    out.given.digest = digest_of(*bytes);
  }
  out.given.kind = weights.head->kind();
  out.taps = weights.head->taps();
  out.head = weights.head;
  out.given.make = [weights](SpeculatorVersion version) {
    auto made = std::make_shared<LearnedWeights>(weights);
    made->version = version;
    return LearnedPointer(std::move(made));
  };
  return out;
}

Status probe_spec_head(const SpecHead& head, const Model& model, const Tokenizer& tokenizer,
                       int threads) {
  auto text = tokenizer.encode(std::string(kv_calibration_text()), false);
  if (!text) return text.error();
  kernels::ThreadPool pool(
      threads > 0 ? threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  auto check = check_taps(model, *head.head, *text, pool);
  if (!check) return check.error();
  if (auto s = judge_taps(*check); !s) return at(head.given.source, s.error());
  const TapCheck::Shift& configured = check->shifts.front();
  spdlog::info("{}: has {} of {} tokens of the probe right", head.given.source, configured.hits(),
               configured.right.size());
  return Ok{};
}

}  // namespace foretoken
