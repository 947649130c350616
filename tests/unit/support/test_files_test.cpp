// A test's files are those it names, by content; in CI what is missing fails it.
#include "tests/support/test_files.h"

#include <gtest/gtest-spi.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

TEST(TestFiles, TheFrozenCorpusIsTheOneThatIsListed) {
  for (const char* name : {"prose.txt", "code.txt", "manual.txt"})
    EXPECT_GT(corpus_text(name).size(), 5000u) << name;
}

TEST(TestFiles, AFileOfAnotherContentIsRefusedByName) {
  TemporaryDirectory folder;
  const std::string path = folder.file("prose.txt");
  const auto absent = verified_file(path, "corpus/prose.txt");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, ErrorCode::kNotFound);
  std::string text = corpus_text("prose.txt");
  std::ofstream(path) << text;
  EXPECT_TRUE(verified_file(path, "corpus/prose.txt"));
  text[100] ^= 1;
  std::ofstream(path) << text;
  const auto altered = verified_file(path, "corpus/prose.txt");
  ASSERT_FALSE(altered);
  EXPECT_EQ(altered.error().code, ErrorCode::kInvalidInput);
  EXPECT_NE(altered.error().message.find(path), std::string::npos);
  EXPECT_FALSE(verified_file(path, "no such name"));
}

void lacks_a_file() { FORETOKEN_SKIP_FOR_WANT_OF((Error{ErrorCode::kNotFound, "there is no x"})); }
void has_another_file() {
  FORETOKEN_SKIP_FOR_WANT_OF((Error{ErrorCode::kInvalidInput, "x is another"}));
}

TEST(TestFiles, WhatIsMissingFailsInCiAndWhatIsWrongFailsEverywhere) {
  const char* was = std::getenv("CI");
  const std::string kept = was ? was : "";
  setenv("CI", "true", 1);
  EXPECT_FATAL_FAILURE(lacks_a_file(), "there is no x");
  unsetenv("CI");
  EXPECT_FATAL_FAILURE(has_another_file(), "x is another");
  if (was) setenv("CI", kept.c_str(), 1);
}

}  // namespace
}  // namespace foretoken::testing
