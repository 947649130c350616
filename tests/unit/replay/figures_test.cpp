#include <gmock/gmock.h>

#include "runtime/replay/ask.h"
#include "runtime/replay/summary.h"

namespace foretoken {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> events(const std::vector<std::string>& pieces) {
  EventReader reader;
  std::vector<std::string> out;
  for (const std::string& piece : pieces)
    reader.push(piece, [&](std::string_view data) { out.emplace_back(data); });
  return out;
}

TEST(EventReader, SurvivesEveryPieceBorder) {
  const std::string stream =
      ": ping\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:b\r\n\r\ndata: c1\ndata: c2\n\ndata: "
      "[DONE]\n\n";
  for (std::size_t cut = 0; cut <= stream.size(); ++cut)
    EXPECT_THAT(events({stream.substr(0, cut), stream.substr(cut)}),
                ElementsAre("{\"a\":1}", "b", "c1\nc2", "[DONE]"))
        << cut;
  EXPECT_THAT(events({"data: unfinished\n"}), ElementsAre());
}

TEST(Percentiles, AreThoseOfTheSortedValues) {
  const auto p = percentiles({4, 1, 3, 2, 5});
  EXPECT_DOUBLE_EQ(p.at("mean").as_double(), 3);
  EXPECT_DOUBLE_EQ(p.at("p50").as_double(), 3);
  EXPECT_DOUBLE_EQ(p.at("p90").as_double(), 4.6);
  EXPECT_DOUBLE_EQ(p.at("max").as_double(), 5);
  EXPECT_TRUE(percentiles({}).is_null());
}

TEST(Summary, CountsFailuresAndAcceptanceByQuarterAndDomain) {
  std::vector<LoggedRequest> log(8);
  ReplayResult result;
  for (std::size_t i = 0; i < 8; ++i) {
    RequestOutcome o;
    o.index = i;
    o.domain = i % 2 ? "code" : "support";
    o.status = i == 5 ? 429 : i == 6 ? 0 : 200;
    if (o.status != 200) o.error = "x";
    o.prompt_tokens = 10;
    o.completion_tokens = 5;
    o.ttft_ms = 100;
    o.e2e_ms = 180;
    o.drafting_rounds = 2;
    o.draft_n = 4;
    o.draft_n_accepted = i < 2 ? 1 : 3;
    o.rounds = 3;
    result.outcomes.push_back(o);
  }
  result.wall_s = 2;
  const auto s = summarize(result, log, ReplayOptions{});
  const auto& total = s.at("total").as_object();
  EXPECT_EQ(total.at("sent").to_number<int>(), 8);
  EXPECT_EQ(total.at("failed").to_number<int>(), 2);
  EXPECT_EQ(total.at("failures_by_code").at("429").to_number<int>(), 1);
  EXPECT_EQ(total.at("failures_by_code").at("no answer").to_number<int>(), 1);
  EXPECT_DOUBLE_EQ(total.at("tpot_ms").at("mean").as_double(), 20);
  EXPECT_DOUBLE_EQ(s.at("output_throughput").as_double(), 15);
  const auto& quarters = s.at("quarters").as_array();
  ASSERT_EQ(quarters.size(), 4u);
  EXPECT_DOUBLE_EQ(quarters[0].at("acceptance_length").as_double(), 1.5);
  EXPECT_DOUBLE_EQ(quarters[1].at("acceptance_length").as_double(), 2.5);
  EXPECT_EQ(quarters[2].at("failed").to_number<int>(), 1);
  EXPECT_TRUE(quarters[0].at("speedup").is_null());
  EXPECT_EQ(s.at("domains").at("code").at("sent").to_number<int>(), 4);
  EXPECT_EQ(s.at("domains").at("code").at("failed").to_number<int>(), 1);
}

}  // namespace
}  // namespace foretoken
