"""Timeline of a run's updates: reward, watcher, KL, length, entropy, alerts and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.report.charts import COLOURS, MARK, Figure, Row, column, line, rollback_marks, ticks

Curve = tuple[str, str]
PANELS: Sequence[tuple[str, Sequence[Curve]]] = (
    ("reward, sd", (("score", "reward"), ("watcher", "watcher"))),
    ("KL, nats", (("kl", "KL"),)),
    ("length, tokens", (("length", "length"),)),
    ("entropy, nats", (("entropy", "entropy"),)),
)
GAP = 0.05  # between panels, as a share of the height
LONGEST = 160  # characters of an event's text beside its mark


def timeline(rows: Sequence[Row], kl_target: float | None, events: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw stacked panels on one axis of updates; lines mark alerts, decisions and roll-backs."""
    x = ticks(rows)
    height = (1 - GAP * (len(PANELS) - 1)) / len(PANELS)
    traces: list[Figure] = []
    layout: Figure = {}
    colour = 0
    for k, (title, curves) in enumerate(PANELS):
        axis = f"y{k + 1}" if k else "y"
        top = 1 - k * (height + GAP)
        layout[f"yaxis{k + 1}" if k else "yaxis"] = {
            "title": {"text": title},
            "domain": [max(0.0, top - height), top],
        }
        for name, words in curves:
            values = column(rows, name)
            if any(v is not None for v in values):
                traces.append({**line(x, values, words, colour), "yaxis": axis})
            colour += 1
        if title.startswith("KL") and kl_target is not None and x:
            goal = line([x[0], x[-1]], [kl_target] * 2, "KL target", colour, dash="dot", width=1)
            traces.append({**goal, "yaxis": axis})
            colour += 1
    marks = [(tick_of(rows, event), event) for event in events]
    dated = [(tick, event) for tick, event in marks if tick is not None]
    for kind, shade, symbol in (("alert", MARK, "triangle-down"), ("decision", COLOURS[5], "diamond")):
        of_kind = [(tick, event) for tick, event in dated if event["kind"] == kind]
        if of_kind:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{kind}s",
                    "x": [tick for tick, _ in of_kind],
                    "y": [0.5] * len(of_kind),
                    "yaxis": f"y{len(PANELS) + 1}",
                    "text": [said(event)[:LONGEST] for _, event in of_kind],
                    "hoverinfo": "text",
                    "marker": {"color": shade, "symbol": symbol, "size": 10},
                }
            )
    hidden = {"overlaying": "y", "range": [-8, 0.7], "visible": False, "fixedrange": True}
    layout[f"yaxis{len(PANELS) + 1}"] = hidden
    lines = [
        {
            "type": "line",
            "x0": tick,
            "x1": tick,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": MARK if event["kind"] == "alert" else COLOURS[5], "width": 1},
        }
        for tick, event in dated
    ]
    below = {"title": {"text": "update"}, "anchor": f"y{len(PANELS)}"}
    return {
        "data": traces,
        "layout": {"xaxis": below, "shapes": [*rollback_marks(rows), *lines], "showlegend": True, **layout},
    }


def said(event: Mapping[str, Any]) -> str:
    """Return an event as one line of text."""
    what = str(event.get("action") or event.get("name") or event["kind"]).replace("_", " ")
    return f"{what}: {event.get('reason') or event.get('message') or ''}"


def tick_of(rows: Sequence[Row], event: Mapping[str, Any]) -> int | None:
    """Return the last update made by the time of an event; None if it does not belong to updates."""
    if event.get("stage") not in ("ppo", "align") or not event.get("step") or not rows:
        return None
    attempt = (event.get("evidence") or {}).get(
        "attempt"
    )  # steps of an attempt that was rolled back come again
    at = [
        i
        for i, row in enumerate(rows, 1)
        if row["step"] <= event["step"] and (attempt is None or row.get("attempt", 0) == attempt)
    ]
    return at[-1] if at else None
