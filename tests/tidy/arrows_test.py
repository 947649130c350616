#!/usr/bin/env python3
"""The arrows between folders: what a folder may include, as the build decides it.

For every two folders of which the first does not depend on the second, a file of one line that includes
a header of the second is compiled as the first's sources are, and must fail. What a folder may include is
read off its include path (cmake/folders.cmake), so that the controls are needed: for each folder, a header
of every folder that it does depend on is found; and no folder depends on itself through others.

usage: arrows_test.py SOURCE_DIR BUILD_DIR
"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys

source, build = map(pathlib.Path, sys.argv[1:3])


class Folder:
    def __init__(self, name, flags, roots, header):
        self.name = name        # runtime/kv
        self.flags = flags      # the compiler and the -I, -D, -std of its sources
        self.roots = roots      # the include roots on its path, by folder
        self.header = header    # one of its own, as another folder would include it; None: it has none


def header_of(name):
    """One header of a folder's include root, by the name it is included by."""
    if name in ("protocol", "kernels"):
        root = source / name / "include"
    else:
        root = build / "roots" / name.replace("/", ".")
    headers = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.h"))
    return headers[0] if headers else None


def folder_of_root(path):
    """runtime/kv for build/roots/runtime.kv; protocol for protocol/include; None for foreign ones."""
    path = pathlib.Path(path)
    if path.parent == build / "roots":
        return path.name.replace(".", "/")
    if path.name == "include" and path.parent.parent == source:
        return path.parent.name
    return None


def read_folders():
    names = {p.name.replace(".", "/") for p in (build / "roots").iterdir()}
    folders = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["file"])
        if source not in path.parents:
            continue
        name = path.parent.relative_to(source).as_posix()
        while name and name not in names:
            name = name.rpartition("/")[0]
        if not name or name in folders or name.startswith("tests"):
            continue
        words = shlex.split(entry["command"])
        compiler = next(w for w in words if not w.endswith("ccache"))
        flags, roots = [compiler], []
        for word, following in zip(words, words[1:] + [""]):
            if word.startswith(("-I", "-D", "-std")):
                flags.append(word)
            if word == "-isystem":
                flags += [word, following]
            if word.startswith("-I") and folder_of_root(word[2:]):
                roots.append(folder_of_root(word[2:]))
        folders[name] = Folder(name, flags, roots, header_of(name))
    return folders


def compiles(folder, text):
    done = subprocess.run(folder.flags + ["-fsyntax-only", "-x", "c++", "-"], input=text, capture_output=True, text=True)
    if done.returncode and "No such file" not in done.stderr and "not found" not in done.stderr:
        raise SystemExit(f"{folder.name}, compiling {text!r}: not refused, but broken:\n{done.stderr[:2000]}")
    return done.returncode == 0


def includes(folder, header):
    return compiles(folder, f'#include "{header}"\n')


def finds(folder, header):
    """Without reading it: hundreds of these."""
    return compiles(folder, f'#if !__has_include("{header}")\n#error not found\n#endif\n')


def main():
    folders = read_folders()
    failures = []
    if len(folders) < 10:
        failures.append(f"only {len(folders)} folders found in compile_commands.json")
    for folder in folders.values():
        for other in folder.roots:
            if other != folder.name and folder.name in folders.get(other, folder).roots:
                failures.append(f"{folder.name} and {other} depend on each other")
    forbidden, allowed = [], []
    for folder in folders.values():
        for other in folders.values():
            if other is folder or not other.header:
                continue
            (allowed if other.name in folder.roots else forbidden).append((folder, other))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        refused = pool.map(lambda pair: not includes(pair[0], pair[1].header), forbidden)
        found = pool.map(lambda pair: finds(pair[0], pair[1].header), allowed)
        failures += [f"{a.name} can include {b.header}, but does not depend on {b.name}"
                     for (a, b), ok in zip(forbidden, refused) if not ok]
        failures += [f"{a.name} depends on {b.name}, but does not find {b.header}"
                     for (a, b), ok in zip(allowed, found) if not ok]
    # One whole, so that a refusal is known to be about what is refused.
    if not all(includes(a, b.header) for a, b in allowed[:1]):
        failures.append(f"{allowed[0][0].name} cannot include {allowed[0][1].header}")
    # A header behind its folder's public ones is its own alone.
    private = sorted((source / "kernels/cpu").glob("*.h"))[0].relative_to(source).as_posix()
    failures += [f"{f.name} can include {private}" for f in folders.values()
                 if f.name != "kernels" and includes(f, private)]
    print(f"{len(folders)} folders, {len(allowed)} arrows, {len(forbidden)} refused")
    for failure in failures:
        print("FAILED:", failure)
    return bool(failures or not forbidden or not allowed)


if __name__ == "__main__":
    sys.exit(main())
