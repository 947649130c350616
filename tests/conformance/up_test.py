"""`foretoken up`: a real server and a real trainer together. The trainer may be killed; serving goes on and it
comes back; SIGTERM, Ctrl-C and even SIGKILL of the parent leave no process behind.
usage: up_test.py FORETOKEN_BINARY"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from foretoken_server import Server

BINARY = sys.argv.pop(1)


def children(pid):
    """Processes whose parent is pid."""
    out = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                out.append(int(entry))
    return out


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s")


class Up(unittest.TestCase):
    def serve(self, state_dir):
        return Server(BINARY, "--max-model-len", "1024", command="up", state_dir=state_dir)

    def test_trainer_dies_and_comes_back(self):
        with tempfile.TemporaryDirectory(prefix="foretoken-up-") as state_dir:
            with self.serve(state_dir) as server:
                trainer = eventually(lambda: children(server.process.pid), "a trainer runs")[0]
                server.eventually(lambda s: s["trainer"]["connected"], "the trainer is connected")
                status, _, _ = server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 16})
                self.assertEqual(status, 200)
                server.eventually(lambda s: s["traces"]["sent"] >= 1, "its trace was sent")
                os.kill(trainer, signal.SIGKILL)
                status, _, _ = server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 16})
                self.assertEqual(status, 200)
                again = eventually(lambda: [p for p in children(server.process.pid) if p != trainer], "it was started again")[0]
                self.assertNotEqual(again, trainer)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(60), 0)
                eventually(lambda: not alive(again), "the trainer is gone")
            # Nothing but state is left: no sockets, no folder for them.
            self.assertEqual([f for f in os.listdir(state_dir) if f.startswith("up-")], [])

    def test_goes_on_with_what_was_learned_from_a_recording(self):
        with tempfile.TemporaryDirectory(prefix="foretoken-up-") as folder:
            traces, state = os.path.join(folder, "traces"), os.path.join(folder, "state")
            with Server(BINARY, "--max-model-len", "512", "--trace-dir", traces) as server:
                for i in range(20):
                    status, _, _ = server.post("/v1/completions", {"prompt": f"List {i}: one, two, three,", "max_tokens": 48})
                    self.assertEqual(status, 200)
            # Every candidate is promoted: what is learned of so few would not be.
            train = [BINARY, "train", "--from-traces", traces, "--gate", "--output", state, "--gate-requests", "2", "--gate-least-gain",
                     "-2", "--first-candidate-requests", "2", "--json", os.path.join(folder, "life.json")]
            done = subprocess.run(train, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
            with open(os.path.join(folder, "life.json"), encoding="utf-8") as f:
                self.assertGreaterEqual(json.load(f)["promotions"], 1)
            with self.serve(state) as server:
                server.eventually(lambda s: s["trainer"]["connected"], "the trainer is connected")
                received = eventually(lambda: [e for e in json.loads(server.get("/v1/speculator")[1])["lineage"] if e["event"] == "received"],
                                      "the server has what was learned")
                self.assertGreaterEqual(received[0]["version"], 1)
                self.assertEqual(json.loads(server.get("/v1/speculator")[1])["refused"], 0)
            again = subprocess.run(train, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            self.assertEqual(again.returncode, 1)
            self.assertIn("begins from an empty state", again.stderr + again.stdout)

    def test_nothing_survives_a_killed_parent(self):
        with tempfile.TemporaryDirectory(prefix="foretoken-up-") as state_dir:
            with self.serve(state_dir) as server:
                trainer = eventually(lambda: children(server.process.pid), "a trainer runs")[0]
                server.process.kill()
                server.process.wait(10)
                eventually(lambda: not alive(trainer), "the trainer is gone")


if __name__ == "__main__":
    unittest.main(verbosity=2)
