// The plan of an attention call: units of (sequence, KV head, rows of one query page), their
// scratch and how they are spread over the threads. Whether a unit's segments run on one thread or
// many changes nothing in the result: a segment's state is computed and merged in order by the same
// functions either way.
#include "foretoken/kernels/attention.h"

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

// Rows times segments whose states a split call may keep: 8192 of them are 8.5 MB at d = 128.
// Enough for 8 rows of 12 heads at 40K tokens; a larger call has units enough not to need
// splitting.
constexpr std::int64_t kMaxSplitStates = 8192;
constexpr std::size_t kAlign = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Most digits of a row of any mode: the scratch is sized without knowing it.
constexpr int most_digits(int d) {
  int most = d;
  for (const KvFormat& format : kKvFormats)
    most = std::max({most, k_digits(format, d), v_digits(format, d)});
  return most;
}

std::size_t queries_bytes(int rows, int d) {
  return aligned(static_cast<std::size_t>(rows) * d * 4) +
         2 * aligned(static_cast<std::size_t>(rows) * most_digits(d)) +
         3 * aligned(static_cast<std::size_t>(rows) * 4) +
         2 * aligned(static_cast<std::size_t>(rows) * d * 2);
}
std::size_t state_bytes(int rows, int d) {
  return 3 * aligned(static_cast<std::size_t>(rows) * 4) +
         aligned(static_cast<std::size_t>(rows) * d * 4) +
         aligned(static_cast<std::size_t>(rows) * most_digits(d) * 4);
}
std::size_t buffers_bytes(int rows) {
  return aligned(static_cast<std::size_t>(rows) * kLogitStride * 4) +
         2 * aligned(static_cast<std::size_t>(rows) * kSegmentTokens);
}

template <class T>
T* take(std::byte*& at, std::size_t count) {
  T* out = reinterpret_cast<T*>(at);
  at += aligned(count * sizeof(T));
  return out;
}
AttentionQueries take_queries(std::byte*& at, int rows, int d) {
  AttentionQueries q;
  q.plain = take<float>(at, static_cast<std::size_t>(rows) * d);
  q.digits = take<std::int8_t>(at, static_cast<std::size_t>(rows) * most_digits(d));
  q.low = take<std::int8_t>(at, static_cast<std::size_t>(rows) * most_digits(d));
  q.step = take<float>(at, rows);
  q.sum = take<std::int32_t>(at, rows);
  q.total = take<float>(at, rows);
  q.bf16_high = take<std::uint16_t>(at, static_cast<std::size_t>(rows) * d);
  q.bf16_low = take<std::uint16_t>(at, static_cast<std::size_t>(rows) * d);
  return q;
}
AttentionState take_state(std::byte*& at, int rows, int d) {
  AttentionState s;
  s.maximum = take<float>(at, rows);
  s.mass = take<float>(at, rows);
  s.sealed_mass = take<float>(at, rows);
  s.o = take<float>(at, static_cast<std::size_t>(rows) * d);
  s.o2 = take<float>(at, static_cast<std::size_t>(rows) * most_digits(d));
  return s;
}
AttentionBuffers take_buffers(std::byte*& at, int rows) {
  AttentionBuffers b;
  b.logits = take<float>(at, static_cast<std::size_t>(rows) * kLogitStride);
  b.weights_high = take<std::int8_t>(at, static_cast<std::size_t>(rows) * kSegmentTokens);
  b.weights_low = take<std::int8_t>(at, static_cast<std::size_t>(rows) * kSegmentTokens);
  return b;
}

// Copies of the pages that hold a tree row's path, in the order of its positions: what comes after
// them is a chain's arithmetic. At most two pages: a path of kTreeRows rows crosses one border.
class PathPages {
 public:
  static std::size_t bytes(int d) { return 2 * aligned(hot_page_bytes(d)); }
  PathPages(std::byte*& at, int d)
      : pages_{take<std::byte>(at, hot_page_bytes(d)), take<std::byte>(at, hot_page_bytes(d))} {}

  // The unit as its segments read it; itself, unless it is of a tree.
  AttentionUnit of(AttentionUnit unit) {
    const AttentionRows& rows = *unit.sequence;
    if (rows.parents == nullptr) return unit;
    const int d = unit.call->head_dim;
    const std::int64_t begin = rows.first_position / kPageTokens;
    for (std::int64_t page = begin; page <= unit.position / kPageTokens; ++page)
      std::memcpy(pages_[page - begin], unit.hot_page(page), hot_page_bytes(d));
    std::int64_t position = unit.position;
    for (int row = unit.first_row; row > 0; row = rows.parents[row - 1] + 1, --position) {
      const std::int64_t slot = rows.first_position + row;
      copy_kv(unit.hot_page(slot / kPageTokens), static_cast<int>(slot % kPageTokens), d,
              pages_[position / kPageTokens - begin], static_cast<int>(position % kPageTokens));
    }
    unit.path_pages = pages_;
    unit.path_begin = begin;
    return unit;
  }

 private:
  std::byte* pages_[2];
};

std::size_t worker_bytes_of(int rows, int d) {
  return PathPages::bytes(d) + queries_bytes(rows, d) + 2 * state_bytes(rows, d) +
         buffers_bytes(rows);
}

// Units of a call, in order; enumerated instead of stored so that a call allocates nothing.
struct Plan {
  const AttentionCall& call;
  int group, block_rows;
  explicit Plan(const AttentionCall& c)
      : call(c),
        group(c.n_heads / c.n_kv_heads),
        block_rows(std::max(1, std::min(16, kUnitRows / group))) {}

  // Blocks of a sequence: at most block_rows rows, none across a page border; of a tree one row.
  template <class Fn>
  void for_each(Fn fn) const {
    int index = 0;
    for (int s = 0; s < call.n_sequences; ++s) {
      const AttentionRows& rows = call.sequences[s];
      for (int first = 0; first < rows.n_rows;) {
        const bool tree = rows.parents != nullptr;
        std::int64_t position = rows.first_position + first;
        if (tree) {
          position = rows.first_position;
          for (int row = first; row > 0; row = rows.parents[row - 1] + 1) ++position;
        }
        const int n =
            tree ? 1
                 : static_cast<int>(std::min<std::int64_t>(
                       {block_rows, rows.n_rows - first, kPageTokens - position % kPageTokens}));
        for (int h = 0; h < call.n_kv_heads; ++h, ++index) {
          const AttentionUnit unit{
              &call, &rows, h,        first,
              n,     group, position, static_cast<int>((position + n - 1) / kSegmentTokens) + 1};
          if (!fn(unit, index)) return;
        }
        first += n;
      }
    }
  }
};

}  // namespace

std::size_t attention_scratch_bytes(int max_rows, int n_heads, int head_dim, int n_threads,
                                    std::int64_t max_tokens) {
  (void)max_tokens;
  const int rows = kUnitRows;
  const std::size_t worker = worker_bytes_of(rows, head_dim);
  // Units: at most one block per page border and per block_rows rows of each head, and per
  // sequence.
  const std::size_t units = static_cast<std::size_t>(max_rows) * n_heads;
  // Split: at most kMaxSplitStates rows of states and queries, each unit's arrays aligned.
  const std::size_t row = static_cast<std::size_t>(head_dim) * 12 +
                          static_cast<std::size_t>(most_digits(head_dim)) * 6 + 24;
  const std::size_t split = kMaxSplitStates * (row + 13 * kAlign);
  return aligned(units * sizeof(AttentionUnit)) + n_threads * worker + split + 16 * kAlign;
}

void attention(const AttentionCall& call, std::byte* scratch, std::size_t scratch_bytes,
               ThreadPool& pool) {
  const Plan plan(call);
  const int d = call.head_dim;
  if (d % 16 != 0 || d > kMaxHeadDim || plan.group > kUnitRows ||
      call.n_heads % call.n_kv_heads != 0) {
    std::fprintf(stderr, "attention: %d heads, %d KV heads of %d are not supported\n", call.n_heads,
                 call.n_kv_heads, d);
    std::abort();
  }
  for (int s = 0; s < call.n_sequences; ++s) {
    if (call.sequences[s].parents == nullptr || call.sequences[s].n_rows <= kTreeRows) continue;
    std::fprintf(stderr, "attention: a tree of %d rows, at most %d\n", call.sequences[s].n_rows,
                 kTreeRows);
    std::abort();
  }
  const AttentionKernels& kernels = cpu_ops().attention[&kv_format(call.mode) - kKvFormats];
  const int threads = pool.size();
  std::byte* at = reinterpret_cast<std::byte*>(aligned(reinterpret_cast<std::uintptr_t>(scratch)));

  auto* units = reinterpret_cast<AttentionUnit*>(at);
  int n_units = 0, longest = 0;
  std::int64_t total_segments = 0, states = 0;
  plan.for_each([&](const AttentionUnit& unit, int index) {
    units[index] = unit;
    n_units = index + 1;
    longest = std::max(longest, unit.n_segments);
    total_segments += unit.n_segments;
    states += static_cast<std::int64_t>(unit.n_segments) * unit.rows();
    return true;
  });
  at += aligned(n_units * sizeof(AttentionUnit));

  std::byte* workers = at;
  const int worker_rows = kUnitRows;
  const std::size_t worker_bytes = worker_bytes_of(worker_rows, d);
  at += threads * worker_bytes;
  assert(at <= scratch + scratch_bytes);
  (void)scratch_bytes;

  // Split a call whose longest unit would leave other threads idle for more than a quarter of it.
  const bool split = threads > 1 && longest > 1 && states <= kMaxSplitStates &&
                     4 * static_cast<std::int64_t>(longest) * threads > total_segments;
  if (!split) {
    pool.tasks(n_units, [&](int index, int worker) {
      std::byte* mine = workers + worker * worker_bytes;
      PathPages path(mine, d);
      const AttentionUnit unit = path.of(units[index]);
      const AttentionQueries queries = take_queries(mine, worker_rows, d);
      const AttentionState total = take_state(mine, worker_rows, d),
                           next = take_state(mine, worker_rows, d);
      const AttentionBuffers buffers = take_buffers(mine, worker_rows);
      kernels.prepare(unit, queries);
      kernels.segment(unit, queries, 0, buffers, total);
      for (int s = 1; s < unit.n_segments; ++s) {
        kernels.segment(unit, queries, s, buffers, next);
        kernels.merge(unit, total, next);
      }
      kernels.finish(unit, total);
    });
    return;
  }

  // Where unit u's queries and states lie: every unit takes the same stride per segment it has.
  const auto locate = [&](int index, AttentionQueries& queries, std::byte*& states_at) {
    std::byte* p = at;
    for (int u = 0; u < index; ++u) {
      p +=
          queries_bytes(units[u].rows(), d) + units[u].n_segments * state_bytes(units[u].rows(), d);
    }
    queries = take_queries(p, units[index].rows(), d);
    states_at = p;
  };
  const auto state_of = [&](const AttentionUnit& unit, std::byte* states_at, int segment) {
    states_at += segment * state_bytes(unit.rows(), d);
    return take_state(states_at, unit.rows(), d);
  };
  pool.tasks(n_units, [&](int index, int) {
    AttentionQueries queries;
    std::byte* states_at;
    locate(index, queries, states_at);
    kernels.prepare(units[index], queries);
  });
  pool.tasks(static_cast<int>(total_segments), [&](int task, int worker) {
    int index = 0, segment = task;
    while (segment >= units[index].n_segments) segment -= units[index++].n_segments;
    AttentionQueries queries;
    std::byte* states_at;
    locate(index, queries, states_at);
    std::byte* mine = workers + worker * worker_bytes;
    PathPages path(mine, d);
    const AttentionBuffers buffers = take_buffers(mine, worker_rows);
    // Only the last segments have pages of the path.
    const bool on_path = (segment + 1) * kSegmentTokens >
                         units[index].sequence->first_position / kPageTokens * kPageTokens;
    kernels.segment(on_path ? path.of(units[index]) : units[index], queries, segment, buffers,
                    state_of(units[index], states_at, segment));
  });
  pool.tasks(n_units, [&](int index, int) {
    const AttentionUnit& unit = units[index];
    AttentionQueries queries;
    std::byte* states_at;
    locate(index, queries, states_at);
    const AttentionState total = state_of(unit, states_at, 0);
    for (int s = 1; s < unit.n_segments; ++s)
      kernels.merge(unit, total, state_of(unit, states_at, s));
    kernels.finish(unit, total);
  });
}

}  // namespace foretoken::kernels
