"""The prefix cache as clients see it: conversations by the published client against a server with it and one without,
who shares with whom, clients that vanish, and a pool too small for all.
usage: prefix_cache_test.py FORETOKEN_BINARY"""
import json
import random
import re
import socket
import sys
import threading
import time
import unittest

import openai

from foretoken_server import Server

BINARY = sys.argv.pop(1)
FLAGS = ["--max-model-len", "2048", "--max-num-seqs", "4"]
SYSTEM = "You are the clerk of a hardware shop. This is your stock.\n" + "".join(
    f"Item {100 + i}: {('claw hammer', 'wood screws', 'pipe wrench', 'paint roller', 'work gloves')[i % 5]}, shelf {1 + i % 7}, "
    f"in stock {i * 37 % 90}.\n" for i in range(28))
QUESTIONS = ["Which items are on shelf 3?", "And how many of the first one are there?", "List the hammers.",
             "What would you recommend to somebody who paints a wall?", "Thank you. Repeat the first item of the stock."]


def client_of(server):
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key="unused", max_retries=0, timeout=120)


def metric(server, name):
    text = server.get("/metrics")[1].decode()
    return float(re.search(rf"^foretoken:{name}{{[^}}]*}} ([0-9.e+]+)$", text, re.M).group(1))


class PrefixCache(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BINARY, *FLAGS).__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.without = Server(BINARY, *FLAGS, "--no-prefix-cache").__enter__()
        cls.addClassCleanup(cls.without.__exit__, None, None, None)

    def tokens(self):
        """Looked up, and found, once the last request is in the statistics."""
        self.server.eventually(lambda s: s["requests"]["running"] == 0, "the server does not rest", stays=True)
        return [metric(self.server, f"prefix_cache_{name}_total") for name in ("queries", "hits")]

    def test_a_conversation_goes_on_where_it_was(self):
        for temperature in (0, 0.8):
            histories = [[{"role": "system", "content": SYSTEM}] for _ in range(2)]
            cached, prompts = [], []
            before_all = self.tokens()
            for question in QUESTIONS:
                answers = []
                for history, server in zip(histories, (self.server, self.without)):
                    history.append({"role": "user", "content": question})
                    answer = client_of(server).chat.completions.create(model="test", messages=history, max_tokens=70, seed=7,
                                                                       temperature=temperature)
                    history.append({"role": "assistant", "content": answer.choices[0].message.content})
                    answers.append(answer)
                with_cache, plain = answers
                self.assertEqual(with_cache.choices[0].message.content, plain.choices[0].message.content)
                self.assertEqual(plain.usage.prompt_tokens_details.cached_tokens, 0)
                cached.append(with_cache.usage.prompt_tokens_details.cached_tokens)
                prompts.append(with_cache.usage.prompt_tokens)
                self.assertEqual(cached[-1] + with_cache.model_extra["timings"]["prompt_n"], prompts[-1])
            self.assertGreater(prompts[0], 550)
            self.assertEqual([c % 64 for c in cached], [0] * len(cached))
            for before, now, prompt in zip(prompts, cached[1:], prompts[1:]):
                self.assertGreaterEqual(now, before - 64)   # all of the turn before, but its last part of a page
                self.assertLess(now, prompt)
            self.assertGreater(cached[-1], cached[1])
            self.assertEqual([now - then for now, then in zip(self.tokens(), before_all)], [sum(prompts), sum(cached)])
        stats = self.server.stats()
        self.assertEqual([stats["prefix_cache"][n] for n in ("queried_tokens", "hit_tokens")], self.tokens())
        self.assertGreater(stats["kv"]["cached_pages"], 5)
        self.assertEqual(self.without.stats()["kv"]["cached_pages"], 0)

    def test_streams_report_it_too(self):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Which items are on shelf 5?"}]
        client = client_of(self.server)
        used = []
        for _ in range(2):
            chunks = list(client.chat.completions.create(model="test", messages=messages, max_tokens=5, temperature=0, stream=True,
                                                         stream_options={"include_usage": True}))
            used.append(chunks[-1].usage)
        self.assertGreater(used[1].prompt_tokens_details.cached_tokens, used[1].prompt_tokens - 65)
        choices = client.chat.completions.create(model="test", messages=messages, max_tokens=5, temperature=1, n=3, seed=1)
        self.assertLessEqual(choices.usage.prompt_tokens_details.cached_tokens, choices.usage.prompt_tokens)

    def test_vanished_clients_leave_nothing(self):
        """Sockets that close while the prompt is read and while the answer comes: no page stays in use, none is lost,
        and nothing of theirs is found later."""
        rng = random.Random(5)
        marker = "Nobody ever heard the end of this. "

        def vanish(i):
            stream = rng.random() < 0.5
            body = json.dumps({"prompt": f"{i} " + marker * rng.randint(10, 120), "max_tokens": 400, "temperature": 1, "stream": stream,
                               "ignore_eos": True}).encode()
            with socket.create_connection(("127.0.0.1", self.server.port)) as s:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(body) + body)
                if stream and i % 2:
                    s.recv(4096)   # the answer has begun
                time.sleep(rng.random() * 0.3)

        before = self.server.stats()
        threads = [threading.Thread(target=vanish, args=(i,)) for i in range(24)]
        for t in threads:
            t.start()
            time.sleep(0.05)
        for t in threads:
            t.join()
        self.server.eventually(lambda s: s["requests"]["running"] == 0 and s["requests"]["waiting"] == 0 and s["kv"]["used_bytes"] == 0,
                               "pages are still held by clients that left", stays=True)
        after = self.server.stats()
        self.assertGreaterEqual(after["requests"]["aborted"] - before["requests"]["aborted"], 20)
        if after["requests"]["finished"] == before["requests"]["finished"]:
            self.assertEqual(after["kv"]["cached_pages"], before["kv"]["cached_pages"])
        for i in (1, 2):
            answer = client_of(self.server).completions.create(model="test", prompt=f"{i} " + marker * 30, max_tokens=1)
            self.assertEqual(answer.usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_pool_too_small_for_all(self):
        """Requests together want several times the pool: preempted, recomputed, the same answers; one that is larger than
        the pool alone is refused with both sizes."""
        def ask(server, i):
            answer = client_of(server).completions.create(
                model="test", prompt=SYSTEM + f"\nQuestion {i}: what is item {100 + i}?", max_tokens=150, temperature=0.8, seed=i,
                extra_body={"ignore_eos": True})
            return answer.choices[0].text

        with Server(BINARY, *FLAGS, "--kv-cache-dtype", "bf16", "--kv-cache-memory", "40M") as small, \
                Server(BINARY, *FLAGS, "--kv-cache-dtype", "bf16", "--no-prefix-cache") as large:
            answers = [{}, {}]
            threads = [threading.Thread(target=lambda j=j, s=s, i=i: answers[j].__setitem__(i, ask(s, i)))
                       for j, s in enumerate((small, large)) for i in range(5)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(len(answers[0]), 5)
            self.assertEqual(answers[0], answers[1])
            self.assertGreater(small.stats()["requests"]["preemptions"], 0)
            with self.assertRaises(openai.BadRequestError) as refused:
                client_of(small).completions.create(model="test", prompt=SYSTEM * 2, max_tokens=800)
            # The context served is what the pool holds (1792 tokens here): that size and the request's are named.
            self.assertRegex(str(refused.exception), r"context length is 1792 tokens.*requested \d+ tokens")


class Keys(unittest.TestCase):
    def test_each_key_has_its_own(self):
        import os
        import tempfile
        with tempfile.TemporaryDirectory(prefix="foretoken-prefix-") as folder:
            keys = os.path.join(folder, "keys")
            with open(keys, "w") as f:
                f.write("alice\nbob\n")

            def cached(server, key):
                status, answer, _ = server.post("/v1/completions", {"prompt": SYSTEM, "max_tokens": 1},
                                                headers={"Authorization": f"Bearer {key}"})
                self.assertEqual(status, 200, answer)
                return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

            for flags, shared in (([], False), (["--share-across-keys"], True)):
                with Server(BINARY, *FLAGS, "--api-key-file", keys, *flags) as server:
                    self.assertEqual(cached(server, "alice"), 0)
                    own = cached(server, "alice")
                    self.assertGreater(own, 500)
                    self.assertEqual(cached(server, "bob"), own if shared else 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
