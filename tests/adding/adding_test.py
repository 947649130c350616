#!/usr/bin/env python3
"""The seven additions of docs/ADDING.md, as patches: each is applied to a copy of the tree, touches at most two files
outside tests/ (its own and the table's), and the copy with all of them builds and passes the tests they name.

    adding_test.py             counts files and applies each patch by itself (seconds; part of the quick suite)
    adding_test.py --build     and builds and tests the copy with all of them (long; part of --full)
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TREE = HERE.parent.parent
# Which tests show that an addition works: target, GoogleTest filter.
SHOWN_BY = {
    "architecture": [("test_model", "*GoldenModels*:GoldenControl*"), ("test_engine", "Architectures.*")],
    "head": [("test_speculate", "DiagonalHead*")],
    "kv_mode": [("test_kv", "*")],
    "objective": [("test_trainer", "FusionLearner.EveryObjectiveLearns:HeadTwin.GradientsAre*")],
    "route": [("test_serve", "Ping*")],
    "speculator": [("test_speculate", "Bigram*:Registry*")],
    "weight_type": [("test_kernels", "*")],
}


def run(*command, cwd, **more):
    done = subprocess.run([str(c) for c in command], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def copy_of_the_tree(folder):
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=TREE)
    for name in filter(None, listed.split("\0")):
        if (TREE / name).is_file():
            to = folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes((TREE / name).read_bytes())
            to.chmod((TREE / name).stat().st_mode)
    run("git", "init", "-q", cwd=folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", action="store_true")
    build = parser.parse_args().build
    patches = sorted(HERE.glob("*.patch"))
    missing = set(SHOWN_BY) ^ {p.stem for p in patches}
    if missing:
        sys.exit(f"patches and SHOWN_BY differ: {sorted(missing)}")
    guide = (TREE / "docs/ADDING.md").read_text()
    with tempfile.TemporaryDirectory(prefix="adding-") as temporary:
        folder = pathlib.Path(temporary)
        copy_of_the_tree(folder)
        for patch in patches:
            if patch.name not in guide:
                sys.exit(f"docs/ADDING.md does not name {patch.name}")
            files = re.findall(r"^diff --git a/(\S+)", patch.read_text(errors="replace"), re.M)
            product = [f for f in files if not f.startswith("tests/")]
            print(f"{patch.stem}: {len(product)} files: {', '.join(product)}")
            if not 1 <= len(product) <= 2:
                sys.exit(f"{patch.name}: found {len(product)} files outside tests/, wanted its own and the table's")
            run("git", "apply", "--check", patch, cwd=folder)
        if not build:
            return
        for patch in patches:
            run("git", "apply", patch, cwd=folder)
        targets = sorted({target for shown in SHOWN_BY.values() for target, _ in shown})
        environment = {**os.environ, "CCACHE_BASEDIR": temporary, "CCACHE_NOHASHDIR": "1"}
        run("cmake", "--preset", "ci", cwd=folder, env=environment)
        run("cmake", "--build", "--preset", "ci", "--target", *targets, cwd=folder, env=environment)
        for name, shown in SHOWN_BY.items():
            for target, only in shown:
                said = run(folder / "build/ci/tests" / target, f"--gtest_filter={only}", cwd=folder)
                passed = re.search(r"\[  PASSED  \] (\d+) test", said)
                if not passed or passed[1] == "0":
                    sys.exit(f"{name}: {target} --gtest_filter={only} ran no test")
                print(f"{name}: {target}: {passed[1]} passed")


if __name__ == "__main__":
    main()
