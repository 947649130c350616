// foretoken train --from-traces DIR --gate: the daemon's verdicts from a recording, the same each
// time; and candidates looked up anew.
#include "trainer/offline/gate_replay.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "foretoken/protocol/trace_segment.h"
#include "runtime/evaluate/candidate_rebuild.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_keys.h"
#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/head/speculator_learner.h"

namespace foretoken::trainer {
namespace {

namespace json = boost::json;

class GateReplay : public ::testing::Test {
 protected:
  std::filesystem::path record(const char* name, int requests, bool shuffled) const {
    const std::filesystem::path folder = folder_.file(name);
    auto writer = TraceSegmentWriter::open(folder, {});
    EXPECT_TRUE(writer);
    SyntheticTraffic traffic(3);
    for (int i = 0; i < requests; ++i) {
      RequestTrace trace = traffic.next(i % 2 ? 0.0f : 0.8f, 100, shuffled);
      trace.unix_ms = 1'800'000'000'000 + 1000 * i;
      EXPECT_TRUE((*writer)->append(serialize(trace)));
    }
    return folder;
  }
  json::object replay(const std::filesystem::path& traces,
                      std::optional<RoundCosts> costs = std::nullopt) const {
    GateReplayOptions options;
    options.costs = std::move(costs);
    options.traces = traces;
    options.session.signing_key = test_signing_key();
    options.session.make_learner = learner_factory({});
    options.json = folder_.file("out.json");
    EXPECT_TRUE(replay_gate(options));
    std::ostringstream text;
    text << std::ifstream(options.json).rdbuf();
    return json::parse(text.str()).as_object();
  }
  foretoken::testing::TemporaryDirectory folder_;
};

TEST_F(GateReplay, SaysWhatTheDaemonWouldHaveMadeOfARecording) {
  const auto traces = record("traces", 150, false);
  const json::object report = replay(traces);
  EXPECT_EQ(report.at("requests").as_int64(), 150);
  ASSERT_TRUE(report.at("first_promotion_at_request").is_int64()) << json::serialize(report);
  EXPECT_GE(report.at("first_promotion_at_request").as_int64(), 16 + kLeastRequests);
  std::int64_t promotions = 0;
  for (const json::value& candidate : report.at("candidates").as_array())
    promotions += candidate.at("version").to_number<std::int64_t>() != 0;
  EXPECT_EQ(promotions, report.at("promotions").as_int64());
  EXPECT_EQ(json::serialize(replay(traces)), json::serialize(report));
}

// What a round costs on the server decides: where every row is as dear as a round, drafts pay
// nothing, however good.
TEST_F(GateReplay, CandidatesAreJudgedByTheServersCosts) {
  std::vector<float> dear;
  for (int rows = 1; rows <= 9; ++rows) dear.push_back(10.0f * static_cast<float>(rows));
  const auto traces = record("traces", 150, false);
  EXPECT_GT(replay(traces).at("promotions").as_int64(), 0);
  EXPECT_EQ(replay(traces, RoundCosts::measured(dear, 0, 0)).at("promotions").as_int64(), 0);
}

TEST_F(GateReplay, NothingToLearnIsNothingPromoted) {
  const json::object report = replay(record("noise", 100, true));
  EXPECT_EQ(report.at("promotions").as_int64(), 0) << json::serialize(report);
  EXPECT_TRUE(report.at("first_promotion_at_request").is_null());
}

TEST(CandidateRebuild, LooksUpInTheStoreOfTheDay) {
  RequestTrace first, second;
  first.n_prompt = second.n_prompt = 3;
  first.tokens = {1, 2, 3, 4, 5};
  second.tokens = {9, 2, 3, 4, 6};
  first.generated.resize(2);
  second.generated.resize(2);
  first.domain = "a";
  second.domain = "b";
  for (const bool by_domain : {false, true}) {
    CandidateRebuild rebuild(
        by_domain ? CandidateRebuild::Stores::kByDomain : CandidateRebuild::Stores::kShared,
        std::size_t{1} << 20);
    rebuild.look_up(second);
    EXPECT_TRUE(second.generated[0].candidates.empty());
    rebuild.add(first);
    rebuild.look_up(second);
    // After 2, 3 came 4; of another domain's store nothing is known.
    ASSERT_EQ(second.generated[0].candidates.size(), by_domain ? 0u : 1u);
    if (!by_domain) {
      EXPECT_EQ(second.generated[0].candidates[0].token, 4);
      EXPECT_EQ(second.generated[1].candidates[0].token, 5);
    }
  }
}

}  // namespace
}  // namespace foretoken::trainer
