"""Rendered chat templates equal to PyPI's jinja2, set up as published models expect it.

    template_oracle.py RENDER_TEMPLATE [GGUF...]     (default: the small model, and a Qwen2.5 where it is there)

Compared: the models' own templates and others of the same make, over many conversations; and small templates, one
for each construct. Where jinja2 fails, ours must; what ours alone refuses has to be listed as not supported.
"""

import json
import os
import random
import subprocess
import sys

import gguf
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

import texts
from foretoken_server import models_of_each_family
from templates import SNIPPETS, TEMPLATES, UNSUPPORTED


def environment():
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def raise_exception(message):
        raise TemplateError(message)

    made.globals["raise_exception"] = raise_exception
    made.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return made


ENVIRONMENT = environment()


def expected(source, prompt, messages):
    try:
        return True, ENVIRONMENT.from_string(source).render(
            messages=[{"role": r, "content": c} for r, c in messages], add_generation_prompt=prompt,
            bos_token="<s>", eos_token="</s>", tools=None, documents=None)
    except Exception as error:      # jinja2 lets Python's own errors through
        return False, f"{type(error).__name__}: {error}"


def ours(program, cases):
    feed = b""
    for source, prompt, messages in cases:
        fields = [source, "1" if prompt else "0", str(len(messages))] + [f for m in messages for f in m]
        feed += b"".join(f.encode() + b"\0" for f in fields)
    data = subprocess.run([program], input=feed, stdout=subprocess.PIPE, check=True).stdout
    answers = []
    while data:
        head, _, data = data.partition(b"\n")
        kind, n = head.split()
        answers.append((kind == b"ok", data[:int(n)].decode()))
        data = data[int(n) + 1:]
    assert len(answers) == len(cases), f"{len(answers)} answers to {len(cases)} cases"
    return answers


def conversations(n):
    r = random.Random(11)
    contents = [t.replace("\0", "") for t in texts.lines(400, seed=5)]
    contents += ["", " ", "\n", "  padded \n\n", "<|im_end|>", "{{ 7*7 }}", "a\u3000", "\u200bzero", "'\"\\", "<think>x</think> y"]
    out = [[], [("user", "Hi")], [("system", ""), ("user", "")], [("assistant", "first")], [("tool", "x")], [("", "")],
           [("user", "a"), ("user", "b")], [("system", "s")], [("system", "s"), ("system", "t"), ("user", "u")]]
    while len(out) < n:
        talk = [("system", r.choice(contents))] if r.random() < .4 else []
        for turn in range(r.randint(1, 6)):
            talk.append((("user", "assistant")[turn % 2], r.choice(contents)))
        if r.random() < .1:
            talk.append((r.choice(["tool", "ipython", "developer", "ユーザー"]), r.choice(contents)))
        out.append(talk)
    return out


def main():
    program, *paths = sys.argv[1:]
    paths = paths or models_of_each_family()
    templates = dict(TEMPLATES)
    for path in paths:
        field = gguf.GGUFReader(path).fields.get("tokenizer.chat_template")
        if field:
            templates[os.path.basename(path)] = field.contents()
    talks = conversations(300)
    cases = [(source, prompt, talk) for source in templates.values() for talk in talks for prompt in (True, False)]
    few = [talks[0], talks[1], [("system", "Be  brief. "), ("user", " Hé\n"), ("assistant", "ok"), ("user", "日本 'x' \"y\"")]]
    cases += [(source, True, talk) for source in SNIPPETS for talk in few]
    wrong = 0
    both_failed = 0
    for (source, prompt, talk), (ok, text) in zip(cases, ours(program, cases)):
        want_ok, want = expected(source, prompt, talk)
        both_failed += not ok and not want_ok
        if ok != want_ok or (ok and text != want):
            wrong += 1
            if wrong <= 5:
                print(f"  {source[:200]!r}\n    messages {talk!r:.100}\n    want {want_ok} {want[:200]!r}\n    got  {ok} {text[:200]!r}",
                      file=sys.stderr)
    refused = 0
    for (source, name), (ok, text) in zip(UNSUPPORTED, ours(program, [(s, True, few[1]) for s, _ in UNSUPPORTED])):
        good = not ok and name in text and "line 2" in text
        refused += good
        if not good:
            print(f"  {source!r}: an error at line 2 that names {name!r} wanted, found {text!r}", file=sys.stderr)
    print(f"{len(templates)} templates, {len(talks)} conversations, {len(SNIPPETS)} snippets: {len(cases)} renderings, "
          f"{wrong} differ, {both_failed} refused by both; {refused} of {len(UNSUPPORTED)} unsupported constructs named")
    sys.exit(0 if wrong == 0 and refused == len(UNSUPPORTED) else 1)


if __name__ == "__main__":
    main()
