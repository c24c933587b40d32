"""Text and chart of frontier.json: gain over KL beside best of n by the same reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.report.charts import COLOURS, Figure, figure, line
from burnish.report.text_report import Point, Table, TextReport, interval

FRONTIER = "frontier.json"
ENSEMBLE = "ensemble"
Report = Mapping[str, Any]
NOTE = (
    "Gains are measured from SFT on the same held-out prompts, in standard deviations of SFT's answers. The frontier "
    "is the gain of best of n by the same ensemble, at the KL log n - (n - 1) / n. That KL is an upper bound, tight "
    "where no single response is likely; elsewhere a share is too high. Intervals are by prompt."
)


def sentence(report: Report, name: str) -> str:
    """Return one sentence on a policy's share of the frontier by the ensemble."""
    row = report["policies"][name]
    found = row["by"][ENSEMBLE]
    gain = f"{name} gains {found['gain']['value']:.2f} sd by the ensemble at {row['kl']['value']:.2f} nats"
    if found["share"] is None:
        return f"{gain}; its share of the frontier is not known: {found['reason']}"
    return f"{gain}, {interval(found['share'], '.2f')} of what best of n gains at the same KL"


def as_report(report: Report) -> TextReport:
    """Build the report that the command prints."""
    points = [Point("open", "Frontier", sentence(report, name)) for name in report["policies"]]
    if not points:
        points = [Point("miss", "Frontier", "the run has no trained policy")]
    rows = [
        [
            name,
            by,
            f"{row['kl']['value']:.2f}",
            interval(found["gain"], ".2f"),
            "-" if found["frontier"] is None else f"{found['frontier']:.2f}",
            interval(found["share"], ".2f") if found["share"] else found["reason"],
        ]
        for name, row in report["policies"].items()
        for by, found in row["by"].items()
    ]
    for by, last in (report["ppo"] or {"last": {}})["last"].items():
        if last is not None:
            best, share = ("-" if last[k] is None else f"{last[k]:.2f}" for k in ("frontier", "share"))
            name = f"last {last['updates']} updates of PPO"
            rows.append([name, by, f"{last['kl']:.2f}", f"{last['gain']:.2f}", best, share])
    columns = ("policy", "by", "KL", "gain, sd", "best of n", "share")
    return TextReport(f"Frontier of {report['run']}", points, [Table("Shares", columns, rows, NOTE)])


def chart(report: Report) -> Figure:
    """Draw best of n and PPO's updates by every judge, and the policies by the ensemble, over KL."""
    traces = []
    for colour, (name, spans) in enumerate(report["curves"].items()):
        traces.append(line(report["kl"], [s["value"] for s in spans], f"best of n, {name}", colour))
        seen = (report["ppo"] or {"updates": {}})["updates"].get(name)
        if seen is not None:
            traces.append({**line(seen["kl"], seen["gain"], f"PPO, {name}", colour), "mode": "markers"})
    for name, row in report["policies"].items():
        gain = row["by"][ENSEMBLE]["gain"]
        marker = {"size": 12, "symbol": "diamond", "color": COLOURS[0]}
        point = {
            "type": "scatter",
            "mode": "markers+text",
            "x": [row["kl"]["value"]],
            "y": [gain["value"]],
            "text": [name],
            "textposition": "bottom center",
            "name": name,
            "marker": marker,
            "showlegend": False,
        }
        traces.append(point)
    return figure(traces, "gain, sd", "KL, nats per response")
