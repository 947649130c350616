"""The gate on trial, on requests recorded from a real model: serves, replays the traffic log, and runs gate_trials on the trace.

  gate_trials.py FORETOKEN GATE_TRIALS [--requests N] [--traces FOLDER] [--json FILE]
      --traces: a folder of segments recorded before (a server's --trace-dir, a trainer's buffer) instead of recording one
Skipped where the small model is missing, but in CI failed.
"""
import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from foretoken_server import find_model

HERE = os.path.dirname(os.path.abspath(__file__))
TRAFFIC = os.path.join(HERE, "..", "..", "examples", "traffic", "quickstart.jsonl")


def record(foretoken, folder, requests):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    traces = os.path.join(folder, "traces")
    with open(os.path.join(folder, "server.log"), "w+b") as log:
        server = subprocess.Popen([foretoken, "serve", "--model", find_model(), "--port", str(port), "--state-dir", os.path.join(folder, "state"),
                                   "--trace-dir", traces, "--max-num-seqs", "2"], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            for _ in range(1200):
                try:
                    if urllib.request.urlopen(url + "/health", timeout=2).status == 200:
                        break
                except OSError:
                    time.sleep(0.25)
                if server.poll() is not None:
                    sys.exit("foretoken serve did not start: see " + log.name)
            traffic = os.path.join(folder, "traffic.jsonl")
            with open(TRAFFIC, encoding="utf-8") as f, open(traffic, "w", encoding="utf-8") as out:
                out.writelines(line for _, line in zip(range(requests), f))
            # One request at a time: rounds that run alone are what their costs are measured from.
            subprocess.run([foretoken, "replay", traffic, "--url", url, "--concurrency", "1", "--no-table"], check=True, stdin=subprocess.DEVNULL)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    return traces


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("foretoken")
    parser.add_argument("gate_trials")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--traces")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = arguments.traces or record(os.path.abspath(arguments.foretoken), folder, arguments.requests)
        trials = subprocess.run([os.path.abspath(arguments.gate_trials), traces], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if trials.stdout:
        result = json.loads(trials.stdout)
        print(json.dumps(result, indent=2))
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as out:
                json.dump(result, out, indent=2)
    sys.exit(trials.returncode)


if __name__ == "__main__":
    main()
