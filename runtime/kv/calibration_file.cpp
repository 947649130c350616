// The calibration file: little-endian; header, per head {n4 of K, n4 of V, floats}, then XXH3-128
// of all before it.
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "runtime/kv/calibration_transforms.h"

namespace foretoken {
namespace {

constexpr char kMagic[8] = {'F', 'T', 'K', 'V', 'C', 'A', 'L', '2'};

struct Header {
  char magic[8];
  std::uint8_t fingerprint[32];
  std::int32_t n_layers, n_heads, n_kv_heads, head_dim;
};
static_assert(sizeof(Header) == 56);

struct HeadHeader {
  std::int32_t k_n4, v_n4;
};

std::size_t head_bytes(int d) {
  return sizeof(HeadHeader) + KvTransforms::floats_per_head(d) * sizeof(float);
}

}  // namespace

Status KvTransforms::save(const std::string& path,
                          const std::array<std::uint8_t, 32>& fingerprint) const {
  std::string bytes;
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.fingerprint, fingerprint.data(), 32);
  header.n_layers = geometry_.n_layers;
  header.n_heads = geometry_.n_heads;
  header.n_kv_heads = geometry_.n_kv_heads;
  header.head_dim = geometry_.head_dim;
  bytes.append(reinterpret_cast<const char*>(&header), sizeof header);
  for (int i = 0; i < n_transforms(); ++i) {
    const HeadHeader head{at(i).k_n4, at(i).v_n4};
    bytes.append(reinterpret_cast<const char*>(&head), sizeof head);
    bytes.append(reinterpret_cast<const char*>(floats(i)),
                 floats_per_head(geometry_.head_dim) * sizeof(float));
  }
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(bytes.data(), bytes.size()));
  bytes.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
  // Whole or not at all: another process may be reading it.
  const std::string temporary = fmt::format("{}.{}.part", path, getpid());
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.flush();
    if (!out) {
      std::remove(temporary.c_str());
      return Error{ErrorCode::kIo, fmt::format("{}: cannot be written", path)};
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return Error{ErrorCode::kIo, fmt::format("{}: cannot be put in place", path)};
  }
  return Ok{};
}

Result<std::shared_ptr<const KvCalibration>> KvCalibration::load(
    const std::string& path, const KvGeometry& geometry,
    const std::array<std::uint8_t, 32>& fingerprint) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: KV calibration {}", path, what)};
  };
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return Error{ErrorCode::kNotFound, fmt::format("{}: no such file", path)};
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  const std::size_t heads = static_cast<std::size_t>(geometry.n_layers) * geometry.n_kv_heads;
  const std::size_t wanted =
      sizeof(Header) + heads * head_bytes(geometry.head_dim) + sizeof(XXH128_canonical_t);
  std::ifstream in(path, std::ios::binary);
  Header header{};
  if (error || !in.read(reinterpret_cast<char*>(&header), sizeof header))
    return bad("is shorter than its header");
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return bad("does not begin with FTKVCAL2");
  if (std::memcmp(header.fingerprint, fingerprint.data(), 32) != 0)
    return bad("was made for another model (fingerprint)");
  if (header.n_layers != geometry.n_layers || header.n_heads != geometry.n_heads ||
      header.n_kv_heads != geometry.n_kv_heads || header.head_dim != geometry.head_dim) {
    return bad(fmt::format("is of {} layers, {} heads, {} KV heads of {}; wanted {}, {}, {} of {}",
                           header.n_layers, header.n_heads, header.n_kv_heads, header.head_dim,
                           geometry.n_layers, geometry.n_heads, geometry.n_kv_heads,
                           geometry.head_dim));
  }
  if (size != wanted) return bad(fmt::format("has {} bytes, wanted {}", size, wanted));
  std::string bytes(wanted, '\0');
  in.seekg(0);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(wanted)))
    return bad("cannot be read to its end");
  const std::size_t body = wanted - sizeof(XXH128_canonical_t);
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(bytes.data(), body));
  if (std::memcmp(&checksum, bytes.data() + body, sizeof checksum) != 0)
    return bad("has a wrong checksum");

  auto transforms = std::make_shared<KvTransforms>(geometry);
  const int d = geometry.head_dim;
  const char* at = bytes.data() + sizeof(Header);
  for (int i = 0; i < transforms->n_transforms(); ++i, at += head_bytes(d)) {
    HeadHeader head;
    std::memcpy(&head, at, sizeof head);
    if (head.k_n4 < 0 || head.k_n4 > d / 2 || head.v_n4 < 0 || head.v_n4 > d / 2) {
      return bad(fmt::format("head {} has {} and {} channels of 4 bits, wanted at most {}", i,
                             head.k_n4, head.v_n4, d / 2));
    }
    transforms->at(i).k_n4 = head.k_n4;
    transforms->at(i).v_n4 = head.v_n4;
    const std::size_t n = KvTransforms::floats_per_head(d);
    std::memcpy(transforms->floats(i), at + sizeof head, n * sizeof(float));
    for (std::size_t j = 0; j < n; ++j) {
      if (!std::isfinite(transforms->floats(i)[j]))
        return bad(fmt::format("head {} has a value that is not finite", i));
    }
    for (int j = 0; j < d; ++j) {
      if (transforms->at(i).k_weight[j] < 0 || transforms->at(i).v_weight[j] < 0) {
        return bad(fmt::format("head {} has a negative weight", i));
      }
    }
  }
  return std::shared_ptr<const KvCalibration>(std::move(transforms));
}

}  // namespace foretoken
