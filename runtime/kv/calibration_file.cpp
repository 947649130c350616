// The calibration file: little-endian; header; per kind of transform a section {kind, shared, n
// heads, floats a head}, its heads {n4 of K, n4 of V, flags, floats}; then XXH3-128 of all before
// it.
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/failure.h"
#include "foretoken/protocol/signing.h"
#include "runtime/kv/calibration_transforms.h"
#include "runtime/kv/kv_cache.h"

namespace foretoken {
namespace {

constexpr char kMagic[8] = {'F', 'T', 'K', 'V', 'C', 'A', 'L', '4'};

struct Header {
  char magic[8];
  std::uint8_t fingerprint[32];
  std::int32_t n_layers, n_heads, n_kv_heads, head_dim;
  std::int32_t n_sections, reserved;
};
static_assert(sizeof(Header) == 64);

struct SectionHeader {
  std::int32_t kind, shared, n_heads, n_floats;
};

struct HeadHeader {
  std::int32_t k_n4, v_n4, k_page_mean, max_scale;
};

constexpr KvTransformKind kCalibrated[] = {KvTransformKind::kRotation, KvTransformKind::kPaired,
                                           KvTransformKind::kPairedClasses2,
                                           KvTransformKind::kPairedClasses4};

std::size_t section_bytes(const KvGeometry& geometry, KvTransformKind kind, bool shared) {
  const std::size_t heads = std::size_t(geometry.n_layers) * geometry.n_kv_heads;
  const std::size_t floats = KvTransforms::extents(kind, geometry.head_dim).total();
  return sizeof(SectionHeader) + heads * sizeof(HeadHeader) +
         (shared ? 1 : heads) * floats * sizeof(float);
}

// Channels of two digits: none of a mode without classes, else as many as leave no count negative.
int most_doubled(KvTransformKind kind, int digits) {
  return kernels::has_classes(kind) ? digits / 2 : 0;
}

// One section from `at`, which has as many bytes as it needs; an error message or none.
std::string read_section(const char* at, KvTransforms& transforms) {
  const KvGeometry& g = transforms.geometry();
  const int d = g.head_dim;
  const KvTransforms::Extents extents = KvTransforms::extents(transforms.kind(), d);
  const kernels::KvFormat& format = KvTransforms::format(transforms.kind());
  const int k_digits = kernels::k_digits(format, d), v_digits = kernels::v_digits(format, d);
  const std::size_t n = extents.total();
  for (int i = 0; i < transforms.n_transforms(); ++i) {
    HeadHeader head;
    std::memcpy(&head, at, sizeof head);
    at += sizeof head;
    // n4 channels of two digits and those of one must be d at most, and every digit used.
    const auto fits = [&](int n4, int digits) {
      return n4 >= std::max(0, digits - d) && n4 <= most_doubled(transforms.kind(), digits);
    };
    if (!fits(head.k_n4, k_digits) || !fits(head.v_n4, v_digits)) {
      return fmt::format("head {} has {} and {} channels of two digits, wanted at most {} and {}",
                         i, head.k_n4, head.v_n4, most_doubled(transforms.kind(), k_digits),
                         most_doubled(transforms.kind(), v_digits));
    }
    kernels::KvTransform& view = transforms.at(i);
    view.k_n4 = head.k_n4;
    view.v_n4 = head.v_n4;
    view.k_page_mean = head.k_page_mean != 0;
    view.max_scale = head.max_scale != 0;
    if (i > 0 && transforms.shared()) continue;
    std::memcpy(transforms.floats(i), at, n * sizeof(float));
    at += n * sizeof(float);
    for (std::size_t j = 0; j < n; ++j) {
      if (!std::isfinite(transforms.floats(i)[j]))
        return fmt::format("head {} has a value that is not finite", i);
    }
    for (int j = 0; j < d && view.k_weight != nullptr; ++j) {
      if (view.k_weight[j] < 0 || view.v_weight[j] < 0)
        return fmt::format("head {} has a negative weight", i);
    }
  }
  return {};
}

}  // namespace

Status KvCalibration::save(const std::string& path,
                           const std::array<std::uint8_t, 32>& fingerprint) const {
  std::string bytes;
  const auto append = [&](const auto& x) {
    bytes.append(reinterpret_cast<const char*>(&x), sizeof x);
  };
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.fingerprint, fingerprint.data(), 32);
  const KvGeometry& g = by_kind_[0]->geometry();
  header.n_layers = g.n_layers;
  header.n_heads = g.n_heads;
  header.n_kv_heads = g.n_kv_heads;
  header.head_dim = g.head_dim;
  for (const KvTransformKind kind : kCalibrated)
    header.n_sections += by_kind_[std::size_t(kind)] != nullptr ? 1 : 0;
  append(header);
  for (const KvTransformKind kind : kCalibrated) {
    const KvTransforms* t = by_kind_[std::size_t(kind)].get();
    if (t == nullptr) continue;
    const std::size_t floats = KvTransforms::extents(kind, g.head_dim).total();
    append(SectionHeader{std::int32_t(kind), t->shared() ? 1 : 0, t->n_transforms(),
                         std::int32_t(floats)});
    for (int i = 0; i < t->n_transforms(); ++i) {
      const kernels::KvTransform& view = t->at(i);
      append(HeadHeader{view.k_n4, view.v_n4, view.k_page_mean ? 1 : 0, view.max_scale ? 1 : 0});
      if (i > 0 && t->shared()) continue;
      bytes.append(reinterpret_cast<const char*>(t->floats(i)), floats * sizeof(float));
    }
  }
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(bytes.data(), bytes.size()));
  append(checksum);
  return write_file_atomically(path, std::as_bytes(std::span(bytes)));
}

Result<std::shared_ptr<const KvCalibration>> KvCalibration::load(
    const std::string& path, const KvGeometry& geometry,
    const std::array<std::uint8_t, 32>& fingerprint, std::optional<KvMode> only) {
  const auto bad = [&]<class... Args>(fmt::format_string<Args...> text, Args&&... args) {
    return failure(ErrorCode::kInvalidInput, "{}: KV calibration {}", path,
                   fmt::format(text, std::forward<Args>(args)...));
  };
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return failure(ErrorCode::kNotFound, "{}: no such file", path);
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  Header header{};
  if (error || !in.read(reinterpret_cast<char*>(&header), sizeof header))
    return bad("is shorter than its header");
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return bad("does not begin with FTKVCAL4");
  if (std::memcmp(header.fingerprint, fingerprint.data(), 32) != 0)
    return bad("was made for another model: fingerprint {}, wanted {}",
               to_hex(header.fingerprint).substr(0, 16), to_hex(fingerprint).substr(0, 16));
  if (header.n_layers != geometry.n_layers || header.n_heads != geometry.n_heads ||
      header.n_kv_heads != geometry.n_kv_heads || header.head_dim != geometry.head_dim) {
    return bad("is of {} layers, {} heads, {} KV heads of {}; wanted {}, {}, {} of {}",
               header.n_layers, header.n_heads, header.n_kv_heads, header.head_dim,
               geometry.n_layers, geometry.n_heads, geometry.n_kv_heads, geometry.head_dim);
  }
  // No file of this geometry is longer than one with every kind, none shared.
  std::size_t most = sizeof(Header) + sizeof(XXH128_canonical_t);
  for (const KvTransformKind kind : kCalibrated) most += section_bytes(geometry, kind, false);
  if (size < sizeof(Header) + sizeof(XXH128_canonical_t) || size > most)
    return bad("has {} bytes, wanted at most {}", size, most);
  std::string bytes(size, '\0');
  in.seekg(0);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(size)))
    return bad("cannot be read to its end");
  const std::size_t body = size - sizeof(XXH128_canonical_t);
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(bytes.data(), body));
  if (std::memcmp(&checksum, bytes.data() + body, sizeof checksum) != 0)
    return bad("has a wrong checksum");

  auto calibration = std::make_shared<KvCalibration>(geometry);
  std::size_t at = sizeof(Header);
  for (int s = 0; s < header.n_sections; ++s) {
    SectionHeader section{};
    if (body - at < sizeof section) return bad("ends before section {}", s);
    std::memcpy(&section, bytes.data() + at, sizeof section);
    const auto* kind =
        std::find_if(std::begin(kCalibrated), std::end(kCalibrated),
                     [&](KvTransformKind k) { return std::int32_t(k) == section.kind; });
    if (kind == std::end(kCalibrated)) return bad("has a section of unknown kind {}", section.kind);
    const std::size_t wanted = section_bytes(geometry, *kind, section.shared != 0);
    if (body - at < wanted ||
        section.n_floats != std::int32_t(KvTransforms::extents(*kind, geometry.head_dim).total())) {
      return bad("has {} bytes from section {} on with {} floats a head, wanted {} with {}",
                 body - at, s, section.n_floats, wanted,
                 KvTransforms::extents(*kind, geometry.head_dim).total());
    }
    if (!only || kernels::kv_format(*only).transform == *kind) {
      auto transforms = std::make_shared<KvTransforms>(geometry, *kind, section.shared != 0);
      const std::string problem =
          read_section(bytes.data() + at + sizeof(SectionHeader), *transforms);
      if (!problem.empty()) return bad("{}", problem);
      calibration->add(std::move(transforms));
    }
    at += wanted;
  }
  if (at != body) return bad("has {} bytes after its last section", body - at);
  if (only && !calibration->covers(*only))
    return bad("has no transforms for {}", kv_mode_name(*only));
  return std::shared_ptr<const KvCalibration>(std::move(calibration));
}

}  // namespace foretoken
