"""Reports of `burnish label audit`, `agree`, `route` and `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.report.charts import Figure, calibration_chart, figure, interval_chart, line
from burnish.report.text_report import Point, State, Table, TextReport, interval

Report = Mapping[str, Any]
CURVES = (("value", "expected", "solid"), ("ci_low", "low", "dot"), ("ci_high", "high", "dot"))
CHARTED = 20  # most annotators in a chart
USUAL, TENTATIVE = 0.2, 0.667  # of alpha: usual lower end for preferences; limit called tentative


def audit(report: Report) -> TextReport:
    """Return the report of an audit of a judge or of given rankings."""
    of = report["judge"] if report["kind"] == "judge" else f"{report['rankings']} rankings"
    page = TextReport(f"Audit of {of}")
    page.points.append(_audit_outcome(report))
    page.points += _judge_points(report) if report["kind"] == "judge" else _reading_points(report)
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
        page.tables.append(Table("Probes", columns, rows, note))
        spans = [
            (f["name"].replace("_", " "), *(f[k] - f["null"] for k in ("value", "ci_low", "ci_high")))
            for f in report["findings"]
        ]
        page.charts.append(
            (
                "Probes",
                "Difference from the value without bias.",
                interval_chart(spans, 0.0, "difference"),
            )
        )
    return page


def _audit_outcome(report: Report) -> Point:
    untested = (
        f"; {report['not_tested']} could not be tested for lack of data" if report["not_tested"] else ""
    )
    if report["outcome"] == "too few":
        return Point("open", "Too few to tell", "no probe has the 12 prompts that a test needs")
    if report["seen"]:
        return Point("miss", "Bias found", ", ".join(n.replace("_", " ") for n in report["seen"]) + untested)
    return Point(
        "ok",
        "Nothing found",
        f"{len(report['findings'])} probes; see the effect that each could detect{untested}",
    )


def _judge_points(report: Report) -> list[Point]:
    points = []
    agrees = report.get("agrees_with_people")
    if agrees:
        points.append(
            Point("ok", "Agrees with people", f"{interval(agrees)} on {agrees['n']} prompts, without ties")
        )
    else:
        points.append(
            Point("open", "No labels of people", "length bias and self-preference cannot be measured")
        )
    if report["own"] is None:
        points.append(
            Point("open", "Self-preference", "name the source of its own model's answers with --own")
        )
    if report["abstentions"]:
        points.append(
            Point(
                "open", "Abstentions", f"{report['abstentions']}: the figures cover only answered comparisons"
            )
        )
    points.append(Point("ok", "Cost", f"{report['cost']:.4f} dollars"))
    return points


def _reading_points(report: Report) -> list[Point]:
    points = []
    again = report["second_readings"]
    if again is None:
        points.append(Point("open", "No second readings", "the annotator's stability cannot be measured"))
    else:
        text = (
            f"agree on {interval(again['agree'])} of {again['pairs']} strict pairs of {again['items']} rankings; the "
            f"best answer of one reading was the worst of the other {again['best_became_worst']} times"
        )
        points.append(Point("ok", "Second readings", text))
    if report["longer"]:
        points.append(
            Point(
                "ok",
                "The longer answer wins",
                f"{interval(report['longer'])} of strict pairs; not a fault by itself",
            )
        )
    if report["unusable"]:
        bad = ", ".join(f"{reason}: {n}" for reason, n in report["unusable"].items())
        points.append(Point("open", "Left out", bad))
    return points


def agree(report: Report) -> TextReport:
    """Return the report of the annotators' agreement in a label store."""
    rows = report["annotators"]
    page = TextReport(f"Agreement of {len(rows)} annotators")
    page.points += [_alpha_point(report), *_flag_points(rows), _consensus_point(report)]
    text = f"{report['hours']:.1f} hours, {report['cost']:.2f} dollars"
    page.points.append(Point("ok", f"{report['labels']} labels of {report['comparisons']} comparisons", text))
    columns = (
        "annotator",
        "flags",
        "labels",
        "agreement",
        "weighed",
        "gold",
        "first shown",
        "longer",
        "drift",
        "ties",
        "s",
        "$",
    )
    cells = [
        (
            r["annotator"],
            ", ".join(r["flags"]),
            str(r["labels"]),
            interval(r["agreement"]),
            "-" if r["weighed"] is None else f"{r['weighed']:.3f}",
            interval(r["gold"], ".2f"),
            interval(r["position"], ".2f"),
            interval(r["length"], "+.2f"),
            interval(r["drift"], "+.2f"),
            f"{r['ties']:.1%}",
            "-" if not r["labels"] else f"{r['seconds'] / r['labels']:.1f}",
            f"{r['cost']:.2f}",
        )
        for r in rows
    ]
    note = (
        "agreement: with the mean of the others, without ties. weighed: how often they choose the better answer. "
        "longer: how much more often than the others they prefer the longer answer. s: seconds a label. Flags are "
        "corrected for the number of tests."
    )
    page.tables.append(Table("Annotators", columns, cells, note))
    for name, title, null, x_title in (
        ("agreement", "Agreement with the others", 0.5, "share"),
        ("position", "Chooses what was shown first", 0.5, "share"),
        ("length", "Prefers the longer, beyond the others", 0.0, "difference"),
    ):
        spans = [(r["annotator"], *_ends(r[name])) for r in rows if r[name]][:CHARTED]
        if spans:
            page.charts.append((title, "With 95 % intervals.", interval_chart(spans, null, x_title)))
    if len(report["over_time"]) > 1:
        spans = [(f"tenth {r['tenth']}", *_ends(r)) for r in report["over_time"]]
        note = "Agreement with the others by tenths of the labels, in the order they were given."
        page.charts.append(("Over time", note, interval_chart(spans, 0.5, "share")))
    return page


def _ends(found: Report) -> tuple[float, float, float]:
    return found["value"], found["ci_low"], found["ci_high"]


def _alpha_point(report: Report) -> Point:
    alpha = report["alpha"]
    if alpha is None and report["overlap"]:
        return Point(
            "open",
            "Agreement is not known",
            "all labels are equal, or all are ties: alpha is undefined",
        )
    if alpha is None:
        text = "no two annotators have answered the same comparison: agreement cannot be measured"
        return Point("open", "Agreement is not known", text)
    state: State = "ok" if alpha["value"] >= TENTATIVE else "open" if alpha["value"] >= USUAL else "miss"
    people = report["alpha_of_people"]
    more = f"; without judges {interval(people)}" if people else ""
    text = (
        f"{interval(alpha)} on {alpha['n']} prompts{more}; .8 is called reliable, .667 tentative, preferences usually "
        "come to between .2 and .5"
    )
    return Point(state, "Krippendorff's alpha", text)


def _flag_points(rows: Sequence[Report]) -> list[Point]:
    points = []
    for flag, head in (
        ("spammer", "Labels at random, or by position"),
        ("fails gold", "Fails gold questions"),
        ("position", "Position bias"),
        ("length", "Length bias"),
        ("drift", "Drifts"),
    ):
        named = [r["annotator"] for r in rows if flag in r["flags"]]
        if named:
            points.append(Point("miss", head, ", ".join(named)))
    return points or [
        Point("ok", "No annotator stands out", "by agreement, gold questions, position, length or drift")
    ]


def _consensus_point(report: Report) -> Point:
    if report["consensus"] == "mean":
        why = (
            ""
            if report["overlap"]
            else ": annotators cannot be weighed without comparisons that several of them labelled"
        )
        return Point("open", "Consensus", f"the mean{why}")
    text = f"weighing annotators changes {report['winners_that_differ_from_the_mean']} winners of the mean"
    if report["flip_rate"] is not None:
        text += f"; {report['flip_rate']:.1%} of labels are expected to be wrong"
    return Point("ok", "Consensus", text)


def route(report: Report) -> TextReport:
    """Return the report of routing comparisons between a judge and people, with its cost."""
    plan, target = report["plan"], report["target"]
    page = TextReport(f"Routing between {report['judge']} and people")
    if plan["surety"] is None:
        text = (
            f"no confidence threshold was shown to reach {target:.0%} agreement on {report['calibrated_on']} "
            "comparisons: a threshold "
            f"needs {plan['needed']} comparisons above it without a disagreement, or more with some. All go to people"
        )
        page.points.append(Point("miss", "The judge keeps no comparisons", text))
    else:
        text = (
            f"where its confidence is at least {plan['confidence']:.1%}: {plan['coverage']['value']:.1%} of "
            f"comparisons; there it agreed with people on {interval(plan['agreement'])}"
        )
        page.points.append(Point("ok", f"The judge keeps comparisons at {target:.0%} agreement", text))
    saved = report["cost_all_people"] - plan["cost"]
    text = (
        f"{plan['cost']:.2f} dollars [{plan['cost_low']:.2f}, {plan['cost_high']:.2f}] and {plan['hours']:.1f} hours "
        f"for {report['waiting']} comparisons; people alone {report['cost_all_people']:.2f} dollars and "
        f"{report['hours_all_people']:.1f} hours"
    )
    page.points.append(Point("ok" if saved > 0 else "open", "Expected cost", text))
    fit = report["reliability"]
    text = (
        f"temperature {fit['temperature']:.2f}; calibration error {fit['ece']:.3f}, {fit['ece_fitted']:.3f} with it; "
        f"agrees with people on {interval(report['agreement'])}, {report['calibrated_on']} comparisons"
    )
    page.points.append(Point("ok", "The judge beside people", text))
    if report["unjudged"]:
        text = (
            f"{report['unjudged']} comparisons have no label of the judge yet: collect them, then route again"
        )
        page.points.append(Point("open", "Not judged yet", text))
    if report["path"]:
        routed = ", ".join(f"{n} {why}" for why, n in report["routed"].items()) or "none"
        page.points.append(Point("ok", f"For people: {report['path']}", routed))
    rows = [
        (
            f"{p['target']:.0%}",
            "-" if p["confidence"] is None else f"{p['confidence']:.3f}",
            interval(p["agreement"]),
            interval(p["coverage"]),
            f"{p['to_people']:.0f}",
            f"{p['cost']:.2f} [{p['cost_low']:.2f}, {p['cost_high']:.2f}]",
            f"{p['hours']:.1f}",
        )
        for p in report["plans"]
    ]
    columns = (
        "target",
        "confidence from",
        "observed agreement",
        "judge keeps",
        "for people",
        "dollars",
        "hours",
    )
    page.tables.append(
        Table("What agreement costs", columns, rows, "At most one calibration in twenty misses its target.")
    )
    spans = [(f"{p['target']:.0%}", *_ends(p["coverage"])) for p in report["plans"]]
    page.charts.append(
        (
            "What the judge keeps",
            "By the required agreement with people.",
            interval_chart(spans, 0.0, "share"),
        )
    )
    note = "On the diagonal the judge's confidence equals its agreement with people."
    page.charts.append(("Reliability", note, calibration_chart(fit["bins"], fit["bins_fitted"], "as given")))
    return page


def plan(report: Report) -> TextReport:
    """Return the report of how many labels a run needs."""
    page = TextReport(f"Labels for {report['run']}")
    ahead = {row["labels"]: row for row in report["expected"]}
    here = report["seen"][-1]
    text = (
        f"{here['accuracy']:.3f} after {here['labels']} labels, of a linear reward on the run's features "
        f"({report['prompts']} prompts); after {report['labels']} expected {interval(ahead[report['labels']])}"
    )
    page.points.append(Point("ok", "Accuracy", text))
    target = report["target"]
    if target is not None:
        value, low, high = (_labels(target[k]) for k in ("value", "low", "high"))
        state: State = "miss" if target["value"] is None else "open" if target["high"] is None else "ok"
        page.points.append(
            Point(state, f"Accuracy {target['accuracy']:.3f}", f"{value} labels, from {low} to {high}")
        )
    sources = report["sources"]
    if sources["worth"] is not None:
        people = "not known" if sources["people_agree"] is None else f"{sources['people_agree']:.3f}"
        text = (
            f"agrees with people on {sources['judge_agrees']:.3f} of {sources['compared']} comparisons (people with "
            f"each other: {people}); one of its labels is worth {sources['worth']:.2f} of a person's, if errors were "
            "independent"
        )
        page.points.append(Point("ok", "The judge", text))
    if not report["mixes"]:
        page.points.append(Point("open", "Prices are not known", "give --price-person, and --price-judge"))
    rows = [(f"{n:,}", interval(row)) for n, row in ahead.items()]
    note = "Extrapolated with the curve a - b n^-c, fitted to the observed points; far from them it is uncertain."
    page.tables.append(Table("Accuracy against labels", ("labels", "expected accuracy"), rows, note))
    if report["mixes"]:
        columns = ("judge's share", "dollars", "worth, in people's labels", "expected accuracy")
        page.tables.append(Table(f"{report['labels']:,} labels", columns, [_mix(m) for m in report["mixes"]]))
    rows = [(f"{e['win_rate']:.0%}", f"{e['prompts']:,}") for e in report["examinations"]]
    note = "Prompts that show this win rate at 95 % confidence in 80 of 100 examinations, without ties."
    page.tables.append(Table("Prompts for an examination", ("win rate", "prompts"), rows, note))
    note = "Observed (points) and expected accuracy with its interval."
    page.charts.append(("Accuracy against labels", note, _curve_chart(report)))
    return page


def _mix(m: Report) -> tuple[str, ...]:
    return f"{m['judge']:.0%}", f"{m['cost']:,.2f}", f"{m['worth']:,.0f}", interval(m["accuracy"])


def _labels(n: float | None) -> str:
    return "unknown" if n is None else f"{n:,.0f}"


def _curve_chart(report: Report) -> Figure:
    ahead, seen = report["expected"], report["seen"]
    x = [row["labels"] for row in ahead]
    traces = [line(x, [row[k] for row in ahead], name, 0, dash=dash) for k, name, dash in CURVES]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [row["labels"] for row in seen],
        "y": [row["accuracy"] for row in seen],
        "error_y": {"type": "data", "array": [row["sd"] for row in seen], "thickness": 1, "width": 0},
        "marker": {"size": 8},
        "name": "observed, with the sd over splits",
    }
    return figure(
        [points, *traces], "held-out accuracy", "labels", xaxis={"type": "log", "title": {"text": "labels"}}
    )
