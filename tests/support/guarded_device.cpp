#include "tests/support/guarded_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "runtime/speculate/candidates.h"
#include "runtime/speculate/proposal.h"
#include "tests/support/model_decorator.h"

namespace foretoken::testing {
namespace {

using Operation = GuardedMemory::Operation;

// The regions of all devices, for the handler.
struct Region {
  std::atomic<const std::byte*> begin{nullptr};
  std::atomic<std::size_t> bytes{0};
};
std::array<Region, 64> regions;
struct sigaction previous;

void on_fault(int signal, siginfo_t* info, void* context) {
  const auto* at = static_cast<const std::byte*>(info->si_addr);
  for (const Region& region : regions) {
    const std::byte* begin = region.begin;
    if (!begin || at < begin || at >= begin + region.bytes) continue;
    constexpr char kMessage[] = "host access to device memory\n";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
    std::abort();
  }
  // Anybody else's fault is handled as it was before.
  if (previous.sa_flags & SA_SIGINFO)
    previous.sa_sigaction(signal, info, context);
  else
    sigaction(signal, &previous, nullptr);
}

void watch(const std::byte* begin, std::size_t bytes) {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &previous);
    return true;
  }();
  (void)installed;
  for (Region& region : regions) {
    const std::byte* none = nullptr;
    if (!region.begin.compare_exchange_strong(none, begin)) continue;
    region.bytes = bytes;
    return;
  }
  std::abort();
}

class GuardedPages final : public HostKvPages {
 public:
  GuardedPages(const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration,
               std::shared_ptr<GuardedMemory> memory)
      : HostKvPages(layout, std::move(calibration)), memory_(std::move(memory)) {}

  std::byte* base(std::size_t bytes) override {
    return static_cast<std::byte*>(memory_->allocate(bytes, 64));
  }
  void copy_slab(const std::byte* from, std::byte* to, std::size_t bytes) override {
    const Operation operation(*memory_);
    HostKvPages::copy_slab(from, to, bytes);
  }
  void copy_position(KvSequence sequence, std::int64_t from, std::int64_t to) override {
    const Operation operation(*memory_);
    HostKvPages::copy_position(sequence, from, to);
  }
  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override {
    const Operation operation(*memory_);
    HostKvPages::store(layer, rows, k, k_stride, v, v_stride);
  }
  void seal(int layer, std::span<const Page> pages, kernels::ThreadPool& pool) override {
    const Operation operation(*memory_);
    HostKvPages::seal(layer, pages, pool);
  }
  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale,
              kernels::ThreadPool& pool) override {
    const Operation operation(*memory_);
    HostKvPages::attend(layer, rows, q, q_stride, out, out_stride, scale, pool);
  }

 private:
  const std::shared_ptr<GuardedMemory> memory_;
};

class GuardedLogitRows final : public LogitRows {
 public:
  GuardedLogitRows(int max_rows, std::int64_t n_columns, std::shared_ptr<GuardedMemory> memory,
                   bool leaks)
      : memory_(std::move(memory)), leaks_(leaks) {
    const Operation operation(*memory_);
    inner_ = std::make_unique<HostLogitRows>(max_rows, n_columns, memory_.get());
  }
  void begin(int n_rows) override {
    const Operation operation(*memory_);
    if (copies_.size() < std::size_t(n_rows)) copies_.resize(std::size_t(n_rows));
    inner_->begin(n_rows);
    reported_ = 0;
  }
  void want(int row, const RowWish& wish) override {
    const Operation operation(*memory_);
    inner_->want(row, wish);
  }
  void choose() override {}
  TokenId token(int row) override {
    const Operation operation(*memory_);
    const TokenId token = inner_->token(row);
    finish_report();
    return token;
  }
  std::span<float> host_row(int row) override {
    const Operation operation(*memory_);
    const std::span<float> values = inner_->host_row(row);
    if (leaks_) return values;
    if (copies_.size() <= std::size_t(row)) copies_.resize(std::size_t(row) + 1);
    std::vector<float>& copy = copies_[std::size_t(row)];
    copy.assign(values.begin(), values.end());
    return copy;
  }
  void chosen(int row, TokenId token, double logprob) override {
    const Operation operation(*memory_);
    inner_->chosen(row, token, logprob);
    finish_report();
  }
  int tasks() const override { return 0; }  // done on the device
  void run_task(int) override {}
  RowReport& report(int row) override { return inner_->report(row); }

  HostLogitRows& inner() { return *inner_; }

 private:
  void finish_report() {
    for (; reported_ < inner_->tasks(); ++reported_) inner_->run_task(reported_);
  }
  const std::shared_ptr<GuardedMemory> memory_;
  const bool leaks_;
  std::unique_ptr<HostLogitRows> inner_;
  std::vector<std::vector<float>> copies_;
  int reported_ = 0;
};

class GuardedFeatureRows final : public FeatureRows {
 public:
  GuardedFeatureRows(std::span<const int> taps, std::int64_t hidden, int max_rows, int slots,
                     std::shared_ptr<GuardedMemory> memory, bool leaks)
      : FeatureRows(taps), memory_(std::move(memory)), leaks_(leaks) {
    const Operation operation(*memory_);
    inner_ = std::make_unique<HostFeatureRows>(taps, hidden, max_rows, slots, memory_.get());
  }
  void log(int row, RequestTrace& trace, std::int64_t position) override {
    if (leaks_) {
      inner_->log(row, trace, position);
      inner_->run_task(inner_->tasks() - 1);
      return;
    }
    const Operation operation(*memory_);
    inner_->log(row, trace, position);
    inner_->run_task(inner_->tasks() - 1);
  }
  void to_ring(int row, int slot, std::int64_t position) override {
    const Operation operation(*memory_);
    inner_->to_ring(row, slot, position);
  }
  void settle() override {
    const Operation operation(*memory_);
    inner_->settle();
  }
  int tasks() const override { return 0; }  // done on the device
  void run_task(int) override {}
  void restore(int slot, std::int64_t position, const std::uint16_t* values,
               const float* scales) override {
    const Operation operation(*memory_);
    inner_->restore(slot, position, values, scales);
  }
  void forget(int slot) override { inner_->forget(slot); }
  FeatureView ring(int slot) const override { return inner_->ring(slot); }
  std::uint64_t history(int slot) const override { return inner_->history(slot); }
  void read_back(int row, float* out) const override {
    const Operation operation(*memory_);
    inner_->read_back(row, out);
  }

  HostFeatureRows& inner() { return *inner_; }

 private:
  const std::shared_ptr<GuardedMemory> memory_;
  const bool leaks_;
  std::unique_ptr<HostFeatureRows> inner_;
};

class GuardedHeadWorkspace final : public HeadWorkspace {
 public:
  GuardedHeadWorkspace(const HeadWeights& head, int max_rows, std::shared_ptr<GuardedMemory> memory)
      : HeadWorkspace(max_rows), memory_(std::move(memory)) {
    const Operation operation(*memory_);
    inner_ = head.make_host_workspace(max_rows, memory_.get());
  }
  void reserve(HeadMemory& memory) override {
    const Operation operation(*memory_);
    inner_->reserve(memory);
  }
  void begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) override {
    const Operation operation(*memory_);
    inner_->begin(starts, pool);
    n_ = inner_->rows();
  }
  void step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) override {
    const Operation operation(*memory_);
    inner_->step(tokens, pool);
  }
  Proposal choose(int row, const CandidateList& candidates, const SamplingParams& sampling,
                  std::int64_t position, bool coupled) override {
    const Operation operation(*memory_);
    return inner_->choose(row, candidates, sampling, position, coupled);
  }
  void keep(std::span<const int> rows) override {
    const Operation operation(*memory_);
    inner_->keep(rows);
    n_ = inner_->rows();
  }

 private:
  const std::shared_ptr<GuardedMemory> memory_;
  std::unique_ptr<HeadWorkspace> inner_;
};

class GuardedModel final : public ModelDecorator {
 public:
  GuardedModel(std::shared_ptr<const Model> inner, std::shared_ptr<GuardedMemory> memory,
               GuardedFault fault)
      : ModelDecorator(std::move(inner)), memory_(std::move(memory)), fault_(fault) {}

  Result<std::unique_ptr<KvCache>> make_kv(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const override {
    return KvCache::create(kv_geometry(), options, std::move(calibration),
                           [&](const KvLayout& layout, std::shared_ptr<const KvCalibration> made) {
                             return std::make_unique<GuardedPages>(layout, std::move(made),
                                                                   memory_);
                           });
  }
  std::unique_ptr<LogitRows> make_logit_rows(int max_rows,
                                             const kernels::PackedMatrix* output) const override {
    return std::make_unique<GuardedLogitRows>(max_rows, output ? output->n_out : config().n_vocab,
                                              memory_, fault_ == GuardedFault::kRowsLeak);
  }
  std::unique_ptr<FeatureRows> make_feature_rows(std::span<const int> taps, int max_rows,
                                                 int slots) const override {
    return std::make_unique<GuardedFeatureRows>(taps, config().hidden, max_rows, slots, memory_,
                                                fault_ == GuardedFault::kFeaturesLeak);
  }
  std::unique_ptr<HeadWorkspace> make_head_workspace(const HeadWeights& head,
                                                     int max_rows) const override {
    return std::make_unique<GuardedHeadWorkspace>(head, max_rows, memory_);
  }
  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               kernels::ThreadPool& pool) const override {
    const Operation operation(*memory_);
    ForwardBatch inner = batch;
    if (batch.logits) inner.logits = &static_cast<GuardedLogitRows&>(*batch.logits).inner();
    if (batch.features) inner.features = &static_cast<GuardedFeatureRows&>(*batch.features).inner();
    inner_->forward(inner, memory, workspace, pool);
  }

 private:
  const std::shared_ptr<GuardedMemory> memory_;
  const GuardedFault fault_;
};

}  // namespace

GuardedMemory::GuardedMemory(std::size_t bytes) : bytes_(bytes) {
  void* memory =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(memory);
  watch(base_, bytes_);
}

GuardedMemory::~GuardedMemory() {
  for (Region& region : regions) {
    const std::byte* mine = base_;
    region.begin.compare_exchange_strong(mine, nullptr);
  }
  munmap(base_, bytes_);
}

void GuardedMemory::protect(bool readable) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t used = (used_ + page - 1) / page * page;
  if (used > 0 && mprotect(base_, used, readable ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
    std::abort();
}

void GuardedMemory::open() {
  const std::lock_guard lock(mutex_);
  ++operations_;
  if (depth_++ == 0) protect(true);
}

void GuardedMemory::close() {
  const std::lock_guard lock(mutex_);
  if (--depth_ == 0) protect(false);
}

void* GuardedMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  const std::lock_guard lock(mutex_);
  const std::size_t at = (used_ + alignment - 1) / alignment * alignment;
  if (at + bytes > bytes_) throw std::bad_alloc();
  used_ = at + bytes;
  if (depth_ > 0) protect(true);
  return base_ + at;
}

std::shared_ptr<const Model> on_guarded_device(std::shared_ptr<const Model> model,
                                               std::shared_ptr<GuardedMemory> memory,
                                               GuardedFault fault) {
  return std::make_shared<GuardedModel>(std::move(model), std::move(memory), fault);
}

}  // namespace foretoken::testing
