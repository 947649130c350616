// Stands where a trainer stands: sends weight bundles, good and bad, to a server over real sockets.
//   send_bundle --keys DIR --weights ENDPOINT --fingerprint HEX
// Reads commands from standard input, one a line: KIND VERSION; answers each with a line.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <limits>
#include <thread>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/keys.h"
#include "foretoken/protocol/transport.h"
#include "runtime/speculate/fusion_bundle.h"

namespace foretoken {
namespace {

Bundle bundle_of_version(std::uint64_t version, const ModelFingerprint& fingerprint) {
  FusionTable table = FusionTable::initial();
  table.bias[7] += 1e-4f * float(version % 1000);
  Bundle bundle = bundle_of(table);
  bundle.version = {version};
  bundle.model_fingerprint = fingerprint;
  bundle.verdict = "promoted: by hand, for a test";
  return bundle;
}

// Empty: no such kind.
std::vector<std::byte> bytes_of(const std::string& kind, std::uint64_t version,
                                ModelFingerprint fingerprint, const SigningKey& key) {
  Bundle bundle = bundle_of_version(version, fingerprint);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (kind == "good") return serialize(bundle, key);
  if (kind == "flipped") {
    auto bytes = serialize(bundle, key);
    bytes[bytes.size() / 2] ^= std::byte(4);
    return bytes;
  }
  if (kind == "nan") {
    bundle.tensors["fusion.other"] = BundleTensor::f32({1}, std::span(&nan, 1));
    return serialize(bundle, key);
  }
  if (kind == "shape") {
    bundle.tensors["fusion.bias"] = BundleTensor::f32({64}, std::vector<float>(64));
    return serialize(bundle, key);
  }
  if (kind == "foreign") {
    bundle.model_fingerprint[5] ^= 1;
    return serialize(bundle, key);
  }
  if (kind == "untrusted") return serialize(bundle, SigningKey::generate());
  if (kind == "unsigned") {
    auto bytes = serialize(bundle, key);
    bytes.resize(bytes.size() - 96);
    std::fill_n(bytes.begin() + 24, 4, std::byte(0));
    return bytes;
  }
  if (kind == "kind") {
    bundle.kind = "poem";
    return serialize(bundle, key);
  }
  if (kind == "truncated") {
    auto bytes = serialize(bundle, key);
    bytes.resize(bytes.size() - 10);
    return bytes;
  }
  return {};
}

bool send(Sender& sender, const Message& message) {
  for (int i = 0; i < 1000; ++i) {
    if (sender.try_send(message)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

int run(int argc, char** argv) {
  CLI::App app("Sends weight bundles to a server", "send_bundle");
  std::string keys_dir, weights, hex;
  app.add_option("--keys", keys_dir)->required();
  app.add_option("--weights", weights)->required();
  app.add_option("--fingerprint", hex)->required();
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);  // standard output is for answers
  const auto complain = [](const Error& error) {
    fmt::print(stderr, "send_bundle: {}\n", error.message);
    return 1;
  };
  auto keys = KeyFolder(keys_dir).trainer();
  if (!keys) return complain(keys.error());
  auto fingerprint = fingerprint_from_hex(hex);
  if (!fingerprint) return complain(fingerprint.error());
  // Traces are not asked for: nobody is at the discard port.
  LinkEndpoints endpoints{"tcp://127.0.0.1:9", weights, 200, keys->link};
  auto link = open_trainer_link(endpoints);
  if (!link) return complain(link.error());
  std::string kind;
  std::uint64_t version = 0;
  while (std::cin >> kind >> version) {
    if (kind == "garbage") {  // not even a message
      const bool sent = send(*link->sender, Message{Frame(32), Frame(100)});
      fmt::print("{}\n", sent ? "sent" : "not sent");
    } else {
      const auto bytes = bytes_of(kind, version, *fingerprint, keys->signing);
      bool sent = !bytes.empty();
      for (const Message& message : chunk_bundle({version}, bytes, 200))
        sent = sent && send(*link->sender, message);
      fmt::print("{}\n", sent ? "sent" : "not sent");
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace foretoken

int main(int argc, char** argv) { return foretoken::run(argc, argv); }
