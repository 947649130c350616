// The plot of a quality report: a row a mode, three panels that share the rows. Hand-written SVG.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/evaluate/quality_report.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

constexpr double kRow = 30, kTop = 64, kLabels = 110, kGap = 34, kPanel = 210;
constexpr std::array kShades = {"#9ecae1", "#4292c6", "#08519c", "#08306b"};  // by length

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : printable(text)) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

std::string text(double x, double y, std::string_view what, std::string_view anchor = "start",
                 std::string_view kind = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                     anchor, kind.empty() ? "" : fmt::format(" class=\"{}\"", kind), escaped(what));
}

std::string line(double x1, double y1, double x2, double y2, std::string_view kind) {
  return fmt::format(
      "<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kind, x1,
      y1, x2, y2);
}

// A panel's horizontal axis, linear in what it is given.
struct Axis {
  double left, low, high;
  double at(double value) const {
    const double share = (value - low) / (high - low);
    return left + kPanel * std::clamp(share, 0.0, 1.0);
  }
};

}  // namespace

std::string quality_svg(const QualityReport& report) {
  const std::size_t rows = report.modes.size();
  const double bottom = kTop + kRow * double(rows), left = 16 + kLabels;
  const bool needles = !report.needles.empty();
  const double width = left + (needles ? 3 : 2) * (kPanel + kGap) + 34, height = bottom + 44;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n"
      "<style>text{{fill:#333}} .title{{font-size:14px;font-weight:600}} .head{{font-weight:600}} "
      ".tick{{font-size:10px;fill:#777}} .grid{{stroke:#e4e4e4}} .row{{stroke:#f2f2f2}} "
      ".whisker{{stroke:#4292c6;stroke-width:2}} .dot{{fill:#08519c}} .bar{{fill:#9ecae1}}"
      "</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
      width, height);
  out += text(16, 22, fmt::format("What each KV mode keeps of {}", report.model), "start", "title");
  const auto row_y = [](std::size_t m) { return kTop + kRow * (double(m) + 0.5); };
  for (std::size_t m = 0; m < rows; ++m) {
    out += line(left, row_y(m), width - kGap, row_y(m), "row");
    out += text(left - 12, row_y(m) + 4, report.modes[m].name, "end");
  }

  // KL, by powers of ten.
  int low = 0, high = -6;
  for (const KvQuality& q : report.modes) {
    if (!(q.all.kl.value > 0)) continue;
    const double exponent = std::log10(q.all.kl.value);
    low = std::min(low, int(std::floor(exponent)));
    high = std::max(high, int(std::ceil(exponent)));
  }
  low = std::max(low, -6);
  high = std::max(high, low + 1);
  const Axis kl{left, double(low), double(high)};
  out += text(left, kTop - 12, "KL to bf16, nats", "start", "head");
  for (int e = low; e <= high; ++e) {
    out += line(kl.at(e), kTop, kl.at(e), bottom, "grid");
    out += text(kl.at(e), bottom + 16, fmt::format("{:g}", std::pow(10.0, e)), "middle", "tick");
  }
  for (std::size_t m = 0; m < rows; ++m) {
    const MeanEstimate& e = report.modes[m].all.kl;
    if (!(e.value > 0)) {
      out += text(kl.at(low) + 6, row_y(m) + 4, "reference", "start", "tick");
      continue;
    }
    const auto x = [&](double value) { return kl.at(std::log10(std::max(value, 1e-12))); };
    out += line(x(e.value - 2 * e.standard_error), row_y(m), x(e.value + 2 * e.standard_error),
                row_y(m), "whisker");
    out += fmt::format(
        "<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"><title>{}: KL {:.5f} ± {:.5f}, "
        "perplexity {:+.2f} %, same top token {:.2f} %</title></circle>\n",
        x(e.value), row_y(m), escaped(report.modes[m].name), e.value, e.standard_error,
        100 * report.modes[m].all.perplexity_change.value,
        100 * report.modes[m].all.same_top.value);
  }

  double panel = left + kPanel + kGap;
  if (needles) {
    const Axis found{panel, 0, 1};
    out += text(panel, kTop - 12, "needles found", "start", "head");
    for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      out += line(found.at(share), kTop, found.at(share), bottom, "grid");
      out += text(found.at(share), bottom + 16, fmt::format("{:.0f} %", 100 * share), "middle",
                  "tick");
    }
    // Lengths lie a little above one another: equal shares would hide all but one.
    const auto n = double(report.needles.size());
    for (std::size_t i = 0; i < report.needles.size(); ++i) {
      const NeedleFigures& figures = report.needles[i];
      const char* shade = kShades[std::min(i, kShades.size() - 1)];
      const double shift = (double(i) - (n - 1) / 2) * std::min(9.0, 20 / n);
      for (std::size_t m = 0; m < rows && figures.asked > 0; ++m) {
        const double share = double(figures.found[m]) / figures.asked;
        out += fmt::format(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"><title>{}, {} tokens: {} of "
            "{}</title></circle>\n",
            found.at(share), row_y(m) + shift, shade, escaped(report.modes[m].name), figures.length,
            figures.found[m], figures.asked);
      }
      const double x = panel + 62 * double(i);
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x + 4,
                         bottom + 30, shade);
      out += text(x + 12, bottom + 34,
                  fmt::format("at {:.0f}K", std::max(1.0, double(figures.length) / 1024)), "start",
                  "tick");
    }
    panel += kPanel + kGap;
  }

  double most = 0;
  for (const KvQuality& q : report.modes) most = std::max(most, q.sealed_bytes_per_token);
  const Axis bytes{panel, 0, most > 0 ? most : 1};
  out += text(panel, kTop - 12, "bytes a token", "start", "head");
  for (std::size_t m = 0; m < rows; ++m) {
    const double value = report.modes[m].sealed_bytes_per_token;
    out += fmt::format(
        "<rect class=\"bar\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"12\"/>\n", panel,
        row_y(m) - 6, bytes.at(value) - panel);
    // Long bars have their figure inside.
    const bool inside = value > 0.7 * most;
    out += text(bytes.at(value) + (inside ? -5 : 5), row_y(m) + 4, fmt::format("{:.0f}", value),
                inside ? "end" : "start");
  }
  return out + "</svg>\n";
}

}  // namespace foretoken
