"""What tidy_test.py lets pass, and why. Keys are patterns (fnmatch) of what a check complains about: a path, a path and a
function, two paths. One that nothing needs any more is a complaint."""

LONG_LINES = {
    "tests/conformance/templates.py": "published chat templates, as they are",
    "examples/quickstart_report.py": "the sentences of the report",
    "tests/unit/*/*_test.cpp": "request bodies and logs, as a client sends them",
}

LONG_FUNCTIONS = {
    "kernels/cpu/attention.cpp attention": "the plan of a call: units, their scratch, their tasks",
    "kernels/cpu/attention_impl.h segment": "one pass over a segment, whose state lives in registers from its first line to its last",
    "protocol/trace.cpp serialize": "a list: one statement a field of the message",
    "runtime/cli/evaluate.cpp evaluate": "the report, part by part in the order in which it is printed",
    "runtime/cli/serve_flags.cpp ServeFlags::add_to": "a list: one statement a flag",
    "runtime/evaluate/quality.cpp measure_kv_quality": "one walk over windows with a dozen running sums",
    "runtime/evaluate/quality_plot.cpp quality_svg": "a drawing, from top to bottom",
    "runtime/evaluate/tap_check.cpp check_taps": "one probe: its text, its prefill, its three readings and their comparison",
    "runtime/observe/metrics.cpp engine_families": "a list: one statement a metric",
    "runtime/text/jinja/builtins.cpp filters": "a table: one entry a filter",
    "trainer/offline/offline.cpp train_offline": "one recording from beginning to end",
}

# Two places that are alike and are better apart.
DUPLICATES = {
    "kernels/cpu/types/bf16.h kernels/cpu/types/f16.h": "a weight type is a file of its own (docs/ADDING.md)",
    "runtime/files/gguf.cpp runtime/files/safetensors.cpp": "open(path) and parse(bytes) of two formats",
}

# Sources without a test of their name and whose header no test includes: what tests them instead.
TESTED_THROUGH = {
    "kernels/cpu/activations.cpp": "tests/unit/kernels/linear_test.cpp: the activations of every product",
    "kernels/cpu/isa/seal.cpp": "tests/unit/kv/page_test.cpp",
    "kernels/cpu/top_k.cpp": "tests/unit/kernels/sampling_test.cpp",
    "protocol/bundle_files.cpp": "tests/unit/versions/version_keeper_test.cpp, tests/unit/trainer/gate_test.cpp: bundles kept on disk",
    "protocol/clock.cpp": "the system's clock, behind an interface that tests replace",
    "protocol/frame.cpp": "tests/unit/protocol/wire_test.cpp",
    "protocol/state_folder.cpp": "tests/integration/crash_test.py: the folder of a model",
    "protocol/transport_zmq.cpp": "tests/unit/protocol/transport_test.cpp: through transport.h",
    "runtime/cli/*.cpp": "commands are run as processes: tests/integration/replay_test.py, tests/integration/kv_commands_test.py, "
                         "tests/conformance/up_test.py, tests/conformance/kept_data_test.py, tests/packaging/install_test.py",
    "runtime/engine/*.cpp": "the verbs of one class, private to it: tests/unit/engine/engine_test.cpp",
    "runtime/evaluate/benchmark.cpp": "figures of a machine; what it drives is the engine's",
    "runtime/evaluate/quality_plot.cpp": "tests/unit/evaluate/quality_test.cpp",
    "runtime/files/*.cpp": "tests/unit/files/gguf_test.cpp",
    "runtime/json/boost_json.cpp": "nothing of ours is in it",
    "runtime/kv/calibrat*.cpp": "tests/unit/kv/calibration_test.cpp",
    "runtime/kv/dense_*.cpp": "tests/unit/kv/calibration_test.cpp: the calibrator's products and eigenvectors",
    "runtime/kv/page_hash.cpp": "tests/unit/kv/prefix_test.cpp: what is found again",
    "runtime/kv/page_table.cpp": "tests/unit/kv/cache_test.cpp",
    "runtime/kv/prefix_index.cpp": "tests/unit/kv/prefix_test.cpp",
    "runtime/model/arch/*.cpp": "tests/unit/model/golden_test.cpp: the logits of each",
    "runtime/model/blocks/*.cpp": "tests/unit/model/golden_test.cpp",
    "runtime/model/config_reader.cpp": "tests/unit/model/config_test.cpp",
    "runtime/model/fingerprint.cpp": "tests/integration/refusal_test.py: what is of another model is refused",
    "runtime/model/layer_spec.cpp": "tests/unit/model/config_test.cpp",
    "runtime/model/rope_scaling.cpp": "tests/unit/model/golden_test.cpp",
    "runtime/model/tensor_loader.cpp": "tests/unit/model/config_test.cpp",
    "runtime/observe/*.cpp": "the figures as they are served: tests/unit/serve/http_test.cpp, tests/conformance/openai_client_test.py",
    "runtime/replay/*.cpp": "tests/integration/replay_test.py",
    "runtime/serve/*.cpp": "over real sockets: tests/unit/serve/http_test.cpp",
    "runtime/server/*.cpp": "tests/unit/server/server_test.cpp, tests/conformance/eagle3_test.py",
    "runtime/speculate/head/draft_head.cpp": "tests/unit/speculate/head/recurrent_head_test.cpp",
    "runtime/speculate/*.cpp": "what is private to the speculators: tests/unit/engine/engine_test.cpp, "
                               "tests/unit/evaluate/offline_live_test.cpp",
    "runtime/text/jinja/*.cpp": "tests/unit/text/chat_template_test.cpp, tests/conformance/template_oracle.py",
    "runtime/text/*.cpp": "tests/unit/text/tokenizer_test.cpp",
    "runtime/trace/*.cpp": "tests/unit/trace/server_link_test.cpp",
    "runtime/versions/*.cpp": "tests/unit/versions/version_keeper_test.cpp",
    "trainer/buffer/*.cpp": "tests/unit/trainer/simulation_test.cpp, tests/simulation/world.cpp",
    "trainer/examples/*.cpp": "tests/unit/trainer/head_learner_test.cpp",
    "trainer/head/*.cpp": "tests/unit/trainer/head_learner_test.cpp, tests/unit/trainer/fusion_learner_test.cpp",
    "trainer/learner/*.cpp": "tests/unit/trainer/head_learner_test.cpp: a learner's state goes out and comes back",
    "trainer/main.cpp": "tests/unit/trainer/process_test.cpp",
    "trainer/objective/*.cpp": "tests/unit/trainer/fusion_learner_test.cpp: every row of the table",
    "trainer/offline/offline.cpp": "tests/unit/trainer/process_test.cpp",
    "trainer/publish/*.cpp": "tests/unit/trainer/gate_test.cpp, tests/unit/trainer/simulation_test.cpp",
    "trainer/session/training_session.cpp": "tests/unit/trainer/simulation_test.cpp",
}

UNFORMATTED = {}
