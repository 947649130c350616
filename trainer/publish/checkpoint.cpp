#include "trainer/publish/checkpoint.h"

#include <flatbuffers/flatbuffers.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/frame.h"
#include "trainer/publish/checkpoint_generated.h"

namespace foretoken::trainer {
namespace {

constexpr std::uint32_t kFormat = 2;
constexpr std::size_t kMaxBytes = std::size_t{1} << 31;
constexpr std::size_t kTableFloats = kFusionClasses + 1;

std::vector<float> flat(const FusionTable& table) {
  std::vector<float> values(table.bias.begin(), table.bias.end());
  values.push_back(table.other);
  return values;
}

bool read_table(const flatbuffers::Vector<float>* from, FusionTable& table) {
  if (!from || from->size() != kTableFloats) return false;
  std::copy_n(from->begin(), kFusionClasses, table.bias.begin());
  table.other = from->Get(kFusionClasses);
  return table.finite();
}

}  // namespace

Status write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  flatbuffers::FlatBufferBuilder builder(8192);
  std::vector<wire::Score> scores;
  for (const RequestScore& s : checkpoint.gate.scores) {
    scores.emplace_back(s.positions, s.log_overlap_difference, s.candidate_rounds,
                        s.candidate_accepted, s.served_rounds, s.served_accepted);
  }
  const CandidateSnapshot candidate = checkpoint.gate.candidate.value_or(CandidateSnapshot{});
  const auto learner = builder.CreateVector(
      reinterpret_cast<const std::uint8_t*>(checkpoint.learner.data()), checkpoint.learner.size());
  const auto served = builder.CreateVector(flat(checkpoint.gate.served));
  const auto candidate_table = builder.CreateVector(flat(candidate.table));
  const auto scores_at = builder.CreateVectorOfStructs(scores);
  const auto verdict = builder.CreateString(checkpoint.verdict);
  wire::CheckpointBuilder out(builder);
  out.add_format(kFormat);
  out.add_next_sequence(checkpoint.next_sequence);
  out.add_learner(learner);
  out.add_highest_version(checkpoint.highest_version.value);
  out.add_served_version(checkpoint.served_version.value);
  out.add_served(served);
  out.add_has_candidate(checkpoint.gate.candidate.has_value());
  out.add_candidate(candidate_table);
  out.add_candidate_step(candidate.step);
  out.add_candidate_tokens(candidate.trained_tokens);
  out.add_candidate_requests(candidate.trained_requests);
  out.add_candidate_loss(candidate.loss);
  out.add_scores(scores_at);
  out.add_next_look(checkpoint.gate.next_look);
  out.add_verdict(verdict);
  wire::FinishCheckpointBuffer(builder, out.Finish());
  std::vector<std::byte> bytes(builder.GetSize() + 8);
  std::memcpy(bytes.data(), builder.GetBufferPointer(), builder.GetSize());
  const std::uint64_t hash = content_hash({bytes.data(), builder.GetSize()});
  std::memcpy(bytes.data() + builder.GetSize(), &hash, sizeof hash);
  return write_file_atomically(path, bytes);
}

Result<Checkpoint> read_checkpoint(const std::filesystem::path& path) {
  auto bytes = read_file(path, kMaxBytes);
  if (!bytes) return bytes.error();
  const auto invalid = [&](const char* what) {
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: checkpoint: {}", path.string(), what)};
  };
  if (bytes->size() < 16) return invalid("truncated");
  const std::size_t size = bytes->size() - 8;
  std::uint64_t hash = 0;
  std::memcpy(&hash, bytes->data() + size, sizeof hash);
  if (hash != content_hash({bytes->data(), size})) return invalid("the hash does not match");
  const auto* at = reinterpret_cast<const std::uint8_t*>(bytes->data());
  flatbuffers::Verifier verifier(at, size);
  if (!wire::VerifyCheckpointBuffer(verifier)) return invalid("not a valid Checkpoint");
  const wire::Checkpoint& in = *wire::GetCheckpoint(at);
  if (in.format() != kFormat) return invalid("of another format");
  Checkpoint checkpoint;
  checkpoint.next_sequence = in.next_sequence();
  if (in.learner()) {
    const auto* bytes = reinterpret_cast<const std::byte*>(in.learner()->data());
    checkpoint.learner.assign(bytes, bytes + in.learner()->size());
  }
  CandidateSnapshot candidate;
  if (!read_table(in.served(), checkpoint.gate.served) ||
      !read_table(in.candidate(), candidate.table)) {
    return invalid("a table has the wrong shape or is not finite");
  }
  candidate.step = in.candidate_step();
  candidate.trained_tokens = in.candidate_tokens();
  candidate.trained_requests = in.candidate_requests();
  candidate.loss = in.candidate_loss();
  if (in.has_candidate()) checkpoint.gate.candidate = candidate;
  if (in.scores()) {
    for (const wire::Score* s : *in.scores()) {
      checkpoint.gate.scores.push_back({s->positions(), s->log_overlap_difference(),
                                        s->candidate_rounds(), s->candidate_accepted(),
                                        s->served_rounds(), s->served_accepted()});
    }
  }
  checkpoint.gate.next_look = in.next_look();
  checkpoint.highest_version = {in.highest_version()};
  checkpoint.served_version = {in.served_version()};
  if (in.verdict()) checkpoint.verdict = in.verdict()->str();
  return checkpoint;
}

}  // namespace foretoken::trainer
