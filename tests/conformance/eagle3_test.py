"""Published EAGLE-3 heads in a real process: written here by another hand than ours, inspected, taken into a bundle and
out of it byte for byte, converted for vLLM and SGLang, served, refused by name when a key is wrong, and without a token
of difference in what is emitted.
usage: eagle3_test.py FORETOKEN_BINARY"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

from foretoken_server import Server, find_model

BINARY = sys.argv.pop(1)
MODEL = find_model()
HIDDEN, VOCAB, DRAFT, FFN, HEADS, KV, DIM = 576, 49152, 512, 256, 4, 2, 64   # of a head for SmolLM2-135M


def write_safetensors(path, tensors):
    """As the format's specification says it; {name: (dtype, shape, bytes)}, in the order given, unpadded header."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:8 + n]), raw[8 + n:]
    return {name: (t["dtype"], tuple(t["shape"]), data[t["data_offsets"][0]:t["data_offsets"][1]])
            for name, t in header.items() if name != "__metadata__"}


def random_head(seed, prefix):
    random = np.random.default_rng(seed)

    def bf16(array):
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()

    def matrix(n_out, n_in):
        return "BF16", (n_out, n_in), bf16(random.normal(size=(n_out, n_in)) / n_in ** .5)

    def norm(n):
        return "BF16", (n,), bf16(1 + .1 * random.normal(size=n))

    ids = np.sort(random.choice(VOCAB, DRAFT, replace=False)).astype("<i8")
    mask = np.zeros(VOCAB, dtype=np.uint8)
    mask[ids] = 1
    return {
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN),
        prefix + "input_layernorm.weight": norm(HIDDEN), prefix + "hidden_norm.weight": norm(HIDDEN),
        prefix + "self_attn.q_proj.weight": matrix(HEADS * DIM, 2 * HIDDEN),
        prefix + "self_attn.k_proj.weight": matrix(KV * DIM, 2 * HIDDEN),
        prefix + "self_attn.v_proj.weight": matrix(KV * DIM, 2 * HIDDEN),
        prefix + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * DIM),
        prefix + "post_attention_layernorm.weight": norm(HIDDEN),
        prefix + "mlp.gate_proj.weight": matrix(FFN, HIDDEN), prefix + "mlp.up_proj.weight": matrix(FFN, HIDDEN),
        prefix + "mlp.down_proj.weight": matrix(HIDDEN, FFN),
        "norm.weight": norm(HIDDEN), "lm_head.weight": matrix(DRAFT, HIDDEN),
        "d2t": ("I64", (DRAFT,), (ids - np.arange(DRAFT)).astype("<i8").tobytes()),
        "t2d": ("BOOL", (VOCAB,), mask.tobytes())}


LAYER = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS,
         "num_key_value_heads": KV, "head_dim": DIM, "num_hidden_layers": 1, "hidden_act": "silu", "vocab_size": VOCAB,
         "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 2048}
EAGLE3 = {"architectures": ["LlamaForCausalLMEagle3"], **LAYER, "draft_vocab_size": DRAFT, "tie_word_embeddings": False,
          "torch_dtype": "bfloat16"}
SPECULATORS = {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "draft_vocab_size": DRAFT,
               "norm_before_residual": True, "target_hidden_size": None, "eagle_aux_hidden_state_layer_ids": [2, 15, 27],
               "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy",
                                      "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
                                      "verifier": {"name_or_path": "x/y", "architectures": ["LlamaForCausalLM"]}},
               "transformer_layer_config": LAYER, "tie_word_embeddings": False}


class Eagle3(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="foretoken-eagle3-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, config, tensors):
        os.makedirs(self.path(name), exist_ok=True)
        with open(os.path.join(self.path(name), "config.json"), "w") as f:
            json.dump(config, f, indent=2)
        write_safetensors(os.path.join(self.path(name), "model.safetensors"), tensors)
        return self.path(name)

    def foretoken(self, *arguments, status=0):
        done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stdout if status == 0 else done.stderr

    def export(self, source, *flags):
        out = self.path("out" + str(len(os.listdir(self.folder))))
        self.foretoken("head", "export", source, "--output", out, *flags)
        with open(os.path.join(out, "config.json")) as f:
            text = f.read()
        return text, read_safetensors(os.path.join(out, "model.safetensors"))

    def test_a_bundle_gives_back_every_bit_and_the_other_format_its_tensors(self):
        for config, prefix, other, other_prefix in ((EAGLE3, "midlayer.", "speculators", "layers.0."),
                                                    (SPECULATORS, "layers.0.", "eagle3", "midlayer.")):
            with self.subTest(prefix):
                tensors = random_head(1, prefix)
                head = self.write("head-" + prefix, config, tensors)
                seen = json.loads(self.foretoken("inspect", head, "--json"))
                self.assertEqual(seen["kind"], "EAGLE-3 head")
                self.assertEqual((seen["hidden"], seen["draft_vocabulary"], seen["tensors"]), (HIDDEN, DRAFT, len(tensors)))
                bundle = self.path(prefix + "bundle")
                self.foretoken("head", "import", head, "--model", MODEL, "--output", bundle, "--keys", self.path("keys"))
                self.assertEqual(json.loads(self.foretoken("inspect", bundle, "--json"))["speculator"], "eagle3")
                with open(os.path.join(head, "config.json")) as f:
                    self.assertEqual(self.export(bundle), (f.read(), tensors))
                text, there = self.export(bundle, "--format", other, "--model", MODEL, "--verifier", "org/target")
                self.assertEqual({name.replace(other_prefix, prefix): t for name, t in there.items()}, tensors)
                made = json.loads(text)
                self.assertEqual(made["draft_vocab_size"], DRAFT)
                self.assertEqual(made["eagle_aux_hidden_state_layer_ids"], [2, 15, 27])
                self.assertEqual(made["norm_before_residual"], config.get("norm_before_residual", False))
                layer = made["transformer_layer_config"] if other == "speculators" else made
                for key, value in LAYER.items():
                    self.assertEqual(layer[key], value, key)
                if other == "speculators":   # what vLLM asks of such a file
                    self.assertEqual(made["speculators_config"]["proposal_methods"][0]["proposal_type"], "greedy")
                    self.assertEqual(made["speculators_config"]["verifier"],
                                     {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]})
                else:
                    self.assertEqual(made["architectures"], ["LlamaForCausalLMEagle3"])

    def test_what_does_not_fit_is_refused_by_name(self):
        tensors = random_head(2, "midlayer.")

        def refused(config, tensors):
            head = self.write("bad", config, tensors)
            return self.foretoken("inspect", head, status=1)

        self.assertIn("missing: eagle3: norm.weight", refused(EAGLE3, {k: v for k, v in tensors.items() if k != "norm.weight"}))
        self.assertIn("extra: eagle3: midlayer.more", refused(EAGLE3, {**tensors, "midlayer.more": tensors["norm.weight"]}))
        self.assertIn("dtype: eagle3: d2t", refused(EAGLE3, {**tensors, "d2t": ("I32", (DRAFT,), bytes(4 * DRAFT))}))
        self.assertIn("shape: eagle3: lm_head.weight", refused({**EAGLE3, "draft_vocab_size": DRAFT - 1}, tensors))
        self.assertIn("attention_bias", refused({**EAGLE3, "attention_bias": True}, tensors))
        another = self.write("another", {**EAGLE3, "vocab_size": VOCAB + 1}, {**tensors, "t2d": ("BOOL", (VOCAB + 1,), tensors["t2d"][2] + b"\0")})
        self.assertIn("it is of a target of 49153 tokens",
                      self.foretoken("serve", "--model", MODEL, "--spec-head", another, "--check", status=2))

    def test_it_serves_from_the_first_request_and_changes_no_token(self):
        head = self.write("head", SPECULATORS, random_head(3, "layers.0."))
        flags = ["--max-model-len", "512", "--plain-fraction", "0"]
        prompts = ["One, two, three, four, five, six,", "The capital of France is"]

        def answers(server):
            out = []
            for temperature in (0, .8):
                for prompt in prompts:
                    status, answer, _ = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 48, "seed": 5,
                                                                        "temperature": temperature})
                    self.assertEqual(status, 200, answer)
                    out.append(answer["choices"][0]["text"])
            return out

        with Server(BINARY, *flags, "--spec-type", "none") as server:
            wanted = answers(server)
        state = self.path("state")
        flags += ["--spec-head", head, "--spec-type", "head", "--spec-draft-n-fixed", "3"]
        for start in range(2):
            with Server(BINARY, *flags, "--trace-dir", self.path("traces"), state_dir=state) as server:
                self.assertEqual(answers(server), wanted)
                speculator = json.loads(server.get("/v1/speculator")[1])
                self.assertEqual(speculator["version"], 1)
                self.assertEqual([(e["event"], e["kind"], e["reason"]) for e in speculator["lineage"]], [("given", "eagle3", head)])
                self.assertEqual([t["tier"] for t in speculator["tiers"]], ["fusion", "head"])
                server.eventually(lambda s: s["acceptance"]["by_version"].get("1", {}).get("drafted", 0) > 100, "its drafts")
                self.assertIn("tokens of the probe right", server.output())
        seen = json.loads(self.foretoken("inspect", self.path("traces"), "--json"))
        self.assertGreater(seen["requests_with_features"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
