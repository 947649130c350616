"""Starts a real `foretoken serve` for a test, on a free port, and stops it again. Standard library only."""
import functools
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time


SMALL_MODEL = "smollm2-135m-instruct-q4_1.gguf"   # the one that tests/run fetches
TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def want(what):
    """Ends a test for want of something: skipped (CTest's 77), but in CI failed."""
    print(what, file=sys.stderr)
    sys.exit(1 if os.environ.get("CI") == "true" else 77)


@functools.lru_cache(None)
def listed_files():
    """tests/files.sha256: name -> hash."""
    with open(os.path.join(TESTS, "files.sha256"), encoding="utf-8") as f:
        lines = [line.split("  ", 1) for line in f if not line.startswith("#")]
    return {name.strip(): digest for digest, name in lines}


@functools.lru_cache(None)
def model_file(name):
    """The path of a listed model, or None where there is none: $FORETOKEN_TEST_MODELS or the cache that examples/fetch_model
    fills. Whatever else lies in that folder is no test's business; a file of that name and another content is an error."""
    folder = os.environ.get("FORETOKEN_TEST_MODELS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "foretoken", "models")
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != listed_files()[name]:
        sys.exit(f"{path}: found sha256 {digest.hexdigest()}, wanted {listed_files()[name]}")
    return path


def find_model():
    """The small real model; ends the test where it is missing."""
    return model_file(SMALL_MODEL) or want(f"no test model {SMALL_MODEL}: run examples/fetch_model")


def models_of_each_family():
    """For what depends on a vocabulary or a template: the small model, and a Qwen2.5 where somebody has put it."""
    other = model_file("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    return [find_model()] + ([other] if other else [])


class Server:
    def __init__(self, binary, *flags, command="serve", state_dir=None, model=None):
        self._temporary = None
        if state_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="foretoken-test-")
            state_dir = self._temporary.name
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile(mode="w+", prefix="foretoken-log-", suffix=".txt")
        arguments = [binary, command, "--model", model or find_model(), "--port", str(self.port), "--state-dir", state_dir,
                   "--served-model-name", "test", *flags]
        self.process = subprocess.Popen(arguments, stdout=self.log, stderr=self.log)
        self.base_url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}:\n{self.output()}")
            try:
                if self.get("/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise SystemExit(f"the server is not ready after 300 s:\n{self.output()}")

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server did not stop on SIGTERM:\n{self.output()}")
        if kind is not None:
            print(self.output(), file=sys.stderr)
        if self._temporary:
            self._temporary.cleanup()

    def output(self):
        self.log.flush()
        with open(self.log.name, errors="replace") as f:
            return f.read()[-8000:]

    def request(self, method, path, body=None, headers=None, timeout=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
                headers = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def get(self, path):
        status, body, _ = self.request("GET", path, timeout=10)
        return status, body

    def post(self, path, body, **arguments):
        status, answer, headers = self.request("POST", path, body, **arguments)
        return status, json.loads(answer), headers

    def chat(self, body):
        """The whole answer to a chat request."""
        status, answer, _ = self.post("/v1/chat/completions", dict(body, stream=False), timeout=600)
        if status != 200:
            raise SystemExit(f"{sys.argv[0]}: {status} {answer}")
        return answer

    def stats(self):
        return json.loads(self.get("/stats")[1])

    def eventually(self, condition, what, seconds=60, stays=False):
        """stays: it must still hold a little later. Statistics may be a tenth of a second old, and what holds
        because nothing has begun yet does not count."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition(self.stats()):
                if not stays:
                    return
                time.sleep(0.3)
                if condition(self.stats()):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s; stats: {json.dumps(self.stats()['requests'])}")
