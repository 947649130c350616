#include "foretoken/protocol/control.h"

#include <flatbuffers/flatbuffers.h>
#include <flatbuffers/util.h>
#include <fmt/format.h>
#include <sodium.h>

#include <algorithm>
#include <cmath>

#include "foretoken/protocol/control_generated.h"
#include "foretoken/protocol/failure.h"
#include "foretoken/protocol/signing.h"
#include "protocol/bytes.h"

namespace foretoken {
namespace {

using flatbuffers::FlatBufferBuilder;

constexpr std::size_t kMaxTextBytes = 4096;  // verdicts and reasons end up in /stats
constexpr std::size_t kMaxRoundTimes = 256;

constexpr Refusal bad_control{"control"};

template <class Body>
Message seal_control(MessageType type, FlatBufferBuilder& builder, wire::ControlBody body_type,
                     flatbuffers::Offset<Body> body, Frame extra = {}) {
  wire::FinishControlBuffer(builder, wire::CreateControl(builder, body_type, body.Union()));
  std::vector<Frame> frames;
  frames.push_back(to_bytes<std::uint8_t>({builder.GetBufferPointer(), builder.GetSize()}));
  if (!extra.empty()) frames.push_back(std::move(extra));
  return seal(type, std::move(frames));
}

// The verified body of a control message with `n_frames` frames after the envelope.
template <class Body>
Result<const Body*> body_of(std::span<const Frame> message, MessageType wanted,
                            std::size_t n_frames, const Body* (wire::Control::*accessor)() const) {
  auto type = check_envelope(message);
  if (!type) return type.error();
  if (*type != wanted) return bad_control("protocol", "the message is of another type");
  if (message.size() != n_frames + 1) return bad_control("truncated", "frame count");
  const Frame& frame = message[1];
  const auto* at = reinterpret_cast<const std::uint8_t*>(frame.data());
  flatbuffers::Verifier verifier(at, frame.size());
  if (frame.size() < 8 || !wire::VerifyControlBuffer(verifier)) {
    return bad_control("truncated", "the header is not a valid Control");
  }
  const Body* body = (wire::GetControl(at)->*accessor)();
  if (!body) return bad_control("protocol", "the body is of another type");
  return body;
}

bool is_utf8(const std::string& text) {
  const char* at = text.c_str();
  while (at < text.c_str() + text.size())
    if (flatbuffers::FromUTF8(&at) < 0) return false;
  return true;
}

// A peer's text, bounded, and fit for logs and JSON: no control characters, always UTF-8.
std::string text_of(const flatbuffers::String* from, std::size_t max_bytes = kMaxTextBytes) {
  std::string text = from ? from->str().substr(0, max_bytes) : std::string();
  const bool utf8 = is_utf8(text);
  for (char& c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || (byte >= 0x80 && !utf8)) c = '?';
  }
  return text;
}

using VerdictList = flatbuffers::Vector<flatbuffers::Offset<wire::Verdict>>;

// The newest kMaxVerdicts, with the first kMaxFigures of each.
flatbuffers::Offset<VerdictList> write_verdicts(FlatBufferBuilder& builder,
                                                std::span<const CandidateVerdict> verdicts) {
  std::vector<flatbuffers::Offset<wire::Verdict>> written;
  for (const CandidateVerdict& verdict : verdicts.last(std::min(verdicts.size(), kMaxVerdicts))) {
    std::vector<flatbuffers::Offset<wire::Figure>> figures;
    for (const auto& [name, value] : verdict.figures) {
      if (figures.size() == kMaxFigures) break;
      figures.push_back(wire::CreateFigure(builder, builder.CreateString(name), value));
    }
    const auto text = builder.CreateString(verdict.text);
    const auto figure_list = builder.CreateVector(figures);
    written.push_back(wire::CreateVerdict(builder, verdict.candidate, verdict.version.value,
                                          verdict.unix_ms, verdict.step, verdict.requests, text,
                                          figure_list));
  }
  return builder.CreateVector(written);
}

Status read_verdicts(const VerdictList* list, std::vector<CandidateVerdict>& verdicts) {
  if (!list) return Ok{};
  if (list->size() > kMaxVerdicts)
    return bad_control("shape", "{} verdicts, at most {}", list->size(), kMaxVerdicts);
  for (const wire::Verdict* from : *list) {
    CandidateVerdict& verdict = verdicts.emplace_back();
    verdict.candidate = from->candidate();
    verdict.version = {from->version()};
    verdict.unix_ms = from->unix_ms();
    verdict.step = from->step();
    verdict.requests = from->requests();
    verdict.text = text_of(from->text());
    if (!from->figures()) continue;
    if (from->figures()->size() > kMaxFigures) {
      return bad_control("shape", "{} figures of a verdict, at most {}", from->figures()->size(),
                         kMaxFigures);
    }
    // What could not be computed is NaN; it reaches /stats as null.
    for (const wire::Figure* figure : *from->figures())
      verdict.figures.emplace_back(text_of(figure->name(), 64), figure->value());
  }
  return Ok{};
}

}  // namespace

std::string to_hex(const ModelFingerprint& fingerprint) {
  return to_hex(std::span<const std::uint8_t>(fingerprint));
}

Result<ModelFingerprint> fingerprint_from_hex(std::string_view hex) {
  auto parsed = key_from_hex(hex);
  if (parsed) return *parsed;
  return Error{ErrorCode::kInvalidInput,
               fmt::format("model fingerprint: found \"{}\", wanted 64 hexadecimal digits",
                           hex.substr(0, 80))};
}

std::uint64_t random_run_id() {
  static const bool ready = sodium_init() >= 0;
  std::uint64_t run = 0;
  while (ready && run == 0) randombytes_buf(&run, sizeof run);
  return run;
}

Message serialize(const ServerHello& hello) {
  FlatBufferBuilder builder(256);
  const auto fingerprint =
      builder.CreateVector(hello.model_fingerprint.data(), hello.model_fingerprint.size());
  const auto reason = builder.CreateString(hello.refused_reason);
  const auto round_ms = builder.CreateVector(hello.round_ms);
  return seal_control(MessageType::kServerHello, builder, wire::ControlBody::ServerHello,
                      wire::CreateServerHello(
                          builder, hello.run, fingerprint, hello.served.value, hello.refused.value,
                          reason, hello.requests_running, hello.traces_sent, hello.traces_dropped,
                          hello.busy, round_ms, hello.head_start_ms, hello.head_step_ms,
                          hello.canary.value, hello.pause, hello.highest.value));
}

Message serialize(const TrainerStatus& status) {
  FlatBufferBuilder builder(256);
  const auto fingerprint =
      status.model_fingerprint
          ? builder.CreateVector(status.model_fingerprint->data(), status.model_fingerprint->size())
          : flatbuffers::Offset<flatbuffers::Vector<std::uint8_t>>();
  const auto verdict = builder.CreateString(status.verdict);
  const auto verdicts = write_verdicts(builder, status.verdicts);
  return seal_control(
      MessageType::kTrainerStatus, builder, wire::ControlBody::TrainerStatus,
      wire::CreateTrainerStatus(builder, status.run, fingerprint, status.current.value, status.step,
                                status.loss, status.trained_tokens, status.trained_requests,
                                status.buffer_requests, status.buffer_bytes, status.traces_refused,
                                verdict, verdicts));
}

Message serialize(const BundleChunk& chunk) {
  FlatBufferBuilder builder(128);
  return seal_control(MessageType::kBundleChunk, builder, wire::ControlBody::BundleChunk,
                      wire::CreateBundleChunk(builder, chunk.version.value, chunk.total_bytes,
                                              chunk.offset, chunk.bundle_hash),
                      chunk.bytes);
}

Result<ServerHello> parse_server_hello(std::span<const Frame> message) {
  auto body = body_of(message, MessageType::kServerHello, 1, &wire::Control::body_as_ServerHello);
  if (!body) return body.error();
  const wire::ServerHello& from = **body;
  ServerHello hello;
  if (!copy_exactly(from.model_fingerprint(), hello.model_fingerprint))
    return bad_control("shape", "the model fingerprint is not 32 bytes");
  hello.run = from.run();
  hello.served = {from.served_version()};
  hello.refused = {from.refused_version()};
  hello.refused_reason = text_of(from.refused_reason());
  hello.requests_running = from.requests_running();
  hello.traces_sent = from.traces_sent();
  hello.traces_dropped = from.traces_dropped();
  hello.busy = from.busy();
  hello.head_start_ms = from.head_start_ms();
  hello.head_step_ms = from.head_step_ms();
  hello.canary = {from.canary_version()};
  hello.highest = {from.highest_version()};
  hello.pause = from.pause();
  if (const auto* times = from.round_ms()) {
    if (times->size() > kMaxRoundTimes)
      return bad_control("shape", "{} round times", times->size());
    hello.round_ms.assign(times->begin(), times->end());
  }
  const auto is_time = [](float ms) { return std::isfinite(ms) && ms >= 0; };
  if (!(hello.busy >= 0 && hello.busy <= 1) || !is_time(hello.head_start_ms) ||
      !is_time(hello.head_step_ms) ||
      !std::all_of(hello.round_ms.begin(), hello.round_ms.end(), is_time)) {
    return bad_control("non-finite", "a time or share of the hello");
  }
  return hello;
}

Result<TrainerStatus> parse_trainer_status(std::span<const Frame> message) {
  auto body =
      body_of(message, MessageType::kTrainerStatus, 1, &wire::Control::body_as_TrainerStatus);
  if (!body) return body.error();
  const wire::TrainerStatus& from = **body;
  TrainerStatus status;
  if (from.model_fingerprint()) {
    if (!copy_exactly(from.model_fingerprint(), status.model_fingerprint.emplace()))
      return bad_control("shape", "the model fingerprint is not 32 bytes");
  }
  status.run = from.run();
  status.current = {from.current_version()};
  status.step = from.step();
  status.loss = from.loss();
  if (std::isinf(status.loss)) return bad_control("non-finite", "loss");
  status.trained_tokens = from.trained_tokens();
  status.trained_requests = from.trained_requests();
  status.buffer_requests = from.buffer_requests();
  status.buffer_bytes = from.buffer_bytes();
  status.traces_refused = from.traces_refused();
  status.verdict = text_of(from.verdict());
  if (auto s = read_verdicts(from.verdicts(), status.verdicts); !s) return s.error();
  return status;
}

Result<BundleChunk> parse_bundle_chunk(std::span<const Frame> message) {
  auto body = body_of(message, MessageType::kBundleChunk, 2, &wire::Control::body_as_BundleChunk);
  if (!body) return body.error();
  const wire::BundleChunk& from = **body;
  const std::size_t size = message[2].size();
  if (from.total_bytes() == 0 || from.total_bytes() > kMaxBundleBytes || size == 0 ||
      size > kMaxChunkBytes || from.offset() > from.total_bytes() ||
      size > from.total_bytes() - from.offset()) {
    return bad_control("shape", "bundle chunk of {} bytes at {} of {}", size, from.offset(),
                       from.total_bytes());
  }
  return BundleChunk{
      {from.version()}, from.total_bytes(), from.offset(), from.bundle_hash(), message[2]};
}

std::vector<Message> chunk_bundle(SpeculatorVersion version, std::span<const std::byte> bundle,
                                  std::size_t chunk_bytes) {
  std::vector<Message> messages;
  const std::uint64_t hash = content_hash(bundle);
  for (std::size_t offset = 0; offset < bundle.size(); offset += chunk_bytes) {
    const auto piece = bundle.subspan(offset, std::min(chunk_bytes, bundle.size() - offset));
    messages.push_back(
        serialize(BundleChunk{version, bundle.size(), offset, hash, {piece.begin(), piece.end()}}));
  }
  return messages;
}

void BundleAssembler::start(const BundleChunk& chunk) {
  total_bytes_ = chunk.total_bytes;
  bundle_hash_ = chunk.bundle_hash;
  version_ = chunk.version;
  pieces_.clear();
  received_ = 0;
}

Result<std::optional<std::vector<std::byte>>> BundleAssembler::add(BundleChunk chunk) {
  using Out = std::optional<std::vector<std::byte>>;
  if (chunk.total_bytes != total_bytes_ || chunk.bundle_hash != bundle_hash_ ||
      chunk.version != version_) {
    start(chunk);
  }
  const auto at = std::lower_bound(
      pieces_.begin(), pieces_.end(), chunk.offset,
      [](const BundleChunk& piece, std::uint64_t offset) { return piece.offset < offset; });
  if (at != pieces_.end() && at->offset == chunk.offset && at->bytes.size() == chunk.bytes.size())
    return Out{};
  const bool overlaps_next = at != pieces_.end() && chunk.offset + chunk.bytes.size() > at->offset;
  const bool overlaps_previous =
      at != pieces_.begin() && (at - 1)->offset + (at - 1)->bytes.size() > chunk.offset;
  if (overlaps_next || overlaps_previous)
    return bad_control("shape", "a bundle chunk overlaps another");
  received_ += chunk.bytes.size();
  pieces_.insert(at, std::move(chunk));
  if (received_ < total_bytes_) return Out{};
  std::vector<std::byte> whole;
  whole.reserve(total_bytes_);
  for (const BundleChunk& piece : pieces_)
    whole.insert(whole.end(), piece.bytes.begin(), piece.bytes.end());
  const std::uint64_t wanted = bundle_hash_;
  start({});
  if (content_hash(whole) != wanted)
    return bad_control("checksum", "the bundle's chunks do not make the bundle announced");
  return Out{std::move(whole)};
}

}  // namespace foretoken
