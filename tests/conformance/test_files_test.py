"""Tests name the files they use: whatever else lies in the models' folder is not taken up, another content is refused, and what
is missing skips a test, but in CI fails it."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL, QWEN = "smollm2-135m-instruct-q4_1.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


class TestFiles(unittest.TestCase):
    def ask(self, call, files, ci=False):
        """Status and output of a call into foretoken_server with these files, name -> content, in the models' folder."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                with open(os.path.join(folder, name), "wb") as f:
                    f.write(content)
            environment = {**os.environ, "FORETOKEN_TEST_MODELS": folder}
            environment.pop("CI", None)
            if ci:
                environment["CI"] = "true"
            ran = subprocess.run([sys.executable, "-c", f"import foretoken_server as s; print({call})"], cwd=HERE, env=environment,
                                 capture_output=True, text=True)
            return ran.returncode, ran.stdout + ran.stderr

    def test_a_missing_model_skips_and_fails_in_ci(self):
        for call in ("s.find_model()", "s.models_of_each_family()"):
            self.assertEqual(self.ask(call, {})[0], 77)
            status, output = self.ask(call, {}, ci=True)
            self.assertEqual(status, 1)
            self.assertIn(SMALL, output)

    def test_a_file_of_another_content_is_refused_by_name(self):
        for name in (SMALL, QWEN):
            status, output = self.ask(f"s.model_file({name!r})", {name: b"GGUF"})
            self.assertEqual(status, 1)
            self.assertIn(name, output)
            self.assertIn("sha256", output)

    def test_what_is_not_listed_is_not_taken_up(self):
        status, output = self.ask("s.models_of_each_family()", {"gemma-3-270m.gguf": b"GGUF"})
        self.assertEqual(status, 77)
        self.assertNotIn("gemma", output)


if __name__ == "__main__":
    unittest.main()
