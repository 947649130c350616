#include "trainer/publish/weights_sender.h"

#include <algorithm>

namespace foretoken::trainer {

void WeightsSender::publish(SpeculatorVersion version, std::vector<std::byte> bundle) {
  current_ = version;
  bundle_ = std::move(bundle);
  due_.reset();
  retry_ = kFirstRetry;
}

void WeightsSender::heard(const ServerHello& hello) {
  if (!server_ || server_->run != hello.run) {
    due_.reset();
    retry_ = kFirstRetry;
  }
  server_ = hello;
}

bool WeightsSender::wanted() const {
  return current_.value != 0 && server_ && server_->served < current_ &&
         server_->canary < current_ && server_->refused != current_;
}

void WeightsSender::pump(Sender& sender, std::chrono::nanoseconds now) {
  if (!wanted() || (due_ && now < *due_)) return;
  for (Message& message : chunk_bundle(current_, bundle_)) {
    if (!sender.try_send(std::move(message))) break;
  }
  due_ = now + retry_;
  retry_ = std::min<std::chrono::nanoseconds>(2 * retry_, kLastRetry);
}

}  // namespace foretoken::trainer
