#!/usr/bin/env python3
"""Puts quickstart's report together from the results of its replays, and prints the figures that matter.

Exits with 1 if a request failed or a text differed with speculation off: then a law of foretoken's is broken."""
import argparse
import json
import os
import platform
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "traffic"))
sys.dont_write_bytecode = True
from make_traffic import overlap, prompt_of, quarters_of  # noqa: E402


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def load_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def interval(value):
    return {"value": value["value"], "ci95": value["ci95"], "control_rounds": value["control_rounds"]} if value else None


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def figures(replay):
    total = replay["total"]
    return {"requests": {"sent": total["sent"], "failed": total["failed"]}, "speedup": interval(replay.get("speedup")),
            "acceptance_length": total["acceptance_length"], "tokens_per_round": total["tokens_per_round"],
            "completion_tokens": total["completion_tokens"], "output_tokens_per_s": replay["output_throughput"],
            "ttft_ms": total["ttft_ms"], "tpot_ms": total["tpot_ms"]}


def net_interval(value):
    if not value or value.get("value") is None:
        return None
    return {"value": value["value"], "ci95": value["ci95"], "windows": value["windows"], "plain_windows": value["plain_windows"]}


def candidates_of(stats, speculator):
    """Every candidate of the trainer, as its gate judged it, and what the server's canary then said of those it published."""
    fates = {}
    for event in speculator.get("lineage") or []:
        if event["event"] in ("promoted", "rolled_back", "refused", "superseded"):
            fates[event["version"]] = event
    candidates = []
    for verdict in (stats.get("trainer") or {}).get("verdicts") or []:
        fate = fates.get(verdict["version"])
        candidates.append({**{k: verdict[k] for k in ("candidate", "version", "verdict", "requests", "step", "figures")},
                           "server": fate and {"fate": fate["event"], "reason": fate.get("reason"), "requests": fate.get("judged_requests"),
                                               "gain": fate.get("predicted_speed_gain"), "ci": fate.get("ci")}})
    return candidates


def portfolios_of(evaluation):
    """Tokens a round and predicted speedup of each portfolio on the last quarter, where drafts are as long as they pay."""
    rounds = (evaluation.get("rounds") or {})
    plan = rounds.get("cost") or next(iter(rounds.values()), {})
    portfolios = plan.get("portfolios") or {}
    # null: the version that serves has no such part (fusion+head where no head was promoted).
    return {name: {k: portfolios[name][k] for k in ("tokens_per_round", "predicted_speedup")} if name in portfolios else None
            for name in ("none", "ngram", "fusion", "fusion+head", "auto")} if portfolios else {}


def make_report(out, log_path, model, minutes, seconds):
    replay, heldout = load(os.path.join(out, "replay.json")), load(os.path.join(out, "heldout.json"))
    log, outcomes = load_lines(log_path), load_lines(os.path.join(out, "outputs.jsonl"))
    heldout_outcomes = load_lines(os.path.join(out, "heldout_outputs.jsonl"))
    quarters, check = replay["quarters"], replay["lossless_check"]
    stats = replay.get("server_stats") or {}
    speculator, evaluation = load(os.path.join(out, "speculator.json")), load(os.path.join(out, "evaluation.json"))
    prompts = quarters_of([(o["index"], prompt_of(log[o["index"]])) for o in outcomes if "body" in log[o["index"]]], len(log))
    answers = quarters_of([(o["index"], o["text"]) for o in outcomes], len(log))
    with_heldout = overlap(answers + [[o["text"] for o in heldout_outcomes]])
    total = replay["total"]
    install_s, build_s, all_s = (int(s) for s in seconds.split())
    return {
        "schema": "foretoken.quickstart/1",
        "speedup": interval(replay.get("speedup")),
        "net_speedup": net_interval(replay.get("net_speedup")),
        "speedup_last_quarter": interval(quarters[3]["speedup"]),
        "acceptance_length": {"first_quarter": quarters[0]["acceptance_length"], "last_quarter": quarters[3]["acceptance_length"]},
        "swaps": replay.get("swaps"),
        "versions": {"served": speculator["version"], "kind": speculator["kind"], "promoted": speculator["promoted"],
                     "rolled_back": speculator["rolled_back"], "refused": speculator["refused"]},
        "candidates": candidates_of(stats, speculator),
        "lineage": speculator["lineage"],
        "swap_pause_ms": speculator["swap_pause_ms"],
        "last_quarter_by_portfolio": {"portfolios": portfolios_of(evaluation), "requests_in_log": evaluation.get("requests_in_log"),
                                      "from_request": evaluation.get("from_request"), "costs": evaluation.get("costs"),
                                      "definition": "replayed from the traces with the version that served at the end; drafts as long as they pay "
                                                    "by the measured cost of rounds"},
        "load": {k: replay.get(k) for k in ("load", "capacity_requests_per_s", "rate_requests_per_s")},
        "requests": {"sent": total["sent"], "failed": total["failed"], "in_log": replay["log_requests"]},
        "lossless_check": {"requests": check["requests"], "mismatches": check["mismatches"], "failed": check["failed"],
                           "past_700_tokens": check["requests_past_tokens"]},
        "quarters": [{"sent": q["sent"], "failed": q["failed"], "speedup": interval(q["speedup"]), "acceptance_length": q["acceptance_length"],
                      "tokens_per_round": q["tokens_per_round"], "speculator_version_at_end": q.get("speculator_version_at_end")}
                     for q in quarters],
        "overlap_4gram": {"prompts": overlap(prompts), "answers": [row[:4] for row in with_heldout[:4]],
                          "held_out_answers_with_quarters": with_heldout[4][:4],
                          "definition": "row, column: share of the row quarter's distinct word 4-grams that stand in the column quarter too, "
                                        "of what was sent"},
        "traffic": figures(replay),
        "domains": {name: {"sent": d["sent"], "failed": d["failed"], "acceptance_length": d["acceptance_length"]}
                    for name, d in replay["domains"].items()},
        "held_out": figures(heldout),
        "model": {"file": os.path.basename(model), **{k: v for k, v in (stats.get("model") or {}).items() if k != "name"}},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "minutes": minutes,
        "seconds": {"install": install_s, "build": build_s, "all": all_s},
        "definitions": replay["definitions"],
        "more": ["evaluation.json: the portfolios by domain, and with fixed drafts", "replay.json: percentiles, domains, the time series", "heldout.json", "outputs.jsonl: every answer", "server.log"],
    }


def text_of(i, digits=2):
    return f"{i['value']:.{digits}f} [{i['ci95'][0]:.{digits}f}, {i['ci95'][1]:.{digits}f}]" if i else "not measured (too few control rounds)"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--log", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seconds", default="0 0 0", help="of installing, of building, of everything")
    a = parser.parse_args()
    report = make_report(a.out, a.log, a.model, a.minutes, a.seconds)
    path = os.path.join(a.out, "report.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    number = lambda v: "-" if v is None else f"{v:.2f}"  # noqa: E731
    acceptance, check, requests = report["acceptance_length"], report["lossless_check"], report["requests"]
    print(f"""
  speedup                    {text_of(report['speedup'])}
  net speedup                {text_of(report['net_speedup']) if report['net_speedup'] else "not measured (too few windows of plain serving)"}
  speedup, last quarter      {text_of(report['speedup_last_quarter'])}
  speedup, held-out problems {text_of(report['held_out']['speedup'])}
  acceptance length          {number(acceptance['first_quarter'])} in the first quarter, {number(acceptance['last_quarter'])} in the last
  versions                   {report['versions']['promoted']} promoted, {report['versions']['rolled_back']} rolled back, of {len(report['candidates'])} candidates judged
  hot swaps                  {report['swaps']}, pause p99 {report['swap_pause_ms']['p99']:.3f} ms
  requests                   {requests['sent']} sent of {requests['in_log']}, {requests['failed']} failed
  speculation off, again     {check['requests']} requests ({check['past_700_tokens']} past 700 tokens), {check['mismatches']} differ
  time                       {report['seconds']['all'] // 60} min {report['seconds']['all'] % 60} s in all
""")
    portfolios = report["last_quarter_by_portfolio"]["portfolios"]
    if portfolios:
        print("  last quarter, replayed     tokens a round   predicted speedup")
        for name, figures in portfolios.items():
            if figures:
                print(f"    {name:<24} {figures['tokens_per_round']['value']:>13.2f} {figures['predicted_speedup']['value']:>19.2f}")
        print()
    broken = requests["failed"] + check["mismatches"] + check["failed"] + report["held_out"]["requests"]["failed"]
    if broken:
        print("quickstart: a request failed or a text differed; see replay.json and server.log", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
