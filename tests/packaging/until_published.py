#!/usr/bin/env python3
"""Sends requests to a server on 127.0.0.1 until it has taken a version from its trainer.
usage: until_published.py PORT SECONDS"""
import json
import sys
import time
import urllib.error
import urllib.request

url, deadline = f"http://127.0.0.1:{sys.argv[1]}", time.monotonic() + float(sys.argv[2])


def ask(path, body=None):
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def ready():
    try:
        urllib.request.urlopen(url + "/health/ready", timeout=5).close()
        return True
    except OSError:
        return False


while not ready():
    if time.monotonic() > deadline:
        sys.exit("not ready in time")
    time.sleep(0.5)
for i in range(10**6):
    text = ask("/v1/completions", {"prompt": f"List {i % 7}: one, two, three,", "max_tokens": 48})["choices"][0]["text"]
    received = [event for event in ask("/v1/speculator")["lineage"] if event["event"] == "received"]
    if received:
        print(f"after {i + 1} requests the server has version {received[0]['version']} of its trainer; it wrote {text[:40]!r}")
        break
    if time.monotonic() > deadline:
        sys.exit(f"no version in time, after {i + 1} requests")
