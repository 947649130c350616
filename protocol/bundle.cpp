#include "foretoken/protocol/bundle.h"

#include <flatbuffers/flatbuffers.h>
#include <fmt/format.h>
#include <sodium.h>

#include <cmath>
#include <cstring>

#include "foretoken/protocol/bundle_generated.h"
#include "protocol/bytes.h"

namespace foretoken {
namespace {

constexpr char kMagic[8] = {'F', 'T', 'K', 'B', 'U', 'N', 'D', 'L'};
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::size_t kPreambleBytes = 32, kAlignment = 64, kDigestBytes = 32;
constexpr std::size_t kMaxTensors = 1024, kMaxRank = 8;

std::size_t aligned(std::size_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

void digest(std::span<const std::byte> bytes, std::byte* out) {
  crypto_generichash(reinterpret_cast<unsigned char*>(out), kDigestBytes,
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr,
                     0);
}

Error invalid(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: bundle: {}", reason, text)};
}

Status read_tensors(const wire::BundleHeader& header, std::span<const std::byte> region,
                    Bundle& bundle) {
  const auto* infos = header.tensors();
  if (!infos || infos->size() > kMaxTensors) {
    return invalid("shape",
                   fmt::format("{} tensors, at most {}", infos ? infos->size() : 0, kMaxTensors));
  }
  std::uint64_t end = 0;  // tensors lie in directory order without overlap
  for (const wire::TensorInfo* info : *infos) {
    if (!info->name() || info->name()->size() == 0 || info->name()->size() > 128) {
      return invalid("shape", "a tensor's name is empty or over 128 bytes");
    }
    const std::string name = info->name()->str();
    if (info->dtype() != wire::DType::F32) {
      return Error{ErrorCode::kUnsupported,
                   fmt::format("shape: bundle: {}: dtype {} is not supported, wanted F32", name,
                               static_cast<int>(info->dtype()))};
    }
    BundleTensor tensor;
    std::uint64_t count = 1;
    if (!info->shape() || info->shape()->size() > kMaxRank)
      return invalid("shape", name + ": rank");
    for (const std::int64_t extent : *info->shape()) {
      // count stays below region / 4 + 1, so the product cannot overflow.
      if (extent <= 0 || std::uint64_t(extent) > region.size() ||
          count * std::uint64_t(extent) > region.size() / 4) {
        return invalid("shape", fmt::format("{}: extent {} does not fit in {} bytes", name, extent,
                                            region.size()));
      }
      count *= std::uint64_t(extent);
      tensor.shape.push_back(extent);
    }
    if (info->offset() % kAlignment != 0 || info->offset() < end ||
        info->offset() > region.size() || count * 4 > region.size() - info->offset()) {
      return invalid("shape", fmt::format("{}: {} floats at offset {} in {} bytes", name, count,
                                          info->offset(), region.size()));
    }
    end = info->offset() + count * 4;
    tensor.values = from_bytes<float>(region.subspan(info->offset(), count * 4));
    for (std::size_t i = 0; i < tensor.values.size(); ++i) {
      if (!std::isfinite(tensor.values[i]))
        return invalid("non-finite", fmt::format("{}[{}]", name, i));
    }
    if (!bundle.tensors.emplace(name, std::move(tensor)).second) {
      return invalid("shape", fmt::format("{} appears twice", name));
    }
  }
  return Ok{};
}

}  // namespace

std::vector<std::byte> serialize(const Bundle& bundle) {
  flatbuffers::FlatBufferBuilder builder(1024);
  std::vector<flatbuffers::Offset<wire::TensorInfo>> infos;
  std::size_t region_bytes = 0;
  for (const auto& [name, tensor] : bundle.tensors) {
    infos.push_back(wire::CreateTensorInfo(builder, builder.CreateString(name), wire::DType::F32,
                                           builder.CreateVector(tensor.shape), region_bytes));
    region_bytes = aligned(region_bytes + tensor.values.size() * sizeof(float));
  }
  const auto fingerprint =
      builder.CreateVector(bundle.model_fingerprint.data(), bundle.model_fingerprint.size());
  const auto kind = builder.CreateString(bundle.kind);
  const auto tensors = builder.CreateVector(infos);
  const auto verdict = builder.CreateString(bundle.verdict);
  wire::FinishBundleHeaderBuffer(
      builder,
      wire::CreateBundleHeader(builder, bundle.version.value, bundle.parent.value, fingerprint,
                               kind, tensors, bundle.trained_tokens, bundle.trained_requests,
                               bundle.created_unix_ms, bundle.loss, verdict));
  const std::size_t region_at = aligned(kPreambleBytes + builder.GetSize());
  std::vector<std::byte> bytes(region_at + region_bytes + kDigestBytes);
  std::memcpy(bytes.data(), kMagic, sizeof kMagic);
  store<std::uint32_t>(bytes.data() + 8, kFormatVersion);
  store<std::uint32_t>(bytes.data() + 12, builder.GetSize());
  store<std::uint64_t>(bytes.data() + 16, region_bytes);
  store<std::uint32_t>(bytes.data() + 24, 0);  // signature bytes after the digest: none in format 1
  store<std::uint32_t>(bytes.data() + 28, 0);
  std::memcpy(bytes.data() + kPreambleBytes, builder.GetBufferPointer(), builder.GetSize());
  std::size_t at = region_at;
  for (const auto& [name, tensor] : bundle.tensors) {
    const auto payload = to_bytes<float>(tensor.values);
    if (!payload.empty()) std::memcpy(bytes.data() + at, payload.data(), payload.size());
    at = region_at + aligned(at - region_at + payload.size());
  }
  digest({bytes.data(), region_at + region_bytes}, bytes.data() + region_at + region_bytes);
  return bytes;
}

Result<Bundle> parse_bundle(std::span<const std::byte> bytes) {
  if (bytes.size() < kPreambleBytes + kDigestBytes) {
    return invalid("truncated", fmt::format("found {} bytes, wanted at least {}", bytes.size(),
                                            kPreambleBytes + kDigestBytes));
  }
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return invalid("magic", "the file does not begin with FTKBUNDL");
  }
  if (const auto format = load<std::uint32_t>(bytes.data() + 8); format != kFormatVersion) {
    return Error{
        ErrorCode::kUnsupported,
        fmt::format("format: bundle: format version: found {}, wanted {}", format, kFormatVersion)};
  }
  const std::size_t header_bytes = load<std::uint32_t>(bytes.data() + 12);
  const std::uint64_t region_bytes = load<std::uint64_t>(bytes.data() + 16);
  const std::uint32_t signature_bytes = load<std::uint32_t>(bytes.data() + 24);
  const std::size_t region_at = aligned(kPreambleBytes + header_bytes);
  if (region_bytes > bytes.size() || region_at > bytes.size() ||
      region_at + region_bytes + kDigestBytes != bytes.size()) {
    return invalid("truncated",
                   fmt::format("found {} bytes, wanted {} of header, {} of tensors and a digest",
                               bytes.size(), header_bytes, region_bytes));
  }
  // From here on every byte is covered by the digest: what follows guards against a wrong writer.
  std::byte expected[kDigestBytes];
  digest(bytes.first(region_at + region_bytes), expected);
  if (std::memcmp(expected, bytes.data() + region_at + region_bytes, kDigestBytes) != 0) {
    return invalid("checksum", "the BLAKE2b digest does not match");
  }
  if (signature_bytes != 0 || load<std::uint32_t>(bytes.data() + 28) != 0) {
    return Error{ErrorCode::kUnsupported, "format: bundle: format 1 carries no signature"};
  }
  const auto* header_at = reinterpret_cast<const std::uint8_t*>(bytes.data() + kPreambleBytes);
  flatbuffers::Verifier verifier(header_at, header_bytes);
  if (header_bytes < 8 || !wire::VerifyBundleHeaderBuffer(verifier)) {
    return invalid("truncated", "the header is not a valid BundleHeader");
  }
  const wire::BundleHeader& header = *wire::GetBundleHeader(header_at);
  Bundle bundle;
  bundle.version = {header.version()};
  bundle.parent = {header.parent()};
  if (!header.model_fingerprint() ||
      header.model_fingerprint()->size() != bundle.model_fingerprint.size()) {
    return invalid("shape", "the model fingerprint is not 32 bytes");
  }
  std::copy(header.model_fingerprint()->begin(), header.model_fingerprint()->end(),
            bundle.model_fingerprint.begin());
  if (header.kind()) bundle.kind = header.kind()->str();
  bundle.trained_tokens = header.trained_tokens();
  bundle.trained_requests = header.trained_requests();
  bundle.created_unix_ms = header.created_unix_ms();
  bundle.loss = header.loss();
  if (!std::isfinite(bundle.loss)) return invalid("non-finite", "loss");
  if (header.verdict()) bundle.verdict = header.verdict()->str();
  if (auto s = read_tensors(header, bytes.subspan(region_at, region_bytes), bundle); !s)
    return s.error();
  return bundle;
}

}  // namespace foretoken
