"""report.html: one self-contained page, built from the run directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burnish.config.loading import dump_yaml
from burnish.report import frontier
from burnish.report.charts import (
    calibration_chart,
    dpo_charts,
    interval_chart,
    look_charts,
    ppo_charts,
    probe_chart,
)
from burnish.report.embed import Charts, render
from burnish.report.summary import build_summary, read
from burnish.runs.directory import RunDirectory
from burnish.runs.files import atomic_write, write_json

SAMPLES = 6


def write_reports(run_path: Path, *, completing: str | None = None) -> Path:
    """Write report.html and summary.json, and return the path of the page; see `build_summary`."""
    page = render_report(run_path, completing=completing)
    write_json(run_path / "summary.json", build_summary(run_path, completing=completing))
    return page


def render_report(run_path: Path, *, completing: str | None = None) -> Path:
    """Write report.html, without the stages that have not run, and return its path.

    `completing` is as in `build_summary`.
    """
    run = RunDirectory.open(run_path)
    summary = build_summary(run_path, completing=completing)
    evaluation = read(run_path / "evaluation.json")
    examination = read(run_path / "reward" / "examination.json")
    events = run.read_rows("events.jsonl")
    measured = read(run_path / frontier.FRONTIER)
    charts = Charts()
    page = render(
        "report.html",
        charts,
        summary=summary,
        verdict=verdict(summary),
        checklist=summary["checklist"],
        evaluation=evaluation,
        kinds_worse=kinds_worse(evaluation),
        win_rates=charts.add("Win rate against SFT", "", win_rate_chart(evaluation)) if evaluation else None,
        examination=examination,
        stressed=read(run_path / "stress.json"),
        reward_charts=charts.many(
            [
                *reward_charts(examination, read(run_path / "reward" / "readings.json")),
                *length_charts(examination, evaluation),
            ]
        ),
        frontier=measured and [frontier.sentence(measured, name) for name in measured["policies"]],
        frontier_chart=charts.add("Frontier", frontier.NOTE, frontier.chart(measured)) if measured else None,
        ppo_charts=charts.many(
            ppo_charts(run.read_rows("metrics/ppo.jsonl"), summary["ppo"]["kl_target"])
            + look_charts(run.read_rows("metrics/looks.jsonl"))
        ),
        dpo_charts=charts.many(dpo_charts(run.read_rows("metrics/dpo.jsonl"))),
        decisions=[e for e in events if e["kind"] == "decision"],
        alerts=[e for e in events if e["kind"] == "alert"],
        labels=next(iter(run.read_rows("metrics/label.jsonl")), None),
        rejected=rejected(run, run_path),
        configuration=dump_yaml(run.config),
    )
    atomic_write(run_path / "report.html", page)
    return run_path / "report.html"


def verdict(summary: dict[str, Any]) -> str:
    """Return the headline: the champion, the evidence and its uncertainty."""
    champion = summary["champion"]
    if champion is None:
        return "This run has no champion yet."
    evaluation = summary["evaluation"]
    judge = evaluation["judge"]
    tail = (
        " The result is provisional: no person and no independent judge has examined it."
        * summary["provisional"]
    )
    if champion == "sft":
        return f"The champion is SFT: no candidate clearly beat it. {summary['reason'].capitalize()}.{tail}"
    figures = evaluation[champion]
    return (
        f"The champion is {champion.upper()}: it wins {figures['win_rate']:.1%} against SFT "
        f"(95 % interval {figures['ci_low']:.1%} to {figures['ci_high']:.1%}, {figures['n']} held-out prompts), "
        f"judged by {_article(judge)}.{tail}"
    )


def _article(judge: str) -> str:
    return judge if judge.startswith(("a ", "an ")) else f"a {judge}"


def kinds_worse(evaluation: dict[str, Any] | None) -> str | None:
    """Return a sentence that names the kinds of prompts on which a policy is worse than SFT.

    Returns None if no kind has enough prompts.
    """
    policies = ((evaluation or {}).get("kinds") or {"policies": {}})["policies"]
    rows = [(name, row) for name, held in policies.items() for row in held]
    if not rows:
        return None
    worse = [f"{name} on {row['kind']} ({row['win_rate']:.2f})" for name, row in rows if row["worse"]]
    return (
        f"Worse than SFT: {'; '.join(worse)}." if worse else "No policy is surely worse than SFT on a kind."
    )


def win_rate_chart(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Draw every policy's win rate by the examiner and, in a rehearsal, by the true preference."""
    rows = []
    for name, figures in evaluation["policies"].items():
        for source, table in (
            ("examiner", figures.get("test")),
            ("equal length", figures.get("length_controlled")),
            ("true preference", (evaluation["gold"] or {}).get(name)),
        ):
            if table:
                rows.append((f"{name}, {source}", table["win_rate"], table["ci_low"], table["ci_high"]))
    return interval_chart(rows, 0.5, "win rate against SFT")


def reward_charts(
    examination: dict[str, Any] | None, readings: dict[str, Any] | None
) -> list[tuple[str, str, dict[str, Any]]]:
    """Draw the models' accuracy beside trivial baselines, calibration, and probes of the layers."""
    if examination is None:
        return []
    probes = []
    if readings and readings["probes"]:
        note = "Linear probes on frozen activations, before anything was trained."
        probes = [("Layer that the reward reads", note, probe_chart(readings))]
    models = [("ensemble", examination["accuracy"])]
    models += [(f"member {k}", m["accuracy"]) for k, m in enumerate(examination["members"])]
    models += [(r, examination[r]["accuracy"]) for r in ("watcher", "examiner") if examination.get(r)]
    rows = [(name, a["value"], a["ci_low"], a["ci_high"]) for name, a in models]
    rows += [(f"{name} wins", value, value, value) for name, value in examination["baselines"].items()]
    best = max(examination["baselines"].values())
    return [
        (
            "Held-out accuracy",
            "With 95 % intervals; the dotted line is the best trivial rule.",
            interval_chart(rows, best, "accuracy"),
        ),
        (
            "Calibration",
            f"Expected calibration error {examination['calibration']['ece']:.3f}.",
            calibration_chart(examination["calibration"]["bins"]),
        ),
        *probes,
    ]


def length_charts(
    examination: dict[str, Any] | None, evaluation: dict[str, Any] | None
) -> list[tuple[str, str, dict[str, Any]]]:
    """Draw how often the longer answer is preferred, from labels to policies."""
    bias = (examination or {}).get("length")
    if not bias:
        return []
    named = (
        ("labels prefer the longer", bias["labels"]),
        ("reward prefers the longer", bias["reward"]),
        (f"the same, corrected ({bias['how']})", bias.get("corrected")),
    )
    policies = (evaluation or {}).get("policies", {})
    longer = [(f"{name} is longer than SFT", figures.get("longer")) for name, figures in policies.items()]
    rows = [(name, f["value"], f["ci_low"], f["ci_high"]) for name, f in (*named, *longer) if f]
    note = "Share of pairs, or of test prompts, of unequal length, with intervals; 0.5 means no length bias."
    return [("Length bias, from labels to policies", note, interval_chart(rows, 0.5, "share"))]


def rejected(run: RunDirectory, run_path: Path) -> list[tuple[str, str, int]]:
    """Return (file, reason, count) of the rows that were not used."""
    counts: dict[tuple[str, str], int] = {}
    for file in sorted((run_path / "rejected").glob("*.jsonl")):
        for row in run.read_rows(f"rejected/{file.name}"):
            key = (file.stem, str(row["reason"]))
            counts[key] = counts.get(key, 0) + 1
    return [(stage, reason, n) for (stage, reason), n in counts.items()]
