"""The speed table: Burnish and its peers side by side on this machine, interleaved, every arm in its own process.

usage: benchmarks/peers.sh && python benchmarks/speed.py [--rounds 3] [--only ppo,sampling,pairs] [--out FILE]
Nothing else should run meanwhile: two compute processes on two cores slow each other many times over.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ARMS = ROOT / "benchmarks" / "arms"
ARENA = ROOT / ".cache" / "arena"
PEERS = ROOT / ".cache" / "peers"
OURS = sys.executable
TRL_PPO, TRL = (str(PEERS / name / "bin" / "python") for name in ("trl-ppo", "trl-current"))

Result = dict[str, float | list[float]]


def arm(python: str, script: str, *args: str | int | float) -> Result:
    """Run one arm; its last line of output is its result."""
    call = [python, str(ARMS / script), *map(str, args)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(call)} failed:\n{done.stderr[-3000:]}")
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def seconds(results: list[Result]) -> list[float]:
    """Medians of the rounds."""
    return [statistics.median(r["seconds"]) for r in results]  # type: ignore[arg-type]


def spread(values: list[float], digits: int = 2) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(theirs) / statistics.median(ours)


def interleaved(rounds: int, arms: dict[str, tuple[str | int | float, ...]]) -> dict[str, list[Result]]:
    """Every arm once a round, in turn."""
    results: dict[str, list[Result]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, call in arms.items():
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            results[name].append(arm(str(call[0]), str(call[1]), *call[2:]))
    return results


def prepare() -> None:
    for name, extra in (("fixed", []), ("ends", ["--ends"])):
        if not (ARENA / name / "pairs.jsonl").exists():
            call = [OURS, str(ARMS / "arena.py"), str(ARENA / name), *extra]
            subprocess.run(call, check=True, capture_output=True)


def ppo(rounds: int) -> list[str]:
    fixed, ends = ARENA / "fixed", ARENA / "ends"
    r = interleaved(
        rounds,
        {
            "ours, ends": (OURS, "burnish_ppo.py", ends),
            "trl, ends": (TRL_PPO, "trl_ppo.py", ends, "--ends"),
            "ours, fixed": (OURS, "burnish_ppo.py", fixed),
            "trl, fixed": (TRL_PPO, "trl_ppo.py", fixed),
            "ours, one member": (OURS, "burnish_ppo.py", fixed, "--members", 1),
            "trl, frozen": (TRL_PPO, "trl_ppo.py", fixed, "--frozen", 4),
            "ours, all layers": (
                *(OURS, "burnish_ppo.py", fixed, "--members", 1),
                *("--layers", "all", "--set", "ppo.value_layers=6"),
            ),
        },
    )
    rows = []
    for what, ours, theirs, goal in (
        ("PPO update, defaults, three members, responses that end", "ours, ends", "trl, ends", 6.0),
        ("the same, fixed length 48", "ours, fixed", "trl, fixed", 3.5),
        ("PPO update, all layers, one member, fixed length", "ours, all layers", "trl, fixed", 1.4),
        (
            "PPO update, defaults, one member; TRL with the same layers frozen",
            "ours, one member",
            "trl, frozen",
            2.5,
        ),
    ):
        a, b = seconds(r[ours]), seconds(r[theirs])
        rows.append(f"| {what}, s | {spread(a)} | {spread(b)} | {ratio(a, b):.2f} | {goal:g} |")
    memory = {n: [float(x["peak_mib"]) for x in r[n]] for n in ("ours, fixed", "trl, fixed")}  # type: ignore[arg-type]
    a, b = memory["ours, fixed"], memory["trl, fixed"]
    share = statistics.median(a) / statistics.median(b)
    rows.append(
        f"| peak memory of PPO, MiB (share of TRL's) | {spread(a, 0)} | {spread(b, 0)} | {share:.2f} | at most 0.4 |"
    )
    return rows


def sampling(rounds: int) -> list[str]:
    result = [arm(OURS, "burnish_sampling.py", ARENA / "ends", "--prompts", n) for n in (32, 128)]
    fixed = arm(OURS, "burnish_sampling.py", ARENA / "fixed")
    rows = []
    for what, r in zip(("32 responses", "128 responses, refilled"), result, strict=True):
        a, b = float(r["ours"]), float(r["generate"])  # type: ignore[arg-type]
        rows.append(
            f"| sampling, batch 32, varied lengths, {what}, tokens/s | {a:.0f} | {b:.0f} | {a / b:.2f} | 2.5 |"
        )
    a, limit = float(fixed["ours"]), float(fixed["products"])  # type: ignore[arg-type]
    rows.append(
        f"| sampling, fixed length 48; peer: decode-shaped products, tokens/s | {a:.0f} | {limit:.0f} | "
        f"{a / limit:.2f} | 0.6 |"
    )
    return rows


def pairs(rounds: int) -> list[str]:
    """On labelled pairs of the rehearsal and its model; the same grid of rates for everybody, the best by quality."""
    room = ARENA / "stories"
    if not (room / "pairs.jsonl").exists():
        run = [OURS, "-m", "burnish.cli.main"]
        subprocess.run(
            [*run, "label", "--dir", str(room / "run"), "--set", "collect.n_pairs=2400"],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [*run, "export", str(room / "run"), str(room / "pairs.jsonl")], check=True, capture_output=True
        )
    model, file = ROOT / "burnish" / "rehearse" / "model", room / "pairs.jsonl"
    rows = []
    for what, metric, goal, rates in (
        ("reward", "accuracy", 1.0, (1e-3, 3e-3, 6e-3)),
        ("dpo", "gold_win_rate", 3.0, (3e-4, 1e-3, 3e-3)),
    ):
        calls: dict[str, tuple[str | int | float, ...]] = {}
        for rate in rates:
            calls[f"ours {rate}"] = (OURS, "burnish_pairs.py", what, model, file, "--rate", rate)
            calls[f"trl {rate}"] = (
                TRL,
                "trl_pairs.py",
                what,
                model,
                file,
                "--rate",
                rate,
                "--out",
                room / f"trl-{rate}",
            )
        r = interleaved(rounds, calls)
        if what == "dpo":
            for rate in rates:
                judged = arm(
                    OURS, "burnish_pairs.py", "judge", model, file, "--judge", room / f"trl-{rate}" / "model"
                )
                for result in r[f"trl {rate}"]:
                    result |= judged
        best = {
            side: max(rates, key=lambda x, side=side: statistics.median(q[metric] for q in r[f"{side} {x}"]))  # type: ignore[misc]
            for side in ("ours", "trl")
        }
        a, b = (r[f"{side} {best[side]}"] for side in ("ours", "trl"))
        speed = [[float(x["pairs_per_second"]) for x in side] for side in (a, b)]  # type: ignore[arg-type]
        quality = [statistics.median(float(x[metric]) for x in side) for side in (a, b)]  # type: ignore[arg-type]
        name = "reward models (three against one)" if what == "reward" else "DPO"
        rows.append(
            f"| {name}, pairs/s ({metric.replace('_', ' ')} {quality[0]:.3f} against {quality[1]:.3f}) | "
            f"{spread(speed[0], 0)} | {spread(speed[1], 0)} | {ratio(speed[1], speed[0]):.2f} | {goal:g} |"
        )
    return rows


SECTIONS = {"ppo": ppo, "sampling": sampling, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    prepare()
    rows = [row for name in args.only.split(",") for row in SECTIONS[name](args.rounds)]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    head = [
        f"{date.today()}, commit {commit.stdout.strip()}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds, medians (range).",
        "",
        "| work | Burnish | peer | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    text = "\n".join([*head, *rows])
    print(text)
    if args.out:
        args.out.write_text("# Speed, side by side\n\n" + text + "\n")


if __name__ == "__main__":
    main()
