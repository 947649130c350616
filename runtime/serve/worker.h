// One thread and a bounded queue for the slow part of admission (JSON, template, tokeniser), so
// that a large prompt never holds up other clients' streams on the I/O threads.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace foretoken {

class Worker {
 public:
  explicit Worker(std::size_t max_queue);
  ~Worker() { stop(); }
  bool try_post(std::function<void()> work);  // false: the queue is full, or stopped
  void stop();  // finishes the work at hand, drops the rest; idempotent

 private:
  void run();
  const std::size_t max_queue_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace foretoken
