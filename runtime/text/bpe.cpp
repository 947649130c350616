#include "runtime/text/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>

#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

// Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 onwards.
std::array<int, 0x144> make_byte_of_character() {
  std::array<int, 0x144> table;
  table.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    table[std::size_t(printable ? byte : next++)] = byte;
  }
  return table;
}

// Up to this length a scan for the best pair beats a heap; the result is the same.
constexpr std::size_t kScanLimit = 24;

void merge_by_scan(const MergeTable& merges, std::vector<TokenId>& symbols) {
  while (symbols.size() > 1) {
    const MergeTable::Merge* best = nullptr;
    std::size_t where = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto* merge = merges.find(symbols[i], symbols[i + 1]);
      if (merge && (!best || merge->rank < best->rank)) {
        best = merge;
        where = i;
      }
    }
    if (!best) return;
    symbols[where] = best->result;
    symbols.erase(symbols.begin() + std::ptrdiff_t(where) + 1);
  }
}

void merge_by_heap(const MergeTable& merges, std::vector<TokenId>& symbols) {
  struct Candidate {
    std::int32_t rank;
    std::int32_t at;  // index of the left symbol
    TokenId left, right;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto n = static_cast<std::int32_t>(symbols.size());
  constexpr TokenId kGone = -1;
  std::vector<std::int32_t> next(symbols.size()), previous(symbols.size());
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>{},
                                                                              std::move(storage));
  const auto consider = [&](std::int32_t left, std::int32_t right) {
    if (left < 0 || right >= n) return;
    if (const auto* merge = merges.find(symbols[left], symbols[right]))
      heap.push({merge->rank, left, symbols[left], symbols[right]});
  };
  for (std::int32_t i = 0; i < n; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    consider(i, i + 1);
  }
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    const std::int32_t left = top.at;
    if (symbols[left] != top.left) continue;  // swallowed or grown since
    const std::int32_t right = next[left];
    if (right >= n || symbols[right] != top.right) continue;
    symbols[left] = merges.find(top.left, top.right)->result;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[left] < n) previous[next[left]] = left;
    consider(previous[left], left);
    consider(left, next[left]);
  }
  std::erase(symbols, kGone);
}

}  // namespace

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  static const auto byte_of_character = make_byte_of_character();
  std::string out;
  out.reserve(spelling.size());
  while (!spelling.empty()) {
    const Utf8Step step = utf8_step(spelling);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= byte_of_character.size())
      return std::nullopt;
    const int byte = byte_of_character[step.code_point];
    if (byte < 0) return std::nullopt;
    out += static_cast<char>(byte);
    spelling.remove_prefix(std::size_t(step.bytes));
  }
  return out;
}

MergeTable::MergeTable(std::size_t n) : slots_(std::bit_ceil(2 * n + 2)) {}

std::size_t MergeTable::slot_of(std::int64_t key) const {
  const std::size_t mask = slots_.size() - 1;
  // Fibonacci hashing: the high bits of the product depend on every bit of the key.
  std::size_t slot = (static_cast<std::uint64_t>(key) * 0x9E3779B97F4A7C15u) >> 20 & mask;
  while (slots_[slot].key != -1 && slots_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

void MergeTable::add(TokenId left, TokenId right, Merge merge) {
  const std::int64_t key = std::int64_t(left) << 32 | right;
  slots_[slot_of(key)] = {key, merge};
}

const MergeTable::Merge* MergeTable::find(TokenId left, TokenId right) const {
  const Slot& slot = slots_[slot_of(std::int64_t(left) << 32 | right)];
  return slot.key == -1 ? nullptr : &slot.merge;
}

void merge_word(const MergeTable& merges, std::vector<TokenId>& symbols,
                std::vector<TokenId>& out) {
  if (symbols.size() <= kScanLimit)
    merge_by_scan(merges, symbols);
  else
    merge_by_heap(merges, symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

}  // namespace foretoken
