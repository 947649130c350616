// Progress on standard error: a bar on a terminal, a line every quarter elsewhere.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <string_view>

namespace foretoken {

class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)), terminal_(isatty(2) != 0) {}
  ~Progress() {
    if (terminal_ && shown_ >= 0 && shown_ < 100) fmt::print(stderr, "\n");
  }
  void operator()(double fraction) {
    int percent = fraction >= 1 ? 100 : fraction <= 0 ? 0 : static_cast<int>(fraction * 100);
    if (percent <= shown_) return;
    if (terminal_) {
      int filled = percent * 30 / 100;
      fmt::print(stderr, "\r{} [{}{}] {:3d} %{}", what_, std::string(filled, '#'),
                 std::string(30 - filled, '.'), percent, percent == 100 ? "\n" : "");
    } else if (percent == 100 || percent / 25 > shown_ / 25) {
      fmt::print(stderr, "{} {} %\n", what_, percent);
    }
    shown_ = percent;
  }

 private:
  std::string what_;
  bool terminal_;
  int shown_ = -1;
};

// Several tasks, one after another: a bar each.
class ProgressBars {
 public:
  void operator()(std::string_view task, double fraction) {
    if (!bar_ || task_ != task) bar_ = std::make_shared<Progress>(task_ = task);
    (*bar_)(fraction);
  }

 private:
  std::string task_;
  std::shared_ptr<Progress> bar_;
};

}  // namespace foretoken
