// A small request trace with something in every field, for the tests of the wire format.
#pragma once

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken {

inline ModelFingerprint sample_fingerprint() {
  ModelFingerprint fingerprint{};
  for (std::size_t i = 0; i < fingerprint.size(); ++i) {
    fingerprint[i] = static_cast<std::uint8_t>(7 * i + 1);
  }
  return fingerprint;
}

inline RequestTrace sample_trace(std::uint64_t request = 42, int n_generated = 5) {
  RequestTrace trace;
  trace.server_run = 0x1234567890abcdef;
  trace.request = {request};
  trace.domain = "math";
  trace.key_id = "team-a";
  trace.model_fingerprint = sample_fingerprint();
  trace.sampling = {0.8f, 40, 0.95f, 0.05f, 0xfeedface};
  trace.unix_ms = 1'790'000'000'123;
  trace.n_prompt = 3;
  trace.tokens = {5, 0, 49151};
  for (int i = 0; i < n_generated; ++i) {
    trace.tokens.push_back(100 + i);
    GeneratedTokenTrace& generated = trace.generated.emplace_back();
    for (int c = 0; c < i % 4; ++c) {
      const auto fusion_class = static_cast<std::uint8_t>((11 * i + c) % kFusionClasses);
      generated.candidates.push_back({100 + i + c, fusion_class});
    }
    for (int k = 0; k < 3 + i % 60; ++k) {
      generated.top_ids.push_back(100 + i + k);
      generated.top_logits.push_back(10.0f - static_cast<float>(k) * 0.5f);
    }
    generated.log_sum_exp = 11.5f + static_cast<float>(i);
    generated.logprob = -0.25f * static_cast<float>(i);
  }
  if (n_generated > 1) {
    trace.rounds.push_back({4,
                            {101, 102},
                            {},
                            {0.9f, 0.5f},
                            {SpeculatorKind::kNgram, SpeculatorKind::kFusion},
                            1,
                            {3},
                            0.1f,
                            20.5f,
                            4,
                            false});
  }
  if (n_generated > 3) trace.rounds.push_back({6, {}, {}, {}, {}, 0, {3}, 0.0f, 18.0f, 2, true});
  trace.sampling.logit_bias = {{9, 1.5f}, {49151, -100.0f}};
  trace.sampling.stop_tokens = {2};
  trace.sampling.rejection = true;
  for (std::size_t i = 0; i < trace.rounds.size(); ++i) {
    if (trace.rounds[i].control) {
      trace.policy.rounds.emplace_back();
      continue;
    }
    trace.policy.rounds.push_back({2,    1,    7,    60,   4,    3,    8,   -1,  true,
                                   true, true, 0.1,  0.09, 0.02, 0.08, 0.3, 300, 250,
                                   11.5, 12.5, 3.25, -0.5, 2,    1,    77,  1.3, 1});
    trace.policy.jobs.insert(trace.policy.jobs.end(), {{8, 120, 3, true}, {2, 99, 0, false}});
    trace.policy.costs.insert(trace.policy.costs.end(), {1, 1.07, 1.15, 1.3});
    trace.policy.seen.insert(trace.policy.seen.end(), {255, 9, 0, 3});
    trace.policy.told.insert(trace.policy.told.end(), {0.5f, 0.25f, 1.0f});
    trace.policy.told_as.insert(
        trace.policy.told_as.end(),
        {std::uint8_t(1 | kToldMore), std::uint8_t(4 | kToldAgrees), std::uint8_t(kToldExpected)});
  }
  trace.n_taps = 2;
  trace.tap_width = 3;
  trace.tap_first = 1;
  trace.tap_layers = {4, 9};
  for (int position = 0; position < 2; ++position) {
    for (int i = 0; i < 6; ++i) trace.tap_values.push_back(static_cast<std::uint16_t>(0x3c00 + i));
    trace.tap_scales.insert(trace.tap_scales.end(), {0.5f, 2.0f});
  }
  return trace;
}

}  // namespace foretoken
