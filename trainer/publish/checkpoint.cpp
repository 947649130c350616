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

constexpr std::uint32_t kFormat = 5;
constexpr std::size_t kMaxBytes = std::size_t{1} << 31;

using Builder = flatbuffers::FlatBufferBuilder;

flatbuffers::Offset<wire::Tier> write_tier(Builder& builder, const TierScore& tier) {
  std::vector<flatbuffers::Offset<wire::Domain>> domains;
  for (const auto& [name, sums] : tier.domains) {
    domains.push_back(wire::CreateDomain(builder, builder.CreateString(name), sums.requests,
                                         sums.candidate, sums.served, sums.candidate_squares,
                                         sums.served_squares, sums.products));
  }
  return wire::CreateTier(builder, builder.CreateVector(domains),
                          static_cast<std::uint8_t>(tier.verdict), tier.candidate_rounds,
                          tier.candidate_emitted, tier.served_rounds, tier.served_emitted);
}

flatbuffers::Offset<wire::Facts> write_facts(Builder& builder, const CandidateFacts& facts) {
  return wire::CreateFacts(builder, facts.hash, facts.step, facts.trained_tokens,
                           facts.trained_requests, facts.loss, facts.has_head);
}

flatbuffers::Offset<wire::Trial> write_trial(Builder& builder, const Trial& trial) {
  std::vector<flatbuffers::Offset<wire::Tier>> tiers;
  for (const TierScore& tier : trial.tiers) tiers.push_back(write_tier(builder, tier));
  const auto tiers_at = builder.CreateVector(tiers);
  const auto round_ms = builder.CreateVector(trial.costs.round_ms());
  const auto facts = write_facts(builder, trial.facts);
  return wire::CreateTrial(builder, trial.candidate, trial.number_in_day, facts, round_ms,
                           static_cast<float>(trial.costs.head_start),
                           static_cast<float>(trial.costs.head_step), tiers_at);
}

flatbuffers::Offset<wire::Gate> write_gate(Builder& builder, const GateState& gate) {
  std::vector<flatbuffers::Offset<wire::Trial>> trials;
  for (const Trial& trial : gate.trials) trials.push_back(write_trial(builder, trial));
  const auto trials_at = builder.CreateVector(trials);
  const auto newest = write_facts(builder, gate.newest);
  const auto recent = builder.CreateVectorOfStrings(
      std::vector<std::string>(gate.recent.begin(), gate.recent.end()));
  return wire::CreateGate(builder, gate.candidates, gate.day, gate.number_in_day, newest, trials_at,
                          recent);
}

flatbuffers::Offset<wire::Verdict> write_verdict(Builder& builder,
                                                 const CandidateVerdict& verdict) {
  std::vector<flatbuffers::Offset<wire::Figure>> figures;
  for (const auto& [name, value] : verdict.figures)
    figures.push_back(wire::CreateFigure(builder, builder.CreateString(name), value));
  const auto text = builder.CreateString(verdict.text);
  return wire::CreateVerdict(builder, verdict.candidate, verdict.version.value, verdict.unix_ms,
                             verdict.step, verdict.requests, text, builder.CreateVector(figures));
}

std::string text_of(const flatbuffers::String* from) { return from ? from->str() : std::string(); }

bool read_tier(const wire::Tier& in, TierScore& tier) {
  if (in.verdict() > static_cast<std::uint8_t>(Verdict::kStale)) return false;
  tier.verdict = static_cast<Verdict>(in.verdict());
  tier.candidate_rounds = in.candidate_rounds();
  tier.candidate_emitted = in.candidate_emitted();
  tier.served_rounds = in.served_rounds();
  tier.served_emitted = in.served_emitted();
  if (!in.domains()) return true;
  for (const wire::Domain* domain : *in.domains()) {
    const PairedSums sums{domain->requests(),       domain->candidate(),
                          domain->served(),         domain->candidate_squares(),
                          domain->served_squares(), domain->products()};
    if (sums.requests < 0 || !std::isfinite(sums.candidate + sums.served + sums.candidate_squares +
                                            sums.served_squares + sums.products))
      return false;
    tier.domains.emplace(text_of(domain->name()), sums);
  }
  return true;
}

CandidateFacts read_facts(const wire::Facts* in) {
  if (!in) return {};
  return {in->step(), in->tokens(), in->requests(), in->loss(), in->hash(), in->has_head()};
}

bool read_trial(const wire::Trial& in, Trial& trial) {
  trial.candidate = in.candidate();
  trial.number_in_day = in.number_in_day();
  trial.facts = read_facts(in.facts());
  std::vector<float> round_ms;
  if (in.round_ms()) round_ms.assign(in.round_ms()->begin(), in.round_ms()->end());
  trial.costs = RoundCosts::exactly(round_ms, in.head_start_ms(), in.head_step_ms());
  if (!in.tiers() || in.tiers()->size() != trial.tiers.size()) return false;
  for (std::size_t i = 0; i < trial.tiers.size(); ++i) {
    if (!read_tier(*in.tiers()->Get(static_cast<flatbuffers::uoffset_t>(i)), trial.tiers[i]))
      return false;
  }
  return trial.number_in_day >= 0;
}

bool read_gate(const wire::Gate& in, GateState& gate) {
  gate.candidates = in.candidates();
  gate.day = in.day();
  gate.number_in_day = in.number_in_day();
  gate.newest = read_facts(in.newest());
  if (in.recent()) {
    for (const auto* domain : *in.recent()) gate.recent.push_back(domain->str());
  }
  if (in.trials()) {
    if (in.trials()->size() > PrequentialGate::kTrials) return false;
    for (const wire::Trial* trial : *in.trials()) {
      if (!read_trial(*trial, gate.trials.emplace_back())) return false;
    }
  }
  return gate.number_in_day >= 0 && gate.day >= 0;
}

CandidateVerdict read_verdict(const wire::Verdict& in) {
  CandidateVerdict verdict{in.candidate(),
                           {in.version()},
                           in.unix_ms(),
                           in.step(),
                           in.requests(),
                           text_of(in.text()),
                           {}};
  if (in.figures()) {
    for (const wire::Figure* figure : *in.figures())
      verdict.figures.emplace_back(text_of(figure->name()), figure->value());
  }
  return verdict;
}

}  // namespace

Status write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  Builder builder(8192);
  const auto gate = write_gate(builder, checkpoint.gate);
  std::vector<flatbuffers::Offset<wire::Verdict>> verdicts;
  for (const CandidateVerdict& verdict : checkpoint.verdicts)
    verdicts.push_back(write_verdict(builder, verdict));
  const auto verdicts_at = builder.CreateVector(verdicts);
  wire::FinishCheckpointBuffer(
      builder, wire::CreateCheckpoint(builder, kFormat, checkpoint.next_sequence,
                                      checkpoint.highest_version.value, checkpoint.published.value,
                                      checkpoint.served.value, gate, verdicts_at));
  // u64 bytes of the table, the table, the learner's state (tens of megabytes with a head: copied
  // once), u64 hash of all that.
  const std::uint64_t table_bytes = builder.GetSize();
  std::vector<std::byte> bytes(8 + table_bytes + checkpoint.learner.size() + 8);
  std::memcpy(bytes.data(), &table_bytes, 8);
  std::memcpy(bytes.data() + 8, builder.GetBufferPointer(), table_bytes);
  if (!checkpoint.learner.empty()) {
    std::memcpy(bytes.data() + 8 + table_bytes, checkpoint.learner.data(),
                checkpoint.learner.size());
  }
  const std::uint64_t hash = content_hash(std::span(bytes).first(bytes.size() - 8));
  std::memcpy(bytes.data() + bytes.size() - 8, &hash, sizeof hash);
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
  std::uint64_t table_bytes = 0;
  std::memcpy(&table_bytes, bytes->data(), 8);
  if (table_bytes > size - 8) return invalid("truncated");
  const auto* at = reinterpret_cast<const std::uint8_t*>(bytes->data()) + 8;
  flatbuffers::Verifier verifier(at, table_bytes);
  if (!wire::VerifyCheckpointBuffer(verifier)) return invalid("not a valid Checkpoint");
  const wire::Checkpoint& in = *wire::GetCheckpoint(at);
  if (in.format() != kFormat) return invalid("of another format");
  Checkpoint checkpoint;
  checkpoint.next_sequence = in.next_sequence();
  checkpoint.learner.assign(bytes->begin() + std::ptrdiff_t(8 + table_bytes),
                            bytes->begin() + std::ptrdiff_t(size));
  if (!in.gate() || !read_gate(*in.gate(), checkpoint.gate))
    return invalid("the gate's scores are out of range");
  checkpoint.highest_version = {in.highest_version()};
  checkpoint.published = {in.published()};
  checkpoint.served = {in.served()};
  if (in.verdicts()) {
    for (const wire::Verdict* verdict : *in.verdicts())
      checkpoint.verdicts.push_back(read_verdict(*verdict));
  }
  return checkpoint;
}

}  // namespace foretoken::trainer
