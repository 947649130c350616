// foretoken bench --model M: what the machine can do at most, and how near a model comes to it.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "runtime/cli/command.h"
#include "runtime/evaluate/benchmark.h"
#include "runtime/flags/flags.h"

namespace foretoken {
namespace {

namespace json = boost::json;

double number(const json::value& v) { return v.to_number<double>(); }
double median(const json::value& v) { return number(v.at("ms").at("median")); }
double median_of(const json::value& v, const char* key) { return number(v.at(key).at("median")); }

void print_table(const json::object& b) {
  const json::value &machine = b.at("machine"), &model = b.at("model"), &decode = b.at("decode"),
                    &prefill = b.at("prefill");
  fmt::print("machine        {}, {} threads: reads {:.1f} GB/s, {:.0f} int8 GMAC/s\n",
             machine.at("isa").get_string().c_str(), machine.at("threads").to_number<int>(),
             number(machine.at("read_gb_per_s")), number(machine.at("int8_gmac_per_s")));
  fmt::print("model          {}: a step reads {:.0f} MB and does {:.2f} GMAC\n",
             model.at("name").get_string().c_str(), number(model.at("step_bytes")) / 1e6,
             number(model.at("step_macs")) / 1e9);
  const json::value &load = b.at("load"), &memory = b.at("memory");
  fmt::print("load           {:.2f} s, {:.2f} s to the first token\n", number(load.at("seconds")),
             number(load.at("first_token_seconds")));
  fmt::print(
      "memory         {:.0f} MB at most; anonymous {:.0f} MB, {:.2f} x weights and KV in use\n",
      number(memory.at("peak_bytes")) / 1e6, number(memory.at("anonymous_bytes")) / 1e6,
      number(memory.at("times_weights_and_kv")));
  fmt::print("decode         {:.1f} tokens/s, {:.0f} % of the {:.1f} the machine allows\n",
             number(decode.at("tokens_per_s")), 100 * number(decode.at("share_of_bound")),
             number(decode.at("bound_tokens_per_s")));
  fmt::print("prefill        {:.0f} tokens/s over {}\n", number(prefill.at("tokens_per_s")),
             prefill.at("tokens").to_number<int>());
  fmt::print("\n{:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "rows", "ms", "min", "max",
             "x one row", "x bound", "of bound");
  for (const json::value& r : b.at("rows").get_array())
    fmt::print("{:>6} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>9.0f}%\n",
               r.at("rows").to_number<int>(), median(r), number(r.at("ms").at("min")),
               number(r.at("ms").at("max")), number(r.at("times_one_row")),
               number(r.at("times_bound")), 100 * number(r.at("share_of_bound")));
  fmt::print("\n");
  if (const json::value* depth = b.if_contains("depth"))
    for (const auto& [mode, d] : depth->get_object())
      fmt::print(
          "depth {}, {:<5} {:.1f} tokens/s ({:.2f} ms, {:.2f} x a short context), KV {:.1f} MB\n",
          d.at("tokens").to_number<int>(), std::string_view(mode), number(d.at("tokens_per_s")),
          median(d), number(d.at("times_short_context")), number(d.at("kv_used_bytes")) / 1e6);
  if (const json::value* a = b.if_contains("attention")) {
    fmt::print(
        "attention      depth {}: int2 {:.3f} ms a layer, {:.2f} x as fast as bf16's {:.3f}\n",
        a->at("tokens").to_number<int>(), median_of(*a, "int2_ms"),
        number(a->at("int2_times_faster")), median_of(*a, "bf16_ms"));
    fmt::print("               depth {}: 4 rows of int2 {:.3f} ms, {:.2f} x one row's {:.3f}\n",
               a->at("verify_tokens").to_number<int>(), median_of(*a, "four_rows_ms"),
               number(a->at("four_rows_times_one")), median_of(*a, "one_row_ms"));
  }
  if (const json::value* head = b.if_contains("head")) {
    fmt::print(
        "\nhead           {} inner, {} tokens: a step reads {:.1f} MB; made ready in {:.0f} ms\n",
        head->at("inner").to_number<int>(), head->at("vocabulary").to_number<int>(),
        number(head->at("step_bytes")) / 1e6, number(head->at("prepare_ms")));
    for (const json::value& s : head->at("steps").get_array())
      fmt::print(
          "  {} rows       {:.3f} ms a step and {:.3f} ms to choose ({:.3f} sampled), begun in "
          "{:.3f}; "
          "{:.3f} of a step of the target\n",
          s.at("rows").to_number<int>(), median_of(s, "step"), median_of(s, "choose_greedy"),
          median_of(s, "choose_sampled"), median_of(s, "begin"), number(s.at("times_target_row")));
  }
  if (const json::value* draft = b.if_contains("draft")) {
    fmt::print("\ndraft          {}, choosing among {} tokens\n",
               draft->at("model").at("name").get_string().c_str(),
               draft->at("vocabulary").to_number<int>());
    for (const json::value& s : draft->at("steps").get_array())
      fmt::print(
          "  {} rows       {:.2f} ms, {:.2f} of a step of the target; among all tokens {:.2f} ms\n",
          s.at("rows").to_number<int>(), median(s), number(s.at("times_target_row")),
          median_of(s, "whole_vocabulary_ms"));
  }
}

int bench_main(int argc, char** argv) {
  BenchmarkOptions options;
  bool as_json = false;
  std::string output;
  Flags flags(argv[0], "Measures the machine's bounds and what a model costs on it.");
  flags.option("model", options.model, "the target model, a GGUF file")->required();
  flags.option("draft-model", options.draft_model, "a draft model to time beside it");
  flags.number("draft-vocab", options.draft_vocab, 0, 1 << 20, "tokens it chooses among, 0: all");
  flags.number("threads", options.threads, 0, 1024, "kernel threads, 0: all cores");
  flags.number("repeats", options.repeats, 1, 1000, "of every figure; medians are reported");
  flags.number("max-rows", options.max_rows, 1, 64, "the most rows of a round");
  flags.number("prefill-tokens", options.prefill_tokens, 1, 1 << 20, "length of the timed prompt");
  flags.number("head-inner", options.head_inner, 0, 4096,
               "inner width of the recurrent head to time, 0: leave out");
  flags.number("head-vocab", options.head_vocab, 16, 32768, "its vocabulary");
  flags.number("depth", options.depth, 0, 1 << 20,
               "context at which decoding is timed too, 0: leave out");
  flags.number("attention-depth", options.attention_depth, 0, 1 << 20,
               "context at which attention alone is timed, verifying at half of it; 0: leave out");
  flags.app().add_flag("--json", as_json, "print JSON instead of the table");
  flags.option("output", output, "also write the JSON to this file");
  if (const auto status = flags.parse(argc, argv)) return *status;
  const bool terminal = ::isatty(STDERR_FILENO);
  options.progress = [&](const std::string& what) {
    fmt::print(stderr, "{}{}{}", terminal ? "\r\x1b[K" : "bench: ", what, terminal ? " ..." : "\n");
    std::fflush(stderr);
  };
  const auto result = run_benchmark(options);
  if (terminal) fmt::print(stderr, "\r\x1b[K");
  if (!result) return exit_status(argv[0], result.error());
  const std::string text = json::serialize(*result) + "\n";
  if (as_json)
    fmt::print("{}", text);
  else
    print_table(*result);
  if (!output.empty()) {
    std::ofstream file(output);
    file << text;
    if (!file.flush()) return exit_status(argv[0], Error{ErrorCode::kIo, "cannot write " + output});
  }
  return 0;
}

const Subcommand kBench{"bench", "measure the machine and a model on it", bench_main, 40};

}  // namespace
}  // namespace foretoken
