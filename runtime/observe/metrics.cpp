#include "runtime/observe/metrics.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "runtime/observe/build_info.h"

namespace foretoken {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  Families(std::vector<MetricFamily>& out, std::string model)
      : out_(out), model_(std::move(model)) {}
  void open(MetricType type, const std::string& name, const std::string& help) {
    out_.push_back({"foretoken:" + name, help, type, {}});
  }
  void add(double value, Labels labels = {}) {
    ClientMetric metric;
    metric.label = {{"model_name", model_}, {"engine", "0"}};
    for (auto& label : labels) metric.label.push_back(std::move(label));
    if (out_.back().type == MetricType::Counter)
      metric.counter.value = value;
    else
      metric.gauge.value = value;
    out_.back().metric.push_back(std::move(metric));
  }
  void add_by(const char* label, const std::map<std::string, std::int64_t>& counts) {
    for (const auto& [name, n] : counts) add(static_cast<double>(n), {{label, name}});
  }
  template <class T>
  void gauge(const std::string& name, const std::string& help, T value) {
    open(MetricType::Gauge, name, help), add(static_cast<double>(value));
  }
  void counter(const std::string& name, const std::string& help, std::int64_t value) {
    open(MetricType::Counter, name, help), add(static_cast<double>(value));
  }

 private:
  std::vector<MetricFamily>& out_;
  std::string model_;
};

void speedup(Families& f, const std::optional<Interval>& interval, const char* window) {
  if (!interval) return;
  f.add(interval->value, {{"window", window}, {"bound", "value"}});
  f.add(interval->low, {{"window", window}, {"bound", "low"}});
  f.add(interval->high, {{"window", window}, {"bound", "high"}});
}

void engine_families(Families& f, const EngineStats& s) {
  f.gauge("num_requests_running", "Choices (a request has n) that are in the batch, now",
          s.requests_running);
  f.gauge("num_requests_waiting",
          "Choices that wait for a place in the batch, preempted ones included, now",
          s.requests_waiting);
  f.gauge("kv_cache_usage_perc",
          "Share of the target's KV pool held by choices under way, 1 is all of it, now",
          s.kv.occupancy());
  f.gauge("kv_cache_used_bytes", "Bytes of the target's KV pool held by choices under way, now",
          s.kv.used_bytes);
  f.gauge("kv_bytes_per_token",
          "Bytes of the target's KV a token, all layers, once its page is sealed",
          s.kv.bytes_per_token_sealed);
  f.counter("kv_sealed_pages_total",
            "Pages of the target's KV (64 tokens, all layers) quantised, since start",
            s.kv.sealed_pages_total);
  f.counter(
      "prompt_tokens_total",
      "Prompt tokens of choices whose prompt was read to its end, those from the prefix cache "
      "included, since start",
      s.prompt_tokens);
  f.counter("prefix_cache_queries_total",
            "Prompt tokens of choices when first admitted, each looked up in the prefix cache, "
            "since start",
            s.prefix_cache_queries);
  f.counter("prefix_cache_hits_total", "Of those, tokens that the prefix cache had, since start",
            s.prefix_cache_hits);
  f.gauge("prefix_cache_pages",
          "Pages that the prefix cache keeps, those in use by choices included, now",
          s.kv.cached_pages);
  f.gauge("prefix_cache_tail_bytes", "Bytes of 16-bit copies kept to resume from, now",
          s.kv.tail_bytes);
  f.counter("prefix_cache_evicted_pages_total",
            "Pages that left the prefix cache to make room, since start", s.kv.evicted_pages_total);
  f.counter("generation_tokens_total",
            "Tokens emitted, by prefill and decode rounds alike, end-of-generation tokens "
            "included, since start",
            s.generated_tokens);
  f.counter("num_preemptions_total",
            "Times that a choice lost its pages and went back to wait, since start", s.preemptions);
  f.counter("num_aborted_requests_total",
            "Choices that ended without a result: cancelled, client gone, or failed, since start",
            s.requests_aborted);
  f.counter("num_rejected_requests_total",
            "Choices refused because the queue was full, since start", s.requests_rejected);
  f.counter(
      "engine_rounds_total",
      "Rounds of the engine, each over the whole batch, those of prefill alone, control rounds and "
      "windows of plain serving included, since start",
      s.engine_rounds);
  f.counter(
      "control_rounds_total",
      "Of those, rounds that the control's coin ran without speculation (plain windows are not "
      "counted), since start",
      s.control_rounds);

  const AcceptanceStats& a = s.acceptance;
  f.counter("spec_decode_num_drafts_total",
            "Drafts verified, one a choice and round that drafted, since start", a.drafting_rounds);
  f.counter("spec_decode_num_draft_tokens_total", "Tokens drafted and verified, since start",
            a.drafted);
  f.counter("spec_decode_num_accepted_tokens_total", "Drafted tokens accepted, since start",
            a.accepted);
  f.open(MetricType::Counter, "spec_decode_num_accepted_tokens_per_pos_total",
         "Drafted tokens accepted at each position of the draft, from 0, since start");
  for (int i = 0; i < kMaxDraft; ++i) {
    auto index = static_cast<std::size_t>(i);
    if (a.drafted_at[index] > 0)
      f.add(static_cast<double>(a.accepted_at[index]), {{"position", std::to_string(i)}});
  }
  f.gauge("spec_decode_acceptance_length",
          "1 + accepted tokens a draft, of the last minute; rounds without a draft, control rounds "
          "among "
          "them, do not count",
          s.acceptance_last_minute.acceptance_length());
  f.gauge("spec_decode_draft_length",
          "Tokens a draft, of the last minute; rounds without a draft do not count",
          s.acceptance_last_minute.draft_length());
  f.open(MetricType::Gauge, "speedup",
         "Decode time per token without speculation / with it, from control rounds, with its 95 % "
         "interval; since start and of the last minute");
  speedup(f, s.speedup, "overall");
  speedup(f, s.speedup_last_minute, "last_minute");
  if (s.net_speedup.value) {
    f.open(MetricType::Gauge, "net_speedup",
           "Decode time per token of plain serving (no speculation, no capture, trainer paused) / "
           "with "
           "everything on, from random windows, with its 95 % interval, since start");
    speedup(f, s.net_speedup.value, "overall");
  }
  f.gauge("decode_tokens_per_second",
          "Tokens emitted by decode rounds a second, all choices, of the last minute",
          s.decode_tokens_per_s_last_minute);
  f.gauge("speculator_version",
          "Version of the learned speculator that serves (not the canary's), 0: as shipped",
          s.version.value);
  f.gauge("speculator_age_seconds", "Seconds since that version was swapped in", s.version_age_s);
  f.counter("speculator_swaps_total",
            "Swaps of weights between two rounds, canaries that come and go included, since start",
            s.swaps);
  f.open(MetricType::Gauge, "speculator_swap_pause_seconds",
         "Time the engine spent applying a swap: quantiles of the last 1024, and the longest since "
         "start");
  f.add(s.swap_pause_p50_ms / 1000, {{"quantile", "0.5"}});
  f.add(s.swap_pause_p99_ms / 1000, {{"quantile", "0.99"}});
  f.add(s.swap_pause_max_ms / 1000, {{"quantile", "1"}});
  f.gauge("traffic_store_bytes", "Bytes of memory of the n-gram stores, all keys, now",
          s.traffic_store_bytes);
}

}  // namespace

std::string metrics_text(const EngineStats* engine, const LinkStats& link,
                         const MetricsContext& context, RequestMetrics& requests) {
  std::vector<MetricFamily> families;
  Families f(families, context.model_name);
  f.open(MetricType::Gauge, "build_info", "Constant 1");
  f.add(
      1,
      {{"version", build_version()}, {"git", build_git()}, {"isa", context.isa}, {"cuda", "none"}});
  f.open(MetricType::Gauge, "cache_config_info", "Constant 1");
  f.add(1, {{"kv_cache_dtype", context.kv_mode},
            {"max_model_len", std::to_string(context.max_model_len)}});
  f.gauge("engine_heartbeat_age_seconds", "Seconds since the engine thread last turned",
          context.heartbeat_age_s);
  if (engine) engine_families(f, *engine);
  f.counter("trace_records_total", "Traces (one a choice) sent to the trainer, since start",
            link.traces_sent);
  f.open(MetricType::Counter, "trace_dropped_total",
         "Traces (one a choice) that did not reach the trainer, by reason, since start");
  f.add_by("reason", link.traces_dropped);
  f.counter("weight_bundles_received_total",
            "Weight bundles that arrived whole, the refused ones included, since start",
            link.bundles_received);
  f.open(MetricType::Counter, "weight_bundles_rejected_total",
         "Weight bundles refused, by reason, since start");
  f.add_by("reason", link.bundles_rejected);
  f.counter("link_peers_refused_total",
            "Attempts to connect to the trainer's endpoints without a trusted key, since start",
            link.peers_refused);
  f.open(MetricType::Counter, "speculator_versions_total",
         "Learned versions by what became of them, since start");
  f.add_by("result", {{"promoted", link.speculator.promoted},
                      {"rolled_back", link.speculator.rolled_back},
                      {"refused", link.speculator.refused}});
  f.gauge("speculator_canary_version", "Version on trial, 0: none",
          link.speculator.canary ? link.speculator.canary->version.value : 0);
  f.gauge("speculator_frozen", "1 while an operator has frozen the speculator",
          link.speculator.frozen ? 1 : 0);
  f.gauge("trainer_connected", "1 while a trainer is connected", link.trainer_connected ? 1 : 0);
  if (link.trainer_step)
    f.counter("trainer_steps_total",
              "Steps that the trainer has taken over its whole life, as it last said",
              *link.trainer_step);
  if (link.trainer_loss)
    f.gauge("trainer_loss", "The trainer's loss, as it last said", *link.trainer_loss);
  std::erase_if(families, [](const MetricFamily& family) { return family.metric.empty(); });
  auto measured = requests.registry().Collect();
  std::move(measured.begin(), measured.end(), std::back_inserter(families));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace foretoken
