#!/usr/bin/env python3
"""The arrows between folders: what a folder may include, as the build decides it.

For every two folders of which the first does not depend on the second, a source of one line that includes a header
of the second is compiled as the first's sources are, and must fail. What a folder may
include is read off its include path (cmake/folders.cmake), so that the controls are needed: a header of every
folder that it does depend on is found, and no two folders depend on each other.

usage: arrows_test.py SOURCE_DIR BUILD_DIR
"""
import concurrent.futures
import json
import os
import pathlib
import re
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
        if path.parent.name == "Unity":  # a batch of a folder's sources: as its first
            path = pathlib.Path(re.search(r'#include "(.+)"', path.read_text()).group(1))
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
    # (Where the compiler is run is searched too: a folder in which nothing is found by such a name.)
    done = subprocess.run(folder.flags + ["-fsyntax-only", "-x", "c++", "-"], cwd=build / "roots",
                          input=text, capture_output=True, text=True)
    if done.returncode and "No such file" not in done.stderr and "not found" not in done.stderr:
        raise SystemExit(f"{folder.name}, compiling {text!r}: not refused, but broken:\n{done.stderr[:2000]}")
    return done.returncode == 0


def includes(folder, header):
    return compiles(folder, f'#include "{header}"\n')


def found_by(folder, headers):
    """Those that the folder's sources find, by one compilation that asks for each."""
    text = "".join(f'#if __has_include("{header}")\nfound {header}\n#endif\n' for header in headers)
    done = subprocess.run(folder.flags + ["-E", "-P", "-x", "c++", "-"], cwd=build / "roots", input=text,
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder.name}: not preprocessed:\n{done.stderr[:2000]}")
    return set(re.findall(r"^found (.*)$", done.stdout, flags=re.M))


def failures_of(folder, folders, private):
    """Every arrow from one folder."""
    others = [other for other in folders.values() if other is not folder and other.header]
    forbidden = {other.header: other for other in others if other.name not in folder.roots}
    allowed = {other.header: other for other in others if other.name in folder.roots}
    headers = list(forbidden) + list(allowed) + [private] * (folder.name != "kernels")
    found = found_by(folder, headers)
    failures = [f"{folder.name} finds {header}, but does not depend on {forbidden[header].name}"
                for header in forbidden if header in found]
    failures += [f"{folder.name} depends on {allowed[header].name}, but does not find {header}"
                 for header in allowed if header not in found]
    if folder.name != "kernels" and private in found:
        failures.append(f"{folder.name} finds {private}")
    # As a source would be refused: each compiled.
    failures += [f"{folder.name} compiles an include of {header}" for header in forbidden if includes(folder, header)]
    for other in folder.roots:
        if other != folder.name and folder.name in folders.get(other, folder).roots:
            failures.append(f"{folder.name} and {other} depend on each other")
    return failures, len(allowed), len(forbidden)


def main():
    folders = read_folders()
    if len(folders) < 10:
        raise SystemExit(f"only {len(folders)} folders found in compile_commands.json")
    # A header behind its folder's public ones is its own alone.
    private = sorted((source / "kernels/cpu").glob("*.h"))[0].relative_to(source).as_posix()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda folder: failures_of(folder, folders, private), folders.values()))
    failures = [failure for found, _, _ in results for failure in found]
    n_allowed, n_forbidden = sum(n for _, n, _ in results), sum(n for _, _, n in results)
    # One that is allowed, compiled whole, so that a refusal is known to be about what is refused.
    engine = folders["runtime/engine"]
    if not includes(engine, folders["runtime/kv"].header):
        failures.append("runtime/engine cannot include a header of runtime/kv")
    print(f"{len(folders)} folders, {n_allowed} arrows, {n_forbidden} refused")
    for failure in failures:
        print("FAILED:", failure)
    return bool(failures or not n_forbidden or not n_allowed)


if __name__ == "__main__":
    sys.exit(main())
