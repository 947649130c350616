// A block of GPU threads on the host, for the bodies in kernels/cuda: every thread a fiber, run in
// turn, switched at the warp- and block-wide operations; what these compute is computed when the
// last thread has come. Matrix instructions have the fragments PTX documents and plain sums. An
// operation that the threads of a warp do not reach together, and a barrier that not all reach,
// abort with a message. Single-threaded; a test's tool, not fast.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/attention_body.h"

namespace foretoken::simt {

// IEEE half to float and back, nearest even, with subnormals.
inline float half_to_float(std::uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                         : std::ldexp(static_cast<float>(mantissa), -24);
  return h & 0x8000 ? -magnitude : magnitude;
}
inline std::uint16_t float_to_half(float f) {
  const std::uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float x = std::fabs(f);
  if (std::isnan(x)) return sign | 0x7e00;
  if (x == 0) return sign;
  if (x >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(x, &exponent);  // x = m 2^exponent, m in [1/2, 1)
  const int step = std::max(exponent - 11, -24);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(x, -step)));
  if (step == -24) return static_cast<std::uint16_t>(sign | units);
  return static_cast<std::uint16_t>(sign | (((step + 24) << 10) + units));
}

class Block;

// One thread: what kernels/cuda/attention_body.h calls G.
class Thread {
 public:
  Thread(Block& block, int index) : block_(&block), index_(index) {}

  int thread() const { return index_; }
  int warp() const { return index_ / 32; }
  int lane() const { return index_ % 32; }
  inline int block_x() const;
  inline int block_y() const;
  inline int block_z() const;
  inline std::byte* shared() const;

  inline void sync_block();
  inline void sync_warp();
  inline float shuffle(float x, int lane);
  inline float shuffle_xor(float x, int step) { return shuffle(x, lane() ^ step); }
  inline bool any(bool x);
  inline void mma_u8s8(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                       std::uint32_t b1);
  inline void mma_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                      std::uint32_t b1);
  inline void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                       std::uint32_t b1);
  inline void init_barrier(int index);
  void barriers_ready() {}
  inline void expect_bytes(int barrier, int bytes);
  inline void copy_async(std::byte* to, const std::byte* from, int bytes, int barrier);
  inline void wait_barrier(int barrier, int parity);
  void release_next_grid() {}
  void wait_for_previous_grid() {}

  static float max(float a, float b) { return std::fmax(a, b); }
  static int max(int a, int b) { return a > b ? a : b; }
  static int min(int a, int b) { return a < b ? a : b; }
  static float fma(float a, float b, float c) { return std::fma(a, b, c); }
  static float exp2(float x) { return std::exp2(x); }
  static float round(float x) { return std::nearbyint(x); }
  static float power_of_two(int n) { return std::ldexp(1.0f, n); }
  static std::uint32_t bits(float x) { return kernels::bits_of(x); }
  static kernels::cuda::Vec4 load16(const void* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) fail("a load of 16 bytes is not aligned");
    kernels::cuda::Vec4 x;
    std::memcpy(&x, p, 16);
    return x;
  }
  template <int N>
  static void load_floats(const float* p, float (&x)[N]) {
    std::memcpy(x, p, sizeof x);
  }
  static void store_floats(float* p, const float (&x)[4]) { std::memcpy(p, x, sizeof x); }
  static float half_low(std::uint32_t x) { return half_to_float(static_cast<std::uint16_t>(x)); }
  static float half_high(std::uint32_t x) { return half_low(x >> 16); }
  static std::uint32_t pack_half(float low, float high) {
    return float_to_half(low) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
  }
  static std::uint32_t pack_bf16(float low, float high) {
    return kernels::float_to_bf16_finite(low) |
           static_cast<std::uint32_t>(kernels::float_to_bf16_finite(high)) << 16;
  }
  static std::uint32_t low_halves(std::uint32_t x, std::uint32_t y) {
    return (x & 0xffffu) | y << 16;
  }
  static std::uint32_t high_halves(std::uint32_t x, std::uint32_t y) {
    return x >> 16 | (y & 0xffff0000u);
  }
  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "simt: %s\n", what);
    std::abort();
  }

 private:
  template <class T>
  struct Mma {
    T* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
  };
  // C [16, 8] += A [16, k] B [k, 8]; unpack(word, i) is element i of a 32-bit register.
  template <class T, int PerWord, class UnpackA, class UnpackB>
  static void multiply(void* const* arguments, UnpackA unpack_a, UnpackB unpack_b);

  Block* block_;
  int index_;
};

class Block {
 public:
  // Runs body(thread) for n_threads threads to their ends.
  Block(int n_threads, std::size_t shared_bytes, int x, int y, int z,
        const std::function<void(Thread&)>& body)
      : x_(x), y_(y), z_(z), body_(&body), shared_(shared_bytes + 16), warps_(n_threads / 32) {
    std::memset(shared_.data(), 0xff, shared_.size());  // NaNs: nothing may count on zeros
    for (int i = 0; i < n_threads; ++i) {
      fibers_.push_back(std::make_unique<Fiber>(*this, i));
      Fiber& f = *fibers_.back();
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = kStackBytes;
      f.context.uc_link = nullptr;
      const auto at = reinterpret_cast<std::uintptr_t>(&f);
      makecontext(&f.context, reinterpret_cast<void (*)()>(&Block::enter), 2,
                  static_cast<unsigned>(at), static_cast<unsigned>(at >> 32));
    }
    for (int left = n_threads; left > 0;) {
      bool ran = false;
      for (auto& f : fibers_) {
        if (f->done || (f->waits_for != nullptr && *f->waits_for == f->seen)) continue;
        ran = true;
        resume(*f);
        if (f->done) --left;
      }
      if (!ran) Thread::fail("some threads of a block wait for others that have ended");
    }
  }

 private:
  friend class Thread;
  static constexpr std::size_t kStackBytes = 64 << 10;
  struct Fiber {
    Fiber(Block& b, int i) : block(&b), thread(b, i), stack(new char[kStackBytes]) {}
    Block* block;
    Thread thread;
    std::unique_ptr<char[]> stack;
    ucontext_t context;  // to begin with; from then on `at`, which switches without a system call
    jmp_buf at;
    bool begun = false;
    const std::uint64_t* waits_for = nullptr;
    std::uint64_t seen = 0;
    bool done = false;
  };
  struct Meeting {  // of the threads of a warp, or at a barrier
    const char* what = nullptr;
    int arrived = 0;
    std::uint64_t generation = 0;
    void* arguments[32];
  };
  struct Copies {  // a barrier for asynchronous copies: its phase ends when what it expects has
                   // come
    bool ready = false, armed = false;
    long pending = 0;
    std::uint64_t phase = 0;
  };

  static void enter(unsigned low, unsigned high) {
    auto* f = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
    (*f->block->body_)(f->thread);
    f->done = true;
    _longjmp(f->block->scheduler_, 1);
  }
  void resume(Fiber& f) {
    current_ = &f;
    if (_setjmp(scheduler_) != 0) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.context);
  }
  void wait(const std::uint64_t& counter, std::uint64_t seen) {
    Fiber* f = current_;
    f->waits_for = &counter, f->seen = seen;
    while (counter == seen) {
      if (_setjmp(f->at) == 0) _longjmp(scheduler_, 1);
    }
    f->waits_for = nullptr;
  }
  template <class Last>
  void meet(Meeting& m, int n, const char* what, int slot, void* argument, Last last) {
    if (m.arrived > 0 && std::strcmp(m.what, what) != 0)
      Thread::fail("threads of a warp are at different operations");
    m.what = what;
    if (slot >= 0) m.arguments[slot] = argument;
    const std::uint64_t generation = m.generation;
    if (++m.arrived < n) return wait(m.generation, generation);
    m.arrived = 0;
    last(m.arguments);
    ++m.generation;
  }

  int x_, y_, z_;
  const std::function<void(Thread&)>* body_;
  std::vector<std::byte> shared_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Meeting> warps_;
  Meeting barrier_;
  Copies copies_[64];
  jmp_buf scheduler_;
  Fiber* current_ = nullptr;
};

inline int Thread::block_x() const { return block_->x_; }
inline int Thread::block_y() const { return block_->y_; }
inline int Thread::block_z() const { return block_->z_; }
inline std::byte* Thread::shared() const {
  std::byte* p = block_->shared_.data();
  return p + (16 - reinterpret_cast<std::uintptr_t>(p) % 16) % 16;
}
inline void Thread::sync_block() {
  block_->meet(block_->barrier_, static_cast<int>(block_->fibers_.size()), "block barrier", -1,
               nullptr, [](void* const*) {});
}
inline void Thread::sync_warp() {
  block_->meet(block_->warps_[warp()], 32, "sync_warp", lane(), nullptr, [](void* const*) {});
}
inline float Thread::shuffle(float x, int from) {
  struct Argument {
    float x, out;
    int from;
  } mine{x, 0, from & 31};
  block_->meet(block_->warps_[warp()], 32, "shuffle", lane(), &mine, [](void* const* all) {
    for (int i = 0; i < 32; ++i) {
      auto* a = static_cast<Argument*>(all[i]);
      a->out = static_cast<Argument*>(all[a->from])->x;
    }
  });
  return mine.out;
}
inline bool Thread::any(bool x) {
  block_->meet(block_->warps_[warp()], 32, "any", lane(), &x, [](void* const* all) {
    bool any = false;
    for (int i = 0; i < 32; ++i) any = any || *static_cast<bool*>(all[i]);
    for (int i = 0; i < 32; ++i) *static_cast<bool*>(all[i]) = any;
  });
  return x;
}

template <class T, int PerWord, class UnpackA, class UnpackB>
void Thread::multiply(void* const* arguments, UnpackA unpack_a, UnpackB unpack_b) {
  constexpr int kHalf = 4 * PerWord, kInner = 2 * kHalf;
  T a[16][kInner], b[kInner][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = *static_cast<const Mma<T>*>(arguments[lane]);
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < PerWord; ++e)
        a[lane / 4 + i % 2 * 8][i / 2 * kHalf + lane % 4 * PerWord + e] = unpack_a(m.a[i], e);
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < PerWord; ++e)
        b[i * kHalf + lane % 4 * PerWord + e][lane / 4] = unpack_b(m.b[i], e);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    T* c = static_cast<const Mma<T>*>(arguments[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < kInner; ++k) c[i] += a[row][k] * b[k][column];
    }
  }
}
inline void Thread::mma_u8s8(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
  Mma<std::int32_t> mine{c, a, {b0, b1}};
  block_->meet(block_->warps_[warp()], 32, "mma u8 s8", lane(), &mine, [](void* const* all) {
    multiply<std::int32_t, 4>(
        all, [](std::uint32_t w, int e) { return static_cast<std::int32_t>(w >> 8 * e & 255); },
        [](std::uint32_t w, int e) {
          return static_cast<std::int32_t>(static_cast<std::int8_t>(w >> 8 * e));
        });
  });
}
inline void Thread::mma_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                            std::uint32_t b1) {
  Mma<float> mine{c, a, {b0, b1}};
  const auto half = [](std::uint32_t w, int e) {
    return half_to_float(static_cast<std::uint16_t>(w >> 16 * e));
  };
  block_->meet(block_->warps_[warp()], 32, "mma f16", lane(), &mine,
               [&](void* const* all) { multiply<float, 2>(all, half, half); });
}
inline void Thread::mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
  Mma<float> mine{c, a, {b0, b1}};
  const auto bfloat = [](std::uint32_t w, int e) {
    return kernels::bf16_to_float(static_cast<std::uint16_t>(w >> 16 * e));
  };
  block_->meet(block_->warps_[warp()], 32, "mma bf16", lane(), &mine,
               [&](void* const* all) { multiply<float, 2>(all, bfloat, bfloat); });
}

inline void Thread::init_barrier(int index) { block_->copies_[index].ready = true; }
inline void Thread::expect_bytes(int barrier, int bytes) {
  Block::Copies& c = block_->copies_[barrier];
  if (!c.ready || c.armed) fail("a copy barrier is not ready for another phase");
  c.armed = true, c.pending += bytes;
}
inline void Thread::copy_async(std::byte* to, const std::byte* from, int bytes, int barrier) {
  if (bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(to) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    fail("an asynchronous copy is not in units of 16 bytes");
  std::memcpy(to, from, bytes);
  Block::Copies& c = block_->copies_[barrier];
  if (!c.armed || (c.pending -= bytes) < 0) fail("a copy barrier did not expect these bytes");
  if (c.pending == 0) c.armed = false, ++c.phase;
}
inline void Thread::wait_barrier(int barrier, int parity) {
  Block::Copies& c = block_->copies_[barrier];
  while (c.phase % 2 == static_cast<std::uint64_t>(parity)) block_->wait(c.phase, c.phase);
}

}  // namespace foretoken::simt
