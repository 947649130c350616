"""The published `openai` client against a real server with a real model.
usage: openai_client_test.py FORETOKEN_BINARY"""
import json
import sys
import unittest

import openai

from foretoken_server import Server

BINARY = sys.argv.pop(1)
MESSAGES = [{"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Name three colours of the rainbow."}]


class OpenAIClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BINARY, "--max-num-seqs", "4", "--max-model-len", "1024").__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.client = openai.OpenAI(base_url=cls.server.base_url + "/v1", api_key="unused", max_retries=0, timeout=120)

    def chat(self, **arguments):
        arguments = {"model": "test", "messages": MESSAGES, "max_tokens": 24, "temperature": 0, **arguments}
        return self.client.chat.completions.create(**arguments)

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([m.id for m in models], ["test"])
        self.assertEqual(self.client.models.retrieve("test").object, "model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_chat(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, "test")
        choice = answer.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        self.assertGreater(len(choice.message.content), 0)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertLessEqual(answer.usage.completion_tokens, 24)
        self.assertGreater(answer.usage.prompt_tokens, 10)
        timings = answer.model_extra["timings"]
        self.assertEqual(timings["cache_n"] + timings["prompt_n"], answer.usage.prompt_tokens)
        self.assertGreater(timings["predicted_ms"], 0)
        self.assertIn("seed", answer.model_extra["foretoken"])

    def test_stream_equals_whole(self):
        """The same text streamed and whole, at both temperatures; usage only when asked for."""
        for temperature in (0, 0.9):
            whole = self.chat(temperature=temperature, seed=11)
            chunks = list(self.chat(temperature=temperature, seed=11, stream=True, stream_options={"include_usage": True}))
            self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            self.assertEqual(text, whole.choices[0].message.content)
            self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason],
                             [whole.choices[0].finish_reason])
            self.assertEqual(chunks[-1].choices, [])
            self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
            self.assertTrue(all(c.usage is None for c in chunks[:-1]))
            self.assertEqual(len({c.id for c in chunks}), 1)
        self.assertTrue(all(c.usage is None for c in self.chat(stream=True)))

    def test_seed_and_speculation(self):
        """A drawn seed repeats the answer; so does the answer without speculation."""
        first = self.chat(temperature=1, max_tokens=40)
        seed = first.model_extra["foretoken"]["seed"]
        again = self.chat(temperature=1, max_tokens=40, seed=seed)
        self.assertEqual(again.choices[0].message.content, first.choices[0].message.content)
        plain = self.chat(temperature=1, max_tokens=40, seed=seed, extra_body={"foretoken": {"speculation": False}})
        self.assertEqual(plain.choices[0].message.content, first.choices[0].message.content)
        self.assertEqual(plain.model_extra["timings"]["draft_n"], 0)
        other = self.chat(temperature=1, max_tokens=40, seed=seed + 1)
        self.assertNotEqual(other.choices[0].message.content, first.choices[0].message.content)

    def test_choices(self):
        answer = self.chat(n=3, temperature=1, seed=5)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
        texts = [c.message.content for c in answer.choices]
        self.assertEqual(len(set(texts)), 3)
        self.assertEqual(self.chat(n=1, temperature=1, seed=5).choices[0].message.content, texts[0])
        streamed = ["", "", ""]
        finished = [None] * 3
        for chunk in self.chat(n=3, temperature=1, seed=5, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                finished[choice.index] = choice.finish_reason or finished[choice.index]
        self.assertEqual(streamed, texts)
        self.assertNotIn(None, finished)

    def test_stop(self):
        free = self.chat(max_tokens=60).choices[0].message.content
        stop = free[8:12]
        stopped = self.chat(max_tokens=60, stop=[stop, "\u2603"])
        self.assertEqual(stopped.choices[0].message.content, free[:free.index(stop)])
        self.assertEqual(stopped.choices[0].finish_reason, "stop")
        self.assertEqual(stopped.choices[0].model_extra["stop_reason"], stop)
        streamed = "".join(c.choices[0].delta.content or "" for c in self.chat(max_tokens=60, stop=stop, stream=True))
        self.assertEqual(streamed, free[:free.index(stop)])

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=5, max_tokens=8)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        self.assertEqual("".join(t.token for t in content), answer.choices[0].message.content)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 5)
            # At temperature 0 the emitted token is the likeliest.
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=5)
            self.assertEqual(token.top_logprobs, sorted(token.top_logprobs, key=lambda t: -t.logprob))
        streamed = [t for c in self.chat(logprobs=True, top_logprobs=5, max_tokens=8, stream=True)
                    if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        self.assertEqual([t.token for t in streamed], [t.token for t in content])
        for a, b in zip(streamed, content):
            self.assertAlmostEqual(a.logprob, b.logprob, places=5)

    def test_completions(self):
        arguments = {"model": "test", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        answer = self.client.completions.create(**arguments, logprobs=2)
        self.assertEqual(answer.object, "text_completion")
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), answer.choices[0].text)
        self.assertEqual(len(logprobs.text_offset), len(logprobs.tokens))
        streamed = "".join(c.choices[0].text for c in self.client.completions.create(**arguments, stream=True))
        self.assertEqual(streamed, answer.choices[0].text)
        _, tokenized, _ = self.server.post("/tokenize", {"content": "Once upon a time"})
        by_ids = self.client.completions.create(**{**arguments, "prompt": tokenized["tokens"]})
        self.assertEqual(by_ids.choices[0].text, answer.choices[0].text)
        both = self.client.completions.create(**{**arguments, "prompt": ["Once upon a time", "The capital of France is"]})
        self.assertEqual(len(both.choices), 2)
        self.assertEqual(both.choices[0].text, answer.choices[0].text)

    def test_without_max_tokens_the_rest_of_the_context_is_the_limit(self):
        answer = self.client.completions.create(model="test", prompt="word " * 1010, temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.total_tokens, 1024)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError):
            self.chat(model="other")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(temperature=-1)
        self.assertEqual(raised.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(messages=[{"role": "user", "content": "word " * 3000}])
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        self.assertEqual(raised.exception.body["n_ctx"], 1024)
        self.assertGreater(raised.exception.body["n_prompt_tokens"], 1024)
        with self.assertRaises(openai.InternalServerError) as raised:   # 501: the client's class for 5xx
            self.chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
        self.assertEqual(raised.exception.status_code, 501)
        with self.assertRaises(openai.APIStatusError) as raised:
            self.chat(response_format={"type": "json_object"})
        self.assertEqual(raised.exception.status_code, 501)

    def test_tokenize_and_back(self):
        for text in ("Hello, world", "naïve 🙂 \n\ttabs", "日本語"):
            _, tokenized, _ = self.server.post("/tokenize", {"content": text})
            self.assertEqual(tokenized["count"], len(tokenized["tokens"]))
            _, back, _ = self.server.post("/detokenize", {"tokens": tokenized["tokens"]})
            self.assertEqual(back["content"], text)

    def test_stats_and_metrics(self):
        before = self.server.stats()
        self.assertEqual(before["schema"], "foretoken.stats/1")
        answer = self.chat()
        wanted = before["tokens"]["generated"] + answer.usage.completion_tokens
        self.server.eventually(lambda stats: stats["tokens"]["generated"] >= wanted, "the answer's tokens in the statistics")
        text = self.server.get("/metrics")[1].decode()
        for name in ("foretoken:num_requests_running", "foretoken:generation_tokens_total", "foretoken:time_to_first_token_seconds_bucket",
                     "foretoken:inter_token_latency_seconds_count", "foretoken:e2e_request_latency_seconds_sum",
                     "foretoken:spec_decode_num_drafts_total", "foretoken:spec_decode_num_draft_tokens_total",
                     "foretoken:spec_decode_num_accepted_tokens_total", "foretoken:kv_cache_usage_perc", "foretoken:build_info",
                     'foretoken:http_requests_total{handler="/v1/chat/completions"'):
            self.assertIn(name, text)
        self.assertIn(b"<title>foretoken</title>", self.server.get("/dashboard")[1])
        self.assertEqual(json.loads(self.server.get("/version")[1])["name"], "foretoken")


if __name__ == "__main__":
    unittest.main(verbosity=2)
