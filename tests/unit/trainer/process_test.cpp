// The real foretoken-trainer process against the server's real link over loopback sockets: it
// learns, publishes, is killed at random instants, comes back, and numbers go on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "foretoken/protocol/keys.h"
#include "runtime/speculate/learned.h"
#include "runtime/trace/server_link.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/linked_engine.h"
#include "tests/unit/trainer/synthetic_traffic.h"

namespace foretoken::trainer {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

class TrainerProcess {
 public:
  TrainerProcess(std::vector<std::string> arguments, const fs::path& log) : log_(log) {
    arguments.insert(arguments.begin(), FORETOKEN_TRAINER_BINARY);
    pid_ = ::fork();
    if (pid_ != 0) return;
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    ::dup2(out, 1);
    ::dup2(out, 2);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~TrainerProcess() { end(SIGKILL); }
  // The wait status.
  int end(int signal) {
    if (pid_ <= 0) return 0;
    ::kill(pid_, signal);
    return wait();
  }
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }
  std::string log() const {
    std::stringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
  }

 private:
  fs::path log_;
  pid_t pid_ = -1;
};

class Processes : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("foretoken-processes-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    const KeyFolder keys(folder_ / "keys");
    ASSERT_TRUE(keys.make(true, true));
    ServerLinkOptions options;
    options.trusted_signers = keys.server()->signers;
    options.endpoints.keys = keys.server()->link;
    options.endpoints.traces = options.endpoints.weights = "tcp://127.0.0.1:*";
    options.model_fingerprint = test_fingerprint();
    options.state_root = folder_ / "server";
    options.versions.canary_fraction = 0;  // what is received serves: the link is what is on trial
    auto link = ServerLink::create(options);
    ASSERT_TRUE(link) << link.error().message;
    server_ = std::move(link).value();
    sink_ = server_->sink();
    server_->start(engine_);
  }
  void told(const LearnedWeights& weights) {
    const std::lock_guard lock(mutex_);
    const SpeculatorVersion version = weights.version;
    if (version.value == served_) return;
    EXPECT_GT(version.value, served_);
    EXPECT_TRUE(tables_.emplace(version.value, weights.fusion.bias).second)
        << version.value << " twice";
    served_ = version.value;
  }
  void TearDown() override {
    server_->stop();
    fs::remove_all(folder_);
  }
  std::unique_ptr<TrainerProcess> start_trainer(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"--traces-endpoint",
                                          server_->endpoints().traces,
                                          "--weights-endpoint",
                                          server_->endpoints().weights,
                                          "--state-dir",
                                          (folder_ / "trainer").string(),
                                          "--keys",
                                          (folder_ / "keys").string(),
                                          "--gate-requests",
                                          "4",
                                          "--scheduling",
                                          "normal"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<TrainerProcess>(arguments, folder_ / "trainer.log");
  }
  std::uint64_t served() {
    const std::lock_guard lock(mutex_);
    return served_;
  }
  // Sends traffic until `done`; false: not within two minutes.
  bool serve_until(const std::function<bool()>& done) {
    const auto end = std::chrono::steady_clock::now() + 120s;
    while (std::chrono::steady_clock::now() < end) {
      if (done()) return true;
      sink_(std::make_unique<RequestTrace>(traffic_.next(0.0f)));
      std::this_thread::sleep_for(5ms);
    }
    return false;
  }

  fs::path folder_;
  ToldEngine engine_{[this](const SpeculatorChoice& choice) { told(*choice.served); }};
  std::unique_ptr<ServerLink> server_;
  std::function<void(std::unique_ptr<RequestTrace>)> sink_;
  SyntheticTraffic traffic_{1};
  std::mutex mutex_;
  std::uint64_t served_ = 0;
  std::map<std::uint64_t, std::array<float, kFusionClasses>> tables_;
};

TEST_F(Processes, AServerOfAnotherModelThanTheTrainersIsRefused) {
  const std::string model = folder_ / "tiny.gguf";
  foretoken::testing::write_tiny_model(model, {});
  auto trainer = start_trainer({"--model", model});
  const auto end = std::chrono::steady_clock::now() + 60s;
  while (trainer->log().find("the server's model is not this trainer's") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), end) << trainer->log();
    sink_(std::make_unique<RequestTrace>(traffic_.next(0.0f)));
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(served(), 0u);
  EXPECT_EQ(trainer->end(SIGTERM), 0) << trainer->log();

  auto confused = start_trainer({"--model", model, "--model-fingerprint", std::string(64, '0')});
  EXPECT_EQ(WEXITSTATUS(confused->wait()), 1);
  EXPECT_NE(confused->log().find("--model-fingerprint: found 0000"), std::string::npos)
      << confused->log();
}

TEST_F(Processes, LearnsPublishesSurvivesKillsAndStopsCleanly) {
  std::int64_t step = 0;
  for (int life = 0; life < 3; ++life) {
    auto trainer = start_trainer();
    const std::uint64_t before = served();
    // The first lives end in the middle of whatever it is doing once it published or trained on.
    ASSERT_TRUE(serve_until([&] {
      const LinkStats stats = server_->stats();
      return stats.trainer_connected && stats.trainer_step.value_or(0) > step &&
             (life > 0 || served() > before);
    })) << trainer->log();
    step = *server_->stats().trainer_step - 64;  // what a checkpoint every 5 s may be behind by
    trainer->end(SIGKILL);
  }
  auto trainer = start_trainer();
  const std::uint64_t before = served();
  ASSERT_TRUE(serve_until([&] {
    return served() > before && !server_->stats().trainer_verdict.empty();
  })) << trainer->log();
  EXPECT_TRUE(server_->stats().bundles_rejected.empty());
  EXPECT_GT(server_->stats().traces_sent, 0);
  const int status = trainer->end(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << trainer->log();
  EXPECT_NE(trainer->log().find("published version"), std::string::npos);
  EXPECT_NE(trainer->log().find("stopped at step"), std::string::npos) << trainer->log();
}

TEST_F(Processes, ABadFlagIsAClearError) {
  TrainerProcess bad({"--model-fingerprint", "xyz", "--state-dir", folder_.string()},
                     folder_ / "bad.log");
  const int status = bad.wait();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
  EXPECT_NE(bad.log().find("model fingerprint: found \"xyz\", wanted 64 hexadecimal digits"),
            std::string::npos)
      << bad.log();
  TrainerProcess endpoint({"--traces-endpoint", "nonsense", "--state-dir", folder_.string()},
                          folder_ / "endpoint.log");
  endpoint.wait();
  EXPECT_NE(endpoint.log().find("cannot connect nonsense"), std::string::npos) << endpoint.log();
}

}  // namespace
}  // namespace foretoken::trainer
