// Traffic stores on disk, and the notes by which they are forgotten.
#include "runtime/trace/traffic_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace foretoken {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

class TrafficFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("foretoken-traffic-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    traffic_ = folder_ / "traffic";
    save_traffic_files(traffic_, {{"", std::vector<std::byte>(3)},
                                  {"key-00000001", std::vector<std::byte>(5)},
                                  {"../evil", std::vector<std::byte>(7)}});
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::vector<std::string> keys() {
    std::vector<std::string> keys;
    for (const SavedTraffic& s : load_traffic_files(traffic_, 100)) keys.push_back(s.key_id);
    std::sort(keys.begin(), keys.end());
    return keys;
  }
  fs::path folder_, traffic_;
};

TEST_F(TrafficFiles, AreKeptByKeyAndNeverOutsideTheFolder) {
  EXPECT_THAT(keys(), ElementsAre("", "key-00000001"));
  EXPECT_FALSE(fs::exists(folder_ / "evil.store"));
  EXPECT_EQ(load_traffic_files(traffic_, 1).size(), 1u);
}

TEST_F(TrafficFiles, AreDeletedWhenTooOld) {
  fs::last_write_time(traffic_file(traffic_, ""),
                      fs::file_time_type::clock::now() - std::chrono::hours(3));
  EXPECT_EQ(load_traffic_files(traffic_, 100, 2 * 3600).size(), 1u);
  EXPECT_THAT(keys(), ElementsAre("key-00000001"));
}

TEST_F(TrafficFiles, ANoteIsReadOnceAndTheStoreIsGone) {
  ASSERT_TRUE(leave_forget_note(folder_, "key-00000001"));
  ASSERT_TRUE(leave_forget_note(folder_, "key-00000002"));  // a key without a store
  std::vector<std::string> forgotten;
  const auto read = [&] {
    read_forget_notes(folder_, [&](const std::string& key) { forgotten.push_back(key); });
  };
  read();
  std::sort(forgotten.begin(), forgotten.end());
  EXPECT_THAT(forgotten, ElementsAre("key-00000001", "key-00000002"));
  EXPECT_THAT(keys(), ElementsAre(""));
  read();
  EXPECT_EQ(forgotten.size(), 2u);
  ASSERT_TRUE(leave_forget_note(folder_, ""));
  read();
  EXPECT_EQ(forgotten.back(), "");
  EXPECT_TRUE(keys().empty());
}

}  // namespace
}  // namespace foretoken
