// The wire format: what goes in comes out, and nothing else is ever accepted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sodium.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace.h"
#include "tests/support/guarded_bytes.h"
#include "tests/support/test_keys.h"
#include "tests/unit/protocol/sample_trace.h"

namespace foretoken {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

void expect_equal(const RequestTrace& a, const RequestTrace& b) {
  EXPECT_EQ(a.server_run, b.server_run);
  EXPECT_EQ(a.request, b.request);
  EXPECT_EQ(a.domain, b.domain);
  EXPECT_EQ(a.key_id, b.key_id);
  EXPECT_EQ(a.model_fingerprint, b.model_fingerprint);
  EXPECT_EQ(a.sampling.temperature, b.sampling.temperature);
  EXPECT_EQ(a.sampling.top_k, b.sampling.top_k);
  EXPECT_EQ(a.sampling.top_p, b.sampling.top_p);
  EXPECT_EQ(a.sampling.min_p, b.sampling.min_p);
  EXPECT_EQ(a.sampling.seed, b.sampling.seed);
  EXPECT_EQ(a.sampling.logit_bias, b.sampling.logit_bias);
  EXPECT_EQ(a.sampling.stop_tokens, b.sampling.stop_tokens);
  EXPECT_EQ(a.sampling.rejection, b.sampling.rejection);
  EXPECT_EQ(a.policy, b.policy);
  EXPECT_EQ(a.unix_ms, b.unix_ms);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.n_prompt, b.n_prompt);
  ASSERT_EQ(a.generated.size(), b.generated.size());
  for (std::size_t i = 0; i < a.generated.size(); ++i) {
    const auto &x = a.generated[i], &y = b.generated[i];
    ASSERT_EQ(x.candidates.size(), y.candidates.size());
    for (std::size_t c = 0; c < x.candidates.size(); ++c) {
      EXPECT_EQ(x.candidates[c].token, y.candidates[c].token);
      EXPECT_EQ(x.candidates[c].fusion_class, y.candidates[c].fusion_class);
    }
    EXPECT_EQ(x.top_ids, y.top_ids);
    EXPECT_EQ(x.top_logits, y.top_logits);
    EXPECT_EQ(x.log_sum_exp, y.log_sum_exp);
    EXPECT_EQ(x.logprob, y.logprob);
  }
  ASSERT_EQ(a.rounds.size(), b.rounds.size());
  for (std::size_t i = 0; i < a.rounds.size(); ++i) {
    const auto &x = a.rounds[i], &y = b.rounds[i];
    EXPECT_EQ(x.start, y.start);
    EXPECT_EQ(x.drafted, y.drafted);
    EXPECT_EQ(x.parents, y.parents);
    EXPECT_EQ(x.confidences, y.confidences);
    EXPECT_EQ(x.kinds, y.kinds);
    EXPECT_EQ(x.accepted, y.accepted);
    EXPECT_EQ(x.version, y.version);
    EXPECT_EQ(x.draft_ms, y.draft_ms);
    EXPECT_EQ(x.verify_ms, y.verify_ms);
    EXPECT_EQ(x.rows, y.rows);
    EXPECT_EQ(x.control, y.control);
  }
  EXPECT_EQ(a.n_taps, b.n_taps);
  EXPECT_EQ(a.tap_width, b.tap_width);
  EXPECT_EQ(a.tap_first, b.tap_first);
  EXPECT_EQ(a.tap_layers, b.tap_layers);
  EXPECT_EQ(a.tap_values, b.tap_values);
  EXPECT_EQ(a.tap_scales, b.tap_scales);
  EXPECT_EQ(a.gap, b.gap);
}

std::vector<std::byte> signed_bytes(const Bundle& bundle) {
  return serialize(bundle, test_signing_key());
}

// Bytes that count up, the scales of the blocks finite.
BundleTensor blocks(TensorType type, std::vector<std::int64_t> shape, std::size_t n_bytes) {
  std::vector<std::byte> bytes(n_bytes);
  for (std::size_t i = 0; i < n_bytes; ++i) bytes[i] = std::byte(i % 0x70);
  return BundleTensor::blocks(type, std::move(shape), std::move(bytes));
}

Bundle sample_bundle() {
  Bundle bundle;
  bundle.version = {7};
  bundle.parent = {6};
  bundle.model_fingerprint = sample_fingerprint();
  bundle.kind = "fusion";
  bundle.tensors["fusion.bias"] =
      BundleTensor::f32({4}, std::vector<float>{0.5f, -1.0f, 2.0f, 0.0f});
  bundle.tensors["fusion.other"] = BundleTensor::f32({1}, std::vector<float>{1.5f});
  bundle.tensors["matrix"] = BundleTensor::f32({2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6});
  bundle.tensors["vocab"] = BundleTensor::i32({3}, std::vector<std::int32_t>{-1, 0, 1 << 30});
  bundle.tensors["packed8"] = blocks(TensorType::kQ8_0, {2, 64}, 4 * 34);
  bundle.tensors["packed4"] = blocks(TensorType::kQ4_0, {3, 32}, 3 * 18);
  bundle.trained_tokens = 12345;
  bundle.trained_requests = 67;
  bundle.created_unix_ms = 1'790'000'000'000;
  bundle.loss = 0.75;
  bundle.verdict = "promoted: +0.1";
  return bundle;
}

template <class T>
std::string error_of(const Result<T>& result) {
  return result ? std::string() : result.error().message;
}

// Every message of the protocol, with the parser that reads it.
struct Case {
  std::string name;
  Message message;
  std::function<std::string(const Message&)> parse;  // "" or the error
};

std::vector<Case> every_message() {
  TrainerStatus status;
  status.run = 9;
  status.model_fingerprint = sample_fingerprint();
  status.verdict = "promoted";
  return {
      {"trace", serialize(sample_trace()),
       [](const Message& m) { return error_of(parse_trace(m)); }},
      {"hello", serialize(ServerHello{1, sample_fingerprint(), {4}, {3}, "shape: x", 2, 10, 1}),
       [](const Message& m) { return error_of(parse_server_hello(m)); }},
      {"status", serialize(status),
       [](const Message& m) { return error_of(parse_trainer_status(m)); }},
      {"chunk", chunk_bundle({7}, signed_bytes(sample_bundle())).front(),
       [](const Message& m) { return error_of(parse_bundle_chunk(m)); }},
  };
}

TEST(TraceWire, ComesBackAsItWas) {
  for (const int n_generated : {0, 1, 2, 5, 300}) {
    const RequestTrace trace = sample_trace(1, n_generated);
    const auto parsed = parse_trace(serialize(trace));
    ASSERT_TRUE(parsed) << parsed.error().message;
    expect_equal(trace, *parsed);
  }
  const RequestTrace bare;  // nothing captured at all
  const auto parsed = parse_trace(serialize(bare));
  ASSERT_TRUE(parsed) << parsed.error().message;
  expect_equal(bare, *parsed);
}

// Where a bit can be flipped, or a frame cut or lost, and the message is still taken; "": nowhere.
std::string first_flip_taken(const Case& c) {
  Message damaged = c.message;
  for (std::size_t f = 0; f < damaged.size(); ++f) {
    for (std::size_t i = 0; i < damaged[f].size(); ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        damaged[f][i] ^= std::byte(1 << bit);
        if (c.parse(damaged).empty())
          return c.name + ": frame " + std::to_string(f) + " byte " + std::to_string(i);
        damaged[f][i] ^= std::byte(1 << bit);
      }
    }
  }
  return c.parse(damaged);
}
std::string first_cut_taken(const Case& c) {
  for (std::size_t f = 0; f < c.message.size(); ++f) {
    for (std::size_t size = 0; size < c.message[f].size(); ++size) {
      Message cut = c.message;
      cut[f].resize(size);
      if (c.parse(cut).empty())
        return c.name + ": frame " + std::to_string(f) + " cut to " + std::to_string(size);
    }
    const Message fewer(c.message.begin(), c.message.begin() + std::ptrdiff_t(f));
    if (c.parse(fewer).empty()) return c.name + ": frame " + std::to_string(f) + " lost";
  }
  return c.parse(c.message);
}

TEST(Wire, EveryFlippedBitIsAnError) {
  for (const Case& c : every_message()) EXPECT_EQ(first_flip_taken(c), "");
}

TEST(Wire, EveryTruncationIsAnError) {
  for (const Case& c : every_message()) {
    EXPECT_EQ(first_cut_taken(c), "");
    Message more = c.message;
    more.push_back(Frame(4));
    EXPECT_NE(c.parse(more), "") << c.name;
  }
}

// The controls: a receiver that does not compare the frames' hash, and one that does not compare
// their lengths either.
TEST(Wire, AReceiverThatTakesDamageIsCaught) {
  for (const Case& c : every_message()) {
    const auto type = check_envelope(c.message);
    ASSERT_TRUE(type);
    Case unhashed = c, unmeasured = c;
    unhashed.parse = [&](const Message& m) {
      if (m.empty() || m[0] != c.message[0]) return c.parse(m);
      return c.parse(seal(*type, {m.begin() + 1, m.end()}));
    };
    unmeasured.parse = [&](Message m) {
      for (std::size_t f = 1; f < m.size(); ++f) m[f].resize(c.message[f].size());
      return unhashed.parse(m);
    };
    EXPECT_THAT(first_flip_taken(unhashed), StartsWith(c.name + ": frame "));
    EXPECT_THAT(first_cut_taken(unmeasured), StartsWith(c.name + ": frame "));
  }
}

// What stands behind the checksum must hold too, against a sender that hashes its garbage
// correctly.
TEST(Wire, SealedGarbageNeverCrashes) {
  std::mt19937_64 random(1);
  for (const Case& c : every_message()) {
    const auto type = check_envelope(c.message);
    ASSERT_TRUE(type);
    int refused = 0;
    const auto attempt = [&](std::vector<Frame> frames) {
      refused += !c.parse(seal(*type, std::move(frames))).empty();
    };
    const std::vector<Frame> frames(c.message.begin() + 1, c.message.end());
    for (std::size_t f = 0; f < frames.size(); ++f) {
      for (std::size_t i = 0; i < frames[f].size(); ++i) {
        for (const auto flip : {0x01, 0x80, 0xff}) {
          auto damaged = frames;
          damaged[f][i] ^= std::byte(flip);
          attempt(std::move(damaged));
        }
      }
      auto cut = frames;
      cut[f].resize(frames[f].size() / 2);
      attempt(std::move(cut));
    }
    for (int i = 0; i < 2000; ++i) {
      auto damaged = frames;
      for (int n = 0; n < 8; ++n) {
        Frame& frame = damaged[random() % damaged.size()];
        if (!frame.empty()) frame[random() % frame.size()] = std::byte(random());
      }
      attempt(std::move(damaged));
    }
    EXPECT_GT(refused, 0) << c.name;
  }
}

TEST(Wire, AnotherVersionIsNamed) {
  Message message = serialize(sample_trace());
  message[0][4] = std::byte(9);
  EXPECT_THAT(error_of(parse_trace(message)),
              StartsWith("protocol: message version: found 9, wanted 1 to 2"));
  EXPECT_THAT(error_of(parse_trace(serialize(ServerHello{}))), StartsWith("protocol: "));
}

TEST(TraceWire, ATreeKeepsItsParentsAndAChainHasNone) {
  RequestTrace trace = sample_trace();
  trace.rounds[0].parents = {-1, -1};
  trace.rounds[0].accepted = 1;
  const auto tree = parse_trace(serialize(trace));
  ASSERT_TRUE(tree) << tree.error().message;
  EXPECT_EQ(tree->rounds[0].parents, trace.rounds[0].parents);
  EXPECT_EQ(serialize(*tree), serialize(trace));
  // Written as what they are: a chain takes no frame, whether or not it says so.
  const auto chain = serialize(sample_trace());
  trace.rounds[0].parents = {-1, 0};
  EXPECT_EQ(serialize(trace), chain);
  trace.rounds[0].parents = {-1, -1};
  EXPECT_EQ(serialize(trace).size(), chain.size() + 1);
}

// Segments on disk are of the build that wrote them.
TEST(TraceWire, MessagesOfVersionOneAreRead) {
  const auto of_version = [](std::uint16_t version) {
    Message message = serialize(sample_trace());
    std::byte* envelope = message[0].data();
    std::memcpy(envelope + 4, &version, 2);
    const std::uint64_t hash = content_hash({envelope, 24});
    std::memcpy(envelope + 24, &hash, 8);
    return message;
  };
  const auto old = parse_trace(of_version(1));
  ASSERT_TRUE(old) << old.error().message;
  expect_equal(*old, sample_trace());
  EXPECT_THAT(error_of(parse_trace(of_version(0))), StartsWith("protocol: message version"));
  EXPECT_EQ(error_of(parse_trace(of_version(3))),
            "protocol: message version: found 3, wanted 1 to 2");
}

TEST(TraceWire, RefusesWhatCannotBe) {
  const auto error = [](const std::function<void(RequestTrace&)>& spoil) {
    RequestTrace trace = sample_trace();
    spoil(trace);
    return error_of(parse_trace(serialize(trace)));
  };
  using T = RequestTrace;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(error([](T&) {}), "");
  const auto non_finite = StartsWith("non-finite: "), shape = StartsWith("shape: ");
  EXPECT_THAT(error([](T& t) { t.generated[4].top_logits[0] = kNan; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.generated[1].log_sum_exp = INFINITY; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.rounds[0].confidences[0] = kNan; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.sampling.temperature = -1; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.tap_scales[0] = kNan; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.sampling.logit_bias[0].second = kNan; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.sampling.logit_bias[0].first = -1; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.sampling.stop_tokens[0] = -1; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.policy.rounds.pop_back(); }), HasSubstr("rounds of the policy"));
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].n_jobs = -1; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].n_jobs = 1 << 30; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].n_jobs = 1; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].job = 2; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].n_told = -3; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].max_draft = 1000; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].rate_cost = -1; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].predicted = INFINITY; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.rounds[0].random = 5; }), "");
  EXPECT_THAT(error([](T& t) { t.policy.jobs[1].n_tokens = -1; }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.jobs.pop_back(); }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.costs[1] = 0; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.policy.costs.pop_back(); }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.seen.push_back(1); }), shape);
  EXPECT_THAT(error([](T& t) { t.policy.told[0] = 1.5f; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.policy.told[2] = kNan; }), non_finite);
  EXPECT_THAT(error([](T& t) { t.policy.told_as.pop_back(); }), shape);
  EXPECT_THAT(error([](T& t) { t.tokens.pop_back(); }), shape);
  EXPECT_THAT(error([](T& t) { t.tokens[0] = -1; }), shape);
  EXPECT_THAT(error([](T& t) { t.generated[3].candidates[0].fusion_class = 65; }),
              HasSubstr("candidate class 65"));
  EXPECT_THAT(
      error([](T& t) { std::swap(t.generated[3].top_logits[0], t.generated[3].top_logits[1]); }),
      HasSubstr("descending"));
  EXPECT_THAT(error([](T& t) { t.rounds[0].accepted = 3; }), shape);
  EXPECT_THAT(error([](T& t) { t.rounds[1].start = t.rounds[0].start; }), shape);
  EXPECT_THAT(error([](T& t) { t.rounds[1].start = 8; }), shape);
  EXPECT_THAT(error([](T& t) { t.rounds[0].kinds[0] = SpeculatorKind(17); }),
              HasSubstr("speculator kind 17"));
  EXPECT_THAT(error([](T& t) { t.rounds[0].parents = {-2, -1}; }), HasSubstr("follows -2"));
  EXPECT_THAT(error([](T& t) { t.rounds[0].parents = {-1, 1}; }), HasSubstr("follows 1"));
  EXPECT_THAT(error([](T& t) { t.rounds[0].parents = {0, -1}; }), HasSubstr("follows 0"));
  EXPECT_THAT(error([](T& t) { t.rounds[0].parents = {1 << 30, -1}; }), shape);
  EXPECT_THAT(error([](T& t) { t.tap_values.pop_back(); }), shape);
  EXPECT_THAT(error([](T& t) { t.tap_first = -1; }), shape);
  EXPECT_THAT(error([](T& t) { t.tap_layers.push_back(1); }), shape);
  EXPECT_THAT(error([](T& t) { t.tap_first = int(t.tokens.size()) - 1; }), shape);
}

// No record can hold it: its header says so.
TEST(TraceWire, RefusesADraftLargerThanARecordHolds) {
  const RoundTrace round = sample_trace().rounds[0];
  const Message message = serialize(sample_trace());
  std::vector<Frame> frames(message.begin() + 1, message.end());
  const std::int32_t found[2] = {round.start, std::int32_t(round.drafted.size())};
  const auto* bytes = reinterpret_cast<const std::byte*>(found);
  const auto at = std::search(frames[0].begin(), frames[0].end(), bytes, bytes + sizeof found);
  ASSERT_NE(at, frames[0].end());
  const std::int32_t too_many = kMaxDraftNodes + 1;
  std::memcpy(&at[4], &too_many, sizeof too_many);
  EXPECT_THAT(error_of(parse_trace(seal(MessageType::kTrace, std::move(frames)))),
              HasSubstr("65 drafted"));
}

TEST(BundleFile, ComesBackAsItWas) {
  const Bundle bundle = sample_bundle();
  const auto parsed = parse_bundle(signed_bytes(bundle), test_signers());
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->version, bundle.version);
  EXPECT_EQ(parsed->parent, bundle.parent);
  EXPECT_EQ(parsed->model_fingerprint, bundle.model_fingerprint);
  EXPECT_EQ(parsed->kind, bundle.kind);
  EXPECT_EQ(parsed->trained_tokens, bundle.trained_tokens);
  EXPECT_EQ(parsed->trained_requests, bundle.trained_requests);
  EXPECT_EQ(parsed->created_unix_ms, bundle.created_unix_ms);
  EXPECT_EQ(parsed->loss, bundle.loss);
  EXPECT_EQ(parsed->verdict, bundle.verdict);
  EXPECT_EQ(parsed->signer, test_signing_key().public_key());
  EXPECT_EQ(parsed->tensors, bundle.tensors);
  EXPECT_EQ(parsed->tensors.at("matrix").f32_values()[4], 5.0f);
  EXPECT_EQ(parsed->tensors.at("vocab").i32_values()[2], 1 << 30);
  EXPECT_TRUE(parsed->tensors.at("vocab").f32_values().empty());
  EXPECT_EQ(parsed->tensors.at("packed8").type, TensorType::kQ8_0);
}

using Reader = std::function<std::string(std::span<const std::byte>)>;  // "" or the error
std::string read_signed(std::span<const std::byte> bytes) {
  return error_of(parse_bundle(bytes, test_signers()));
}

// How often a reader refuses for which reason; "": not at all.
class Refusals {
 public:
  explicit Refusals(Reader read) : read_(std::move(read)) {}
  void attempt(std::span<const std::byte> bytes) {
    const std::string error = read_(testing::GuardedBytes(bytes).get());
    ++counts_[error.substr(0, error.find(':'))];
  }
  int operator[](const std::string& reason) { return counts_[reason]; }

 private:
  Reader read_;
  std::map<std::string, int> counts_;
};

Refusals refusals_of_flips_and_cuts(Reader read) {
  const auto bytes = signed_bytes(sample_bundle());
  Refusals reasons(std::move(read));
  auto damaged = bytes;
  for (std::byte& byte : damaged) {
    for (int bit = 0; bit < 8; ++bit) {
      byte ^= std::byte(1 << bit);
      reasons.attempt(damaged);
      byte ^= std::byte(1 << bit);
    }
  }
  for (std::size_t size = 0; size < bytes.size(); ++size)
    reasons.attempt(std::span(bytes).first(size));
  damaged.push_back({});
  reasons.attempt(damaged);
  return reasons;
}

TEST(BundleFile, EveryFlippedBitAndEveryTruncationIsAnError) {
  Refusals reasons = refusals_of_flips_and_cuts(read_signed);
  EXPECT_EQ(reasons[""], 0);
  for (const char* reason : {"checksum", "magic", "format", "truncated"})
    EXPECT_GT(reasons[reason], 0) << reason;
}

TEST(BundleFile, RefusesWhatCannotBe) {
  const auto error = [](const std::function<void(Bundle&)>& spoil) {
    Bundle bundle = sample_bundle();
    spoil(bundle);
    return error_of(parse_bundle(signed_bytes(bundle), test_signers()));
  };
  using B = Bundle;
  const auto shape = StartsWith("shape: ");
  const auto set_nan = [](BundleTensor& tensor, std::size_t i) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(tensor.bytes.data() + 4 * i, &nan, sizeof nan);
  };
  EXPECT_EQ(error([](B&) {}), "");
  EXPECT_THAT(error([&](B& b) { set_nan(b.tensors["matrix"], 3); }),
              StartsWith("non-finite: bundle: matrix[3]"));
  EXPECT_THAT(error([](B& b) { b.loss = INFINITY; }), StartsWith("non-finite: "));
  EXPECT_THAT(error([](B& b) { b.tensors["matrix"].shape = {2, 4000}; }), shape);
  EXPECT_THAT(error([](B& b) { b.tensors["matrix"].shape = {-1, 6}; }), shape);
  EXPECT_THAT(error([](B& b) { b.tensors["matrix"].shape = {1LL << 62, 1LL << 62}; }), shape);
  EXPECT_THAT(error([](B& b) { b.tensors["matrix"].shape.assign(9, 1); }), shape);
  EXPECT_THAT(error([](B& b) { b.tensors["matrix"].shape.clear(); }), shape);
  // Scales of blocks are checked too: fp16 infinity in the second block.
  EXPECT_THAT(error([](B& b) { b.tensors["packed8"].bytes[34 + 1] = std::byte(0x7c); }),
              StartsWith("non-finite: bundle: packed8[32]"));
  EXPECT_THAT(error([](B& b) { b.tensors["packed4"].bytes[36 + 1] = std::byte(0xfe); }),
              StartsWith("non-finite: bundle: packed4[64]"));
  EXPECT_THAT(error([](B& b) { b.tensors["packed8"].shape = {64, 2}; }), shape);
  EXPECT_THAT(error([](B& b) { b.tensors["packed8"].type = TensorType(9); }),
              StartsWith("shape: bundle: packed8: tensor type 9"));
  EXPECT_THAT(error([](B& b) { b.tensors[""] = b.tensors["fusion.other"]; }), shape);
}

TEST(BundleFile, IsRefusedUnlessATrustedKeySignedIt) {
  const auto bytes = signed_bytes(sample_bundle());
  const auto signature = StartsWith("signature: bundle: ");
  EXPECT_THAT(error_of(parse_bundle(bytes, {})), signature);
  EXPECT_THAT(error_of(parse_bundle(bytes, {test_signing_key(2).public_key()})), signature);
  EXPECT_EQ(error_of(parse_bundle(
                bytes, {test_signing_key(2).public_key(), test_signing_key().public_key()})),
            "");
  // Another's key named as the signer; a signature over other bytes; none at all.
  auto claimed = serialize(sample_bundle(), test_signing_key(2));
  const auto own = test_signing_key().public_key();
  std::memcpy(claimed.data() + claimed.size() - 96, own.data(), own.size());
  EXPECT_THAT(error_of(parse_bundle(claimed, test_signers())), signature);
  Bundle other = sample_bundle();
  other.loss = 0.25;
  auto grafted = bytes;
  const auto another = signed_bytes(other);
  std::copy(another.end() - 64, another.end(), grafted.end() - 64);
  EXPECT_THAT(error_of(parse_bundle(grafted, test_signers())), signature);
  auto bare = bytes;
  bare.resize(bare.size() - 96);
  std::fill_n(bare.begin() + 24, 4, std::byte(0));
  EXPECT_THAT(error_of(parse_bundle(bare, test_signers())),
              StartsWith("signature: bundle: missing"));
  // Looking at a file needs no trust, but a signature that holds.
  EXPECT_EQ(parse_bundle_of_anyone(bytes)->signer, test_signing_key().public_key());
  EXPECT_THAT(error_of(parse_bundle_of_anyone(grafted)), signature);
}

// Digest and signature made anew over whatever lies before them.
void sign_again(std::vector<std::byte>& bytes) {
  if (bytes.size() < 32 + 128) return;
  const std::size_t digest_at = bytes.size() - 128;
  crypto_generichash(reinterpret_cast<unsigned char*>(bytes.data() + digest_at), 32,
                     reinterpret_cast<const unsigned char*>(bytes.data()), digest_at, nullptr, 0);
  const auto key = test_signing_key();
  std::memcpy(bytes.data() + digest_at + 32, key.public_key().data(), 32);
  const Signature signature = key.sign(std::span(bytes).first(digest_at + 64));
  std::copy(signature.begin(), signature.end(), bytes.begin() + std::ptrdiff_t(digest_at + 64));
}

Refusals refusals_of_signed_garbage(Reader read) {
  const auto bytes = signed_bytes(sample_bundle());
  Refusals reasons(std::move(read));
  std::mt19937_64 random(7);
  const auto attempt = [&](std::vector<std::byte> damaged) {
    sign_again(damaged);
    reasons.attempt(damaged);
  };
  for (std::size_t i = 8; i < bytes.size() - 128; ++i) {
    for (const auto flip : {0x01, 0x80, 0xff}) {
      auto damaged = bytes;
      damaged[i] ^= std::byte(flip);
      attempt(std::move(damaged));
    }
  }
  for (int i = 0; i < 3000; ++i) {
    auto damaged = bytes;
    for (int n = 0; n < 6; ++n) damaged[random() % (bytes.size() - 128)] = std::byte(random());
    if (i % 10 == 0) damaged.resize(random() % damaged.size());
    attempt(std::move(damaged));
  }
  return reasons;
}

// What stands behind the signature must hold too, against a trainer that signs garbage.
TEST(BundleFile, SignedGarbageNeverCrashes) {
  const auto bytes = signed_bytes(sample_bundle());
  auto same = bytes;
  sign_again(same);
  ASSERT_EQ(same, bytes);
  Refusals reasons = refusals_of_signed_garbage(read_signed);
  for (const char* reason : {"shape", "truncated", "non-finite", "signature", "magic", "format"})
    EXPECT_GT(reasons[reason], 0) << reason;
}

// The controls: a reader that makes the digest and the signature where it should compare them, and
// one that reads as far as the preamble says.
TEST(BundleFile, AReaderThatTakesDamageIsCaught) {
  Refusals reasons = refusals_of_flips_and_cuts([](std::span<const std::byte> bytes) {
    std::vector<std::byte> again(bytes.begin(), bytes.end());
    sign_again(again);
    return read_signed(again);
  });
  EXPECT_GT(reasons[""], 0);
}
TEST(BundleFileDeathTest, AReaderWithoutBoundsIsCaught) {
  const Reader unbounded = [](std::span<const std::byte> bytes) {
    std::uint32_t header_bytes = 0;
    std::uint64_t region_bytes = 0, sum = 0;
    std::memcpy(&header_bytes, bytes.data() + 12, sizeof header_bytes);
    std::memcpy(&region_bytes, bytes.data() + 16, sizeof region_bytes);
    for (std::uint64_t i = 0; i < 32 + header_bytes + region_bytes; ++i)
      sum += std::uint64_t(bytes.data()[i]);
    return std::to_string(sum);
  };
  EXPECT_NE(unbounded(testing::GuardedBytes(signed_bytes(sample_bundle())).get()), "0");
  EXPECT_DEATH(refusals_of_signed_garbage(unbounded), "");
}

TEST(Control, CarriesEverything) {
  ServerHello hello{1, sample_fingerprint(), {4}, {3}, "shape: x", 2, 10, 1};
  hello.busy = 0.5f;
  hello.round_ms = {10.0f, 11.5f};
  hello.head_start_ms = 0.25f;
  hello.head_step_ms = 0.125f;
  const auto heard = parse_server_hello(serialize(hello));
  ASSERT_TRUE(heard) << heard.error().message;
  EXPECT_EQ(heard->busy, 0.5f);
  EXPECT_EQ(heard->round_ms, hello.round_ms);
  EXPECT_EQ(heard->head_start_ms, 0.25f);
  EXPECT_EQ(heard->head_step_ms, 0.125f);
  hello.busy = NAN;
  EXPECT_THAT(error_of(parse_server_hello(serialize(hello))), StartsWith("non-finite: "));
  TrainerStatus status;
  for (std::uint64_t i = 1; i <= 100; ++i)
    status.verdicts.push_back({i, {i / 2}, 1000, 5, 16, "promoted", {{"gain", 0.25}}});
  const auto read = parse_trainer_status(serialize(status));
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_EQ(read->verdicts.size(), kMaxVerdicts);  // the newest
  EXPECT_EQ(read->verdicts.back(), status.verdicts.back());
  EXPECT_EQ(read->verdicts.front().candidate, 37u);
  status.verdicts.resize(1);
  status.verdicts[0].text = "a\n\xff";  // would spoil a log and a JSON document
  EXPECT_EQ(parse_trainer_status(serialize(status))->verdicts[0].text, "a??");
}

TEST(BundleAssembler, TakesChunksInAnyOrderAndTwice) {
  Bundle bundle = sample_bundle();
  bundle.tensors["large"] = BundleTensor::f32({5000}, std::vector<float>(5000, 1.25f));
  const auto bytes = signed_bytes(bundle);
  std::vector<BundleChunk> chunks;
  for (const Message& message : chunk_bundle({7}, bytes, 1000)) {
    auto chunk = parse_bundle_chunk(message);
    ASSERT_TRUE(chunk);
    chunks.push_back(*chunk);
  }
  ASSERT_GT(chunks.size(), 20u);
  std::mt19937_64 random(3);
  for (int round = 0; round < 20; ++round) {
    std::shuffle(chunks.begin(), chunks.end(), random);
    BundleAssembler assembler;
    for (std::size_t i = 0; i + 1 < chunks.size(); ++i) {
      ASSERT_FALSE(assembler.add(chunks[i])->has_value());
      ASSERT_FALSE(assembler.add(chunks[i / 2])->has_value());
    }
    auto whole = assembler.add(chunks.back());
    ASSERT_TRUE(whole && whole->has_value());
    EXPECT_EQ(**whole, bytes);
  }
}

TEST(BundleAssembler, NeverMixesTwoBundles) {
  Bundle first = sample_bundle(), second = sample_bundle();
  second.loss = 0.5;
  const auto a = chunk_bundle({7}, signed_bytes(first), 100);
  const auto b = chunk_bundle({7}, signed_bytes(second), 100);
  ASSERT_EQ(a.size(), b.size());
  BundleAssembler assembler;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto whole = assembler.add(*parse_bundle_chunk(i % 2 ? a[i] : b[i]));
    ASSERT_TRUE(whole);
    EXPECT_FALSE(whole->has_value());
  }
  // Overlapping pieces, and pieces that do not hash to what was announced.
  auto chunk = *parse_bundle_chunk(a[1]);
  BundleAssembler other;
  ASSERT_TRUE(other.add(chunk));
  chunk.offset += 10;
  EXPECT_THAT(error_of(other.add(chunk)), StartsWith("shape: "));
  auto lie = *parse_bundle_chunk(chunk_bundle({7}, signed_bytes(first)).front());
  lie.bundle_hash ^= 1;
  EXPECT_THAT(error_of(BundleAssembler().add(lie)), StartsWith("checksum: "));
}

TEST(Fingerprint, ReadsWhatItWrites) {
  const auto fingerprint = sample_fingerprint();
  EXPECT_EQ(*fingerprint_from_hex(to_hex(fingerprint)), fingerprint);
  EXPECT_FALSE(fingerprint_from_hex("abc"));
  EXPECT_FALSE(fingerprint_from_hex(std::string(64, 'g')));
}

}  // namespace
}  // namespace foretoken
