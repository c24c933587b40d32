"""What `burnish label audit`, `agree`, `route` and `plan` found, as accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.report.charts import interval_chart
from burnish.report.told import Point, Table, Told, interval

Report = Mapping[str, Any]


def audit(report: Report) -> Told:
    """Of a judge, or of whoever gave rankings."""
    of = report["judge"] if report["kind"] == "judge" else f"{report['rankings']} rankings"
    told = Told(f"Audit of {of}")
    told.points.append(_audit_outcome(report))
    told.points += _judge_points(report) if report["kind"] == "judge" else _reading_points(report)
    rows = [
        (
            f["name"].replace("_", " "),
            interval(f),
            f"{f['null']:.3g}",
            str(f["n"]),
            f"{f['p']:.2g}",
            f"{f['q']:.2g}",
            f"{f['smallest']:.3f}",
            "seen" if f["seen"] else "",
            f["what"],
        )
        for f in report["findings"]
    ]
    if rows:
        columns = ("probe", "value", "without bias", "n", "p", "q", "could see", "", "what it is")
        note = (
            "q: p corrected for the number of probes (Benjamini and Hochberg). could see: the effect that 80 of 100 "
            "samples like this one would show. n counts prompts."
        )
        told.tables.append(Table("Probes", columns, rows, note))
        spans = [
            (f["name"].replace("_", " "), *(f[k] - f["null"] for k in ("value", "ci_low", "ci_high")))
            for f in report["findings"]
        ]
        told.charts.append(
            (
                "Probes",
                "Difference from what there is without bias.",
                interval_chart(spans, 0.0, "difference"),
            )
        )
    return told


def _audit_outcome(report: Report) -> Point:
    untested = (
        f"; {report['not_tested']} could not be tested, for want of data" if report["not_tested"] else ""
    )
    if report["outcome"] == "too few":
        return Point("open", "Too few to tell", "no probe has the 12 prompts that a test needs")
    if report["seen"]:
        return Point("miss", "Bias found", ", ".join(n.replace("_", " ") for n in report["seen"]) + untested)
    return Point(
        "ok", "Nothing found", f"{len(report['findings'])} probes; see what they could have seen{untested}"
    )


def _judge_points(report: Report) -> list[Point]:
    points = []
    agrees = report.get("agrees_with_people")
    if agrees:
        points.append(
            Point("ok", "Agrees with people", f"{interval(agrees)} on {agrees['n']} prompts, ties apart")
        )
    else:
        points.append(
            Point("open", "No labels of people", "whether length or its own hand sways it is not known")
        )
    if report["own"] is None:
        points.append(
            Point("open", "Self-preference", "name the source of its own model's answers with --own")
        )
    if report["abstentions"]:
        points.append(
            Point("open", "Abstentions", f"{report['abstentions']}: the figures are of what was answered")
        )
    points.append(Point("ok", "Cost", f"{report['cost']:.4f} dollars"))
    return points


def _reading_points(report: Report) -> list[Point]:
    points = []
    again = report["second_readings"]
    if again is None:
        points.append(Point("open", "No second readings", "how stable the reader is cannot be known"))
    else:
        text = (
            f"agree on {interval(again['agree'])} of {again['pairs']} strict pairs of {again['items']} rankings; the "
            f"best of one was the worst of the other {again['best_became_worst']} times"
        )
        points.append(Point("ok", "Second readings", text))
    if report["longer"]:
        points.append(
            Point(
                "ok",
                "The longer answer wins",
                f"{interval(report['longer'])} of strict pairs; no fault by itself",
            )
        )
    if report["unusable"]:
        bad = ", ".join(f"{reason}: {n}" for reason, n in report["unusable"].items())
        points.append(Point("open", "Left out", bad))
    return points
