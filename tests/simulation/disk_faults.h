// A process's disk in a simulation: the real file system, reached through this. The program is
// linked with --wrap for every call that changes a file (CMakeLists.txt), so the state machines run
// as they are shipped. A process may die at any of these calls, a write may be cut in the middle,
// and the disk may be full. After a death nothing the process still does reaches the disk.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <utility>

namespace foretoken::simulation {

class Disk {
 public:
  explicit Disk(std::uint64_t seed) : random_(seed) {}

  // A new process begins on this disk.
  void start() {
    dead_ = false;
    crash_in_ = -1;
  }
  // It dies at the n-th change from now, 0 being the next.
  void arm(int n) { crash_in_ = n; }
  void disarm() { crash_in_ = -1; }
  void set_full(bool full) { full_ = full; }
  bool dead() const { return dead_; }
  // A write has failed for want of room since this was last asked.
  bool take_refused() { return std::exchange(refused_, false); }
  std::function<void()> on_death;

  // For the wrapped calls.
  enum class Fate { kGoesOn, kDiesBefore, kDiesAfter };
  Fate step();
  bool full() const { return full_; }
  void note_refused() { refused_ = true; }
  std::size_t part_of(std::size_t n) { return n == 0 ? 0 : random_() % (n + 1); }
  bool coin() { return random_() % 2 != 0; }
  void die();

 private:
  std::mt19937_64 random_;
  bool dead_ = false, full_ = false, refused_ = false;
  int crash_in_ = -1;
};

// While one lives, this thread's file operations go through the disk.
class OnDisk {
 public:
  explicit OnDisk(Disk& disk);
  ~OnDisk();
  OnDisk(const OnDisk&) = delete;
  OnDisk& operator=(const OnDisk&) = delete;
};

}  // namespace foretoken::simulation
