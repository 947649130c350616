"""A real `foretoken serve` and a real `foretoken-trainer` over TCP and CURVE, traffic for them, and what they keep on disk: for
tests of whole processes, and those that kill them."""
import hashlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import threading
import time

from foretoken_server import Server


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def eventually(condition, what, seconds=60, every=0.05):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds} s")


class TrainerLife:
    """One process of the trainer, and what its log says."""

    RESUMED = re.compile(r"step (\d+), version (\d+), learned from (\d+) requests, (\d+) in the buffer, (\d+) of them not yet")
    CHECKPOINT = re.compile(r"checkpoint: step (\d+), version (\d+), learned from (\d+) requests")
    PUBLISHED = re.compile(r"published version (\d+) ")

    def __init__(self, arguments, log):
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(arguments, stdout=out, stderr=out)

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def resumed(self):
        """(step, version, requests learned from, in the buffer, not yet learned from), or None: it did not come so far."""
        found = self.RESUMED.search(self.text())
        return tuple(map(int, found.groups())) if found else None

    def checkpoints(self):
        return [tuple(map(int, groups)) for groups in self.CHECKPOINT.findall(self.text())]

    def published(self):
        return [int(version) for version in self.PUBLISHED.findall(self.text())]


class Pair:
    """Server and trainer with one state folder and fixed endpoints; each can be killed and started again."""

    def __init__(self, foretoken, trainer, folder, serve_flags=(), trainer_flags=()):
        self.foretoken, self.trainer_binary, self.folder = foretoken, trainer, folder
        traces, weights = free_ports(2)
        self.endpoints = ["--traces-endpoint", f"tcp://127.0.0.1:{traces}", "--weights-endpoint", f"tcp://127.0.0.1:{weights}"]
        self.serve_flags, self.trainer_flags = list(serve_flags), list(trainer_flags)
        self.server = self.trainer = None
        self.lives = []  # of the trainer, all that were

    def spawn_server(self):
        """Without waiting until it is ready: that is what `with` and start_server do."""
        self.server = Server(self.foretoken, *self.endpoints, *self.serve_flags, state_dir=self.folder)
        return self.server

    def start_server(self):
        return self.spawn_server().__enter__()

    def start_trainer(self):
        self.trainer = TrainerLife(
            [self.trainer_binary, *self.endpoints, "--state-dir", self.folder, "--log-level", "debug", *self.trainer_flags],
            os.path.join(self.folder, f"trainer-{len(self.lives)}.log"))
        self.lives.append(self.trainer)
        return self.trainer

    def stop(self):
        for process in (self.trainer and self.trainer.process, self.server and self.server.process):
            if process and process.poll() is None:
                process.kill()
                process.wait()

    def state(self, *parts):
        return os.path.join(self.folder, self.fingerprint[:16], *parts)


class Contents:
    """A version number is one content for ever, whoever keeps it."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}

    def look(self):
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(parent, name)
                assert not name.endswith(".damaged"), path
                stem, extension = os.path.splitext(name)
                if extension != ".bundle" or not stem.isdigit():
                    continue
                try:
                    with open(path, "rb") as f:
                        content = hashlib.sha256(f.read()).hexdigest()
                except FileNotFoundError:  # an old one, just deleted
                    continue
                first = self.known.setdefault(int(stem), content)
                assert first == content, f"version {stem} has two contents: {path}"


class Lineage:
    """The server's lineage, read while no server runs: whole lines, never other than they were, every number once."""

    ENDS = ("promoted", "rolled_back", "superseded")

    def __init__(self, path):
        self.path, self.lines = path, b""

    def look(self):
        try:
            with open(self.path, "rb") as f:
                found = f.read()
        except FileNotFoundError:
            found = b""
        # The last line may be torn; the next server cuts it off.
        whole = found[:found.rfind(b"\n") + 1]
        assert whole.startswith(self.lines), "the lineage was rewritten"
        self.lines = whole
        self.events = [json.loads(line) for line in whole.splitlines()]
        self.received, self.promoted, banned = [], [], set()
        self.served, self.canary, self.waiting = 0, None, None
        for number, event in enumerate(self.events):
            kind, version, where = event["event"], event["version"], f"line {number + 1} of {self.path}: {event}"
            if kind == "received":
                assert version > max(self.received, default=0), where
                self.received.append(version)
                self.waiting = version
            elif kind == "canary":
                assert version in self.received and version not in banned, where
                self.canary = version
            elif kind == "promoted":
                assert version > max(self.promoted, default=0) and version == self.canary and version not in banned, where
                self.promoted.append(version)
            elif kind == "rolled_back":
                banned.add(version)
            else:
                assert kind == "superseded", where  # neither damaged nor refused
            if kind != "received" and self.waiting == version:
                self.waiting = None
            if kind in self.ENDS and self.canary == version:
                self.canary = None
            # What serves changes by a promotion or a rollback alone.
            if kind == "promoted":
                self.served = version
            elif kind == "rolled_back" and version == self.served:
                self.served = event["served"]
                assert self.served == 0 or self.served in self.promoted, where
            assert event["served"] == self.served, where


class Traffic:
    """Requests from a few clients; remembers what became of each, and that the same question has the same answer for ever."""

    QUESTIONS = [{"prompt": prompt, "max_tokens": 12, "temperature": temperature, "seed": 7}
                 for prompt in ("Count: 1, 2, 3, 4, 5,", "Days of the week: Monday, Tuesday,", "a b c a b c a b c a b",
                                "Once upon a time, in a small village by the sea,", "def add(a, b):\n    return a + b\n\ndef")
                 for temperature in (0, 0.8)]

    def __init__(self, port, answers, clients=2, seed=0, longest_gap=0.1):
        self.port, self.answers, self.outcomes, self.changed, self.versions = port, answers, [], [], set()
        self.longest_gap = longest_gap
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(random.Random(seed + i),), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def ask(self, question):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", json.dumps(question), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise OSError(f"status {response.status}: {body}")
        return body

    def run(self, rng):
        while not self.stopping.is_set():
            which = rng.randrange(len(self.QUESTIONS))
            began, body = time.monotonic(), None
            try:
                body = self.ask(self.QUESTIONS[which])
                failure = None
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = repr(error)
            with self.lock:
                self.outcomes.append((began, time.monotonic(), failure))
                if body:
                    text = body["choices"][0]["text"]
                    self.versions.add(body["foretoken"]["speculator_version"])
                    if self.answers.setdefault(which, text) != text:
                        self.changed.append((self.QUESTIONS[which], self.answers[which], text))
            # Gaps, in which the trainer trains and the canary is judged.
            self.stopping.wait(rng.uniform(0, self.longest_gap))

    def answered(self):
        with self.lock:
            return sum(failure is None for _, _, failure in self.outcomes)

    def failed(self):
        with self.lock:
            return [outcome for outcome in self.outcomes if outcome[2]]

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(90)
