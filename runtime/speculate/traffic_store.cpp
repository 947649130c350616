#include "runtime/speculate/traffic_store.h"

#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include "foretoken/protocol/failure.h"

namespace foretoken {
namespace {

std::uint64_t hash_context(const TokenId* last, int order) {
  std::uint64_t h = 0x2545f4914f6cdd1du * std::uint64_t(order);
  for (int i = order; i >= 1; --i) {
    h ^= std::uint32_t(last[-i]);
    h *= 0xff51afd7ed558ccdu;
    h ^= h >> 33;
  }
  h *= 0xc4ceb9fe1a85ec53u;
  return h ^ (h >> 33);
}

// A saved store: header, then (bucket, way, entry) for every entry in use, then XXH64 of all before
// it. Little-endian, as the machines foretoken runs on are; the magic would read otherwise on
// another.
constexpr std::uint32_t kMagic = 0x53544b46;  // "FKTS"
constexpr std::uint32_t kVersion = 1;
struct Header {
  std::uint32_t magic, version;
  std::uint64_t buckets, entries;
  std::int64_t requests, tokens;
};
constexpr std::size_t kPlaceBytes = sizeof(std::uint64_t);

}  // namespace

std::unique_ptr<void, TrafficStore::Free> TrafficStore::allocate(std::size_t n_buckets,
                                                                 Bucket** buckets) {
  static_assert(std::is_trivially_copyable_v<Bucket>, "all zero bytes is an empty bucket");
  std::unique_ptr<void, Free> block(std::calloc(n_buckets * sizeof(Bucket) + alignof(Bucket), 1));
  if (!block) throw std::bad_alloc();
  void* aligned = block.get();
  std::size_t space = n_buckets * sizeof(Bucket) + alignof(Bucket);
  std::align(alignof(Bucket), n_buckets * sizeof(Bucket), aligned, space);
  *buckets = static_cast<Bucket*>(aligned);
  return block;
}

TrafficStore::TrafficStore(std::size_t max_bytes) {
  n_buckets_ = 1;
  while (2 * n_buckets_ * sizeof(Bucket) <= max_bytes) n_buckets_ *= 2;
  mask_ = n_buckets_ - 1;
  block_ = allocate(n_buckets_, &buckets_);
}

void TrafficStore::clear() {
  block_ = allocate(n_buckets_, &buckets_);
  entries_ = requests_ = tokens_ = 0;
}

void TrafficStore::halve(Entry& entry) {
  for (auto& count : entry.counts) count = std::uint16_t(count / 2);
  entry.total = std::max(1u, entry.total / 2);
}

TrafficStore::Entry* TrafficStore::find_or_make(std::uint64_t hash) {
  Bucket& bucket = buckets_[(hash >> 32) & mask_];
  const auto tag = std::uint32_t(hash);
  Entry* least = &bucket.ways[0];
  for (Entry& entry : bucket.ways) {
    if (entry.total != 0 && entry.tag == tag) return &entry;
    if (entry.total <= least->total) least = &entry;
  }
  if (least->total == 0) {
    ++entries_;
  } else if (least->total > 1) {
    // The bucket is full of contexts seen more than once: the least used one ages instead of
    // leaving, so that a stream of singletons needs log2(total) of them to push out what traffic
    // repeats.
    halve(*least);
    return nullptr;
  }
  // Newest first, so that among equals the oldest leaves.
  std::move_backward(bucket.ways.data(), least, least + 1);
  bucket.ways[0] = Entry{};
  bucket.ways[0].tag = tag;
  return &bucket.ways[0];
}

void TrafficStore::count(Entry& entry, TokenId token) {
  if (entry.counts[0] == std::numeric_limits<std::uint16_t>::max()) halve(entry);
  if (entry.total < std::numeric_limits<std::uint32_t>::max()) ++entry.total;
  std::size_t i = 0;
  while (i < entry.counts.size() && entry.counts[i] != 0 && entry.tokens[i] != token) ++i;
  if (i == entry.counts.size()) {
    // All places taken: the rarest gives way by one count a time (Misra and Gries 1982), so a token
    // that keeps coming gets in and one that came once does not displace a frequent one.
    auto& rarest = entry.counts.back();
    if (--rarest != 0) return;
    i = entry.counts.size() - 1;
  }
  entry.tokens[i] = token;
  ++entry.counts[i];
  // Ties go to the more recent.
  for (; i > 0 && entry.counts[i] >= entry.counts[i - 1]; --i) {
    std::swap(entry.counts[i], entry.counts[i - 1]);
    std::swap(entry.tokens[i], entry.tokens[i - 1]);
  }
}

void TrafficStore::add(std::span<const TokenId> tokens) {
  for (std::size_t i = kMinOrder; i < tokens.size(); ++i) {
    const int longest = int(std::min<std::size_t>(kMaxOrder, i));
    for (int order = kMinOrder; order <= longest; ++order) {
      if (Entry* entry = find_or_make(hash_context(tokens.data() + i, order)))
        count(*entry, tokens[i]);
    }
  }
  ++requests_;
  tokens_ += std::int64_t(tokens.size());
}

TrafficStore::Continuations TrafficStore::find(std::span<const TokenId> context, int order) const {
  Continuations found;
  if (context.size() < std::size_t(order)) return found;
  const std::uint64_t hash = hash_context(context.data() + context.size(), order);
  const auto tag = std::uint32_t(hash);
  for (const Entry& entry : buckets_[(hash >> 32) & mask_].ways) {
    if (entry.total == 0 || entry.tag != tag) continue;
    for (std::size_t i = 0; i < 2 && entry.counts[i] != 0; ++i)
      found.push_back({entry.tokens[i], entry.counts[i], entry.total});
    break;
  }
  return found;
}

bool TrafficStore::valid(const Entry& entry, std::int64_t n_vocab) {
  if (entry.total == 0) return false;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < entry.counts.size(); ++i) {
    if (i > 0 && entry.counts[i] > entry.counts[i - 1]) return false;
    if (entry.counts[i] != 0 && (entry.tokens[i] < 0 || entry.tokens[i] >= n_vocab)) return false;
    for (std::size_t j = 0; entry.counts[i] != 0 && j < i; ++j) {
      if (entry.tokens[j] == entry.tokens[i]) return false;
    }
    sum += entry.counts[i];
  }
  return sum <= entry.total;
}

std::vector<std::byte> TrafficStore::save() const {
  std::vector<std::byte> out(sizeof(Header) +
                             std::size_t(entries_) * (kPlaceBytes + sizeof(Entry)) +
                             sizeof(std::uint64_t));
  const Header header{kMagic, kVersion, n_buckets_, std::uint64_t(entries_), requests_, tokens_};
  std::byte* at = out.data();
  const auto put = [&at](const void* from, std::size_t n) {
    std::memcpy(at, from, n);
    at += n;
  };
  put(&header, sizeof header);
  for (std::uint64_t b = 0; b < n_buckets_; ++b) {
    for (std::uint64_t w = 0; w < kWays; ++w) {
      const Entry& entry = buckets_[b].ways[w];
      if (entry.total == 0) continue;
      const std::uint64_t place = b * kWays + w;
      put(&place, sizeof place);
      put(&entry, sizeof entry);
    }
  }
  const std::uint64_t checksum = XXH64(out.data(), out.size() - sizeof checksum, 0);
  put(&checksum, sizeof checksum);
  assert(at == out.data() + out.size());
  return out;
}

Status TrafficStore::restore(std::span<const std::byte> bytes, std::int64_t n_vocab) {
  const auto bad = []<class... Args>(fmt::format_string<Args...> text, Args&&... args) {
    return failure(ErrorCode::kInvalidInput, "traffic store: {}",
                   fmt::format(text, std::forward<Args>(args)...));
  };
  Header header;
  if (bytes.size() < sizeof header + sizeof(std::uint64_t)) {
    return bad("truncated: {} bytes, a header has {}", bytes.size(),
               sizeof header + sizeof(std::uint64_t));
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMagic) return bad("magic: not a saved store");
  if (header.version != kVersion)
    return bad("version: found {}, wanted {}", header.version, kVersion);
  if (header.buckets != n_buckets_) {
    return failure(ErrorCode::kUnsupported,
                   "traffic store: size: saved with {} buckets, this one has {}", header.buckets,
                   n_buckets_);
  }
  const std::uint64_t payload = bytes.size() - sizeof header - sizeof(std::uint64_t);
  constexpr std::uint64_t kItem = kPlaceBytes + sizeof(Entry);
  if (header.entries > n_buckets_ * kWays || payload != header.entries * kItem)
    return bad("truncated: {} bytes for {} entries", payload, header.entries);
  if (header.requests < 0 || header.tokens < 0) return bad("counts: negative");
  std::uint64_t checksum;
  std::memcpy(&checksum, bytes.data() + bytes.size() - sizeof checksum, sizeof checksum);
  if (checksum != XXH64(bytes.data(), bytes.size() - sizeof checksum, 0))
    return bad("checksum: differs");

  Bucket* restored = nullptr;
  auto block = allocate(n_buckets_, &restored);
  const std::byte* at = bytes.data() + sizeof header;
  for (std::uint64_t i = 0; i < header.entries; ++i, at += kItem) {
    std::uint64_t place;
    Entry entry;
    std::memcpy(&place, at, sizeof place);
    std::memcpy(&entry, at + kPlaceBytes, sizeof entry);
    if (place / kWays >= n_buckets_) return bad("entry {}: place out of range", i);
    Entry& target = restored[place / kWays].ways[place % kWays];
    if (target.total != 0) return bad("entry {}: place taken twice", i);
    if (!valid(entry, n_vocab)) return bad("entry {}: counts or tokens out of range", i);
    target = entry;
  }
  block_ = std::move(block);
  buckets_ = restored;
  entries_ = std::int64_t(header.entries);
  requests_ = header.requests;
  tokens_ = header.tokens;
  return Ok{};
}

TrafficStores::TrafficStores(std::size_t bytes_per_store, int max_stores)
    : bytes_per_store_(bytes_per_store), max_stores_(std::size_t(std::max(1, max_stores))) {
  slots_.reserve(max_stores_);
}

int TrafficStores::acquire(std::string_view key_id) {
  Slot* slot = nullptr;
  for (Slot& candidate : slots_) {
    if (candidate.key_id == key_id) slot = &candidate;
  }
  if (slot == nullptr && slots_.size() < max_stores_) {
    slot = &slots_.emplace_back();
    slot->key_id = key_id;
    slot->store = std::make_unique<TrafficStore>(bytes_per_store_);
  }
  if (slot == nullptr) {
    for (Slot& candidate : slots_) {
      if (candidate.pins == 0 && (slot == nullptr || candidate.last_use < slot->last_use))
        slot = &candidate;
    }
    assert(slot != nullptr && "max_stores must exceed the number of open sequences");
    slot->key_id = key_id;
    slot->store->clear();
  }
  ++slot->pins;
  slot->last_use = ++clock_;
  return int(slot - slots_.data());
}

void TrafficStores::release(int store) {
  Slot& slot = slots_[std::size_t(store)];
  assert(slot.pins > 0);
  --slot.pins;
}

bool TrafficStores::forget(std::string_view key_id) {
  for (Slot& slot : slots_) {
    if (slot.key_id != key_id) continue;
    slot.store->clear();
    return true;
  }
  return false;
}

std::vector<std::string> TrafficStores::keys() const {
  std::vector<std::string> keys;
  for (const Slot& slot : slots_) keys.push_back(slot.key_id);
  return keys;
}

std::int64_t TrafficStores::entries() const {
  std::int64_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.store->entries();
  return sum;
}

std::size_t TrafficStores::bytes() const {
  std::size_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.store->bytes();
  return sum;
}

}  // namespace foretoken
