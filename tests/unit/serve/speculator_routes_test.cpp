// GET /v1/speculator and its actions, over real sockets: who may ask, and what they are told.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "runtime/serve/service.h"
#include "tests/unit/serve/fakes.h"
#include "tests/unit/serve/socket_client.h"

namespace foretoken {
namespace {

namespace json = boost::json;

struct FakeControl final : LearnedControl {
  LinkStats link_stats() const override { return {}; }
  void count_opted_out() override {}
  SpeculatorState state() const override { return now; }
  Status rollback() override {
    if (now.served.value == 0) return Error{ErrorCode::kNotFound, "nothing to do"};
    now.served = {now.served.value - 1};
    return Ok{};
  }
  void freeze() override { now.frozen = true; }
  void unfreeze() override { now.frozen = false; }
  SpeculatorState now;
};

class SpeculatorRoutes : public ::testing::Test {
 protected:
  void serve(ServiceOptions options = {}) {
    service_ = std::make_unique<Service>(std::move(options));
    HttpServerOptions http;
    http.port = 0;
    auto started = HttpServer::start(http, *service_);
    ASSERT_TRUE(started) << started.error().message;
    server_ = std::move(*started);
    auto backend = std::make_shared<Backend>();
    backend->engine = &engine_;
    backend->learned = &control_;
    backend->tokenizer = &tokenizer_;
    backend->names = {"fake"};
    backend->fingerprint_hex = std::string(64, 'a');
    service_->publish(backend);
  }
  void TearDown() override {
    if (server_) server_->stop();
    if (service_) service_->stop();
  }
  RawResponse ask(std::string_view method, std::string_view path, std::string_view headers = "") {
    SocketClient client(server_->port());
    client.request(method, path, "", headers);
    return read_response(client);
  }

  FakeEngine engine_;
  ByteTokenizer tokenizer_;
  FakeControl control_;
  SpeculatorState& state_ = control_.now;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(SpeculatorRoutes, SaysWhatServesAndObeysOperators) {
  state_.served = {1};
  state_.kind = "eagle3";
  state_.tiers = {"fusion", "head"};
  state_.canary = CanaryState{{2}, 12, .25, {40, .03, .01, .05}, {}};
  serve();
  auto response = ask("GET", "/v1/speculator");
  EXPECT_EQ(response.status, 200);
  auto body = json::parse(response.body).get_object();
  EXPECT_EQ(body["version"], 1);
  EXPECT_EQ(body["canary"].at("version"), 2);
  EXPECT_EQ(body["canary"].at("replay").at("requests"), 40);
  EXPECT_TRUE(body["canary"].at("live").is_null());
  ASSERT_EQ(body["tiers"].as_array().size(), 2u) << "one that has not drafted is there";
  EXPECT_EQ(body["tiers"].at(1).at("tier"), "head");
  EXPECT_EQ(json::parse(ask("POST", "/v1/speculator/freeze").body).at("frozen"), true);
  EXPECT_EQ(json::parse(ask("POST", "/v1/speculator/unfreeze").body).at("frozen"), false);
  EXPECT_EQ(json::parse(ask("POST", "/v1/speculator/rollback").body).at("version"), 0);
  response = ask("POST", "/v1/speculator/rollback");
  EXPECT_EQ(response.status, 409);
  EXPECT_EQ(json::parse(response.body).at("error").at("code"), "nothing_to_roll_back");
  EXPECT_EQ(ask("GET", "/v1/speculator/rollback").status, 405);
  EXPECT_EQ(ask("POST", "/v1/speculator/melt").status, 404);
}

// A page in the operator's browser can send a POST to this machine; it cannot hide where it is
// from.
TEST_F(SpeculatorRoutes, WithoutKeysOnlyThisMachineItself) {
  serve();
  for (const char* header : {"Origin: http://evil.example\r\n", "X-Forwarded-For: 10.1.2.3\r\n",
                             "Forwarded: for=10.1.2.3\r\n"}) {
    const auto response = ask("POST", "/v1/speculator/freeze", header);
    EXPECT_EQ(response.status, 403) << header;
    EXPECT_EQ(json::parse(response.body).at("error").at("code"), "operators_only");
  }
  EXPECT_FALSE(state_.frozen);
}

TEST_F(SpeculatorRoutes, WithKeysOnlyWithAKey) {
  ServiceOptions options;
  options.api_keys = ApiKeys::from_list({"secret"});
  serve(std::move(options));
  EXPECT_EQ(ask("POST", "/v1/speculator/freeze").status, 401);
  EXPECT_EQ(ask("GET", "/v1/speculator", "Authorization: Bearer wrong\r\n").status, 401);
  EXPECT_FALSE(state_.frozen);
  // Through a proxy too: the key says who it is.
  EXPECT_EQ(ask("POST", "/v1/speculator/freeze",
                "Authorization: Bearer secret\r\nX-Forwarded-For: 10.1.2.3\r\n")
                .status,
            200);
  EXPECT_TRUE(state_.frozen);
}

TEST_F(SpeculatorRoutes, WhileTheModelLoadsItIsUnavailable) {
  service_ = std::make_unique<Service>(ServiceOptions{});
  HttpServerOptions http;
  http.port = 0;
  server_ = std::move(*HttpServer::start(http, *service_));
  EXPECT_EQ(ask("GET", "/v1/speculator").status, 503);
}

TEST(ApiKeys, AKeyMayOptOutOfTraces) {
  const ApiKeys keys = ApiKeys::from_list({"open", "shy no-trace", "two words"});
  const auto open = keys.check("Bearer open"), shy = keys.check("Bearer shy");
  ASSERT_TRUE(open && shy && keys.check("Bearer two words"));
  EXPECT_FALSE(keys.check("Bearer shy no-trace"));
  EXPECT_TRUE(keys.traced(*open));
  EXPECT_FALSE(keys.traced(*shy));
  EXPECT_TRUE(keys.traced(""));
  EXPECT_EQ(ApiKeys::label_of("shy"), *shy);
  EXPECT_EQ(ApiKeys::label_of(*shy), *shy);
}

}  // namespace
}  // namespace foretoken
