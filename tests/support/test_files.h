// The files that tests use and do not make themselves: models, and the frozen texts of
// tests/corpus. tests/files.sha256 names each with the hash of its content, so that what a test
// reports does not depend on what else lies in somebody's folder or has changed in the repository
// since.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "foretoken/protocol/result.h"

namespace foretoken::testing {

// `path`, if its content is what tests/files.sha256 says of `name`. Errors: kNotFound (there is no
// such file), kInvalidInput (another content; or the list has no such name).
Result<std::string> verified_file(const std::string& path, const std::string& name);

// The path of a model, below FORETOKEN_TEST_MODELS. Errors as verified_file(); each model is hashed
// once a process.
Result<std::string> find_test_model(const std::string& file_name);

// A text of tests/corpus, "prose.txt". Fails the current test if it is not the listed one.
std::string corpus_path(const std::string& name);
std::string corpus_text(const std::string& name);

// CI=true: there, what a test needs and does not find fails it.
bool in_ci();
// FORETOKEN_TEST_FULL=1: the long versions of tests that have one.
bool full_tests();

}  // namespace foretoken::testing

// Ends a test, or a fixture's SetUp(), for want of something: skipped, but in CI failed. An
// unexpected content fails it everywhere.
#define FORETOKEN_SKIP_FOR_WANT_OF(error)                                                   \
  do {                                                                                      \
    const ::foretoken::Error& lacking = (error);                                            \
    if (::foretoken::testing::in_ci() || lacking.code != ::foretoken::ErrorCode::kNotFound) \
      FAIL() << lacking.message;                                                            \
    GTEST_SKIP() << lacking.message;                                                        \
  } while (false)
