#!/usr/bin/env python3
"""A streamed chat answer with the official client (pip install openai), and what speculation did for it.

  chat.py [URL] [PROMPT]
"""
import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
prompt = sys.argv[2] if len(sys.argv) > 2 else "Write a haiku about prefetching."
client = OpenAI(base_url=url.rstrip("/") + "/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

timings = {}
stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": prompt}], max_tokens=80, temperature=0.8, seed=7, stream=True,
    stream_options={"include_usage": True}, metadata={"domain": "examples"})
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
    timings = getattr(chunk, "timings", None) or timings
print()
if timings:
    print(f"{timings['predicted_n']} tokens, {timings['predicted_per_second']:.1f} a second; "
          f"{timings['draft_n_accepted']} of {timings['draft_n']} drafted tokens accepted", file=sys.stderr)
