"""overoptimization.html: worth over the square root of KL, its fits and its peak."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.report.charts import Figure, figure, line
from burnish.report.text_report import Point, Table, TextReport, write_page
from burnish.runs.files import read_json

Report = Mapping[str, Any]
STEPS = 60  # points of a drawn curve


def render_overoptimized(run_path: Path) -> Path:
    """Write the page from overoptimization.json and return its path."""
    page = run_path / "overoptimization.html"
    write_page(as_report(read_json(run_path / "overoptimization.json")), page)
    return page


def as_report(report: Report) -> TextReport:
    """Build the report of over-optimisation."""
    page = TextReport(f"Over-optimisation of {report['run']}", [_first(report)])
    rows = []
    for source, held in (("best of n", report["pool"]), ("PPO", report["ppo"])):
        for judge, fit in (held or {"fits": {}})["fits"].items():
            if fit is None:
                rows.append([source, judge, "-", "-", "-", "too few updates to fit"])
                continue
            span = _span(fit["kl_interval"])
            at = "none near the observed KL" if fit["kl"] is None else f"{fit['kl']:.2f} nats {span}".strip()
            numbers = (f"{fit[k]:.3f} {_span(fit[f'{k}_interval'])}" for k in ("alpha", "beta"))
            rows.append([source, judge, *numbers, f"{fit['r2']:.2f}", at])
    note = (
        "Best of n: d (alpha - beta d), PPO: d (alpha - beta log d), d the root of KL (Gao et al. 2022). Worth in "
        "standard deviations over SFT's answers. Intervals: 95 %, over prompts for best of n; for PPO over its "
        "updates, which are not independent runs. A peak beyond 1.5 times the largest distance seen is not reported."
    )
    columns = ("of", "worth by", "alpha", "beta", "R2", "peak")
    page.tables.append(Table("Fits", columns, rows, note))
    page.charts.append(("Best of n", "From one pool of SFT answers.", _pool_chart(report["pool"])))
    if report["ppo"] is not None:
        page.charts.append(("PPO", "Every update.", _ppo_chart(report["ppo"])))
    return page


def _first(report: Report) -> Point:
    offer, target = report["offered"], report["kl_target"]
    if offer is None:
        text = "worth has no peak near the observed KL: nothing indicates that the KL target is too high"
        return Point("ok", "No peak", text)
    low, high = offer["interval"]
    text = (
        f"by the {offer['judge']} worth peaks at {offer['kl']:.2f} nats [{low:.2f}, {high:.2f}] ({offer['from']}); the "
        f"run's target is {target:g}"
    )
    if target > high:
        return Point("miss", "Past the peak", f"{text}: set ppo.kl.target: {offer['kl']:.1f}")
    return Point("ok", "Peak", text)


def _span(found: Sequence[float] | None) -> str:
    return "" if found is None else f"[{found[0]:.2f}, {found[1]:.2f}]"


def _curve(fit: Report, reach: float, name: str, colour: int) -> Figure:
    d = [reach * (i + 1) / STEPS for i in range(STEPS)]
    log = fit["form"] == "rl"
    y = [x * (fit["alpha"] - fit["beta"] * (math.log(x) if log else x)) for x in d]
    return line(d, y, name, colour, dash="dot", width=1)


def _peak(fit: Report, colour: int) -> list[Figure]:
    if fit["kl"] is None:
        return []
    point = line([math.sqrt(fit["kl"])], [fit["value"]], "peak", colour)
    return [{**point, "mode": "markers", "marker": {"size": 11, "symbol": "star"}, "showlegend": False}]


def _pool_chart(pool: Report) -> Figure:
    d = [math.sqrt(kl) for kl in pool["kl"]]
    traces = []
    for colour, (name, spans) in enumerate(pool["curves"].items()):
        traces.append(line(d, [s["value"] for s in spans], name, colour))
        fit = pool["fits"].get(name)
        if fit is not None:
            traces += [_curve(fit, max(d), f"{name}, fitted", colour), *_peak(fit, colour)]
    return figure(traces, "gain, sd", "root of KL")


def _ppo_chart(ppo: Report) -> Figure:
    d = [math.sqrt(max(kl, 0.0)) for kl in ppo["kl"]]
    traces = [_points(d, ppo["proxy"], "proxy", 0)]
    for colour, (name, held) in enumerate(ppo["judges"].items(), 1):
        own = [math.sqrt(max(kl, 0.0)) for kl in held["kl"]]
        traces.append(_points(own, held["gain"], name, colour))
        fit = ppo["fits"].get(name)
        if fit is not None and own:
            traces += [_curve(fit, max(own), f"{name}, fitted", colour), *_peak(fit, colour)]
    return figure(traces, "gain, sd", "root of KL")


def _points(x: Sequence[float], y: Sequence[float], name: str, colour: int) -> Figure:
    return {**line(x, y, name, colour), "mode": "markers"}
