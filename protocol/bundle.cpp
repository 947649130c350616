#include "foretoken/protocol/bundle.h"

#include <flatbuffers/flatbuffers.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sodium.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "foretoken/protocol/bundle_generated.h"
#include "foretoken/protocol/failure.h"
#include "protocol/bytes.h"

namespace foretoken {
namespace {

constexpr char kBundleMagic[8] = {'F', 'T', 'K', 'B', 'U', 'N', 'D', 'L'};
constexpr std::uint32_t kBundleFormat = 2;
constexpr std::size_t kPreambleBytes = 32, kAlignment = 64, kDigestBytes = 32;
// After the digest: the signer's public key and the signature over everything before it.
constexpr std::size_t kSignerBytes = 32, kSealBytes = kSignerBytes + sizeof(Signature);
constexpr std::size_t kMaxTensors = 1024, kMaxRank = 8, kMaxConfigBytes = std::size_t{1} << 20;
constexpr std::int64_t kBlock = 32;  // weights of a Q8_0 or Q4_0 block

std::size_t aligned(std::size_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

void digest(std::span<const std::byte> bytes, std::byte* out) {
  crypto_generichash(reinterpret_cast<unsigned char*>(out), kDigestBytes,
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr,
                     0);
}

constexpr Refusal bad_bundle{"bundle"};

std::size_t block_bytes(TensorType type) { return type == TensorType::kQ8_0 ? 34 : 18; }
bool is_blocks(TensorType type) { return type == TensorType::kQ8_0 || type == TensorType::kQ4_0; }
std::size_t element_bytes(TensorType type) {
  switch (type) {
    case TensorType::kI64:
      return 8;
    case TensorType::kF16:
    case TensorType::kBF16:
      return 2;
    case TensorType::kBool:
      return 1;
    default:
      return 4;
  }
}

// The first element that is no number: a float, or the fp16 scale of a block.
std::optional<std::size_t> first_non_finite(const BundleTensor& tensor) {
  if (tensor.type == TensorType::kF32) {
    const auto values = tensor.f32_values();
    const auto bad =
        std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
    if (bad != values.end()) return std::size_t(bad - values.begin());
  }
  if (tensor.type == TensorType::kF16 || tensor.type == TensorType::kBF16) {
    const unsigned exponent = tensor.type == TensorType::kF16 ? 0x7c00 : 0x7f80;
    for (std::size_t i = 0; 2 * i < tensor.bytes.size(); ++i)
      if ((load<std::uint16_t>(tensor.bytes.data() + 2 * i) & exponent) == exponent) return i;
  }
  if (!is_blocks(tensor.type)) return std::nullopt;
  const std::size_t stride = block_bytes(tensor.type);
  for (std::size_t i = 0; i * stride < tensor.bytes.size(); ++i) {
    const auto scale = load<std::uint16_t>(tensor.bytes.data() + i * stride);
    if ((scale & 0x7c00) == 0x7c00) return i * std::size_t(kBlock);  // infinity or NaN
  }
  return std::nullopt;
}

Status read_tensors(const wire::BundleHeader& header, std::span<const std::byte> region,
                    Bundle& bundle) {
  const auto* infos = header.tensors();
  if (!infos || infos->size() > kMaxTensors) {
    return bad_bundle("shape", "{} tensors, at most {}", infos ? infos->size() : 0, kMaxTensors);
  }
  std::uint64_t end = 0;  // tensors lie in directory order without overlap
  for (const wire::TensorInfo* info : *infos) {
    if (!info->name() || info->name()->size() == 0 || info->name()->size() > 128) {
      return bad_bundle("shape", "a tensor's name is empty or over 128 bytes");
    }
    const std::string name = info->name()->str();
    if (info->dtype() < wire::DType::F32 || info->dtype() > wire::DType::Bool) {
      return Error{ErrorCode::kUnsupported,
                   fmt::format("shape: bundle: {}: tensor type {} is not known", name,
                               static_cast<int>(info->dtype()))};
    }
    BundleTensor tensor;
    tensor.type = static_cast<TensorType>(info->dtype());
    if (!info->shape() || info->shape()->size() == 0 || info->shape()->size() > kMaxRank)
      return bad_bundle("shape", "{}: rank", name);
    tensor.shape.assign(info->shape()->begin(), info->shape()->end());
    const auto size = tensor_bytes(tensor.type, tensor.shape);
    if (!size) {
      return bad_bundle("shape", "{}: {} of extents [{}] cannot be", name,
                        tensor_type_name(tensor.type), fmt::join(tensor.shape, ", "));
    }
    if (info->offset() % kAlignment != 0 || info->offset() < end ||
        info->offset() > region.size() || *size > region.size() - info->offset()) {
      return bad_bundle("shape", "{}: {} bytes at offset {} in {} bytes", name, *size,
                        info->offset(), region.size());
    }
    end = info->offset() + *size;
    const auto bytes = region.subspan(info->offset(), *size);
    tensor.bytes.assign(bytes.begin(), bytes.end());
    if (const auto at = first_non_finite(tensor))
      return bad_bundle("non-finite", "{}[{}]", name, *at);
    if (!bundle.tensors.emplace(name, std::move(tensor)).second) {
      return bad_bundle("shape", "{} appears twice", name);
    }
  }
  return Ok{};
}

Result<Bundle> parse(std::span<const std::byte> bytes, const TrustedSigners* trusted) {
  if (bytes.size() < kPreambleBytes + kDigestBytes) {
    return bad_bundle("truncated", "found {} bytes, wanted at least {}", bytes.size(),
                      kPreambleBytes + kDigestBytes);
  }
  if (std::memcmp(bytes.data(), kBundleMagic, sizeof kBundleMagic) != 0) {
    return bad_bundle("magic", "the file does not begin with FTKBUNDL");
  }
  if (const auto format = load<std::uint32_t>(bytes.data() + 8); format != kBundleFormat) {
    return Error{
        ErrorCode::kUnsupported,
        fmt::format("format: bundle: format version: found {}, wanted {}", format, kBundleFormat)};
  }
  const std::size_t header_bytes = load<std::uint32_t>(bytes.data() + 12);
  const std::uint64_t region_bytes = load<std::uint64_t>(bytes.data() + 16);
  const std::uint32_t seal_bytes = load<std::uint32_t>(bytes.data() + 24);
  if (seal_bytes != kSealBytes || load<std::uint32_t>(bytes.data() + 28) != 0) {
    return bad_bundle("signature",
                      "missing: found {} bytes of signer and signature, "
                      "wanted {}",
                      seal_bytes, kSealBytes);
  }
  const std::size_t region_at = aligned(kPreambleBytes + header_bytes);
  if (region_bytes > bytes.size() || region_at > bytes.size() ||
      region_at + region_bytes + kDigestBytes + kSealBytes != bytes.size()) {
    return bad_bundle("truncated",
                      "found {} bytes, wanted {} of header, {} of tensors, "
                      "digest and signature",
                      bytes.size(), header_bytes, region_bytes);
  }
  // The digest first: an accident is named as one.
  const std::size_t digest_at = region_at + region_bytes;
  std::byte expected[kDigestBytes];
  digest(bytes.first(digest_at), expected);
  if (std::memcmp(expected, bytes.data() + digest_at, kDigestBytes) != 0) {
    return bad_bundle("checksum", "the BLAKE2b digest does not match");
  }
  Bundle bundle;
  std::memcpy(bundle.signer.data(), bytes.data() + digest_at + kDigestBytes, kSignerBytes);
  if (trusted && std::find(trusted->begin(), trusted->end(), bundle.signer) == trusted->end()) {
    return bad_bundle("signature", "of key {}, which is not trusted", key_id(bundle.signer));
  }
  const std::size_t signature_at = digest_at + kDigestBytes + kSignerBytes;
  Signature signature;
  std::memcpy(signature.data(), bytes.data() + signature_at, signature.size());
  if (!signature_is_valid(bytes.first(signature_at), signature, bundle.signer)) {
    return bad_bundle("signature", "wrong: not made by key {} over these bytes",
                      key_id(bundle.signer));
  }
  // From here on every byte is the signer's: what follows guards against a wrong or lying one.
  const auto* header_at = reinterpret_cast<const std::uint8_t*>(bytes.data() + kPreambleBytes);
  flatbuffers::Verifier verifier(header_at, header_bytes);
  if (header_bytes < 8 || !wire::VerifyBundleHeaderBuffer(verifier)) {
    return bad_bundle("truncated", "the header is not a valid BundleHeader");
  }
  const wire::BundleHeader& header = *wire::GetBundleHeader(header_at);
  bundle.version = {header.version()};
  bundle.parent = {header.parent()};
  if (!copy_exactly(header.model_fingerprint(), bundle.model_fingerprint))
    return bad_bundle("shape", "the model fingerprint is not 32 bytes");
  if (header.kind()) bundle.kind = header.kind()->str();
  bundle.trained_tokens = header.trained_tokens();
  bundle.trained_requests = header.trained_requests();
  bundle.created_unix_ms = header.created_unix_ms();
  bundle.loss = header.loss();
  if (!std::isfinite(bundle.loss)) return bad_bundle("non-finite", "loss");
  if (header.verdict()) bundle.verdict = header.verdict()->str();
  if (header.config()) {
    if (header.config()->size() > kMaxConfigBytes)
      return bad_bundle("shape", "config: {} bytes", header.config()->size());
    bundle.config = header.config()->str();
  }
  if (auto s = read_tensors(header, bytes.subspan(region_at, region_bytes), bundle); !s)
    return s.error();
  return bundle;
}

}  // namespace

const char* tensor_type_name(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "f32";
    case TensorType::kI32:
      return "i32";
    case TensorType::kQ8_0:
      return "q8_0";
    case TensorType::kQ4_0:
      return "q4_0";
    case TensorType::kF16:
      return "f16";
    case TensorType::kBF16:
      return "bf16";
    case TensorType::kI64:
      return "i64";
    case TensorType::kBool:
      return "bool";
  }
  return "?";
}

std::optional<std::uint64_t> tensor_bytes(TensorType type, std::span<const std::int64_t> shape) {
  if (shape.empty()) return std::nullopt;
  // At most 2^31 weights of at least half a byte each: no product below overflows.
  constexpr std::uint64_t kMaxWeights = 2 * kMaxTensorBytes;
  std::uint64_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent <= 0 || std::uint64_t(extent) > kMaxWeights / count) return std::nullopt;
    count *= std::uint64_t(extent);
  }
  if (is_blocks(type) && shape.back() % kBlock != 0) return std::nullopt;
  const std::uint64_t size = is_blocks(type) ? count / std::uint64_t(kBlock) * block_bytes(type)
                                             : element_bytes(type) * count;
  if (size > kMaxTensorBytes) return std::nullopt;
  return size;
}

BundleTensor BundleTensor::f32(std::vector<std::int64_t> shape, std::span<const float> values) {
  return {TensorType::kF32, std::move(shape), to_bytes(values)};
}
BundleTensor BundleTensor::i32(std::vector<std::int64_t> shape,
                               std::span<const std::int32_t> values) {
  return {TensorType::kI32, std::move(shape), to_bytes(values)};
}
BundleTensor BundleTensor::blocks(TensorType type, std::vector<std::int64_t> shape,
                                  std::vector<std::byte> bytes) {
  return {type, std::move(shape), std::move(bytes)};
}

// A vector's storage is aligned for any scalar.
std::span<const float> BundleTensor::f32_values() const {
  if (type != TensorType::kF32) return {};
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}
std::span<const std::int32_t> BundleTensor::i32_values() const {
  if (type != TensorType::kI32) return {};
  return {reinterpret_cast<const std::int32_t*>(bytes.data()), bytes.size() / sizeof(std::int32_t)};
}

std::vector<std::byte> serialize(const Bundle& bundle, const SigningKey& key) {
  assert(!key.empty());
  flatbuffers::FlatBufferBuilder builder(1024);
  std::vector<flatbuffers::Offset<wire::TensorInfo>> infos;
  std::size_t region_bytes = 0;
  for (const auto& [name, tensor] : bundle.tensors) {
    infos.push_back(wire::CreateTensorInfo(builder, builder.CreateString(name),
                                           static_cast<wire::DType>(tensor.type),
                                           builder.CreateVector(tensor.shape), region_bytes));
    region_bytes = aligned(region_bytes + tensor.bytes.size());
  }
  const auto fingerprint =
      builder.CreateVector(bundle.model_fingerprint.data(), bundle.model_fingerprint.size());
  const auto kind = builder.CreateString(bundle.kind);
  const auto tensors = builder.CreateVector(infos);
  const auto verdict = builder.CreateString(bundle.verdict);
  const auto config = bundle.config.empty() ? 0 : builder.CreateString(bundle.config);
  wire::FinishBundleHeaderBuffer(
      builder,
      wire::CreateBundleHeader(builder, bundle.version.value, bundle.parent.value, fingerprint,
                               kind, tensors, bundle.trained_tokens, bundle.trained_requests,
                               bundle.created_unix_ms, bundle.loss, verdict, config));
  const std::size_t region_at = aligned(kPreambleBytes + builder.GetSize());
  const std::size_t digest_at = region_at + region_bytes;
  std::vector<std::byte> bytes(digest_at + kDigestBytes + kSealBytes);
  std::memcpy(bytes.data(), kBundleMagic, sizeof kBundleMagic);
  store<std::uint32_t>(bytes.data() + 8, kBundleFormat);
  store<std::uint32_t>(bytes.data() + 12, builder.GetSize());
  store<std::uint64_t>(bytes.data() + 16, region_bytes);
  store<std::uint32_t>(bytes.data() + 24, kSealBytes);
  store<std::uint32_t>(bytes.data() + 28, 0);
  std::memcpy(bytes.data() + kPreambleBytes, builder.GetBufferPointer(), builder.GetSize());
  std::size_t at = region_at;
  for (const auto& [name, tensor] : bundle.tensors) {
    if (!tensor.bytes.empty())
      std::memcpy(bytes.data() + at, tensor.bytes.data(), tensor.bytes.size());
    at = region_at + aligned(at - region_at + tensor.bytes.size());
  }
  digest({bytes.data(), digest_at}, bytes.data() + digest_at);
  std::memcpy(bytes.data() + digest_at + kDigestBytes, key.public_key().data(), kSignerBytes);
  const std::size_t signature_at = digest_at + kDigestBytes + kSignerBytes;
  const Signature signature = key.sign({bytes.data(), signature_at});
  std::memcpy(bytes.data() + signature_at, signature.data(), signature.size());
  return bytes;
}

Result<Bundle> parse_bundle(std::span<const std::byte> bytes, const TrustedSigners& trusted) {
  return parse(bytes, &trusted);
}
Result<Bundle> parse_bundle_of_anyone(std::span<const std::byte> bytes) {
  return parse(bytes, nullptr);
}

}  // namespace foretoken
