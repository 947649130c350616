#include "runtime/evaluate/tap_check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "foretoken/kernels/sampling.h"
#include "foretoken/protocol/failure.h"
#include "runtime/model/feature_rows.h"

namespace foretoken {
namespace {

constexpr int kProbeRows = 64;
constexpr double kDeviations = 3;  // one in a thousand heads that are no worse

}  // namespace

int TapCheck::Shift::hits() const { return int(std::ranges::count(right, true)); }

Result<TapCheck> check_taps(const Model& model, const DraftHead& head,
                            std::span<const TokenId> text, kernels::ThreadPool& pool) {
  constexpr std::size_t kLeast = kTapProbeContext + 32;
  if (text.size() < kLeast) {
    return failure(ErrorCode::kInvalidInput, "tap check: {} tokens, wanted at least {}",
                   text.size(), kLeast);
  }
  const ModelConfig& config = model.config();
  text = text.first(std::min(
      {text.size(), kTapProbeContext + kTapProbeTokens, std::size_t(config.context_length)}));
  TapCheck check;
  std::vector<int> layers;
  for (const int by : {0, -1, 1}) {
    TapCheck::Shift shift{by, head.taps(), {}};
    bool inside = true;
    for (int& layer : shift.layers) {
      if (layer == config.n_layers) continue;  // the final state is no layer's number
      layer += by;
      inside &= layer >= 0 && layer < config.n_layers;
    }
    if (!inside) continue;
    layers.insert(layers.end(), shift.layers.begin(), shift.layers.end());
    check.shifts.push_back(std::move(shift));
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());

  auto kv = model.make_memory_of_one(
      {.mode = KvMode::kBf16, .max_rows = kProbeRows, .max_model_len = std::ssize(text) + 1},
      nullptr);
  if (!kv) return kv.error();
  const auto sequence = (*kv)->open();
  if (!sequence || !(*kv)->reserve(*sequence, std::int64_t(text.size())))
    return Error{ErrorCode::kInternal, "tap check: no room for the probe"};
  const auto workspace = model.make_workspace(kProbeRows, kProbeRows);
  const auto logits = model.make_logit_rows(kProbeRows);
  const auto features = model.make_feature_rows(layers, kProbeRows, 0);
  const auto hidden = std::size_t(config.hidden);
  std::vector<float> taps(layers.size() * hidden);
  std::vector<TokenId> says(text.size());  // the target's choice for the token after each position
  std::vector<int> every(kProbeRows);
  for (int i = 0; i < kProbeRows; ++i) every[std::size_t(i)] = i;
  struct Logged {
    std::vector<std::uint16_t> values;
    std::vector<float> scales;
  };
  std::vector<Logged> logged(check.shifts.size());
  for (Logged& l : logged) {
    l.values.resize(text.size() * kHeadTaps * hidden);
    l.scales.resize(text.size() * kHeadTaps);
  }
  std::vector<float> one(kHeadTaps * hidden);
  for (std::size_t done = 0; done < text.size();) {
    const std::size_t n = std::min<std::size_t>(kProbeRows, text.size() - done);
    model.forward_one({.tokens = text.subspan(done, n),
                       .logit_rows = std::span(every).first(n),
                       .logits = logits.get(),
                       .features = features.get()},
                      *sequence, std::int64_t(done), **kv, *workspace, pool);
    (*kv)->commit(*sequence, std::int64_t(done + n));
    for (std::size_t i = 0; i < n; ++i) {
      const std::span<const float> row = logits->host_row(int(i));
      says[done + i] = kernels::argmax(row.data(), std::ssize(row));
      features->read_back(int(i), taps.data());
      for (std::size_t s = 0; s < logged.size(); ++s) {
        for (std::size_t t = 0; t < kHeadTaps; ++t) {
          const auto at = std::ranges::lower_bound(layers, check.shifts[s].layers[t]);
          std::copy_n(&taps[std::size_t(at - layers.begin()) * hidden], hidden, &one[t * hidden]);
        }
        encode_features(one.data(), config.hidden,
                        &logged[s].values[(done + i) * kHeadTaps * hidden],
                        &logged[s].scales[(done + i) * kHeadTaps]);
      }
    }
    done += n;
  }
  SamplingParams greedy;
  greedy.temperature = 0;
  const auto drafts = head.make_workspace(1);
  for (std::size_t s = 0; s < logged.size(); ++s) {
    HeadMemory memory;
    drafts->reserve(memory);
    // With the tokens up to `newest` known, the head proposes the one after it.
    for (std::size_t newest = kTapProbeContext; newest < text.size(); ++newest) {
      const auto end = std::int64_t(newest);
      const FeatureView features{logged[s].values.data(),
                                 logged[s].scales.data(),
                                 config.hidden,
                                 std::max<std::int64_t>(0, end - kHeadWindow),
                                 end,
                                 0,
                                 std::int64_t(text.size())};
      const HeadStart start{text.first(newest + 1), features, &memory};
      drafts->begin(std::span(&start, 1), pool);
      drafts->step(text.subspan(newest, 1), pool);
      const Proposal proposal = drafts->choose(0, {}, greedy, end + 1, false);
      check.shifts[s].right.push_back(proposal.token == says[newest]);
    }
  }
  return check;
}

Status judge_taps(const TapCheck& check) {
  const TapCheck::Shift& configured = check.shifts.front();
  for (const TapCheck::Shift& other : check.shifts) {
    int better = 0, worse = 0;
    for (std::size_t i = 0; i < configured.right.size(); ++i) {
      better += other.right[i] && !configured.right[i];
      worse += configured.right[i] && !other.right[i];
    }
    if (better - worse <= kDeviations * std::sqrt(double(better + worse))) continue;
    std::vector<int> ids;
    for (std::size_t t = 0; t + 1 < other.layers.size(); ++t) ids.push_back(other.layers[t] + 1);
    return failure(ErrorCode::kInvalidInput,
                   "taps: of the probe's {} tokens the head has {} right with the outputs of the "
                   "layers that it names ({}) and {} with those one layer {}: its configuration "
                   "counts them otherwise; eagle_aux_hidden_state_layer_ids should be [{}]",
                   configured.right.size(), configured.hits(),
                   fmt::join(configured.layers.begin(), configured.layers.end() - 1, ", "),
                   other.hits(), other.by > 0 ? "later" : "earlier", fmt::join(ids, ", "));
  }
  return Ok{};
}

}  // namespace foretoken
