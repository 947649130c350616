// The trainer's flags follow the server's rules: environment, file, --print-config, --check; and
// what they name is read before anything starts.
#include "trainer/flags/trainer_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/support/gguf_writer.h"

namespace foretoken::trainer {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Ran {
  int status = 0;
  std::string out;  // both streams
};

class TrainerFlagsTest : public ::testing::Test {
 protected:
  void SetUp() override { ::foretoken::testing::write_tiny_model(folder_.file("m.gguf"), {}); }
  // The program itself, in a state folder of this test's.
  Ran run(const std::string& arguments, const std::string& environment = "") const {
    const std::string command = environment + " " + FORETOKEN_TRAINER_BINARY + " --state-dir " +
                                folder_.file("state") + " " + arguments + " 2>&1";
    Ran ran;
    FILE* pipe = popen(command.c_str(), "r");
    char buffer[4096];
    while (const std::size_t n = fread(buffer, 1, sizeof buffer, pipe)) ran.out.append(buffer, n);
    ran.status = WEXITSTATUS(pclose(pipe));
    return ran;
  }
  ::foretoken::testing::TemporaryDirectory folder_;
};

TEST_F(TrainerFlagsTest, EnvironmentFileAndCommandLineAsTheServers) {
  const std::string all = run("--print-config",
                              "FORETOKEN_TRAINER_THREADS=3 FORETOKEN_THREADS=9 "
                              "FORETOKEN_BUFFER_MIB=77 FORETOKEN_HELD_OUT=5")
                              .out;
  EXPECT_THAT(all, HasSubstr("threads = 3\n"));  // the server's variable is the server's
  EXPECT_THAT(all, HasSubstr("buffer-mib = 77\n"));
  EXPECT_THAT(all, HasSubstr("held-out = 30\n"));  // a recording's flags have no variables
  EXPECT_THAT(all, HasSubstr("objective = \"overlap\"\n"));
  std::ofstream(folder_.file("a.toml")) << all;
  EXPECT_EQ(run("--print-config --config " + folder_.file("a.toml")).out, all);
  EXPECT_EQ(run("--print-config", "FORETOKEN_TRAINER_CONFIG=" + folder_.file("a.toml")).out, all);
  EXPECT_THAT(run("--print-config --threads 2 --config " + folder_.file("a.toml")).out,
              HasSubstr("threads = 2\n"));
  EXPECT_THAT(run("--print-config --threads 2", "FORETOKEN_CONFIG=" + folder_.file("none")).out,
              HasSubstr("threads = 2\n"));
}

TEST_F(TrainerFlagsTest, CheckSaysWhatWouldRunAndLeavesNothing) {
  const Ran plain = run("--check");
  EXPECT_EQ(plain.status, 0);
  EXPECT_THAT(plain.out, HasSubstr("learns        the fusion table\n"));
  const Ran model = run("--check --model " + folder_.file("m.gguf"));
  EXPECT_EQ(model.status, 0);
  EXPECT_THAT(model.out, HasSubstr("a recurrent head and the fusion table\n"));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("state")));
}

TEST_F(TrainerFlagsTest, WhatIsWrongIsNamed) {
  const auto refused = [&](const std::string& arguments, int status) {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.status, status) << ran.out;
    return ran.out;
  };
  EXPECT_THAT(refused("--objective nonsense", 2),
              HasSubstr("foretoken-trainer: --objective: found \"nonsense\", wanted overlap"));
  EXPECT_THAT(refused("--gate-rounds 3", 2), HasSubstr("wanted cost or fixed"));
  EXPECT_THAT(refused("--check --model " + folder_.file("absent"), 1), HasSubstr("absent"));
  EXPECT_THAT(refused("--check --keys " + folder_.file("nobody"), 1), HasSubstr("nobody"));
  EXPECT_THAT(refused("--check --model-fingerprint 12", 1), HasSubstr("fingerprint"));
  EXPECT_THAT(refused("--check --model-fingerprint " + std::string(64, 'a') + " --model " +
                          folder_.file("m.gguf"),
                      1),
              HasSubstr("--model-fingerprint: found aaaa"));
}

}  // namespace
}  // namespace foretoken::trainer
