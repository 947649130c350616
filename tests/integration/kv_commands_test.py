"""foretoken calibrate and foretoken evaluate --quality, the built binary, with a real model.

  kv_commands_test.py FORETOKEN     skipped where the small model is missing, but in CI failed
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

from foretoken_server import find_model

FORETOKEN = os.path.abspath(sys.argv[1])
MODEL = find_model()
HERE = os.path.dirname(os.path.abspath(__file__))
PROSE = os.path.join(HERE, "..", "corpus", "prose.txt")
CODE = os.path.join(HERE, "..", "corpus", "code.txt")


class KvCommands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = os.path.join(cls.folder.name, "own.calibration")
        cls.calibrated = cls.run_command("calibrate", MODEL, "--text", PROSE, "--text", CODE, "-o", cls.file, "--max-tokens", "1024")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def run_command(cls, *arguments):
        environment = {**os.environ, "FORETOKEN_STATE_DIR": os.path.join(cls.folder.name, "state")}
        return subprocess.run([FORETOKEN, *arguments], capture_output=True, text=True, env=environment, timeout=600)

    def test_calibrate_writes_a_file_and_shows_progress(self):
        self.assertEqual(self.calibrated.returncode, 0, self.calibrated.stderr)
        self.assertIn("--kv-calibration " + self.file, self.calibrated.stdout)
        self.assertIn("KV calibration 100 %", self.calibrated.stderr)
        self.assertGreater(os.path.getsize(self.file), 100_000)

    def test_what_cannot_be_calibrated_is_said_before_the_work(self):
        for arguments, wanted in (
            ((MODEL, "-o", "/no/such/folder/x"), "/no/such/folder"),
            ((MODEL, "--text", "/no/such/text", "-o", self.file + ".x"), "/no/such/text"),
            ((PROSE, "-o", self.file + ".x"), PROSE),
        ):
            with self.subTest(wanted):
                ran = self.run_command("calibrate", *arguments)
                self.assertEqual(ran.returncode, 1)
                self.assertIn(wanted, ran.stderr)
                self.assertFalse(os.path.exists(self.file + ".x"))

    def test_serve_refuses_another_model_s_file_by_name(self):
        with open(self.file, "rb") as f:
            content = bytearray(f.read())
        content[8] ^= 1  # of the fingerprint
        other = os.path.join(self.folder.name, "other.calibration")
        with open(other, "wb") as f:
            f.write(content)
        ran = self.run_command("serve", "--model", MODEL, "--port", "0", "--kv-calibration", other)
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn(other, ran.stderr + ran.stdout)
        self.assertRegex(ran.stderr + ran.stdout, r"made for another model: fingerprint [0-9a-f]{16}, wanted [0-9a-f]{16}; wanted one .* made for (?i:smollm2)")

    def test_quality_is_a_table_json_and_a_plot(self):
        out, plot = os.path.join(self.folder.name, "q.json"), os.path.join(self.folder.name, "q.svg")
        ran = self.run_command("evaluate", "--quality", MODEL, "--text", PROSE, "--text", CODE, "--context", "1024", "--modes", "int2,naive",
                               "--kv-calibration", self.file, "--needles", "1024", "--needle-questions", "12", "--json", out, "--plot", plot)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("12", ran.stdout)
        with open(out) as f:
            report = json.load(f)
        self.assertEqual(report["schema"], "foretoken.kv_quality/1")
        bf16, int2, naive = report["modes"]
        self.assertEqual([m["mode"] for m in report["modes"]], ["bf16", "int2", "naive"])
        self.assertEqual(bf16["kl"]["value"], 0)
        self.assertGreater(int2["kl"]["value"], 1e-4)
        self.assertGreater(naive["kl"]["value"], 5 * int2["kl"]["value"])
        self.assertEqual([w["text"] for w in int2["windows"]], [PROSE, CODE])
        self.assertLess(int2["bytes_per_token"]["sealed"], 0.2 * bf16["bytes_per_token"]["sealed"])
        self.assertLess(int2["bytes_per_token"]["allocated"], bf16["bytes_per_token"]["allocated"])
        for mode in report["modes"]:
            self.assertEqual([n["asked"] for n in mode["needles"]], [12])
            self.assertGreater(mode["tokens_per_s"]["decode"], 0)
        root = xml.etree.ElementTree.parse(plot).getroot()
        texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
        for mode in ("bf16", "int2", "naive"):
            self.assertIn(mode, texts)

    def test_a_text_too_short_is_refused_by_name(self):
        ran = self.run_command("evaluate", "--quality", MODEL, "--text", PROSE, "--context", "8192")
        self.assertEqual(ran.returncode, 1)
        self.assertRegex(ran.stderr, r"prose.txt: \d+ tokens, wanted at least 8192")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
