#include "foretoken/protocol/trace.h"

#include <flatbuffers/flatbuffers.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "foretoken/protocol/failure.h"
#include "foretoken/protocol/trace_generated.h"
#include "protocol/bytes.h"

namespace foretoken {
namespace {

using Kind = wire::TraceFrameKind;

constexpr Refusal bad_trace{"trace"};

// The arrays of a trace flattened as they travel: one row of the frame table of PROTOCOL.md a
// member.
struct Arrays {
  std::vector<std::uint8_t> candidate_counts, candidate_classes, top_counts, draft_kinds;
  std::vector<TokenId> candidate_tokens, top_ids, drafted;
  std::vector<std::int32_t> parents;  // empty: all rounds are chains
  std::vector<float> top_logits, log_sum_exp, logprob, confidences;
};

Arrays flatten(const RequestTrace& trace) {
  Arrays out;
  for (const GeneratedTokenTrace& generated : trace.generated) {
    out.candidate_counts.push_back(static_cast<std::uint8_t>(generated.candidates.size()));
    for (const Candidate& candidate : generated.candidates) {
      out.candidate_tokens.push_back(candidate.token);
      out.candidate_classes.push_back(candidate.fusion_class);
    }
    out.top_counts.push_back(static_cast<std::uint8_t>(generated.top_ids.size()));
    out.top_ids.insert(out.top_ids.end(), generated.top_ids.begin(), generated.top_ids.end());
    out.top_logits.insert(out.top_logits.end(), generated.top_logits.begin(),
                          generated.top_logits.end());
    out.log_sum_exp.push_back(generated.log_sum_exp);
    out.logprob.push_back(generated.logprob);
  }
  const bool chains = std::ranges::all_of(
      trace.rounds, [](const RoundTrace& round) { return is_chain(round.parents); });
  for (const RoundTrace& round : trace.rounds) {
    for (int i = 0; !chains && i < std::ssize(round.drafted); ++i)
      out.parents.push_back(round.parents.empty() ? i - 1 : round.parents[std::size_t(i)]);
    out.drafted.insert(out.drafted.end(), round.drafted.begin(), round.drafted.end());
    out.confidences.insert(out.confidences.end(), round.confidences.begin(),
                           round.confidences.end());
    for (SpeculatorKind kind : round.kinds)
      out.draft_kinds.push_back(static_cast<std::uint8_t>(kind));
  }
  return out;
}

// The frames of one message by kind, lengths checked against the header's directory.
class FrameDirectory {
 public:
  static Result<FrameDirectory> read(const wire::TraceHeader& header,
                                     std::span<const Frame> frames) {
    FrameDirectory directory;
    const auto* infos = header.frames();
    const std::size_t n_infos = infos ? infos->size() : 0;
    if (n_infos != frames.size()) {
      return bad_trace("truncated", "frames: found {}, wanted {}", frames.size(), n_infos);
    }
    for (std::size_t i = 0; i < n_infos; ++i) {
      const wire::FrameInfo& info = *infos->Get(static_cast<flatbuffers::uoffset_t>(i));
      const std::uint64_t wanted = std::uint64_t{info.element_bytes()} * info.count();
      if (frames[i].size() != wanted) {
        return bad_trace("truncated", "frame {}: found {} bytes, wanted {}", i, frames[i].size(),
                         wanted);
      }
      const auto kind = static_cast<std::size_t>(info.kind());
      if (kind == 0 || kind >= directory.entries_.size())
        continue;  // of a later minor revision: skipped
      if (directory.entries_[kind].frame) {
        return bad_trace("shape", "frame kind {} appears twice", kind);
      }
      directory.entries_[kind] = {&frames[i], info.element_bytes()};
    }
    return directory;
  }

  bool has(Kind kind) const { return entries_[static_cast<std::size_t>(kind)].frame != nullptr; }
  // Fills each vector with exactly `count` elements of its kind. An absent frame is an empty one.
  template <class T, class... More>
  Status take(std::size_t count, Kind kind, std::vector<T>& out, More&&... more) const {
    const Entry& entry = entries_[static_cast<std::size_t>(kind)];
    const std::size_t found = entry.frame ? entry.frame->size() / sizeof(T) : 0;
    if ((entry.frame && entry.element_bytes != sizeof(T)) || found != count) {
      return bad_trace("shape", "{}: found {} elements of {} bytes, wanted {} of {}",
                       wire::EnumNameTraceFrameKind(kind), found, entry.element_bytes, count,
                       sizeof(T));
    }
    if (entry.frame) out = from_bytes<T>(*entry.frame);
    if constexpr (sizeof...(more) > 0) return take(count, more...);
    return Ok{};
  }

 private:
  struct Entry {
    const Frame* frame = nullptr;
    std::size_t element_bytes = 0;
  };
  std::array<Entry, static_cast<std::size_t>(Kind::MAX) + 1> entries_{};
};

bool tokens_valid(std::span<const TokenId> tokens) {
  return std::all_of(tokens.begin(), tokens.end(), [](TokenId token) { return token >= 0; });
}
bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(),
                     [](float value) { return std::isfinite(value); });
}
std::size_t sum(std::span<const std::uint8_t> counts) {
  std::size_t total = 0;
  for (std::uint8_t count : counts) total += count;
  return total;
}

Status read_generated(const FrameDirectory& frames, std::size_t n_generated, RequestTrace& trace) {
  Arrays in;
  if (auto s =
          frames.take(n_generated, Kind::CandidateCounts, in.candidate_counts, Kind::TopCounts,
                      in.top_counts, Kind::LogSumExp, in.log_sum_exp, Kind::LogProb, in.logprob);
      !s)
    return s;
  const std::size_t n_candidates = sum(in.candidate_counts), n_top = sum(in.top_counts);
  if (auto s = frames.take(n_candidates, Kind::CandidateTokens, in.candidate_tokens,
                           Kind::CandidateClasses, in.candidate_classes);
      !s)
    return s;
  if (auto s = frames.take(n_top, Kind::TopIds, in.top_ids, Kind::TopLogits, in.top_logits); !s)
    return s;
  if (!tokens_valid(in.candidate_tokens) || !tokens_valid(in.top_ids)) {
    return bad_trace("shape", "a candidate or top token id is negative");
  }
  if (!all_finite(in.top_logits) || !all_finite(in.log_sum_exp) || !all_finite(in.logprob)) {
    return bad_trace("non-finite", "a logit or log-probability is not finite");
  }
  trace.generated.resize(n_generated);
  std::size_t candidate_at = 0, top_at = 0;
  for (std::size_t i = 0; i < n_generated; ++i) {
    GeneratedTokenTrace& generated = trace.generated[i];
    if (in.candidate_counts[i] > kMaxCandidates || in.top_counts[i] > kTeacherTopK) {
      return bad_trace("shape",
                       "generated token {}: {} candidates and {} top tokens, at most {} and {}", i,
                       in.candidate_counts[i], in.top_counts[i], kMaxCandidates, kTeacherTopK);
    }
    for (int c = 0; c < in.candidate_counts[i]; ++c, ++candidate_at) {
      if (in.candidate_classes[candidate_at] >= kFusionClasses) {
        return bad_trace("shape", "generated token {}: candidate class {}, wanted below {}", i,
                         in.candidate_classes[candidate_at], kFusionClasses);
      }
      generated.candidates.push_back(
          {in.candidate_tokens[candidate_at], in.candidate_classes[candidate_at]});
    }
    const auto top_end = top_at + in.top_counts[i];
    generated.top_ids.assign(in.top_ids.begin() + std::ptrdiff_t(top_at),
                             in.top_ids.begin() + std::ptrdiff_t(top_end));
    generated.top_logits.assign(in.top_logits.begin() + std::ptrdiff_t(top_at),
                                in.top_logits.begin() + std::ptrdiff_t(top_end));
    if (!std::is_sorted(generated.top_logits.begin(), generated.top_logits.end(),
                        std::greater<>())) {
      return bad_trace("shape", "generated token {}: top logits are not in descending order", i);
    }
    top_at = top_end;
    generated.log_sum_exp = in.log_sum_exp[i];
    generated.logprob = in.logprob[i];
  }
  return Ok{};
}

Status read_rounds(const FrameDirectory& frames, const wire::TraceHeader& header,
                   RequestTrace& trace) {
  const auto* rounds = header.rounds();
  const std::size_t n_rounds = rounds ? rounds->size() : 0;
  std::uint64_t n_drafted = 0;
  std::int64_t previous_start = std::int64_t{trace.n_prompt} - 1;
  for (std::size_t i = 0; i < n_rounds; ++i) {
    const wire::Round& round = *rounds->Get(static_cast<flatbuffers::uoffset_t>(i));
    if (round.n_drafted() < 0 || round.n_drafted() > kMaxDraftNodes || round.accepted() < 0 ||
        round.accepted() > round.n_drafted() || round.start() <= previous_start ||
        round.start() >= std::int64_t(trace.tokens.size())) {
      return bad_trace("shape",
                       "round {}: start {}, {} drafted, {} accepted in a request of {} tokens", i,
                       round.start(), round.n_drafted(), round.accepted(), trace.tokens.size());
    }
    if (!std::isfinite(round.draft_ms()) || !std::isfinite(round.verify_ms())) {
      return bad_trace("non-finite", "round {}: times", i);
    }
    previous_start = round.start();
    n_drafted += std::uint64_t(round.n_drafted());
  }
  Arrays in;
  if (auto s = frames.take(n_drafted, Kind::DraftedTokens, in.drafted, Kind::Confidences,
                           in.confidences, Kind::DraftKinds, in.draft_kinds);
      !s)
    return s;
  if (frames.has(Kind::DraftParents)) {
    if (auto s = frames.take(n_drafted, Kind::DraftParents, in.parents); !s) return s;
  }
  if (!tokens_valid(in.drafted)) return bad_trace("shape", "a drafted token id is negative");
  if (!all_finite(in.confidences)) return bad_trace("non-finite", "a confidence is not finite");
  std::size_t at = 0;
  trace.rounds.reserve(n_rounds);
  for (std::size_t i = 0; i < n_rounds; ++i) {
    const wire::Round& from = *rounds->Get(static_cast<flatbuffers::uoffset_t>(i));
    RoundTrace& round = trace.rounds.emplace_back();
    round.start = from.start();
    round.accepted = from.accepted();
    round.version = {from.version()};
    round.draft_ms = from.draft_ms();
    round.verify_ms = from.verify_ms();
    round.rows = from.rows();
    round.control = from.control();
    for (int d = 0; d < from.n_drafted(); ++d, ++at) {
      if (in.draft_kinds[at] >= kSpeculatorKinds) {
        return bad_trace("shape", "round {}: speculator kind {}, wanted below {}", i,
                         in.draft_kinds[at], kSpeculatorKinds);
      }
      if (!in.parents.empty()) {
        if (in.parents[at] < -1 || in.parents[at] >= d) {
          return bad_trace("shape", "round {}: drafted token {} follows {}, wanted -1 to {}", i, d,
                           in.parents[at], d - 1);
        }
        round.parents.push_back(in.parents[at]);
      }
      round.drafted.push_back(in.drafted[at]);
      round.confidences.push_back(in.confidences[at]);
      round.kinds.push_back(static_cast<SpeculatorKind>(in.draft_kinds[at]));
    }
  }
  return Ok{};
}

Status read_sampling(const wire::TraceHeader& header, TraceSampling& sampling) {
  sampling.temperature = header.temperature();
  sampling.top_k = header.top_k();
  sampling.top_p = header.top_p();
  sampling.min_p = header.min_p();
  sampling.seed = header.seed();
  sampling.rejection = header.rejection();
  const std::size_t n_bias = header.bias_tokens() ? header.bias_tokens()->size() : 0;
  if (n_bias != (header.bias_values() ? header.bias_values()->size() : 0))
    return bad_trace("shape", "logit bias: as many tokens as values were wanted");
  for (flatbuffers::uoffset_t i = 0; i < n_bias; ++i)
    sampling.logit_bias.emplace_back(header.bias_tokens()->Get(i), header.bias_values()->Get(i));
  if (const auto* stops = header.stop_tokens())
    sampling.stop_tokens.assign(stops->begin(), stops->end());
  const auto valid = [](const auto& bias) { return bias.first >= 0 && std::isfinite(bias.second); };
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0 ||
      !std::isfinite(sampling.top_p) || !std::isfinite(sampling.min_p) ||
      !std::ranges::all_of(sampling.logit_bias, valid) || !tokens_valid(sampling.stop_tokens))
    return bad_trace("non-finite", "sampling parameters");
  return Ok{};
}

// Longer drafts and larger batches than any server's are somebody's nonsense.
constexpr int kMostJobs = 4096, kMostDrafted = 64;

bool is_sane(const PolicyRound& round) {
  const bool finite = std::ranges::all_of(
      std::array{round.slope, round.batch_row, round.head_start, round.head_step, round.model_step,
                 round.rate_tokens, round.rate_cost, round.predicted, round.came_true, round.cost},
      [](double value) { return std::isfinite(value) && value >= 0; });
  return finite && std::isfinite(round.model_budget) && std::isfinite(round.head_budget) &&
         round.n_jobs >= 0 && round.n_jobs <= kMostJobs && round.job >= 0 &&
         round.job < std::max(1, round.n_jobs) && round.n_costs >= std::min(1, round.n_jobs) &&
         round.n_told >= 0 && round.prefill_rows >= 0 && round.model_rounds_left >= 0 &&
         round.head_rounds_left >= 0 && round.max_draft >= 0 && round.max_draft <= kMostDrafted &&
         round.n_fixed >= -1 && round.n_fixed <= kMostDrafted;
}

Status read_policy(const FrameDirectory& frames, const wire::TraceHeader& header,
                   RequestTrace& trace) {
  const std::size_t n_rounds = header.policy_rounds() ? header.policy_rounds()->size() : 0;
  if (n_rounds != 0 && n_rounds != trace.rounds.size()) {
    return bad_trace("shape", "{} rounds of the policy, wanted none or {}", n_rounds,
                     trace.rounds.size());
  }
  PolicyLog& log = trace.policy;
  std::size_t n_jobs = 0, n_costs = 0, n_told = 0;
  for (std::size_t i = 0; i < n_rounds; ++i) {
    const wire::PolicyRound& in = *header.policy_rounds()->Get(flatbuffers::uoffset_t(i));
    PolicyRound& round = log.rounds.emplace_back();
    round = {.n_jobs = in.n_jobs(),
             .job = in.job(),
             .prefill_rows = in.prefill_rows(),
             .max_extra_rows = in.max_extra_rows(),
             .n_costs = in.n_costs(),
             .n_told = in.n_told(),
             .max_draft = in.max_draft(),
             .n_fixed = in.n_fixed(),
             .head_alone = in.head_alone(),
             .model = in.model(),
             .model_alone = in.model_alone(),
             .slope = in.slope(),
             .batch_row = in.batch_row(),
             .head_start = in.head_start(),
             .head_step = in.head_step(),
             .model_step = in.model_step(),
             .rate_tokens = in.rate_tokens(),
             .rate_cost = in.rate_cost(),
             .predicted = in.predicted(),
             .came_true = in.came_true(),
             .model_budget = in.model_budget(),
             .head_budget = in.head_budget(),
             .model_rounds_left = in.model_rounds_left(),
             .head_rounds_left = in.head_rounds_left(),
             .random = in.random(),
             .cost = in.cost(),
             .head_steps = in.head_steps()};
    if (!is_sane(round)) return bad_trace("shape", "round {}: the policy's state", i);
    n_jobs += std::size_t(round.n_jobs);
    n_costs += std::size_t(round.n_costs);
    n_told += std::size_t(round.n_told);
  }
  const std::size_t found = header.policy_jobs() ? header.policy_jobs()->size() : 0;
  if (found != n_jobs) return bad_trace("shape", "{} jobs of the policy, wanted {}", found, n_jobs);
  for (std::size_t i = 0; i < found; ++i) {
    const wire::PolicyJob& in = *header.policy_jobs()->Get(flatbuffers::uoffset_t(i));
    log.jobs.push_back({in.max_tokens(), in.n_tokens(), in.model_lag(), in.head_ready()});
    if (in.max_tokens() < 0 || in.n_tokens() < 0 || in.model_lag() < 0)
      return bad_trace("shape", "job {} of the policy: a negative count", i);
  }
  if (auto s = frames.take(n_costs, Kind::PolicyCosts, log.costs, Kind::PolicySeen, log.seen); !s)
    return s;
  if (auto s = frames.take(n_told, Kind::PolicyTold, log.told, Kind::PolicyToldAs, log.told_as); !s)
    return s;
  const auto is_cost = [](double value) { return std::isfinite(value) && value > 0; };
  const auto is_probability = [](float value) { return value >= 0 && value <= 1; };
  if (!std::ranges::all_of(log.costs, is_cost) || !std::ranges::all_of(log.told, is_probability))
    return bad_trace("non-finite", "a cost that is none, or a confidence outside [0, 1]");
  return Ok{};
}

}  // namespace

Message serialize(const RequestTrace& trace) {
  const Arrays arrays = flatten(trace);
  std::vector<Frame> frames(1);  // the header's place
  std::vector<wire::FrameInfo> infos;
  const auto add = [&]<class T>(Kind kind, const std::vector<T>& values) {
    if (values.empty()) return;
    infos.emplace_back(kind, static_cast<std::uint16_t>(sizeof(T)),
                       static_cast<std::uint32_t>(values.size()));
    frames.push_back(to_bytes<T>(values));
  };
  add(Kind::Tokens, trace.tokens);
  add(Kind::CandidateCounts, arrays.candidate_counts);
  add(Kind::CandidateTokens, arrays.candidate_tokens);
  add(Kind::CandidateClasses, arrays.candidate_classes);
  add(Kind::TopCounts, arrays.top_counts);
  add(Kind::TopIds, arrays.top_ids);
  add(Kind::TopLogits, arrays.top_logits);
  add(Kind::LogSumExp, arrays.log_sum_exp);
  add(Kind::LogProb, arrays.logprob);
  add(Kind::DraftedTokens, arrays.drafted);
  add(Kind::Confidences, arrays.confidences);
  add(Kind::DraftKinds, arrays.draft_kinds);
  add(Kind::DraftParents, arrays.parents);
  add(Kind::TapValues, trace.tap_values);
  add(Kind::TapScales, trace.tap_scales);
  add(Kind::PolicyCosts, trace.policy.costs);
  add(Kind::PolicySeen, trace.policy.seen);
  add(Kind::PolicyTold, trace.policy.told);
  add(Kind::PolicyToldAs, trace.policy.told_as);

  std::vector<wire::Round> rounds;
  rounds.reserve(trace.rounds.size());
  for (const RoundTrace& round : trace.rounds) {
    rounds.emplace_back(round.version.value, round.start,
                        static_cast<std::int32_t>(round.drafted.size()), round.accepted, round.rows,
                        round.draft_ms, round.verify_ms, round.control);
  }
  flatbuffers::FlatBufferBuilder builder(4096);
  const auto domain = builder.CreateString(trace.domain);
  const auto key_id = builder.CreateString(trace.key_id);
  const auto fingerprint =
      builder.CreateVector(trace.model_fingerprint.data(), trace.model_fingerprint.size());
  const auto rounds_at = builder.CreateVectorOfStructs(rounds);
  const auto infos_at = builder.CreateVectorOfStructs(infos);
  const auto layers_at = trace.tap_layers.empty() ? 0 : builder.CreateVector(trace.tap_layers);
  std::vector<std::int32_t> bias_tokens;
  std::vector<float> bias_values;
  for (const auto& [token, bias] : trace.sampling.logit_bias) {
    bias_tokens.push_back(token);
    bias_values.push_back(bias);
  }
  const auto bias_tokens_at = builder.CreateVector(bias_tokens);
  const auto bias_values_at = builder.CreateVector(bias_values);
  const auto stops_at = builder.CreateVector(trace.sampling.stop_tokens);
  std::vector<wire::PolicyRound> policy_rounds;
  for (const PolicyRound& r : trace.policy.rounds) {
    policy_rounds.emplace_back(r.slope, r.batch_row, r.head_start, r.head_step, r.model_step,
                               r.rate_tokens, r.rate_cost, r.predicted, r.came_true, r.model_budget,
                               r.head_budget, r.cost, r.random, r.n_jobs, r.job, r.prefill_rows,
                               r.max_extra_rows, r.n_costs, r.n_told, r.model_rounds_left,
                               r.head_rounds_left, r.head_steps, r.max_draft, r.n_fixed,
                               r.head_alone, r.model, r.model_alone);
  }
  std::vector<wire::PolicyJob> policy_jobs;
  for (const PolicyJobTrace& job : trace.policy.jobs)
    policy_jobs.emplace_back(job.max_tokens, job.n_tokens, job.model_lag, job.head_ready);
  const auto policy_rounds_at = builder.CreateVectorOfStructs(policy_rounds);
  const auto policy_jobs_at = builder.CreateVectorOfStructs(policy_jobs);
  wire::TraceHeaderBuilder header(builder);
  header.add_server_run(trace.server_run);
  header.add_request(trace.request.value);
  header.add_domain(domain);
  header.add_key_id(key_id);
  header.add_model_fingerprint(fingerprint);
  header.add_temperature(trace.sampling.temperature);
  header.add_top_k(trace.sampling.top_k);
  header.add_top_p(trace.sampling.top_p);
  header.add_min_p(trace.sampling.min_p);
  header.add_seed(trace.sampling.seed);
  header.add_unix_ms(trace.unix_ms);
  header.add_n_prompt(trace.n_prompt);
  header.add_n_generated(static_cast<std::int32_t>(trace.generated.size()));
  header.add_n_taps(trace.n_taps);
  header.add_tap_width(trace.tap_width);
  const auto tap_floats =
      std::size_t(std::max(trace.n_taps, 0)) * std::size_t(std::max(trace.tap_width, 0));
  header.add_n_positions(
      tap_floats ? static_cast<std::int32_t>(trace.tap_values.size() / tap_floats) : 0);
  header.add_tap_first(trace.tap_first);
  header.add_gap(trace.gap);
  header.add_rounds(rounds_at);
  header.add_frames(infos_at);
  if (!trace.tap_layers.empty()) header.add_tap_layers(layers_at);
  header.add_bias_tokens(bias_tokens_at);
  header.add_bias_values(bias_values_at);
  header.add_stop_tokens(stops_at);
  header.add_rejection(trace.sampling.rejection);
  header.add_policy_rounds(policy_rounds_at);
  header.add_policy_jobs(policy_jobs_at);
  wire::FinishTraceHeaderBuffer(builder, header.Finish());
  frames[0] = to_bytes<std::uint8_t>({builder.GetBufferPointer(), builder.GetSize()});
  return seal(MessageType::kTrace, std::move(frames));
}

Result<RequestTrace> parse_trace(std::span<const Frame> message) {
  auto type = check_envelope(message);
  if (!type) return type.error();
  if (*type != MessageType::kTrace) return bad_trace("protocol", "the message is of another type");
  const Frame& header_frame = message[1];
  const auto* header_bytes = reinterpret_cast<const std::uint8_t*>(header_frame.data());
  flatbuffers::Verifier verifier(header_bytes, header_frame.size());
  if (header_frame.size() < 8 || !wire::VerifyTraceHeaderBuffer(verifier)) {
    return bad_trace("truncated", "the header is not a valid TraceHeader");
  }
  const wire::TraceHeader& header = *wire::GetTraceHeader(header_bytes);

  RequestTrace trace;
  trace.server_run = header.server_run();
  trace.request = {header.request()};
  // Labels go into logs and metrics: bounded.
  constexpr std::size_t kMaxLabelBytes = 256;
  if (header.domain()) trace.domain = header.domain()->str().substr(0, kMaxLabelBytes);
  if (header.key_id()) trace.key_id = header.key_id()->str().substr(0, kMaxLabelBytes);
  if (!copy_exactly(header.model_fingerprint(), trace.model_fingerprint))
    return bad_trace("shape", "the model fingerprint is not 32 bytes");
  if (auto s = read_sampling(header, trace.sampling); !s) return s.error();
  trace.unix_ms = header.unix_ms();
  trace.n_prompt = header.n_prompt();
  trace.gap = header.gap();
  const std::int64_t n_generated = header.n_generated();
  if (trace.n_prompt < 0 || n_generated < 0) return bad_trace("shape", "a negative token count");

  // take() compares every count with the bytes that are there before anything is allocated.
  auto frames = FrameDirectory::read(header, message.subspan(2));
  if (!frames) return frames.error();
  const auto n_tokens = std::size_t(std::int64_t{trace.n_prompt} + n_generated);
  if (auto s = frames->take(n_tokens, Kind::Tokens, trace.tokens); !s) return s.error();
  if (!tokens_valid(trace.tokens)) return bad_trace("shape", "a token id is negative");
  if (auto s = read_generated(*frames, std::size_t(n_generated), trace); !s) return s.error();
  if (auto s = read_rounds(*frames, header, trace); !s) return s.error();
  if (auto s = read_policy(*frames, header, trace); !s) return s.error();

  trace.n_taps = header.n_taps();
  trace.tap_width = header.tap_width();
  trace.tap_first = header.tap_first();
  const std::int64_t n_positions = header.n_positions();
  constexpr std::int64_t kMaxTaps = 64, kMaxTapWidth = 1 << 20;
  if (trace.n_taps < 0 || trace.n_taps > kMaxTaps || trace.tap_width < 0 ||
      trace.tap_width > kMaxTapWidth || n_positions < 0 || trace.tap_first < 0 ||
      trace.tap_first + n_positions > std::int64_t(n_tokens)) {
    return bad_trace("shape", "taps: [{}, {}, {}] from position {} of {}", n_positions,
                     trace.n_taps, trace.tap_width, trace.tap_first, n_tokens);
  }
  if (const auto* layers = header.tap_layers()) {
    if (layers->size() != std::size_t(trace.n_taps))
      return bad_trace("shape", "{} tap layers of {} taps", layers->size(), trace.n_taps);
    trace.tap_layers.assign(layers->begin(), layers->end());
  }
  const auto n_scales = std::size_t(n_positions * trace.n_taps);
  if (auto s = frames->take(n_scales, Kind::TapScales, trace.tap_scales); !s) return s.error();
  const std::size_t n_values = n_scales * std::size_t(trace.tap_width);
  if (auto s = frames->take(n_values, Kind::TapValues, trace.tap_values); !s) return s.error();
  if (!all_finite(trace.tap_scales)) return bad_trace("non-finite", "a tap scale is not finite");
  return trace;
}

}  // namespace foretoken
