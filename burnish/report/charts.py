"""Figures as Plotly JSON, from rows of metrics; a figure without measurements is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.detectors import DETECTORS

# Okabe and Ito's colours: distinguishable for colour-blind readers, legible on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARK = "#D55E00"
WORDS = {d.figure: d.label for d in DETECTORS.values() if d.label is not None}
MANY = 9  # with more rows, Plotly would leave out some names

Row = Mapping[str, Any]
Figure = dict[str, Any]


def line(
    x: Sequence[float], y: Sequence[Any], name: str, colour: int = 0, *, dash: str = "solid", width: float = 2
) -> Figure:
    """Return one curve; a missing value is bridged, and markers show the measured points."""
    style = {"color": COLOURS[colour % len(COLOURS)], "dash": dash, "width": width}
    mode = "lines+markers" if any(v is None for v in y) else "lines"
    return {
        "type": "scatter",
        "mode": mode,
        "x": list(x),
        "y": list(y),
        "name": name,
        "line": style,
        "connectgaps": True,
    }


def figure(traces: list[Figure], y_title: str, x_title: str = "update", **layout: Any) -> Figure:
    """Return traces with the axes that all charts of the report share."""
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": x_title}},
            "yaxis": {"title": {"text": y_title}},
            "showlegend": len([t for t in traces if t.get("showlegend", True)]) > 1,
            **layout,
        },
    }


def column(rows: Sequence[Row], name: str) -> list[Any]:
    """Return one metric's value in each row, None where it is missing."""
    return [row.get(name) for row in rows]


def ticks(rows: Sequence[Row]) -> list[int]:
    """Return the number of each update in order; unlike the step, it never goes back."""
    return list(range(1, len(rows) + 1))


def rollback_marks(rows: Sequence[Row]) -> list[Figure]:
    """Return vertical lines where one attempt ended and the next began."""
    return [
        {
            "type": "line",
            "x0": i + 0.5,
            "x1": i + 0.5,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": MARK, "width": 1, "dash": "dash"},
        }
        for i in range(1, len(rows))
        if rows[i]["attempt"] != rows[i - 1]["attempt"]
    ]


def probe_chart(readings: Mapping[str, Any]) -> Figure:
    """Draw probe accuracy by depth and pooling, marking where members and the examiner read."""
    traces = []
    for colour, pooling in enumerate(("mean", "last")):
        rows = sorted((p["depth"], p["accuracy"]) for p in readings["probes"] if p["pooling"] == pooling)
        if rows:
            x, y = zip(*rows, strict=True)
            traces.append(
                {**line(x, y, f"{pooling} token" if pooling == "last" else "mean of tokens", colour)}
            )
    found = {(p["depth"], p["pooling"]): p["accuracy"] for p in readings["probes"]}
    own = [name for name in readings if name.startswith("member-")]  # where members read at different places
    for number, role in enumerate([*(own or ["members"]), "examiner"], 2):
        place = (readings[role]["depth"], readings[role]["pooling"])
        if place in found:
            mark = {"size": 12, "color": COLOURS[number % len(COLOURS)], "symbol": "diamond"}
            point = {"type": "scatter", "mode": "markers", "x": [place[0]], "y": [found[place]]}
            traces.append(
                {**point, "name": f"{role} {'read' if role == 'members' else 'reads'} here", "marker": mark}
            )
    return figure(traces, "held-out accuracy", "layers below")


def ppo_charts(rows: Sequence[Row], kl_target: float) -> list[tuple[str, str, Figure]]:
    """Return (title, note, figure) of every chart of a PPO run."""
    if not rows:
        return []
    x, marks = ticks(rows), rollback_marks(rows)
    target = line([x[0], x[-1]], [kl_target, kl_target], "target", 4, dash="dot")
    members = sorted(k for k in rows[0] if k.startswith("member_"))
    found = [
        (
            "KL to SFT",
            "Nats per response. It should settle at the target; the coefficient holds it there.",
            figure(
                [
                    line(x, column(rows, "kl"), "measured", 0, width=1),
                    line(x, column(rows, "kl_smoothed"), "smoothed", 0),
                    target,
                    {**line(x, column(rows, "kl_coef"), "coefficient (right)", 2), "yaxis": "y2"},
                ],
                "nats per response",
                shapes=marks,
                yaxis2={"overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False},
            ),
        ),
        (
            "Reward",
            "The ensemble in reference standard deviations; PPO does not optimise the watcher.",
            figure(
                [
                    *(line(x, column(rows, m), m.replace("_", " "), 5, width=1) for m in members),
                    line(x, column(rows, "score"), "ensemble", 0),
                    line(x, column(rows, "watcher"), "watcher", 1),
                ],
                "score",
                shapes=marks,
            ),
        ),
        (
            "Disagreement",
            "Standard deviation of the members, against a reference answer. A rise means that the policy writes "
            "answers unlike their training data.",
            figure([line(x, column(rows, "ensemble_std"), "ensemble_std")], "sd", shapes=marks),
        ),
        (
            "Length",
            "Tokens with the end token. Steady growth with the reward is length hacking until shown otherwise.",
            figure(
                [
                    line(x, column(rows, "length"), "mean length", 0),
                    {**line(x, column(rows, "truncated"), "share cut off (right)", 1), "yaxis": "y2"},
                ],
                "tokens",
                shapes=marks,
                yaxis2={"overlaying": "y", "side": "right", "range": [0, 1], "showgrid": False},
            ),
        ),
        (
            "Words",
            "Inputs of the hacking detectors: shares of the answers (of word pairs, for repetition), and "
            "their log-likelihood under the reference model.",
            figure(
                [
                    *(
                        line(x, column(rows, name), words, colour)
                        for colour, (name, words) in enumerate(WORDS.items())
                        if any(name in row for row in rows)
                    ),
                    {
                        **line(x, column(rows, "ref_nll"), "reference, nats per token (right)", len(WORDS)),
                        "yaxis": "y2",
                    },
                ],
                "share",
                shapes=marks,
                yaxis={"rangemode": "tozero", "title": {"text": "share"}},
                yaxis2={"overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False},
            ),
        ),
        (
            "Entropy",
            "Nats a token. A collapse means that the answers have become similar.",
            figure([line(x, column(rows, "entropy"), "entropy")], "nats a token", shapes=marks),
        ),
        (
            "Step size",
            "Share of clipped ratios and KL to the policy before each update.",
            figure(
                [
                    line(x, column(rows, "clip_fraction"), "clipped share", 0),
                    line(x, column(rows, "approx_kl"), "approximate KL", 1),
                ],
                "",
                shapes=marks,
            ),
        ),
        (
            "Value function",
            "Explained variance of the returns: towards 1 is good, under 0 is worse than a constant.",
            figure([line(x, column(rows, "explained_variance"), "explained variance")], "", shapes=marks),
        ),
        (
            "Gradient norm",
            "Before clipping.",
            figure([line(x, column(rows, "grad_norm"), "policy")], "norm", shapes=marks),
        ),
    ]
    return [chart for chart in found if any(v is not None for t in chart[2]["data"] for v in t["y"])]


def look_charts(rows: Sequence[Row]) -> list[tuple[str, str, Figure]]:
    """Draw scores, KL and length of the looks at held-out prompts during PPO, over its updates.

    Looks of attempts that were rolled back are left out.
    """
    kept: list[Row] = []
    for row in rows:
        kept = [*(r for r in kept if r["step"] < row["step"]), row]
    if not kept:
        return []
    rows, x = kept, column(kept, "step")
    judges = [name for name in rows[0] if name in ("score", "watcher") or name.startswith("reward_")]
    lines = [line(x, column(rows, name), name, colour) for colour, name in enumerate(judges)]
    note = "Means of one response to each of the same held-out prompts, and their exact KL to SFT."
    kl = {**line(x, column(rows, "kl"), "KL, nats (right)", len(judges), dash="dot"), "yaxis": "y2"}
    right = {"overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False}
    sets = [name for name in rows[0] if name.startswith("regression_")]
    kept_up = [line(x, column(rows, name), name[11:], colour) for colour, name in enumerate(sets)]
    held = ("Regression sets", "Means of the policy during PPO. Evaluation compares them with SFT.")
    return [
        *([(*held, figure(kept_up, "share of prompts, or nats per token"))] if sets else []),
        ("Held-out prompts", note, figure([*lines, kl], "score", yaxis2=right)),
        (
            "Held-out lengths",
            "Tokens with the end token.",
            figure([line(x, column(rows, "length"), "length")], "tokens"),
        ),
    ]


def dpo_charts(rows: Sequence[Row]) -> list[tuple[str, str, Figure]]:
    """Draw loss, accuracy and the chosen response's log-ratio of a DPO run."""
    if not rows:
        return []
    x = ticks(rows)
    return [
        (
            "DPO loss and accuracy",
            "Accuracy of the implicit reward on each batch.",
            figure(
                [line(x, column(rows, "loss"), "loss", 0), line(x, column(rows, "accuracy"), "accuracy", 1)],
                "",
            ),
        ),
        (
            "Chosen log-ratio",
            "Falling far below 0 means that the chosen answers lose likelihood as well.",
            figure([line(x, column(rows, "chosen_logratio"), "chosen")], "nats"),
        ),
    ]


def interval_chart(rows: Sequence[tuple[str, float, float, float]], marker: float, x_title: str) -> Figure:
    """Draw rows (name, value, low, high) as points with intervals, and a line at `marker`."""
    names = [r[0] for r in rows][::-1]
    values = [r[1] for r in rows][::-1]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": names,
        "marker": {"size": 10, "color": COLOURS[0]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [r[3] - r[1] for r in rows][::-1],
            "arrayminus": [r[1] - r[2] for r in rows][::-1],
            "thickness": 2,
            "width": 0,
        },
    }
    shape = {
        "type": "line",
        "x0": marker,
        "x1": marker,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": MARK, "dash": "dot", "width": 1.5},
    }
    axis: Figure = {"automargin": True, "type": "category"}
    if len(rows) > MANY:
        axis |= {"dtick": 1, "tickfont": {"size": 9}}
    return figure([trace], "", x_title, shapes=[shape], yaxis=axis, showlegend=False)


def calibration_chart(bins: Sequence[Row], fitted: Sequence[Row] = (), name: str = "ensemble") -> Figure:
    """Draw accuracy against confidence; the diagonal is perfect calibration.

    `fitted` holds the bins at the best-fitting temperature; `name` labels the curve of `bins`.
    """

    def points(rows: Sequence[Row], name: str, colour: int) -> Figure:
        sizes = [max(6.0, min(22.0, b["n"] ** 0.5 * 1.5)) for b in rows]
        return {
            "type": "scatter",
            "mode": "markers+lines",
            "x": [b["confidence"] for b in rows],
            "y": [b["accuracy"] for b in rows],
            "text": [f"{b['n']} pairs" for b in rows],
            "marker": {"size": sizes, "color": COLOURS[colour]},
            "line": {"color": COLOURS[colour], "width": 1},
            "name": name,
        }

    traces = [points(bins, name, 0)]
    if fitted:
        traces.append(points(fitted, "temperature fitted", 2))
    diagonal = line([0.5, 1.0], [0.5, 1.0], "calibrated", 4, dash="dot")
    return figure([*traces, diagonal], "accuracy", "confidence")


def best_of_chart(rows: Sequence[Row], worth: str | None) -> Figure:
    """Draw score, share of winners that look hacked, and worth to another judge, by n."""
    n = [row["n"] for row in rows]
    traces = [
        line(n, [row["score"]["value"] for row in rows], "score", 0),
        {**line(n, [row["hacked"]["value"] for row in rows], "look hacked (right)", 1), "yaxis": "y2"},
    ]
    if worth is not None:
        traces.append(line(n, [row["worth"]["value"] for row in rows], worth, 2))
    return figure(
        traces,
        "score",
        "best of n",
        xaxis={"type": "log", "tickvals": n, "title": {"text": "best of n"}},
        yaxis2={"overlaying": "y", "side": "right", "range": [0, 1], "showgrid": False},
    )
