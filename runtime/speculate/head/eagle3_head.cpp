#include "runtime/speculate/head/eagle3_head.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>

#include "foretoken/kernels/convert.h"
#include "foretoken/kernels/elementwise.h"
#include "foretoken/protocol/failure.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/head/head_bundle.h"
#include "runtime/speculate/head/registry.h"

namespace foretoken {
namespace {

using kernels::WeightType;

// Rows caught up in one pass over fc, k and v: a whole window in four, at some 64 x 8 KiB a buffer.
constexpr std::int64_t kCatchUpRows = 64;

WeightType weight_type(SafetensorType type) { return *safetensor_weight_type(type); }

std::vector<float> values_of(const Eagle3Tensor* tensor) {
  if (!tensor) return {};
  const std::size_t width = safetensor_element_bytes(tensor->type);
  std::vector<float> out(tensor->bytes.size() / width);
  kernels::dequantize_file_row(weight_type(tensor->type), tensor->bytes.data(),
                               std::int64_t(out.size()), out.data());
  return out;
}

// Rows of a checkpoint's matrix in the kernels' layout; row i is order[i] (none: i).
Status pack(const Eagle3Tensor& from, bool as_stored, std::span<const std::int32_t> order,
            Matrix& to) {
  const std::int64_t n_out = from.shape[0], n_in = from.shape[1];
  const WeightType stored = weight_type(from.type);
  const bool rounds = !as_stored && n_in % 32 == 0;
  if (!to.allocate(rounds ? WeightType::kQ8_0 : stored, n_out, n_in))
    return failure(ErrorCode::kOutOfRange, "memory: no room for {} x {}", n_out, n_in);
  const std::size_t stored_bytes = kernels::weight_row_bytes(stored, n_in);
  std::vector<float> values(static_cast<std::size_t>(n_in));
  to.pack([&](std::int64_t row, std::byte* out) {
    const auto source = std::size_t(order.empty() ? row : order[std::size_t(row)]);
    const std::byte* at = from.bytes.data() + source * stored_bytes;
    if (!rounds) return void(std::memcpy(out, at, stored_bytes));
    kernels::dequantize_file_row(stored, at, n_in, values.data());
    kernels::quantize_q8_0(values.data(), n_in, out);
  });
  return Ok{};
}

}  // namespace

class Eagle3Head::Workspace final : public HostHeadWorkspace {
 public:
  Workspace(const Eagle3Head& head, int max_rows, std::pmr::memory_resource* memory)
      : HostHeadWorkspace(head, max_rows, memory),
        head_(head),
        c_(head.config_),
        batch_(std::max<std::int64_t>(max_rows, kCatchUpRows)),
        activations_(
            batch_, std::max({kEagle3Taps * head.hidden(), 2 * c_.hidden, c_.ffn, head.q_width()})),
        x_(std::size_t(batch_ * kEagle3Taps * head.hidden())),
        h_(std::size_t(batch_ * c_.hidden)),
        z_(std::size_t(batch_ * 2 * c_.hidden)),
        q_(std::size_t(max_rows * head.q_width())),
        attended_(q_.size()),
        k_(std::size_t(batch_ * head.kv_width())),
        v_(k_.size()),
        branch_(std::size_t(max_rows * c_.hidden)),
        gate_(std::size_t(max_rows * c_.ffn)),
        up_(gate_.size()),
        scores_(std::size_t(max_rows * c_.n_heads) * std::size_t(head.capacity_)),
        cos_sin_(std::size_t(batch_ * c_.head_dim)),
        row_h_(branch_.size()),
        memory_(std::size_t(max_rows)),
        position_(std::size_t(max_rows)),
        row_of_(std::size_t(batch_)),
        batch_position_(std::size_t(batch_)) {}
  void begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) override;
  void step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) override;

 private:
  void fuse(std::int64_t n, kernels::ThreadPool& pool);
  void place(std::int64_t row, TokenId token, std::int64_t position);
  void norm(const float* h, std::int64_t n);
  void keep(std::int64_t row, std::int64_t position, HeadMemory& memory);
  void set(const float* x, std::int64_t n, std::int64_t width, const Matrix& user,
           kernels::ThreadPool& pool) {
    activations_.set(x, n, width, width, kernels::wants_block32(user.packed.type), false, pool);
  }
  void move_row(int from, int to) override {
    std::copy_n(&row_h_[std::size_t(from * width_)], width_, &row_h_[std::size_t(to * width_)]);
    memory_[std::size_t(to)] = memory_[std::size_t(from)];
    position_[std::size_t(to)] = position_[std::size_t(from)];
  }

  const Eagle3Head& head_;
  const Eagle3Config& c_;
  const std::int64_t batch_;
  kernels::Activations activations_;
  std::vector<float> x_;                // [batch, 3 hidden()]
  std::vector<float> h_, z_;            // [batch, H], [batch, 2H]
  std::vector<float> q_, attended_;     // [rows, q_width]
  std::vector<float> k_, v_;            // [batch, kv_width]
  std::vector<float> branch_;           // [rows, H]
  std::vector<float> gate_, up_;        // [rows, ffn]
  std::vector<float> scores_;           // [rows, n_heads, capacity]
  std::vector<float> cos_sin_;          // [batch, head_dim]
  std::vector<float> row_h_;            // [rows, H]: what the next step reads
  std::vector<HeadMemory*> memory_;     // [rows]
  std::vector<std::int64_t> position_;  // [rows], of the next step
  std::vector<int> row_of_;             // [batch] while catching up
  std::vector<std::int64_t> batch_position_;
};

Result<std::shared_ptr<const Eagle3Head>> Eagle3Head::create(
    const Eagle3Checkpoint& checkpoint, const HeadTerms& terms,
    std::shared_ptr<const VocabularyRows> rows, const Eagle3Options& options) {
  if (!rows) return bad_eagle3("shape", "the model's vocabulary is not at hand");
  auto found = eagle3_parts(checkpoint);
  if (!found) return found.error();
  const Eagle3Parts& parts = *found;
  const Eagle3Config& c = parts.config;
  if (c.target_hidden != rows->hidden()) {
    return bad_eagle3("shape", "it is of a target of width {}, this one has {}", c.target_hidden,
                      rows->hidden());
  }
  if (c.n_vocab != rows->n_vocab()) {
    return bad_eagle3("shape", "it is of a target of {} tokens, this one has {}", c.n_vocab,
                      rows->n_vocab());
  }
  if (options.window < 1 || options.window > kHeadWindow)
    return bad_eagle3("shape", "window {}, at most {}", options.window, kHeadWindow);
  const auto finite = [](std::span<const float> values) {
    return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
  };
  if (terms.source.size() != std::size_t(kHeadSources * c.hidden))
    return bad_eagle3("shape", "source: found {} values", terms.source.size());
  if (!std::isfinite(terms.outside) || !finite(terms.bias) || !finite(terms.source))
    return bad_eagle3("non-finite", "outside, bias or source");
  auto taps = c.taps(rows->n_layers());
  if (!taps) return taps.error();

  std::shared_ptr<Eagle3Head> head(new Eagle3Head);
  head->config_ = c;
  head->rope_ = {.dim = c.head_dim, .theta = c.rope_theta, .factors = c.rope_factors};
  head->window_ = options.window;
  head->capacity_ = options.window + kMaxDraft;
  head->taps_ = {(*taps)[0], (*taps)[1], (*taps)[2], rows->n_layers()};
  head->terms_ = terms;
  // Rows of lm_head by the target's ids, whatever order the checkpoint has.
  std::vector<std::int32_t> order(parts.vocab.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](std::int32_t i) { return parts.vocab[std::size_t(i)]; });
  head->vocab_.resize(order.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    head->vocab_[i] = parts.vocab[std::size_t(order[i])];
  struct Part {
    const Eagle3Tensor* from;
    Matrix& to;
    bool each_step = true;
  };
  for (const Part& p : {Part{parts.fc, head->fc_, false}, Part{parts.q, head->q_},
                        Part{parts.k, head->k_}, Part{parts.v, head->v_}, Part{parts.o, head->o_},
                        Part{parts.gate, head->gate_}, Part{parts.up, head->up_},
                        Part{parts.down, head->down_}, Part{parts.lm_head, head->lm_head_}}) {
    const bool rows_of_vocab = p.from == parts.lm_head;
    if (auto s = pack(
            *p.from, options.as_stored,
            rows_of_vocab ? std::span<const std::int32_t>(order) : std::span<const std::int32_t>(),
            p.to);
        !s)
      return s.error();
    if (p.each_step) head->step_bytes_ += p.to.file_bytes;
  }
  head->input_norm_ = values_of(parts.input_norm);
  for (std::size_t i = 0; i < parts.fc_norm.size(); ++i)
    head->fc_norm_[i] = values_of(parts.fc_norm[i]);
  head->input_layernorm_ = values_of(parts.input_layernorm);
  head->hidden_norm_ = values_of(parts.hidden_norm);
  head->post_attention_layernorm_ = values_of(parts.post_attention_layernorm);
  head->norm_ = values_of(parts.norm);
  if (parts.embedding) {
    head->embedding_ = parts.embedding->bytes;
    head->embedding_type_ = weight_type(parts.embedding->type);
  }
  head->rows_ = std::move(rows);
  return std::shared_ptr<const Eagle3Head>(std::move(head));
}

// Keys channel-major, [kv_width, capacity], so that scores of all rows grow at once; values row by
// row. A position is row p mod capacity, which leaves a whole draft beyond the window.
std::size_t Eagle3Head::memory_floats() const {
  return 2 * std::size_t(kv_width()) * std::size_t(capacity_);
}

std::unique_ptr<HostHeadWorkspace> Eagle3Head::make_workspace(
    int max_rows, std::pmr::memory_resource* memory) const {
  return std::make_unique<Workspace>(*this, max_rows, memory);
}

void Eagle3Head::embed(TokenId token, float* out) const {
  if (embedding_.empty()) return rows_->embedding(token, out);
  const std::size_t row_bytes = kernels::weight_row_bytes(embedding_type_, config_.hidden);
  kernels::dequantize_file_row(embedding_type_, embedding_.data() + std::size_t(token) * row_bytes,
                               config_.hidden, out);
}

void Eagle3Head::store(std::int64_t position, const float* k, const float* v,
                       HeadMemory& memory) const {
  const std::int64_t slot = position % capacity_, width = kv_width();
  float* keys = memory.values.get();
  for (std::int64_t d = 0; d < width; ++d) keys[d * capacity_ + slot] = k[d];
  std::copy_n(v, width, keys + width * capacity_ + slot * width);
}

// x_ [n, 3 hidden()] -> h_ [n, H].
void Eagle3Head::Workspace::fuse(std::int64_t n, kernels::ThreadPool& pool) {
  const std::int64_t width = head_.hidden(), joined = kEagle3Taps * width;
  const auto norm = [&](const std::vector<float>& weight, float* x) {
    if (weight.empty()) return;
    kernels::rms_norm(x, joined, weight.data(), c_.rms_epsilon, n, std::ssize(weight), x, joined);
  };
  norm(head_.input_norm_, x_.data());
  for (std::size_t tap = 0; tap < head_.fc_norm_.size(); ++tap)
    norm(head_.fc_norm_[tap], x_.data() + std::int64_t(tap) * width);
  set(x_.data(), n, joined, head_.fc_, pool);
  kernels::linear(head_.fc_.packed, activations_, nullptr, h_.data(), c_.hidden, pool);
}

// A row of the batch: what it embeds, and the rotation of its position.
void Eagle3Head::Workspace::place(std::int64_t row, TokenId token, std::int64_t position) {
  head_.embed(token, &z_[std::size_t(2 * row * c_.hidden)]);
  head_.rope_.rotation(position, &cos_sin_[std::size_t(row * c_.head_dim)]);
}

// z_: the embeddings of n rows and h [n, H], both normed.
void Eagle3Head::Workspace::norm(const float* h, std::int64_t n) {
  const std::int64_t width = c_.hidden;
  float* z = z_.data();
  kernels::rms_norm(z, 2 * width, head_.input_layernorm_.data(), c_.rms_epsilon, n, width, z,
                    2 * width);
  kernels::rms_norm(h, width, head_.hidden_norm_.data(), c_.rms_epsilon, n, width, z + width,
                    2 * width);
}

// The row's k, rotated, and v are what a sequence has at its position.
void Eagle3Head::Workspace::keep(std::int64_t row, std::int64_t position, HeadMemory& memory) {
  const auto at = std::size_t(row * head_.kv_width());
  kernels::rope(&k_[at], c_.n_kv_heads, c_.head_dim, c_.head_dim,
                &cos_sin_[std::size_t(row * c_.head_dim)], false);
  head_.store(position, &k_[at], &v_[at], memory);
}

void Eagle3Head::Workspace::begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) {
  assert(int(starts.size()) <= max_rows());
  const std::int64_t h = c_.hidden;
  n_ = int(starts.size());
  std::int64_t n = 0;  // rows of the batch so far
  const auto flush = [&] {
    if (n == 0) return;
    fuse(n, pool);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto row = std::size_t(row_of_[std::size_t(i)]);
      const std::int64_t position = batch_position_[std::size_t(i)];
      place(i, starts[row].tokens[std::size_t(position) + 1], position);
      if (position + 1 == starts[row].features.end)
        std::copy_n(&h_[std::size_t(i * h)], h, &row_h_[row * std::size_t(h)]);
    }
    norm(h_.data(), n);
    set(z_.data(), n, 2 * h, head_.k_, pool);
    const kernels::LinearJob jobs[] = {{&head_.k_.packed, nullptr, k_.data(), head_.kv_width()},
                                       {&head_.v_.packed, nullptr, v_.data(), head_.kv_width()}};
    kernels::linear_many(jobs, 2, activations_, pool);
    for (std::int64_t i = 0; i < n; ++i)
      keep(i, batch_position_[std::size_t(i)],
           *starts[std::size_t(row_of_[std::size_t(i)])].memory);
    n = 0;
  };
  for (std::size_t row = 0; row < starts.size(); ++row) {
    const HeadStart& start = starts[row];
    HeadMemory& memory = *start.memory;
    const std::int64_t last = start.features.end - 1;
    assert(last >= start.features.first && last + 2 == std::int64_t(start.tokens.size()));
    assert(memory.n_values >= head_.memory_floats());
    const std::int64_t low = std::max(start.features.first, last - head_.window_ + 1);
    // What is kept is of another head, or does not reach: from the features, all of it.
    if (memory.head != head_.id() || memory.first > low || memory.end < low || memory.end > last) {
      memory.head = head_.id();
      memory.first = memory.end = low;
    }
    for (std::int64_t position = memory.end; position <= last; ++position) {
      start.features.decode(position, kEagle3Taps,
                            &x_[std::size_t(n * kEagle3Taps * head_.hidden())]);
      row_of_[std::size_t(n)] = int(row);
      batch_position_[std::size_t(n)] = position;
      if (++n == batch_) flush();
    }
    memory.end = last + 1;
    memory_[row] = &memory;
    position_[row] = last;
  }
  flush();
}

// One query head of one row. scores: [capacity].
void Eagle3Head::attend(const float* q, std::int64_t position, const HeadMemory& memory, int head,
                        float* scores, float* out) const {
  const int dim = config_.head_dim, group = config_.n_heads / config_.n_kv_heads;
  const std::int64_t width = kv_width(), channel = std::int64_t(head / group) * dim;
  const float* keys = memory.values.get() + channel * capacity_;
  const float* values = memory.values.get() + width * capacity_ + channel;
  const std::int64_t low = std::max(memory.first, position - window_ + 1);
  // Rows that are not in the window are summed too, and never looked at.
  std::fill_n(scores, capacity_, 0.0f);
  for (int d = 0; d < dim; ++d) {
    const float value = q[d];
    const float* row = keys + d * capacity_;
    for (std::int64_t j = 0; j < capacity_; ++j) scores[j] += value * row[j];
  }
  const float scale = 1.0f / std::sqrt(float(dim));
  float largest = scores[low % capacity_];
  for (std::int64_t p = low; p <= position; ++p) largest = std::max(largest, scores[p % capacity_]);
  // The window's slots are one run of the ring or two.
  const std::int64_t n = position - low + 1, start = low % capacity_;
  const std::int64_t n_first = std::min(n, capacity_ - start);
  kernels::softmax_weights(scores + start, n_first, largest, scale);
  kernels::softmax_weights(scores, n - n_first, largest, scale);
  float sum = 0;
  std::fill_n(out, dim, 0.0f);
  for (std::int64_t p = low; p <= position; ++p) {
    const float weight = scores[p % capacity_];
    const float* value = values + (p % capacity_) * width;
    sum += weight;
    for (int d = 0; d < dim; ++d) out[d] += weight * value[d];
  }
  for (int d = 0; d < dim; ++d) out[d] /= sum;
}

void Eagle3Head::Workspace::step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) {
  const int n = n_, dim = c_.head_dim;
  const std::int64_t h = c_.hidden, ffn = c_.ffn;
  assert(int(tokens.size()) == n);
  for (int i = 0; i < n; ++i) place(i, tokens[std::size_t(i)], position_[std::size_t(i)]);
  norm(row_h_.data(), n);
  set(z_.data(), n, 2 * h, head_.q_, pool);
  const kernels::LinearJob qkv[] = {{&head_.q_.packed, nullptr, q_.data(), head_.q_width()},
                                    {&head_.k_.packed, nullptr, k_.data(), head_.kv_width()},
                                    {&head_.v_.packed, nullptr, v_.data(), head_.kv_width()}};
  kernels::linear_many(qkv, 3, activations_, pool);
  for (int i = 0; i < n; ++i) {
    kernels::rope(&q_[std::size_t(i * head_.q_width())], c_.n_heads, dim, dim,
                  &cos_sin_[std::size_t(i * dim)], false);
    keep(i, position_[std::size_t(i)], *memory_[std::size_t(i)]);
  }
  pool.ranges(n * c_.n_heads, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const auto row = std::size_t(unit / c_.n_heads);
      const auto at = std::size_t(unit * dim);
      head_.attend(&q_[at], position_[row], *memory_[row], int(unit % c_.n_heads),
                   &scores_[std::size_t(unit * head_.capacity_)], &attended_[at]);
    }
  });
  set(attended_.data(), n, head_.q_width(), head_.o_, pool);
  kernels::linear(head_.o_.packed, activations_, nullptr, branch_.data(), h, pool);
  float* x = row_h_.data();
  const auto norm_x = [&](const std::vector<float>& weight, float* out) {
    kernels::rms_norm(x, h, weight.data(), c_.rms_epsilon, n, h, out, h);
  };
  if (c_.norm_before_residual) {
    for (int i = 0; i < n; ++i) std::copy_n(&z_[std::size_t((2 * i + 1) * h)], h, x + i * h);
  }
  kernels::add(branch_.data(), n * h, x);
  norm_x(head_.post_attention_layernorm_, branch_.data());
  set(branch_.data(), n, h, head_.gate_, pool);
  const kernels::LinearJob gate_up[] = {{&head_.gate_.packed, nullptr, gate_.data(), ffn},
                                        {&head_.up_.packed, nullptr, up_.data(), ffn}};
  kernels::linear_many(gate_up, 2, activations_, pool);
  kernels::swiglu(gate_.data(), up_.data(), n * ffn, gate_.data());
  set(gate_.data(), n, ffn, head_.down_, pool);
  kernels::linear(head_.down_.packed, activations_, nullptr, branch_.data(), h, pool);
  kernels::add(branch_.data(), n * h, x);
  norm_x(head_.norm_, state_.data());
  set(state_.data(), n, h, head_.lm_head_, pool);
  kernels::linear(head_.lm_head_.packed, activations_, nullptr, logits_.data(), vocab_, pool);
  if (c_.norm_output) std::copy_n(state_.data(), n * h, x);
  for (int i = 0; i < n; ++i) ++position_[std::size_t(i)];
}

// The registry's way to it (head/registry.cpp).
Result<HeadPointer> eagle3_head_of(const Bundle& bundle,
                                   const std::shared_ptr<const VocabularyRows>& rows) {
  auto parts = eagle3_of(bundle);
  if (!parts) return parts.error();
  auto head = Eagle3Head::create(parts->checkpoint, parts->terms, rows);
  if (!head) return head.error();
  return HeadPointer(std::move(*head));
}

}  // namespace foretoken
