"""Bundles that must not serve, sent over real sockets to a real server: each is refused, named in /stats, and serving goes on
as before.  refusal_test.py FORETOKEN SEND_BUNDLE"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from foretoken_server import Server, find_model
from processes import eventually, free_ports

find_model()  # skipped where it is missing, but in CI failed
FORETOKEN, SEND_BUNDLE = map(os.path.abspath, sys.argv[1:3])
del sys.argv[1:3]

# What is sent: the reason it is counted under.
REFUSED = {"flipped": "checksum", "nan": "non-finite", "shape": "shape", "foreign": "fingerprint", "untrusted": "signature",
           "unsigned": "signature", "kind": "kind", "truncated": "truncated", "garbage": "magic"}


class Peer:
    def __init__(self, keys, weights, fingerprint):
        self.process = subprocess.Popen([SEND_BUNDLE, "--keys", keys, "--weights", weights, "--fingerprint", fingerprint],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, kind, version):
        self.process.stdin.write(f"{kind} {version}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


class Refusal(unittest.TestCase):
    def test_what_must_not_serve_does_not(self):
        with tempfile.TemporaryDirectory(prefix="foretoken-refusal-") as folder:
            traces, weights = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
            with Server(FORETOKEN, "--max-model-len", "512", "--traces-endpoint", traces, "--weights-endpoint", weights,
                        state_dir=folder) as server:
                self.check(server, os.path.join(folder, "keys"), weights, folder)

    def check(self, server, keys, weights, folder):
        def answer():
            status, body, _ = server.post("/v1/completions", {"prompt": "Count: 1, 2, 3,", "max_tokens": 24, "temperature": 0})
            self.assertEqual(status, 200)
            return body["choices"][0]["text"]

        text = answer()
        fingerprint = server.stats()["model"]["fingerprint"]
        peer = Peer(keys, weights, fingerprint)
        self.addCleanup(peer.close)
        def taken():
            """What serves, is on trial and waits for its trial."""
            found = json.loads(server.get("/v1/speculator")[1])
            return found["version"], (found["canary"] or {}).get("version"), found["waiting"]

        self.assertEqual(peer.send("good", 3), "sent")
        eventually(lambda: taken() == (0, 3, None), "a good version goes on trial", 30)
        self.assertEqual(server.stats()["bundles"]["rejected"], {})

        version = 4
        for kind, reason in REFUSED.items():
            before = server.stats()["bundles"]["rejected"].get(reason, 0)
            self.assertEqual(peer.send(kind, version), "sent", kind)
            server.eventually(lambda s: s["bundles"]["rejected"].get(reason, 0) == before + 1, f"{kind} is refused as {reason}")
            self.assertEqual(taken(), (0, 3, None), kind)
            self.assertEqual(answer(), text, kind)
            version += 1
        # An old version again, and the very one that serves (no offence).
        self.assertEqual(peer.send("good", 2), "sent")
        server.eventually(lambda s: s["bundles"]["rejected"].get("version", 0) == 1, "an old version is refused")
        received = server.stats()["bundles"]["received"]
        self.assertEqual(peer.send("good", 3), "sent")
        server.eventually(lambda s: s["bundles"]["received"] == received + 1, "it arrived")
        stats = server.stats()
        self.assertEqual(stats["bundles"]["rejected"]["version"], 1)
        self.assertEqual(taken(), (0, 3, None))
        self.assertEqual(answer(), text)
        # What was refused has spoiled nothing.
        self.assertEqual(peer.send("good", 100), "sent")
        eventually(lambda: taken() == (0, 3, 100), "the next good version waits for its trial", 30)
        self.assertEqual(answer(), text)  # law 1

        # Somebody with keys of his own does not even get in.
        strange = os.path.join(folder, "strange")
        subprocess.run([FORETOKEN, "keys", "make", strange, "--role", "trainer"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([FORETOKEN, "keys", "trust", strange, os.path.join(keys, "server.pub")], check=True,
                       stdout=subprocess.DEVNULL)
        self.assertEqual(stats["trainer"]["peers_refused"], 0)
        stranger = Peer(strange, weights, fingerprint)
        self.addCleanup(stranger.close)
        self.assertEqual(stranger.send("good", 200), "not sent")
        eventually(lambda: server.stats()["trainer"]["peers_refused"] >= 1, "the stranger is counted")
        self.assertEqual(taken(), (0, 3, 100))
        self.assertEqual(answer(), text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
