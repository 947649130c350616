// Examples by their number in the buffer: what was used last stays in memory, within a bound; the
// rest is read again from disk.
#pragma once

#include <list>
#include <memory>
#include <unordered_map>

#include "trainer/examples/head_example.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {

class ExampleCache {
 public:
  ExampleCache(std::size_t max_bytes, std::int64_t hidden, std::int64_t n_vocab,
               double greedy_temperature, const TraceSource& source)
      : max_bytes_(max_bytes),
        hidden_(hidden),
        n_vocab_(n_vocab),
        greedy_temperature_(greedy_temperature),
        source_(source) {}

  // Null: there is nothing to learn from, or it is gone.
  std::shared_ptr<const HeadExample> get(std::uint64_t sequence);
  std::shared_ptr<const HeadExample> put(std::uint64_t sequence, const RequestTrace& trace);
  std::size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::uint64_t sequence;
    std::shared_ptr<const HeadExample> example;
  };
  const std::size_t max_bytes_;
  const std::int64_t hidden_, n_vocab_;
  const double greedy_temperature_;
  const TraceSource& source_;
  std::list<Entry> entries_;  // used last, first
  std::unordered_map<std::uint64_t, std::list<Entry>::iterator> by_sequence_;
  std::size_t bytes_ = 0;
};

}  // namespace foretoken::trainer
