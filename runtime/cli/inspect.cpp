// foretoken inspect FILE: what a GGUF model, a weight bundle, a folder with a published EAGLE-3
// head or a trace (a segment file or a folder of them) holds, and whether foretoken can use it.
// Everything is parsed as hostile input; a broken file is an error that names the field.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "runtime/cli/command.h"
#include "runtime/files/gguf.h"
#include "runtime/flags/flags.h"
#include "runtime/server/spec_head.h"
#include "runtime/speculate/head/eagle3_checkpoint.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("{}", fmt::join(shape, " x "));
}

json::object tensor_summary(const GgufFile& file) {
  struct Sum {
    std::uint64_t tensors = 0, bytes = 0, elements = 0;
  };
  std::map<std::string, Sum> by_type;
  std::uint64_t bytes = 0, elements = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    std::uint64_t n = 1;
    for (const std::int64_t extent : tensor.shape) n *= static_cast<std::uint64_t>(extent);
    Sum& sum = by_type[ggml_type_name(tensor.ggml_type)];
    ++sum.tensors;
    sum.bytes += tensor.data.size();
    sum.elements += n;
    bytes += tensor.data.size();
    elements += n;
  }
  json::object types;
  for (const auto& [name, sum] : by_type)
    types[name] = json::object{
        {"tensors", sum.tensors},
        {"bytes", sum.bytes},
        {"bits_per_weight",
         sum.elements ? std::round(80.0 * double(sum.bytes) / double(sum.elements)) / 10 : 0}};
  return {{"count", file.tensors().size()},
          {"bytes", bytes},
          {"weights", elements},
          {"types", std::move(types)}};
}

json::object tokenizer_summary(const GgufFile& file) {
  auto made = Tokenizer::from_gguf(file);
  if (!made) return {{"usable", false}, {"error", printable(made.error().message)}};
  const Tokenizer& tokenizer = **made;
  const auto spelled = [&](TokenId token) {
    return fmt::format("{} {}", token, printable(tokenizer.bytes(token, true)));
  };
  json::array ends;
  for (const TokenId token : tokenizer.end_of_generation()) ends.emplace_back(spelled(token));
  json::object out{
      {"usable", true},
      {"pre_tokenizer", printable(file.get_string("tokenizer.ggml.pre").value_or(""))},
      {"tokens", tokenizer.vocabulary_size()},
      {"merges",
       file.get_strings("tokenizer.ggml.merges").value_or(std::vector<std::string_view>{}).size()},
      {"adds_bos", tokenizer.add_bos()},
      {"ends_of_generation", std::move(ends)}};
  if (tokenizer.bos()) out["bos"] = spelled(*tokenizer.bos());
  return out;
}

json::object template_summary(const GgufFile& file) {
  const auto source = file.get_string("tokenizer.chat_template");
  if (!source) return {{"usable", false}, {"error", "the file has no tokenizer.chat_template"}};
  const auto unusable = [&](const Error& error) {
    return json::object{
        {"usable", false}, {"bytes", source->size()}, {"error", printable(error.message)}};
  };
  const auto made = ChatTemplate::parse(*source, "", "");
  if (!made) return unusable(made.error());
  const auto rendered = (*made)->render({{"user", "Hello"}}, true);
  if (!rendered) return unusable(rendered.error());
  return {{"usable", true}, {"bytes", source->size()}, {"example", printable(*rendered)}};
}

Result<json::object> inspect_model(const std::string& path, bool tensors) {
  auto opened = GgufFile::open(path);
  if (!opened) return opened.error();
  const GgufFile& file = **opened;
  json::object metadata;
  for (const std::string& key : file.keys())
    metadata[printable(key)] = printable(file.describe(key));
  json::object out{{"kind", "gguf"},
                   {"file_bytes", file.file_bytes()},
                   {"metadata", std::move(metadata)},
                   {"tensors", tensor_summary(file)},
                   {"tokenizer", tokenizer_summary(file)},
                   {"chat_template", template_summary(file)}};
  if (tensors) {
    json::object table;
    for (const GgufTensor& tensor : file.tensors())
      table[printable(tensor.name)] =
          fmt::format("{} [{}] {} bytes", ggml_type_name(tensor.ggml_type),
                      shape_text(tensor.shape), tensor.data.size());
    out["tensor_table"] = std::move(table);
  }
  return out;
}

Result<json::object> inspect_bundle(const std::string& path) {
  const auto read = read_bundle(path);
  if (!read) return read.error();
  const Bundle& bundle = *read;
  std::error_code error;
  json::object tensors;
  for (const auto& [name, tensor] : bundle.tensors) {
    json::object entry{{"type", tensor_type_name(tensor.type)},
                       {"shape", shape_text(tensor.shape)}};
    const auto values = tensor.f32_values();
    if (!values.empty()) {
      const auto [least, most] = std::minmax_element(values.begin(), values.end());
      entry["least"] = *least;
      entry["most"] = *most;
    }
    tensors[printable(name)] = std::move(entry);
  }
  return json::object{{"kind", "bundle"},
                      {"file_bytes", std::filesystem::file_size(path, error)},
                      {"speculator", printable(bundle.kind)},
                      {"version", bundle.version.value},
                      {"parent", bundle.parent.value},
                      {"model_fingerprint", to_hex(bundle.model_fingerprint)},
                      {"trained_requests", bundle.trained_requests},
                      {"trained_tokens", bundle.trained_tokens},
                      {"created_unix_ms", bundle.created_unix_ms},
                      {"loss", bundle.loss},
                      {"verdict", printable(bundle.verdict)},
                      {"signed_by", key_id(bundle.signer)},
                      {"tensors", std::move(tensors)}};
}

Result<json::object> inspect_trace(const std::string& path) {
  struct Domain {
    std::uint64_t requests = 0, generated = 0;
  };
  std::map<std::string, Domain> domains;
  std::map<std::string, std::uint64_t> models, refused;
  std::uint64_t requests = 0, prompt = 0, generated = 0, rounds = 0, drafting = 0, drafted = 0,
                accepted = 0, control = 0, gaps = 0, with_taps = 0;
  std::int64_t first_ms = 0, last_ms = 0;
  const auto stats = read_segments(path, 0, [&](std::uint64_t, Message message) {
    const auto parsed = parse_trace(message);
    if (!parsed) {
      const std::string& text = parsed.error().message;
      ++refused[printable(text.substr(0, text.find(':')))];
      return true;
    }
    const RequestTrace& trace = *parsed;
    ++requests;
    prompt += static_cast<std::uint64_t>(trace.n_prompt);
    generated += trace.generated.size();
    gaps += trace.gap;
    with_taps += !trace.tap_values.empty();
    ++models[to_hex(trace.model_fingerprint)];
    Domain& domain = domains[trace.domain.empty() ? "(none)" : printable(trace.domain)];
    ++domain.requests;
    domain.generated += trace.generated.size();
    first_ms = requests == 1 ? trace.unix_ms : std::min(first_ms, trace.unix_ms);
    last_ms = std::max(last_ms, trace.unix_ms);
    for (const RoundTrace& round : trace.rounds) {
      ++rounds;
      control += round.control;
      if (round.drafted.empty()) continue;
      ++drafting;
      drafted += round.drafted.size();
      accepted += static_cast<std::uint64_t>(round.accepted);
    }
    return true;
  });
  if (!stats) return stats.error();
  json::object by_domain;
  for (const auto& [name, domain] : domains)
    by_domain[name] =
        json::object{{"requests", domain.requests}, {"generated_tokens", domain.generated}};
  return json::object{
      {"kind", "trace"},
      {"records", stats->records},
      {"damaged_records", stats->skipped},
      {"torn_files", stats->torn_files},
      {"refused_messages", json::value_from(refused)},
      {"requests", requests},
      {"prompt_tokens", prompt},
      {"generated_tokens", generated},
      {"rounds", rounds},
      {"control_rounds", control},
      {"drafted_tokens", drafted},
      {"accepted_tokens", accepted},
      {"acceptance_length", drafting ? 1 + double(accepted) / double(drafting) : 0.0},
      {"requests_with_gaps", gaps},
      {"requests_with_features", with_taps},
      {"first_unix_ms", first_ms},
      {"last_unix_ms", last_ms},
      {"domains", std::move(by_domain)},
      {"models", json::value_from(models)}};
}

Result<json::object> inspect_eagle3(const std::string& path, bool tensors) {
  auto checkpoint = read_eagle3(path);
  if (!checkpoint) return checkpoint.error();
  auto parts = eagle3_parts(*checkpoint);
  if (!parts) return parts.error();
  const Eagle3Config& c = parts->config;
  std::uint64_t bytes = 0, elements = 0;
  json::object listed;
  for (const auto& [name, tensor] : checkpoint->tensors) {
    bytes += tensor.bytes.size();
    elements += tensor.bytes.size() / safetensor_element_bytes(tensor.type);
    listed[printable(name)] = json::object{{"type", safetensor_type_name(tensor.type)},
                                           {"shape", shape_text(tensor.shape)}};
  }
  json::object out{{"kind", "EAGLE-3 head"},
                   {"format", eagle3_format_name(c.format)},
                   {"hidden", c.hidden},
                   {"target_hidden", c.target_hidden},
                   {"intermediate", c.ffn},
                   {"heads", c.n_heads},
                   {"kv_heads", c.n_kv_heads},
                   {"head_dim", c.head_dim},
                   {"target_vocabulary", c.n_vocab},
                   {"draft_vocabulary", c.n_draft_vocab},
                   {"rope_theta", c.rope_theta},
                   {"rope_scaling", printable(c.rope_scaling)},
                   {"norm_before_residual", c.norm_before_residual},
                   {"norm_before_fc", c.norm_before_fc},
                   {"fc_norm", c.fc_norm},
                   {"norm_output", c.norm_output},
                   {"own_embedding", parts->embedding != nullptr},
                   {"layer_ids", c.layer_ids ? json::array(c.layer_ids->begin(), c.layer_ids->end())
                                             : json::array()},
                   {"tensors", checkpoint->tensors.size()},
                   {"parameters", elements},
                   {"bytes", bytes}};
  if (tensors) out["list"] = std::move(listed);
  return out;
}

Result<json::object> inspect(const std::string& path, bool tensors) {
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    return Error{ErrorCode::kNotFound, fmt::format("{}: no such file", path)};
  if (is_eagle3_folder(path)) return inspect_eagle3(path, tensors);
  if (std::filesystem::is_directory(path, error)) return inspect_trace(path);
  std::array<char, 8> magic{};
  std::ifstream file(path, std::ios::binary);
  file.read(magic.data(), magic.size());
  const std::string_view found(
      magic.data(), static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  if (found.starts_with("GGUF")) return inspect_model(path, tensors);
  if (found == "FTKBUNDL") return inspect_bundle(path);
  if (found == "FTKSEGMT") return inspect_trace(path);
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: begins with '{}'; a GGUF model (GGUF), a "
                                                     "weight bundle (FTKBUNDL) or a trace segment "
                                                     "(FTKSEGMT) wanted",
                                                     path, printable(found))};
}

void print_tree(const json::object& object, int depth) {
  for (const auto& [key, value] : object) {
    const std::string margin(static_cast<std::size_t>(2 * depth), ' ');
    if (const json::object* inner = value.if_object()) {
      fmt::print("{}{}\n", margin, std::string_view(key));
      print_tree(*inner, depth + 1);
    } else {
      const std::string text = value.is_string()   ? std::string(value.get_string())
                               : value.is_double() ? fmt::format("{}", value.get_double())
                                                   : json::serialize(value);
      fmt::print("{}{:<{}} {}\n", margin, std::string_view(key), std::max(1, 24 - 2 * depth), text);
    }
  }
}

int inspect_main(int argc, char** argv) {
  std::string path;
  bool as_json = false, tensors = false;
  Flags flags(argv[0],
              "Says what a GGUF model, a weight bundle, an EAGLE-3 head or a trace holds.");
  flags.app()
      .add_option("FILE", path,
                  "a model, a bundle, a folder with an EAGLE-3 head, a trace segment or a folder "
                  "of segments")
      ->required();
  flags.app().add_flag("--json", as_json, "print JSON");
  flags.app().add_flag("--tensors", tensors, "list every tensor of a model or head");
  if (const auto status = flags.parse(argc, argv)) return *status;
  const auto found = inspect(path, tensors);
  if (!found) return exit_status(argv[0], found.error());
  if (as_json)
    fmt::print("{}\n", json::serialize(*found));
  else
    print_tree(*found, 0);
  return 0;
}

const Subcommand kInspect{"inspect", "say what a model, a bundle, a head or a trace holds",
                          inspect_main, 45};

}  // namespace
}  // namespace foretoken
