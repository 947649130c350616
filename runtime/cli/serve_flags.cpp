#include "runtime/cli/serve_flags.h"

#include <fmt/format.h>

#include "foretoken/protocol/state_folder.h"

namespace foretoken {

void ServeFlags::add_to(Flags& flags) {
  EngineOptions& engine = server.engine;
  HttpServerOptions& http = server.http;
  server.state_dir = default_state_root().string();
  flags.option("model", server.model, "the target model, a GGUF file");
  flags.option("served-model-name", server.served_model_names,
               "names clients may ask for; default: the file's name");
  flags.option("host", http.host, "address to listen on");
  flags.number("port", http.port, 0, 65535, "port to listen on, 0: any");
  flags.option("api-key-file", server.api_key_file,
               "keys clients must send, one a line, # comments");
  flags.number("max-model-len", engine.max_model_len, 0, 1 << 24,
               "tokens of prompt and answer together, 0: the model's, at most 8192");
  flags.number("max-num-seqs", engine.max_num_seqs, 1, 256, "requests in the batch");
  flags.number("max-batch-rows", engine.max_batch_rows, 16, 8192,
               "rows of one round: prefill chunks and drafts");
  flags.number("max-queue", engine.max_queue, 1, 1 << 20,
               "requests waiting; more are refused with 429");
  Flags::Choices<KvMode> kv_dtypes;
  for (const KvMode mode : kv_modes()) kv_dtypes.emplace_back(kv_mode_name(mode), mode);
  flags.choice("kv-cache-dtype", engine.kv_cache_dtype, kv_dtypes, "");
  flags.choice("draft-kv-cache-dtype", engine.draft_kv_cache_dtype, kv_dtypes,
               "of the draft model");
  flags.bytes("kv-cache-memory", engine.kv_cache_memory,
              "bytes of the KV pool (64M, 2G), 0: enough for max-num-seqs");
  flags.toggle("prefix-cache", engine.prefix_cache,
               "keep the KV pages of finished requests for those that begin alike");
  flags.bytes("prefix-tail-memory", engine.prefix_tail_memory,
              "of the KV pool, at most so many bytes of 16-bit pages kept to resume from, 0: half");
  flags.option("kv-sink", engine.kv_sink, "first tokens kept in 16 bits, a multiple of 64");
  flags.option("kv-window", engine.kv_window,
               "last tokens kept in 16 bits, a multiple of 64, at least 64");
  Flags::Choices<SpecType> spec_types;
  for (const SpecType& type : all_spec_types()) spec_types.emplace_back(type.name, type);
  flags.choice("spec-type", engine.spec_type, std::move(spec_types), spec_type_help());
  flags.option("spec-draft-model", server.spec_draft_model,
               "a GGUF file with the same tokenizer, for model and auto");
  flags.option("spec-head", server.spec_head,
               "a trained head to draft with from the first request: a folder with a published "
               "EAGLE-3 head (config.json, model.safetensors), or a weight bundle");
  flags.number("spec-draft-n-max", engine.spec_draft_n_max, 0, kMaxDraft, "longest draft");
  flags.number("spec-draft-n-fixed", engine.spec_draft_n_fixed, -1, kMaxDraft,
               "this draft length always, -1: by measured cost");
  flags.number(
      "spec-draft-vocab", engine.spec_draft_vocab, 0, 1 << 20,
      "tokens a draft model chooses among, the most frequent and those seen lately; 0: all");
  flags.choice<SpecSampling>(
      "spec-sampling", engine.spec_sampling,
      {{"invariant", SpecSampling::kInvariant}, {"rejection", SpecSampling::kRejection}},
      "the same tokens as without speculation, or the same distribution");
  flags.number("control-fraction", engine.control_fraction, 0.0, 0.5,
               "share of rounds run without speculation, to measure the speedup");
  flags.number("plain-fraction", engine.plain_fraction, 0.0, 0.5,
               "share of time served without speculation, capture and trainer, to measure the net "
               "speedup");
  flags.number("canary-fraction", server.canary_fraction, 0.01, 1.0,
               "share of requests that a new speculator version drafts for until it is proven");
  flags.toggle("share-across-keys", engine.share_across_keys,
               "API keys share one traffic store and one prefix cache");
  flags.number("threads", engine.threads, 0, 1024, "kernel threads, 0: all cores");
  flags.choice("device", device, {"cpu"}, "");
  flags.option("state-dir", server.state_dir,
               "where calibration and speculator versions are kept, by model");
  flags.toggle("calibration", server.calibration,
               "calibrate the INT2 cache for this model at first start");
  flags.option("calibration-text", server.calibration_text,
               "a text file to calibrate on instead of the bundled one");
  flags.option("kv-calibration", server.kv_calibration,
               "a file that foretoken calibrate made for this model, instead of the one kept");
  flags.option("draft-kv-calibration", server.draft_kv_calibration, "likewise, of the draft model");
  flags.option("traces-endpoint", server.traces_endpoint,
               "where traces go to a trainer: tcp://127.0.0.1:5555 or ipc:///path");
  flags.option("weights-endpoint", server.weights_endpoint,
               "where a trainer's weights come from, likewise");
  flags.option("keys", server.keys,
               "folder of keys (see foretoken keys): whose weights are served, and which trainer "
               "may connect; default: keys in the state directory, made when needed");
  flags.option("trace-dir", server.trace_dir, "also write traces to segments here");
  flags.bytes("trace-dir-max-bytes", server.trace_dir_max_bytes, "of which the oldest are deleted",
              std::size_t{1} << 20);
  flags.number(
      "retention-hours", server.retention_hours, 0.0, 1e6,
      "stored traces (of a trainer that `up` starts, too) and traffic stores that were not "
      "written to for so long are deleted; 0: kept until there is no room");
  flags.number("shutdown-timeout", shutdown_timeout_s, 0.0, 86400.0,
               "seconds SIGTERM waits for requests in flight");
  flags.number("health-stall-timeout", server.health_stall_timeout_s, 1.0, 3600.0,
               "seconds without an engine round until /health says 503");
  flags.number("http-threads", http.io_threads, 1, 64, "I/O threads");
  flags.number("max-connections", http.max_connections, 1, 1 << 20, "open connections");
  flags.bytes("max-body-bytes", http.max_body_bytes, "largest request body", 1 << 10, 1 << 30);
  flags.number("header-timeout", http.header_timeout_s, 0.1, 3600.0,
               "seconds for a request's headers");
  flags.number("body-timeout", http.body_timeout_s, 0.1, 3600.0, "seconds for a request's body");
  flags.number("idle-timeout", http.idle_timeout_s, 0.1, 86400.0, "seconds a connection may idle");
  flags.number("sse-ping-interval", http.ping_interval_s, 0.1, 3600.0,
               "seconds of silence on a stream until a comment is sent");
  flags.option("cors-origins", http.cors_origins,
               "origins browsers may call from; none: no CORS headers");
  flags.choice("log-level", log_level, {"trace", "debug", "info", "warn", "error"}, "");
  flags.app()
      .add_flag("--check", check, "read the model's metadata, say what would run, and exit")
      ->configurable(false);
}

}  // namespace foretoken
