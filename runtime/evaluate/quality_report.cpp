#include "runtime/evaluate/quality_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

namespace json = boost::json;

json::object estimate_json(const MeanEstimate& e) {
  return {{"value", e.value}, {"standard_error", e.standard_error}};
}

json::object figures_json(const KvQualityFigures& f) {
  return {{"predictions", f.n_scored},
          {"perplexity", f.perplexity},
          {"perplexity_bf16", f.perplexity_bf16},
          {"perplexity_change", estimate_json(f.perplexity_change)},
          {"kl", estimate_json(f.kl)},
          {"same_top", estimate_json(f.same_top)}};
}

// Binomial.
MeanEstimate share(int found, int asked) {
  const double p = asked > 0 ? double(found) / asked : 0.0;
  return {p, asked > 0 ? std::sqrt(p * (1 - p) / asked) : 0.0};
}

std::string length_name(std::int64_t tokens) {
  return tokens >= 1000 ? fmt::format("{:.0f}K", double(tokens) / 1024) : fmt::format("{}", tokens);
}

}  // namespace

json::object quality_json(const QualityReport& report) {
  json::array modes;
  for (std::size_t m = 0; m < report.modes.size(); ++m) {
    const KvQuality& q = report.modes[m];
    json::object mode = figures_json(q.all);
    mode["mode"] = q.name;
    mode["kv_cache_dtype"] = kv_mode_name(q.mode);
    json::object windows;
    json::array by_window;
    for (std::size_t w = 0; w < q.windows.size(); ++w) {
      json::object one = figures_json(q.windows[w]);
      one["text"] = printable(report.windows[w]);
      by_window.push_back(std::move(one));
    }
    mode["windows"] = std::move(by_window);
    json::array needles;
    for (const NeedleFigures& n : report.needles) {
      json::object one = estimate_json(share(n.found[m], n.asked));
      one["context_tokens"] = n.length;
      one["asked"] = n.asked;
      one["found"] = n.found[m];
      needles.push_back(std::move(one));
    }
    mode["needles"] = std::move(needles);
    mode["sealed_page_reads"] = q.sealed_page_reads;
    mode["bytes_per_token"] =
        json::object{{"sealed", q.sealed_bytes_per_token},
                     {"allocated", double(q.allocated_bytes) /
                                       double(std::max<std::int64_t>(q.context_tokens, 1))},
                     {"at_tokens", q.context_tokens}};
    mode["tokens_per_s"] = json::object{{"prefill", q.prefill_tokens_per_s},
                                        {"decode", q.decode_tokens_per_s},
                                        {"decode_at_tokens", q.context_tokens}};
    modes.push_back(std::move(mode));
  }
  return {{"schema", "foretoken.kv_quality/1"},
          {"model", printable(report.model)},
          {"model_fingerprint", report.fingerprint},
          {"kv_sink", report.options.sink_tokens},
          {"kv_window", report.options.window_tokens},
          {"first_scored", report.options.first_scored},
          {"block", kQualityBlock},
          {"modes", std::move(modes)}};
}

std::string quality_table(const QualityReport& report) {
  std::string out = fmt::format("{:<12} {:>10} {:>18} {:>16} {:>15}", "KV mode", "perplexity",
                                "change %", "KL to bf16", "same top %");
  for (const NeedleFigures& n : report.needles)
    out += fmt::format(" {:>13}", fmt::format("needles {}", length_name(n.length)));
  out += fmt::format(" {:>10} {:>14} {:>9} {:>8}\n", "B/token",
                     report.modes.empty()
                         ? ""
                         : fmt::format("MB at {}", length_name(report.modes[0].context_tokens)),
                     "prefill/s", "decode/s");
  for (std::size_t m = 0; m < report.modes.size(); ++m) {
    const KvQuality& q = report.modes[m];
    out += fmt::format("{:<12} {:>10.3f}", q.name, q.all.perplexity);
    if (m == 0) {
      out += fmt::format(" {:>18} {:>16} {:>15}", "-", "-", "-");
    } else {
      out += fmt::format(" {:>18} {:>16} {:>15}",
                         fmt::format("{:+.2f} ± {:.2f}", 100 * q.all.perplexity_change.value,
                                     100 * q.all.perplexity_change.standard_error),
                         fmt::format("{:.4f} ± {:.4f}", q.all.kl.value, q.all.kl.standard_error),
                         fmt::format("{:.2f} ± {:.2f}", 100 * q.all.same_top.value,
                                     100 * q.all.same_top.standard_error));
    }
    for (const NeedleFigures& n : report.needles)
      out += fmt::format(" {:>13}", fmt::format("{} of {}", n.found[m], n.asked));
    out +=
        fmt::format(" {:>10.0f} {:>14.2f} {:>9.0f} {:>8.1f}\n", q.sealed_bytes_per_token,
                    double(q.allocated_bytes) / 1e6, q.prefill_tokens_per_s, q.decode_tokens_per_s);
  }
  return out;
}

}  // namespace foretoken
