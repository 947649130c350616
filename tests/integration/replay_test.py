"""foretoken replay against foretoken serve, both the built binary, with a real model over real sockets.

  replay_test.py FORETOKEN          skipped where the small model is missing, but in CI failed
"""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from foretoken_server import find_model

FORETOKEN = os.path.abspath(sys.argv[1])
MODEL = find_model()
TRAFFIC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "traffic", "quickstart.jsonl")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Replay(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.url, cls.server = cls.start_server()

    @classmethod
    def tearDownClass(cls):
        cls.server.send_signal(signal.SIGTERM)
        cls.server.wait(60)
        cls.folder.cleanup()

    @classmethod
    def start_server(cls, loading=False):
        """Returns when it is ready, or, with loading, as soon as it answers that it is not."""
        port = free_port()
        log = open(os.path.join(cls.folder.name, f"server-{port}.log"), "w+b")
        server = subprocess.Popen([FORETOKEN, "serve", "--model", MODEL, "--port", str(port), "--state-dir", os.path.join(cls.folder.name, "state"),
                                   "--max-num-seqs", "4"], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            if server.poll() is not None:
                break
            try:
                if urllib.request.urlopen(url + "/health", timeout=2).status == 200:
                    return url, server
            except urllib.error.HTTPError as e:
                if loading and e.code == 503:
                    return url, server
                time.sleep(0.25)
            except OSError:
                time.sleep(0.02 if loading else 0.25)
        server.kill()
        log.seek(0)
        raise RuntimeError("foretoken serve did not start:\n" + log.read().decode(errors="replace")[-2000:])

    def write_log(self, n, **changes):
        path = os.path.join(self.folder.name, "log.jsonl")
        with open(TRAFFIC, encoding="utf-8") as f, open(path, "w", encoding="utf-8") as out:
            lines = [json.loads(line) for line in f]
            short = [e for e in lines if len(json.dumps(e)) < 1200]
            for i, entry in enumerate(short[:n]):
                entry["timestamp"] = 300 * i
                entry["body"]["max_tokens"] = 24
                entry["body"] |= changes
                out.write(json.dumps(entry) + "\n")
        return path

    def start(self, *arguments):
        return subprocess.Popen([FORETOKEN, "replay", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)

    def replay(self, *arguments):
        output = os.path.join(self.folder.name, "result.json")
        process = self.start(*arguments, "--output", output)
        out, err = process.communicate(timeout=500)
        result = None
        if os.path.exists(output):
            with open(output, encoding="utf-8") as f:
                result = json.load(f)
            os.remove(output)
        return process.returncode, result, out + err

    def test_closed_loop_with_the_lossless_check(self):
        outputs = os.path.join(self.folder.name, "outputs.jsonl")
        code, result, text = self.replay(self.write_log(8), "--url", self.url, "--concurrency", "3", "--check", "4", "--save-outputs", outputs)
        self.assertEqual(code, 0, text)
        total = result["total"]
        self.assertEqual((total["sent"], total["completed"], total["failed"]), (8, 8, 0))
        self.assertGreater(total["completion_tokens"], 8)
        self.assertLessEqual(total["completion_tokens"], 8 * 24)
        self.assertLessEqual(total["ttft_ms"]["p50"], total["e2e_ms"]["p50"])
        self.assertEqual(sum(q["sent"] for q in result["quarters"]), 8)
        self.assertEqual({"data", "support"}, set(result["domains"]))
        self.assertEqual((result["lossless_check"]["requests"], result["lossless_check"]["mismatches"], result["lossless_check"]["failed"]), (4, 0, 0))
        with open(outputs, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        self.assertEqual(sorted(line["index"] for line in lines), list(range(8)))
        self.assertTrue(all(line["finish_reason"] in ("stop", "length") for line in lines))
        self.assertEqual(sum(line["completion_tokens"] for line in lines), total["completion_tokens"])

    def test_open_loop_sends_every_request_at_its_time(self):
        code, result, text = self.replay(self.write_log(6), "--url", self.url, "--mode", "open", "--rate", "20")
        self.assertEqual(code, 0, text)
        self.assertEqual((result["mode"], result["total"]["sent"], result["total"]["failed"]), ("open", 6, 0))

    def test_at_a_load_sends_at_a_share_of_what_the_warm_up_showed(self):
        code, result, text = self.replay(self.write_log(60, max_tokens=8), "--url", self.url, "--load", "0.5", "--concurrency", "2", "--limit-minutes", "0.5")
        self.assertEqual(code, 0, text)
        self.assertEqual(result["total"]["failed"], 0)
        self.assertGreaterEqual(result["total"]["sent"], 24 + 4)   # the warm-up, and some of every quarter
        self.assertAlmostEqual(result["rate_requests_per_s"], result["capacity_requests_per_s"] / 2)
        self.assertTrue(all(q["sent"] > 0 for q in result["quarters"]))
        self.assertIn("version", result["speculator"])

    def test_failures_are_counted_by_code(self):
        code, result, text = self.replay(self.write_log(3, max_tokens=100000), "--url", self.url)
        self.assertEqual(code, 1, text)
        self.assertEqual(result["total"]["failures_by_code"], {"400": 3})
        code, result, text = self.replay(self.write_log(2), "--url", f"http://127.0.0.1:{free_port()}")
        self.assertEqual(code, 1, text)
        self.assertEqual(result["total"]["failures_by_code"], {"no answer": 2})

    def test_waits_for_a_server_that_loads_its_model(self):
        url, server = self.start_server(loading=True)
        try:
            code, result, text = self.replay(self.write_log(4), "--url", url, "--concurrency", "2")
            self.assertEqual(code, 0, text)
            self.assertEqual((result["total"]["sent"], result["total"]["failed"]), (4, 0))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)

    def test_a_server_killed_in_the_middle_is_a_counted_failure(self):
        url, server = self.start_server()
        output = os.path.join(self.folder.name, "killed.json")
        process = self.start(self.write_log(6, max_tokens=400, ignore_eos=True), "--url", url, "--output", output)
        time.sleep(2)
        server.kill()
        server.wait()
        process.communicate(timeout=120)
        with open(output, encoding="utf-8") as f:
            total = json.load(f)["total"]
        self.assertEqual(total["sent"], 6)
        self.assertGreater(total["failed"], 0)

    def test_an_interrupt_ends_it_and_still_reports(self):
        output = os.path.join(self.folder.name, "interrupted.json")
        process = self.start(self.write_log(40, max_tokens=200, ignore_eos=True), "--url", self.url, "--output", output)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        self.assertEqual(process.returncode, 130)
        with open(output, encoding="utf-8") as f:
            result = json.load(f)
        self.assertTrue(result["interrupted"])
        self.assertLess(result["total"]["sent"], 40)

    def test_bad_input_is_a_clear_error(self):
        path = os.path.join(self.folder.name, "bad.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.write('{"body": {"messages": []}}\n{"body": 7}\n')
        for arguments, wanted in (([path, "--url", self.url], "line 2"), (["/nowhere.jsonl"], "cannot open"),
                                  ([path, "--url", "https://x"], "TLS"), ([self.write_log(1), "--url", "ftp://x"], "http://")):
            code, result, text = self.replay(*arguments)
            self.assertEqual(code, 1, text)
            self.assertIsNone(result)
            self.assertIn(wanted, text)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=2)
