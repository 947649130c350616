#!/usr/bin/env python3
"""What the whole tree keeps to, file by file: run by ctest, and by hand without arguments.

Each check yields complaints "path:line: what is wrong"; `controls` gives each something that it must complain
about, so that a check that finds nothing is known to look. Exceptions stand in exceptions.py, each with its reason; an
exception that nothing needs is a complaint too.
"""
import collections
import concurrent.futures
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys

from exceptions import DUPLICATES, LONG_FUNCTIONS, LONG_LINES, TESTED_THROUGH, UNFORMATTED

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRODUCT = ("kernels", "protocol", "runtime", "trainer")
MOST_COLUMNS = 100
MOST_COLUMNS_OF_A_SCRIPT = 160
MOST_LINES_OF_A_FUNCTION = 100
EQUAL_LINES = 10
# Fewer different lines among ten are a list (of fields, of cases): data, not something to share.
DIFFERENT_LINES = 6

CPP_KEYWORDS = set("""alignas alignof auto bool break case catch char class const constexpr continue default delete do
double else enum explicit extern false float for friend goto if inline int long mutable namespace new noexcept nullptr
operator override private protected public return short signed sizeof static static_assert struct switch template this
throw true try typename union unsigned using virtual void volatile while final""".split())
CPP_TOKENS = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"'
                        r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'", re.S)


def is_cpp(path):
    return path.endswith((".cpp", ".h", ".cu"))


def is_product(path):
    return path.split("/")[0] in PRODUCT and is_cpp(path)


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()]


def bare(text):
    """C++ without comments and what is between quotes; every line stays where it is."""
    def blank(match):
        found = match.group(0)
        quote = '""' if found[0] in "R\"" else "''" if found[0] == "'" else ""
        return quote + "\n" * found.count("\n")
    return CPP_TOKENS.sub(blank, text)


# ---- the checks: texts is {path: text} -------------------------------------------------------------------------

def long_lines(texts):
    for path, text in texts.items():
        if not is_cpp(path) and not path.endswith(".py"):
            continue
        limit = MOST_COLUMNS_OF_A_SCRIPT if path.endswith(".py") else MOST_COLUMNS
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > limit:
                yield path, f"{path}:{number}: {len(line)} columns, wanted at most {limit}"


def functions(text):
    """(first line, lines, head) of every function with a body; lambdas and local classes belong to theirs."""
    text = re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: re.sub(r"[^\n]", " ", m.group(0)), bare(text), flags=re.M)
    line, parentheses, head, head_line, open_braces = 1, 0, "", None, []
    for c in text:
        if c == "{":
            start = re.sub(r"^template\s*<.*?>\s*", "", head.strip(), flags=re.S)
            is_function = (parentheses == 0 and "(" in start and not start.endswith("=")
                           and not any(inner for inner, _, _ in open_braces)
                           and not re.match(r"(if|for|while|switch|do|else|catch|try|namespace|class|struct|enum|union)\b", start))
            open_braces.append((is_function, head_line, " ".join(start.split())))
            head, head_line = "", None
        elif c == "}":
            if open_braces:
                was_function, first, name = open_braces.pop()
                if was_function:
                    yield first, line - first + 1, name
            head, head_line = "", None
        elif c == ";" and parentheses == 0:
            head, head_line = "", None
        else:
            parentheses += (c in "([") - (c in ")]")
            line += c == "\n"
            if head_line is None and not c.isspace():
                head_line = line
            head += c


def long_functions(texts):
    for path, text in texts.items():
        if not is_product(path):
            continue
        for first, lines, head in functions(text):
            if lines > MOST_LINES_OF_A_FUNCTION:
                name = re.search(r"([\w~]+(?:::[\w~]+)*)\s*\(", head)
                yield (f"{path} {name.group(1) if name else head}",
                       f"{path}:{first}: {lines} lines of one function, wanted at most {MOST_LINES_OF_A_FUNCTION}: {head[:60]}")


def laws(texts):
    """Every law that is cited is stated, and every test that LAWS.md names exists."""
    stated = set(re.findall(r"^## Law (\d+)", texts.get("docs/LAWS.md", ""), flags=re.M))
    for path, text in texts.items():
        for match in re.finditer(r"\b[Ll]aws? (\d+)(?:(?:, | and | to )(\d+))*", text):
            for number in re.findall(r"\d+", match.group(0)):
                if number not in stated:
                    line = text.count("\n", 0, match.start()) + 1
                    yield path, f"{path}:{line}: law {number} is not in docs/LAWS.md"
    tests = set()
    for path, text in texts.items():
        if path.startswith("tests/"):
            tests |= {f"{a}.{b}" for a, b in re.findall(r"\bTEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", text)}
            tests |= set(re.findall(r"\bNAME ([\w.]+)", text))
    suites = {test.split(".")[0] for test in tests}
    for name in re.findall(r"`([A-Z]\w+\.(?:[A-Z]\w+|\*))`", texts.get("docs/LAWS.md", "")):
        if name not in tests and not (name.endswith(".*") and name[:-2] in suites):
            yield "docs/LAWS.md", f"docs/LAWS.md: no test is called {name}"


def foreign_names(texts):
    """No path of the machine that something was written on, no host of a package registry, no document from elsewhere."""
    wrong = re.compile(r"(?<![\w$}])(?<!\w\x22)(/(?:root|home/\w+|work|mnt|workspace)/[\w.]+)"
                       r"|\b((?:files\.)?(?:pypi|pythonhosted|test\.pypi)\.org|(?:docker|ghcr|quay|gcr)\.io|index-url\s*=?\s*https?:\S+)"
                       r"|\b((?:DESIGN|STYLE)(?:\.md)?(?: section|:|\)))")
    for path, text in texts.items():
        if path == "tests/tidy/tidy_test.py" or path.startswith("tests/corpus/"):  # frozen texts
            continue
        for match in wrong.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield path, f"{path}:{line}: {match.group(0)}"


def untested(texts):
    """A source has a test of its name, or a test that includes its header, or a reason."""
    tests = {p: t for p, t in texts.items() if p.startswith("tests/") and is_cpp(p)}
    names = {os.path.basename(p)[:-len("_test.cpp")] for p in tests if p.endswith("_test.cpp")}
    included = {i for text in tests.values() for i in re.findall(r'^#include "([^"]+)"', text, flags=re.M)}
    for path in texts:
        if not is_product(path) or not path.endswith(".cpp"):
            continue
        stem = path[:-len(".cpp")]
        name = re.sub(r"_(scalar|avx2|avx512\w*)$", "", os.path.basename(stem))
        public = f"foretoken/{path.split('/')[0]}/{name}.h"
        if name not in names and stem + ".h" not in included and public not in included:
            yield path, f"{path}: no test of its name, none that includes its header"


def duplicates(texts):
    """No ten lines that are equal, blanks and names aside, in two product files."""
    windows = collections.defaultdict(set)
    for path, text in texts.items():
        if not is_product(path):
            continue
        lines = []
        for number, line in enumerate(bare(text).split("\n"), 1):
            line = re.sub(r"[A-Za-z_]\w*", lambda m: m.group(0) if m.group(0) in CPP_KEYWORDS else "n", line)
            line = "".join(line.split())
            if line and not line.startswith("#"):
                lines.append((number, line))
        for i in range(len(lines) - EQUAL_LINES + 1):
            run = tuple(line for _, line in lines[i:i + EQUAL_LINES])
            if len(set(run)) >= DIFFERENT_LINES:
                windows[run].add((path, lines[i][0]))
    first = {}
    for places in windows.values():
        places = sorted(places)
        for i, (a, at) in enumerate(places):
            for b, bt in places[i + 1:]:
                if a != b:
                    first[a, b] = min(first.get((a, b), (at, bt)), (at, bt))
    for (a, b), (at, bt) in sorted(first.items()):
        yield f"{a} {b}", f"{a}:{at}: {EQUAL_LINES} lines as in {b}:{bt}"


def unformatted(texts, tool="clang-format-14"):
    if not shutil.which(tool):
        raise SystemExit(f"tidy: {tool} is missing (cmake/install_dependencies test installs it)")
    def check(item):
        path, text = item
        done = subprocess.run([tool, "--assume-filename", path], cwd=ROOT, input=text, capture_output=True, text=True)
        return path, done.stdout != text
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, differs in pool.map(check, [(p, t) for p, t in texts.items() if is_cpp(p)]):
            if differs:
                yield path, f"{path}: not as clang-format 14 would have it (clang-format-14 -i {path})"


CHECKS = [(long_lines, LONG_LINES), (long_functions, LONG_FUNCTIONS), (laws, {}), (foreign_names, {}),
          (untested, TESTED_THROUGH), (duplicates, DUPLICATES), (unformatted, UNFORMATTED)]


def complaints(check, exceptions, texts):
    used = set()
    for key, text in check(texts):
        excuses = [pattern for pattern in exceptions if fnmatch.fnmatchcase(key, pattern)]
        used |= set(excuses)
        if not excuses:
            yield text
    for pattern in sorted(set(exceptions) - used):
        yield f"tests/tidy/exceptions.py: {check.__name__} has no need of the exception {pattern!r}"


def controls():
    """Something wrong for each check."""
    body = "".join(f"  a{i} = f{'x' * (i % 9)}(b{i}{', c' * (i % 7)});\n" for i in range(MOST_LINES_OF_A_FUNCTION))
    wrong = {
        long_lines: {"runtime/a.h": "// " + "x" * 100 + "\n"},
        long_functions: {"runtime/a.cpp": f"namespace n {{\nvoid f(int a) {{\n{body}}}\n}}\n"},
        laws: {"runtime/a.h": f"// as law {99} has it\n", "docs/LAWS.md": "## Law 1\n"},
        foreign_names: {"runtime/a.md": "see /home" + "/somebody/notes\n"},
        untested: {"runtime/a/b.cpp": "", "tests/unit/c_test.cpp": '#include "runtime/a/c.h"\n'},
        duplicates: {"runtime/a.cpp": body[:900], "trainer/b.cpp": body[:900].replace("a", "zz").replace("  ", "\t")},
        unformatted: {"runtime/a.cpp": "int  a ;\n"},
    }
    for check, _ in CHECKS:
        if not list(check(wrong[check])):
            yield f"tests/tidy/tidy_test.py: {check.__name__} does not see what is wrong in its control"
    told = list(laws({"docs/LAWS.md": "## Law 1\n`Suite.NoSuchTest`\n"}))
    if len(told) != 1:
        yield "tests/tidy/tidy_test.py: laws does not see a test that does not exist"


def main():
    texts = {}
    for path in tracked_files():
        try:
            texts[path] = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary golden files
    found = list(controls())
    for check, exceptions in CHECKS:
        found += complaints(check, exceptions, texts)
    for reason in TESTED_THROUGH.values():
        for named in re.findall(r"tests/[\w/.]+", reason):
            if not (ROOT / named).exists():
                found.append(f"tests/tidy/exceptions.py: {named} does not exist")
    lines = collections.Counter()
    for path, text in texts.items():
        if is_product(path):
            lines[os.path.dirname(path)] += text.count("\n")
    for top in PRODUCT:
        print(f"{sum(n for folder, n in lines.items() if folder.split('/')[0] == top):7} {top}")
        for folder in sorted(f for f in lines if f.split("/")[0] == top and f != top):
            print(f"{lines[folder]:7}   {folder}")
    print(f"{sum(lines.values()):7} lines of product code")
    for complaint in found:
        print(complaint)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
