#include "trainer/examples/example_cache.h"

namespace foretoken::trainer {

std::shared_ptr<const HeadExample> ExampleCache::get(std::uint64_t sequence) {
  if (const auto found = by_sequence_.find(sequence); found != by_sequence_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->example;
  }
  const auto trace = source_.trace(sequence);
  return trace ? put(sequence, *trace) : nullptr;
}

std::shared_ptr<const HeadExample> ExampleCache::put(std::uint64_t sequence,
                                                     const RequestTrace& trace) {
  auto decoded = head_example(trace, hidden_, n_vocab_, greedy_temperature_);
  if (!decoded) return nullptr;
  auto example = std::make_shared<const HeadExample>(std::move(*decoded));
  if (example->bytes() > max_bytes_ || by_sequence_.contains(sequence)) return example;
  bytes_ += example->bytes();
  entries_.push_front({sequence, example});
  by_sequence_[sequence] = entries_.begin();
  while (bytes_ > max_bytes_) {
    bytes_ -= entries_.back().example->bytes();
    by_sequence_.erase(entries_.back().sequence);
    entries_.pop_back();
  }
  return example;
}

}  // namespace foretoken::trainer
