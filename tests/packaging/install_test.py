#!/usr/bin/env python3
"""cmake --install into an empty folder: what is there, that it runs there, and that it knows nothing of the machine that
built it.
usage: install_test.py BUILD_DIR SOURCE_DIR TORCH_DIR"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

BUILD, SOURCE, TORCH = map(pathlib.Path, sys.argv[1:4])
TRAINER = (BUILD / "runtime" / "foretoken-trainer").exists()


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def leaks(root, forbidden, published):
    """Files below root, but for those, that hold one of the strings."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p not in published):
        content = path.read_bytes()
        found += [f"{path.relative_to(root)} holds {text}" for text in forbidden if os.fsencode(text) in content]
    return found


def main():
    with tempfile.TemporaryDirectory(prefix="foretoken-install-") as folder:
        stage = pathlib.Path(folder)
        run("cmake", "--install", BUILD, "--prefix", "/usr", env={**os.environ, "DESTDIR": folder})
        usr = stage / "usr"
        programs = ["foretoken"] + ["foretoken-trainer"] * TRAINER
        wanted = [f"usr/bin/{p}" for p in programs] + [f"usr/share/man/man1/{p}.1" for p in programs] + [
            "usr/share/doc/foretoken/examples/foretoken.toml", "usr/share/doc/foretoken/LICENSE",
            "usr/lib/systemd/system/foretoken.service", "etc/foretoken/foretoken.env"]
        missing = [path for path in wanted if not (stage / path).is_file()]
        assert not missing, f"not installed: {missing}"

        # No path of this machine, in no file; the look itself is tried on the build's own trainer, which has some.
        forbidden = {str(BUILD), str(SOURCE), str(TORCH), os.path.expanduser("~"), folder} - {"/", "/root"}
        if os.path.expanduser("~") == "/root":
            forbidden.add("/root/")
        # (What LibTorch was published with is not ours.)
        published = set(usr.rglob("foretoken/*/**/*.so*"))
        assert not leaks(stage, forbidden, published), leaks(stage, forbidden, published)
        if TRAINER:
            built = (BUILD / "runtime/foretoken-trainer").read_bytes()
            assert os.fsencode(str(TORCH)) in built, "the trainer in the build folder names no folder: is the look blind?"
            assert published, "no LibTorch is installed"

        # The unit starts what is installed.
        unit = (usr / "lib/systemd/system/foretoken.service").read_text()
        assert "ExecStart=/usr/bin/foretoken up" in unit and "EnvironmentFile=/etc/foretoken/" in unit, unit
        # A page names every flag of every command.
        page = (usr / "share/man/man1/foretoken.1").read_text().replace("\\-", "-")
        for command in re.findall(r"^  (\w[\w-]*) {2,}\S", run(usr / "bin/foretoken", "--help"), flags=re.M):
            flags = re.findall(r"(?<![\w-])--[a-z][\w-]+", run(usr / "bin/foretoken", command, "--help"))
            assert flags and all(flag in page for flag in flags), command
        # The example is a configuration, and says what is in force without it.
        example = usr / "share/doc/foretoken/examples/foretoken.toml"
        values = "".join(line for line in example.read_text().splitlines(True) if not line.startswith("#"))
        bare = {"PATH": os.defpath, "HOME": "/nonexistent"}
        assert run(usr / "bin/foretoken", "up", "--config", example, "--print-config", env=bare) == values

    # Where nothing was ever built the trainer finds its libraries beside itself.
    if TRAINER:
        with tempfile.TemporaryDirectory(prefix="foretoken-install-") as folder:
            run("cmake", "--install", BUILD, "--prefix", folder)
            trainer = pathlib.Path(folder) / "bin/foretoken-trainer"
            used = run("ldd", trainer, env={"PATH": os.defpath})
            for library in ("libtorch_cpu.so", "libc10.so", "libcudart.so.13", "libcupti.so.13"):
                line = next((at for at in used.splitlines() if library in at), "")
                assert folder in os.path.realpath(line.split("=>")[-1].split("(")[0].strip()), used
            run(trainer, "--help", env={"PATH": os.defpath})
    print(f"installed: {', '.join(wanted)}")


if __name__ == "__main__":
    main()
