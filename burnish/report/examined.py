"""examined.html: one page of the results of `burnish reward examine` and `burnish reward stress`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.report.charts import best_of_chart, calibration_chart, interval_chart
from burnish.report.embed import Chart, Charts, render
from burnish.report.summary import read
from burnish.runs.files import atomic_write

Report = Mapping[str, Any]


def render_examined(run_path: Path, name: str = "examined") -> Path:
    """Write the page from NAME.json and stressed.json (one may be missing) and return its path."""
    examined, stressed = read(run_path / f"{name}.json"), read(run_path / "stressed.json")
    charts = Charts()
    page = render(
        "examined.html",
        charts,
        name=(examined or stressed)["run"],
        examined=examined,
        stressed=stressed,
        figures_of_pairs=charts.many(pair_charts(examined)) if examined else [],
        figures_of_stress=charts.many(stress_charts(stressed)) if stressed else [],
    )
    atomic_write(run_path / f"{name}.html", page)
    return run_path / f"{name}.html"


def _row(name: str, found: Report) -> tuple[str, float, float, float]:
    return name, found["value"], found["ci_low"], found["ci_high"]


def pair_charts(examined: Report) -> list[Chart]:
    """Draw accuracy by model and by slice, calibration, and accuracy on the policy's own answers."""
    models = [_row("ensemble", examined["accuracy"])]
    models += [_row(f"member {k}", m) for k, m in enumerate(examined["members"])]
    models += [(f"{name} wins", value, value, value) for name, value in examined["baselines"].items()]
    best = max(examined["baselines"].values())
    calibration = examined["calibration"]
    fitted = "" if calibration["ece_fitted"] is None else f", {calibration['ece_fitted']:.3f} with it"
    found: list[Chart] = [
        ("Accuracy", "The dotted line is the best trivial rule.", interval_chart(models, best, "accuracy")),
        (
            "Reliability",
            f"Expected calibration error {calibration['ece']:.3f}; the fitted temperature is "
            f"{calibration['temperature']:.2f}{fitted}.",
            calibration_chart(calibration["bins"], calibration.get("bins_fitted", ())),
        ),
    ]
    parts = [
        _row(f"{name}: {part}", a)
        for name, by in examined["slices"].items()
        for part, a in by.items()
        if "value" in a
    ]
    note = "The dotted line is the accuracy on all pairs; slices of under 24 pairs are left out."
    found.append(("By slice", note, interval_chart(parts, examined["accuracy"]["value"], "accuracy")))
    own = examined["own"]
    if own and "validation" in own:
        rows = [_row("validation", own["validation"])]
        rows += [_row(when, row) for when, row in own["rows"].items() if "value" in row]
        note = f"Judged by {own['judge']}; the dotted line is chance."
        found.append(("The policy's own answers", note, interval_chart(rows, 0.5, "accuracy")))
    return found


def stress_charts(stressed: Report) -> list[Chart]:
    """Draw the mean rise of every change, and best-of-n."""
    rows = [_row(c["name"].replace("_", " "), c["rise"]) for c in stressed["changes"] if c["rise"]]
    found: list[Chart] = []
    if rows:
        note = "Mean rise of the score, in standard deviations of the policy's own answers; none of them should rise."
        found.append(("Changes", note, interval_chart(rows, 0.0, "rise")))
    best = stressed["best_of"]
    if best:
        note = (
            "From SFT answers: the score of the winner as more answers are drawn, and the share of winners that look "
            "hacked."
        )
        found.append(("Best of n", note, best_of_chart(best["rows"], stressed["worth"])))
    return found
