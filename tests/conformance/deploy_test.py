"""The deployment files against the programs they start: every flag and variable is one that the program knows, a configuration that
is checked by the program itself, and what server and trainer both are told is told alike.

  deploy_test.py FORETOKEN FORETOKEN-TRAINER
"""
import os
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

from foretoken_server import find_model

FORETOKEN, TRAINER = (os.path.abspath(path) for path in sys.argv[1:3])
DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "deploy")
# What the trainer need not be told although it could be: how it works, not whose server it works for.
OWN = {"--log-level", "--config", "--retention-hours", "--threads", "--help", "--print-config"}


def program(command):
    """A manifest's command -> the built program's."""
    name, *rest = command
    return [{"foretoken": FORETOKEN, "foretoken-trainer": TRAINER}[os.path.basename(name)], *rest]


def help_of(command):
    return subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout


def known_flags(command):
    return set(re.findall(r"--[a-z][a-z0-9-]+", help_of(command)))


def known_variables(command):
    return set(re.findall(r"FORETOKEN_[A-Z0-9_]+", help_of(command)))


def flags_of(arguments):
    """--name=value or --name value -> {name: value}."""
    flags, arguments = {}, list(arguments)
    while arguments:
        name, equals, value = arguments.pop(0).partition("=")
        flags[name] = value if equals else arguments.pop(0)
    return flags


class Kubernetes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(DEPLOY, "kubernetes.yaml"), encoding="utf-8") as f:
            documents = list(yaml.safe_load_all(f))
        cls.pod = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]
        cls.containers = {c["name"]: c for c in cls.pod["containers"]}
        cls.flags = {name: flags_of(c["args"]) for name, c in cls.containers.items()}

    def command(self, name):
        return program(self.containers[name]["command"])

    def test_every_flag_is_known_to_its_program(self):
        for name, flags in self.flags.items():
            self.assertLessEqual(set(flags), known_flags(self.command(name)), name)

    def test_the_trainer_is_told_what_the_server_is_told(self):
        shared = known_flags(self.command("train")) - OWN
        told = {name: value for name, value in self.flags["serve"].items() if name in shared}
        self.assertLessEqual({"--model", "--state-dir", "--traces-endpoint", "--weights-endpoint"}, set(told))
        self.assertEqual({name: self.flags["train"].get(name) for name in told}, told)

    def test_what_is_mounted_is_where_the_flags_look(self):
        for name, container in self.containers.items():
            mounts = {m["mountPath"] for m in container["volumeMounts"]}
            self.assertLessEqual({m["name"] for m in container["volumeMounts"]}, {v["name"] for v in self.pod["volumes"]})
            for flag, value in self.flags[name].items():
                path = value.removeprefix("ipc://")
                if path.startswith("/"):
                    self.assertTrue(any(path == m or path.startswith(m + "/") for m in mounts), f"{name} {flag}={value}: in no volume")

    def test_the_server_accepts_the_whole_configuration(self):
        with tempfile.TemporaryDirectory() as root:
            arguments = [a.replace("=/", f"={root}/").replace("ipc:///", f"ipc://{root}/") for a in self.containers["serve"]["args"]]
            for folder in ("state/models", "keys", "run/foretoken"):
                os.makedirs(os.path.join(root, folder))
            os.symlink(find_model(), os.path.join(root, "state/models/model.gguf"))
            with open(os.path.join(root, "keys/api-keys"), "w", encoding="utf-8") as f:
                f.write("a-key-of-this-test\n")
            os.chmod(os.path.join(root, "keys/api-keys"), 0o600)
            ran = subprocess.run([*self.command("serve"), *arguments, "--check"], capture_output=True, text=True, timeout=120)
            self.assertEqual(ran.returncode, 0, ran.stderr + ran.stdout)
            broken = subprocess.run([*self.command("serve"), *arguments, "--no-such-flag=1", "--check"], capture_output=True, text=True)
            self.assertNotEqual(broken.returncode, 0)


class Systemd(unittest.TestCase):
    def test_every_unit_s_flags_and_variables_are_known(self):
        units = [name for name in os.listdir(DEPLOY) if name.endswith(".service")]
        self.assertTrue(units)
        for unit in units:
            with open(os.path.join(DEPLOY, unit), encoding="utf-8") as f:
                text = f.read()
            command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.M).group(1))
            call = program(command[:1]) + [a for a in command[1:2] if not a.startswith("-")]
            self.assertLessEqual(set(flags_of(command[len(call):])), known_flags(call), unit)
            for path in re.findall(r"^EnvironmentFile=(.*)$", text, re.M):
                with open(os.path.join(DEPLOY, os.path.basename(path)), encoding="utf-8") as f:
                    # Those commented out are offered too.
                    variables = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", f.read(), re.M))
                self.assertIn("FORETOKEN_MODEL", variables)
                self.assertLessEqual(variables, known_variables(call), unit)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=2)
