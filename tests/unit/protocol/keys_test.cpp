// The folder of keys: made once, trusted as written, refused when it is not private.
#include "foretoken/protocol/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <thread>

namespace foretoken {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Keys : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("foretoken-keys-" + std::to_string(::getpid()));
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  static mode_t mode(const fs::path& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777;
  }
  fs::path root_;
};

TEST_F(Keys, OneFolderForBothEnds) {
  const KeyFolder folder(root_);
  ASSERT_TRUE(folder.make(true, true));
  EXPECT_EQ(mode(root_ / "server.key"), 0600u);
  EXPECT_EQ(mode(root_ / "trainer.key"), 0600u);
  EXPECT_EQ(mode(root_), 0700u);
  const auto server = folder.server();
  const auto trainer = folder.trainer();
  ASSERT_TRUE(server && trainer);
  EXPECT_EQ(server->link.peers, std::vector{trainer->link.own.public_key});
  EXPECT_EQ(trainer->link.peers, std::vector{server->link.own.public_key});
  EXPECT_EQ(server->signers, TrustedSigners{trainer->signing.public_key()});
  const std::vector<std::byte> text(9);
  EXPECT_TRUE(signature_is_valid(text, trainer->signing.sign(text), server->signers[0]));
  // Made once: a second start finds the same ones.
  ASSERT_TRUE(folder.make(true, true));
  EXPECT_EQ(folder.trainer()->link.own.secret, trainer->link.own.secret);
  EXPECT_EQ(folder.trusted()->size(), 2u);
}

TEST_F(Keys, TwoThatStartTogetherMakeOneSet) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this] { EXPECT_TRUE(KeyFolder(root_).make(true, true)); });
  }
  for (std::thread& thread : threads) thread.join();
  const KeyFolder folder(root_);
  EXPECT_EQ(folder.trusted()->size(), 2u);
  EXPECT_EQ(folder.server()->link.peers, std::vector{folder.trainer()->link.own.public_key});
}

TEST_F(Keys, TwoFoldersAreIntroducedByTheirPublicLines) {
  const KeyFolder server(root_ / "a"), trainer(root_ / "b");
  ASSERT_TRUE(server.make(true, false));
  ASSERT_TRUE(trainer.make(false, true));
  EXPECT_TRUE(server.server()->signers.empty());
  EXPECT_THAT(trainer.trainer().error().message, HasSubstr("found 0 servers, wanted one"));
  const auto line = PublicKeys::parse(trainer.public_keys(KeyRole::kTrainer)->line() + " of B");
  ASSERT_TRUE(line) << line.error().message;
  EXPECT_EQ(line->comment, "of B");
  ASSERT_TRUE(server.trust(*line));
  ASSERT_TRUE(server.trust(*line));
  EXPECT_EQ(server.trusted()->size(), 1u);
  ASSERT_TRUE(trainer.trust(*server.public_keys(KeyRole::kServer)));
  EXPECT_EQ(server.server()->signers, TrustedSigners{trainer.trainer()->signing.public_key()});
  EXPECT_EQ(trainer.trainer()->link.peers, std::vector{server.server()->link.own.public_key});
  EXPECT_EQ(server.trainer().error().code, ErrorCode::kNotFound);
  EXPECT_THAT(server.trainer().error().message, HasSubstr("foretoken keys make"));
}

TEST_F(Keys, SecretsThatOthersCanReadAreRefused) {
  const KeyFolder folder(root_);
  ASSERT_TRUE(folder.make(true, true));
  for (const mode_t bad : {0640u, 0604u, 0620u, 0666u}) {
    ASSERT_EQ(::chmod((root_ / "trainer.key").c_str(), bad), 0);
    EXPECT_THAT(folder.trainer().error().message, HasSubstr("wanted 0600"));
  }
  ASSERT_TRUE(folder.server());
  ASSERT_EQ(::chmod((root_ / "trusted").c_str(), 0666), 0);
  EXPECT_THAT(folder.server().error().message, HasSubstr("only the owner can write"));
}

TEST_F(Keys, DamagedFilesAreNamedAndNeverReplaced) {
  const KeyFolder folder(root_);
  ASSERT_TRUE(folder.make(true, true));
  for (const char* text : {"", "abc\n", "# only a comment\n", "00 11\n22 33\n"}) {
    std::ofstream(root_ / "server.key") << text;
    EXPECT_EQ(folder.server().error().code, ErrorCode::kInvalidInput);
    EXPECT_THAT(folder.server().error().message, HasSubstr("server.key"));
    EXPECT_FALSE(folder.make(true, true));
  }
  ASSERT_TRUE(folder.trainer());
  std::ofstream(root_ / "trusted") << "foretoken-server 12\n";
  EXPECT_THAT(folder.trainer().error().message, HasSubstr("wanted 64 hexadecimal digits"));
  std::ofstream(root_ / "trusted") << "ssh-ed25519 AAAA\n";
  EXPECT_THAT(folder.trainer().error().message, HasSubstr("found \"ssh-ed25519\""));
}

}  // namespace
}  // namespace foretoken
