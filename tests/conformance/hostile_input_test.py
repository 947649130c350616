"""A real server with a real model under input nobody should send: it answers with a clear error or closes
the connection, frees what it held, and goes on serving.
usage: hostile_input_test.py FORETOKEN_BINARY"""
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import unittest

from foretoken_server import Server

BINARY = sys.argv.pop(1)
ASK = {"prompt": "Count: one, two,", "max_tokens": 8, "temperature": 0}


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class HostileInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BINARY, "--max-num-seqs", "2", "--max-model-len", "2048", "--header-timeout", "2", "--body-timeout", "3",
                            "--idle-timeout", "4", "--max-queue", "8").__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        status, cls.reference, _ = cls.server.post("/v1/completions", ASK)
        assert status == 200, cls.reference

    def tearDown(self):
        # Whatever was done to it: every page is free again and the same question has the same answer.
        self.server.eventually(lambda s: s["requests"]["running"] == 0 and s["requests"]["waiting"] == 0 and s["kv"]["used_bytes"] == 0,
                               "requests end and their pages are free", stays=True)
        status, answer, _ = self.server.post("/v1/completions", ASK)
        self.assertEqual(status, 200)
        self.assertEqual(answer["choices"][0]["text"], self.reference["choices"][0]["text"])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=30)

    def raw(self, data, read_timeout=10):
        """Sends bytes, returns everything until the server closes or is silent."""
        with self.connect() as s:
            try:
                s.sendall(data)
            except OSError:
                pass
            return self.drain(s, read_timeout)

    @staticmethod
    def drain(s, timeout):
        s.settimeout(timeout)
        out = b""
        try:
            while True:
                got = s.recv(65536)
                if not got:
                    return out
                out += got
        except OSError:
            return out

    @staticmethod
    def post_bytes(body, path="/v1/completions", extra=b""):
        return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode() +
                extra + b"Connection: close\r\n\r\n" + body)

    def test_malformed_json(self):
        bodies = [b"", b"{", b"}", b"null", b"[]", b"\"x\"", b"{\"prompt\": ", b"{\"prompt\": \"\\ud800\"}", b"{\"prompt\": \"\xff\"}",
                  b"{\"prompt\": \"a\", \"temperature\": NaN}", b"{\"prompt\": \"a\", \"temperature\": 1e999}", b"{\"prompt\": \"a\"} x",
                  b"\xef\xbb\xbf{}", b"{\"prompt\": [[[[[[1]]]]]]}", b"[" * 1_000_000, b"{\"a\":" * 200_000, b"\x00" * 1000]
        for body in bodies:
            answer = self.raw(self.post_bytes(body))
            status = int(answer.split(b" ")[1])
            self.assertIn(status, (400, 501), (body[:40], answer[:300]))
            error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
            self.assertTrue(error["message"])

    def test_random_bodies(self):
        """Mutations of a valid body: any status but a 500, and never silence."""
        rng = random.Random(1)
        valid = json.dumps({"prompt": "ab", "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "logit_bias": {"5": 1}, "n": 1, "seed": 3,
                            "stream": False, "foretoken": {"speculation": True}, "metadata": {"domain": "d"}}).encode()
        for _ in range(150):
            body = bytearray(valid)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(body))
                choice = rng.random()
                if choice < 0.4:
                    body[at] = rng.randrange(256)
                elif choice < 0.7:
                    del body[at:at + rng.randint(1, 8)]
                else:
                    body[at:at] = rng.choice([b"9" * 30, b"-", b"[", b"{", b"null", b"\"", b"1e5", b"\\u0000"])
                if not body:
                    break
            answer = self.raw(self.post_bytes(bytes(body)))
            self.assertIn(int(answer.split(b" ")[1]), (200, 400, 404, 501), (bytes(body), answer[:300]))

    def test_huge_body(self):
        """100 MB announced: refused by its length. 100 MB unannounced: cut off early, never held in memory."""
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = self.raw(head + b"Content-Length: 104857600\r\n\r\n" + b"x" * 1000)
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:100])
        before = resident_bytes(self.server.process.pid)
        sent, answer = 0, b""
        with self.connect() as s:
            s.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
            try:
                for _ in range(100):
                    s.sendall(piece)
                    sent += len(piece)
            except OSError:
                pass
            answer = self.drain(s, 5)
        self.assertLess(sent, 40 << 20)
        if answer:    # the reset of the closed connection may overtake it
            self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:100])
        self.assertLess(resident_bytes(self.server.process.pid) - before, 64 << 20)

    def test_header_flood(self):
        flood = b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 200) for i in range(5000)) + b"\r\n"
        answer = self.raw(flood)
        self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 431 "), answer[:100])
        self.assertTrue(self.raw(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 431 "))

    def test_not_http(self):
        for data in (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n", b"GET\r\n\r\n",
                     b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", os.urandom(4096)):
            answer = self.raw(data)
            if answer:
                self.assertIn(int(answer.split(b" ")[1]), range(400, 506), (data[:40], answer[:100]))

    def test_slowloris(self):
        """Fifty connections that dribble: each is answered 408 or closed within its time, while others are served."""
        slow = [self.connect() for _ in range(50)]
        try:
            for s in slow[:25]:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-")
            for s in slow[25:]:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
            started = time.monotonic()
            self.assertEqual(self.server.get("/health")[0], 200)
            for _ in range(3):
                for s in slow:
                    try:
                        s.sendall(b"a")
                    except OSError:
                        pass
                time.sleep(0.3)
            for s in slow:
                answer = self.drain(s, 20)
                self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer[:60])
            self.assertLess(time.monotonic() - started, 30)
        finally:
            for s in slow:
                s.close()

    def test_pipelining(self):
        body = json.dumps(ASK).encode()
        one = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        answer = self.raw(one * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 60)
        self.assertEqual(answer.count(b"HTTP/1.1 200 "), 4)
        self.assertEqual(answer.count(json.dumps(self.reference["choices"][0]["text"]).encode()), 3)

    def test_vanishing_clients(self):
        """Gone while queued, in prefill, mid-answer, streaming or not: cancelled, and their pages are free (tearDown)."""
        aborted = self.server.stats()["requests"]["aborted"]
        long_prompt = json.dumps({"prompt": "word " * 1500, "max_tokens": 400, "ignore_eos": True}).encode()
        plain = json.dumps({"prompt": "Tell me a story.", "max_tokens": 1500, "ignore_eos": True}).encode()
        stream = json.dumps({"prompt": "Tell me a story.", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
        def at_work(stats):
            return stats["requests"]["running"] + stats["requests"]["waiting"]
        for body, wait_for in ((long_prompt, b""), (plain, b""), (stream, b"data: {")):
            # (An answer may arrive a moment before /stats knows that its request has ended: that one is not meant below.)
            self.server.eventually(lambda x: at_work(x) == 0, "the requests before have ended")
            with self.connect() as s:
                s.sendall(self.post_bytes(body))
                if wait_for:
                    seen = b""
                    while wait_for not in seen:
                        seen += s.recv(4096)
                else:
                    self.server.eventually(lambda x: at_work(x) > 0, "it was admitted")
            aborted += 1
            self.server.eventually(lambda x: x["requests"]["aborted"] == aborted, "it was cancelled")

    def test_abort_storm(self):
        """Many clients that come and go at random, more than fit: some get 429, nobody hangs, nothing leaks."""
        statuses, lock = [], threading.Lock()

        def client(seed):
            rng = random.Random(seed)
            for _ in range(4):
                body = json.dumps({"prompt": "Tell me about the sea. " * rng.randint(1, 30), "max_tokens": rng.randint(1, 200), "ignore_eos": True,
                                   "stream": rng.random() < 0.5, "n": rng.randint(1, 2)}).encode()
                with self.connect() as s:
                    s.sendall(self.post_bytes(body))
                    s.settimeout(rng.random() * 0.6)
                    try:
                        head = s.recv(64)
                        with lock:
                            statuses.append(int(head.split(b" ")[1]))
                        time.sleep(rng.random() * 0.2)
                    except (OSError, IndexError):
                        pass

        threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertTrue(set(statuses) <= {200, 429}, set(statuses))

    def test_queue_full(self):
        held = []
        try:
            refused = None
            body = json.dumps({"prompt": "Tell me a story.", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
            for _ in range(20):
                s = self.connect()
                held.append(s)
                s.sendall(self.post_bytes(body))
                s.settimeout(10)
                head = s.recv(4096)
                if head.startswith(b"HTTP/1.1 429 "):
                    refused = head
                    break
                self.assertTrue(head.startswith(b"HTTP/1.1 200 "), head[:80])
            self.assertIsNotNone(refused)
            self.assertIn(b"Retry-After:", refused)
        finally:
            for s in held:
                s.close()

    def test_overlong_prompt(self):
        status, answer, _ = self.server.post("/v1/completions", {"prompt": "word " * 5000})
        self.assertEqual(status, 400)
        self.assertEqual(answer["error"]["code"], "context_length_exceeded")
        self.assertEqual(answer["error"]["n_ctx"], 2048)
        self.assertGreaterEqual(answer["error"]["n_prompt_tokens"], 5000)


class Shutdown(unittest.TestCase):
    def test_sigterm_drains(self):
        """What is in flight finishes, new requests get 503, then the process ends with 0."""
        with Server(BINARY, "--max-model-len", "2048") as server:
            body = json.dumps({"prompt": "Tell me a story.", "max_tokens": 500, "ignore_eos": True, "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", server.port), timeout=120) as s:
                s.sendall(HostileInput.post_bytes(body))
                seen = s.recv(4096)
                server.process.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + 10
                while server.get("/health")[0] == 200 and time.monotonic() < deadline:
                    time.sleep(0.01)
                status, _, headers = server.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}, timeout=20)
                self.assertEqual(status, 503)
                self.assertIn("Retry-After", headers)
                while b"[DONE]" not in seen:
                    got = s.recv(65536)
                    if not got:
                        break
                    seen += got
            self.assertIn(b'"finish_reason":"length"', seen)
            self.assertIn(b"[DONE]", seen)
            self.assertEqual(server.process.wait(30), 0)

    def test_second_signal_is_at_once(self):
        with Server(BINARY, "--max-model-len", "2048") as server:
            body = json.dumps({"prompt": "Tell me a story.", "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", server.port), timeout=120) as s:
                s.sendall(HostileInput.post_bytes(body))
                s.recv(4096)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                self.assertIsNone(server.process.poll())
                server.process.send_signal(signal.SIGINT)
                self.assertEqual(server.process.wait(20), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
