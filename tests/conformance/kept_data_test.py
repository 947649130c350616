"""What a real server keeps of requests and versions: opting out, forgetting (running or not), the n-gram stores and
an operator's freeze across a restart.
usage: kept_data_test.py FORETOKEN_BINARY"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

from foretoken_server import Server

BINARY = sys.argv.pop(1)


def label(key):
    return "key-" + hashlib.blake2b(key.encode(), digest_size=32).hexdigest()[:8]


class KeptData(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="foretoken-kept-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.keys = os.path.join(self.folder, "keys")
        with open(self.keys, "w") as f:
            f.write("# three teams\nalice\nbob\nshy no-trace\n")
        self.traces = os.path.join(self.folder, "traces")

    def serve(self):
        return Server(BINARY, "--max-model-len", "512", "--api-key-file", self.keys, "--trace-dir", self.traces, "--plain-fraction", "0",
                      state_dir=os.path.join(self.folder, "state"))

    def ask(self, server, key, prompt, **fields):
        status, answer, _ = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 12, "temperature": 0, **fields},
                                        headers={"Authorization": f"Bearer {key}"})
        self.assertEqual(status, 200, answer)

    def stats(self, server):
        return json.loads(server.request("GET", "/stats", headers={"Authorization": "Bearer alice"})[1])

    def stored(self, key):
        """Whether anything of the key is in the trace segments."""
        wanted = label(key).encode()
        for name in os.listdir(self.traces):
            with open(os.path.join(self.traces, name), "rb") as f:
                if wanted in f.read():
                    return True
        return False

    def stores(self):
        return sorted(name for folder, _, names in os.walk(os.path.join(self.folder, "state")) for name in names if name.endswith(".store"))

    def forget(self, key):
        done = subprocess.run([BINARY, "forget", "--key", key, "--state-dir", os.path.join(self.folder, "state"), "--trace-dir", self.traces],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_traffic_is_kept_by_key_and_forgotten(self):
        with self.serve() as server:
            for i in range(2):
                self.ask(server, "alice", f"Alice counts to {i}:")
                self.ask(server, "bob", f"Bob counts to {i}:")
            self.ask(server, "shy", "Nobody may know this")
            self.ask(server, "bob", "Nor this", foretoken={"trace": False})
            self.assertEqual(self.stats(server)["traces"]["dropped"].get("opted_out"), 2)
        self.assertTrue(self.stored("alice") and self.stored("bob"))
        self.assertFalse(self.stored("shy"))
        self.assertEqual(self.stores(), sorted(f"{label(k)}.store" for k in ("alice", "bob")))

        # No server is running.
        self.assertIn("2 records", self.forget("alice"))
        self.assertFalse(self.stored("alice"))
        self.assertTrue(self.stored("bob"))
        self.assertEqual(self.stores(), [f"{label('bob')}.store"])

        with self.serve() as server:
            # Bob's store is there again, Alice's is not.
            entries = self.stats(server)["traffic_store"]["entries"]
            self.assertGreater(entries, 0)
            self.ask(server, "alice", "Alice is back")
            self.assertIn("running server has emptied", self.forget(label("bob")))   # under its eyes
            self.assertFalse(self.stored("bob"))
            self.ask(server, "alice", "Alice goes on")
        self.assertTrue(self.stored("alice"))
        self.assertEqual(self.stores(), [f"{label('alice')}.store"])

    def test_operators_are_obeyed_across_a_restart(self):
        key = {"Authorization": "Bearer alice"}
        with self.serve() as server:
            self.assertEqual(server.request("GET", "/v1/speculator")[0], 401)
            self.assertEqual(server.request("POST", "/v1/speculator/freeze", headers=key)[0], 200)
            self.assertEqual(server.request("POST", "/v1/speculator/rollback", headers=key)[0], 409)
        with self.serve() as server:
            state = json.loads(server.request("GET", "/v1/speculator", headers=key)[1])
            self.assertTrue(state["frozen"])
            self.assertEqual([e["event"] for e in state["lineage"]], ["frozen"])
            self.assertTrue(self.stats(server)["speculator"]["frozen"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
