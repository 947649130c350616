// The hidden states of a forward pass (taps), on the device that computed them, on their way to a
// trace and to the learned head's rings: rounded once, fp16 values and one fp32 scale a tap, so
// that a replay of the log reads the very numbers that the live head read. Made by the model
// (Model::make_feature_rows). After a pass: log() and to_ring() of its rows; tasks, by idle
// workers; settle(), before the next pass and before a trace goes anywhere. Engine thread, tasks
// aside.
#pragma once

#include <array>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "foretoken/protocol/trace_record.h"

namespace foretoken {

inline constexpr int kHeadTaps = 4;
// The furthest back that any head looks: as many positions of a prompt's end are logged
// (kTracedPrompt), so that a replay sees what the live head saw.
inline constexpr std::int64_t kHeadWindow = kTracedPrompt;

using HeadTaps = std::array<int, kHeadTaps>;

// The layers whose outputs are the features, low to high; n_layers is the final normalised state.
constexpr HeadTaps head_taps(int n_layers) {
  const int low = n_layers - 1 < 2 ? n_layers - 1 : 2;
  const int high = n_layers - 3 > 0 ? n_layers - 3 : 0;
  return {low, n_layers / 2, high, n_layers};
}

// taps: [kHeadTaps, hidden] as the forward pass gave them -> values [kHeadTaps, hidden], scales
// [kHeadTaps].
void encode_features(const float* taps, std::int64_t hidden, std::uint16_t* values, float* scales);

// A sequence's features as they are logged, positions [first, end): of a ring, or of a trace. The
// addresses are of the device of the head that reads them.
struct FeatureView {
  const std::uint16_t* values = nullptr;  // [capacity, kHeadTaps, hidden] fp16
  const float* scales = nullptr;          // [capacity, kHeadTaps]
  std::int64_t hidden = 0;
  std::int64_t first = 0, end = 0;
  std::int64_t base = 0, capacity = 1;  // position p is row (p - base) mod capacity

  std::int64_t row(std::int64_t position) const { return (position - base) % capacity; }
  // On the host. out: [n_taps, hidden], the first n_taps of that position.
  void decode(std::int64_t position, int n_taps, float* out) const;
};

class FeatureRows {
 public:
  virtual ~FeatureRows() = default;
  FeatureRows(const FeatureRows&) = delete;
  FeatureRows& operator=(const FeatureRows&) = delete;

  // After layer taps[i] (output of block i), or n_layers for the final normalised state.
  std::span<const int> taps() const { return taps_; }

  // With kHeadTaps taps. The trace grows by the row's position, which follows its last one, or is
  // its first. (The trace stays where it is until settle().)
  virtual void log(int row, RequestTrace& trace, std::int64_t position) = 0;
  // A row that is also logged is so first.
  virtual void to_ring(int row, int slot, std::int64_t position) = 0;
  virtual void settle() = 0;
  // What is left for idle workers, task by task in any order: the rounding of what is logged.
  virtual int tasks() const = 0;
  virtual void run_task(int i) = 0;

  // A ring holds the last kHeadWindow positions of a slot; one that does not follow the last one
  // begins a new history.
  virtual void restore(int slot, std::int64_t position, const std::uint16_t* values,
                       const float* scales) = 0;
  virtual void forget(int slot) = 0;
  virtual FeatureView ring(int slot) const = 0;
  virtual std::uint64_t history(int slot) const = 0;  // another number for each

  // The row's taps to the host, [taps().size(), hidden].
  virtual void read_back(int row, float* out) const = 0;

 protected:
  explicit FeatureRows(std::span<const int> taps) : taps_(taps.begin(), taps.end()) {}

 private:
  const std::vector<int> taps_;
};

class HostFeatureRows final : public FeatureRows {
 public:
  // slots: of rings; 0: there are none. memory: of rows and rings.
  HostFeatureRows(std::span<const int> taps, std::int64_t hidden, int max_rows, int slots,
                  std::pmr::memory_resource* memory = std::pmr::get_default_resource());

  void log(int row, RequestTrace& trace, std::int64_t position) override;
  void to_ring(int row, int slot, std::int64_t position) override;
  void settle() override;
  int tasks() const override { return int(logged_.size()); }
  void run_task(int i) override;
  void restore(int slot, std::int64_t position, const std::uint16_t* values,
               const float* scales) override;
  void forget(int slot) override;
  FeatureView ring(int slot) const override;
  std::uint64_t history(int slot) const override { return rings_[std::size_t(slot)].history; }
  void read_back(int row, float* out) const override;

  // For the forward pass: [hidden] of a row and tap.
  float* values(std::int64_t row, std::size_t tap) {
    return &values_[(std::size_t(row) * taps().size() + tap) * std::size_t(hidden_)];
  }

 private:
  struct Logged {
    int row = 0, slot = -1;  // slot: of the ring that gets it too
    RequestTrace* trace = nullptr;
    std::int64_t position = 0;
  };
  struct Ring {
    std::int64_t first = 0, end = 0;  // positions held; equal: none
    std::uint64_t history = 0;
  };
  // Where a position of the ring is, which now holds it.
  std::size_t advance(int slot, std::int64_t position);
  std::size_t width() const { return std::size_t(kHeadTaps * hidden_); }

  const std::int64_t hidden_;
  std::pmr::vector<float> values_;               // [max_rows, taps, hidden]
  std::pmr::vector<std::uint16_t> ring_values_;  // [slots, kHeadWindow, kHeadTaps, hidden]
  std::pmr::vector<float> ring_scales_;          // [slots, kHeadWindow, kHeadTaps]
  std::vector<Ring> rings_;
  std::vector<Logged> logged_;
};

}  // namespace foretoken
