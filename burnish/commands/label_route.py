"""`burnish label route`: comparisons for the judge, comparisons for people, and their cost."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from burnish.data.store import LabelStore, Place, shown
from burnish.errors import ConfigError, DataError
from burnish.labels.consensus import opinions
from burnish.labels.route import Prices, bound_for, calibrated, plan_of, reliability, surety_of
from burnish.records import Comparison, Label
from burnish.runs.files import atomic_write
from burnish.stats import clustered_proportion

TARGETS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def route(
    place: Place,
    *,
    target: float,
    judge: str | None,
    check: float,
    price_judge: float | None,
    price_person: float | None,
    people_each: int,
    out: Path | None,
    seed: int,
) -> dict[str, Any]:
    """Divide comparisons without a person's label between the judge and people.

    The judge keeps those on which it is expected to agree with people at the rate `target`. Expected
    costs are reported for this target and for others. If `out` is given, the comparisons for people
    are written there, those with the least judge confidence first. They include a random share
    `check` of the judge's comparisons. Missing prices are taken from the labels in the store. Raises
    DataError if the store has too few labels.
    """
    with LabelStore(place) as store:
        comparisons = {c.id: c for c in store.comparisons()}
        labels = list(store.labels())
    name = _judge(labels, judge, place)
    said = {label.comparison_id: label.preference for label in labels if label.annotator == name}
    people = opinions(labels)
    both = [i for i in said if i in people]
    try:
        groups = [comparisons[i].prompt.group for i in both]
        known = calibrated([said[i] for i in both], [people[i] for i in both], groups)
        bound = bound_for(target, known)
    except ValueError as error:
        raise DataError(
            f"{shown(place)}: {error}. Have people label comparisons drawn at random (`burnish label select --how "
            "random`) that the judge has labelled too"
        ) from None
    prices = replace(_prices(labels, name, price_judge, price_person, people_each), check=check)
    waiting = [c for c in comparisons.values() if c.id not in people]
    judged = [c for c in waiting if c.id in said]
    pool = surety_of([said[c.id] for c in judged])
    unjudged = len(waiting) - len(judged)
    plans = [plan_of(t, known, pool, unjudged, prices) for t in sorted({*TARGETS, target}) if 0.5 < t < 1]
    chosen = next(p for p in plans if p["target"] == target)
    all_people = len(waiting) * prices.person * people_each
    lines = _lines(judged, pool, bound.surety, check, seed)
    if out is not None:
        atomic_write(out, "".join(json.dumps(line) + "\n" for line in lines))
    return {
        "judge": name,
        "calibrated_on": len(known.agrees),
        "agreement": asdict(clustered_proportion(known.agrees.astype(float).tolist(), known.groups)),
        "reliability": reliability(known),
        "target": target,
        "plan": chosen,
        "plans": plans,
        "prices": asdict(prices),
        "waiting": len(waiting),
        "unjudged": unjudged,
        "cost_all_people": all_people,
        "hours_all_people": len(waiting) * people_each * prices.seconds / 3600,
        "routed": dict(Counter(line["why"] for line in lines)),
        "path": None if out is None else str(out),
    }


def _judge(labels: list[Label], wanted: str | None, place: Place) -> str:
    """Return the name of the only judge, or of the one that `wanted` is or is a part of."""
    names = Counter(label.annotator for label in labels if label.source == "judge")
    found = [n for n in names if n == wanted] or [n for n in names if wanted is None or wanted in n]
    if not names:
        raise DataError(f"{shown(place)} has no label of a judge; `burnish label judge` asks one")
    if len(found) != 1:
        choices = ", ".join(sorted(names))
        raise ConfigError(
            f"--judge {wanted!r} means none of {choices}"
            if wanted and not found
            else f"--judge must name one of {choices}"
        )
    return found[0]


def _prices(
    labels: list[Label], judge: str, price_judge: float | None, price_person: float | None, people_each: int
) -> Prices:
    theirs = [label.cost for label in labels if label.annotator == judge]
    people = [label for label in labels if label.source != "judge"]
    seconds = [label.seconds for label in people if label.seconds is not None]
    return Prices(
        judge=sum(theirs) / len(theirs) if price_judge is None else price_judge,
        person=sum(label.cost for label in people) / len(people) if price_person is None else price_person,
        seconds=median(seconds) if seconds else 0.0,
        people_each=people_each,
    )


def _lines(
    judged: list[Comparison], pool: Any, bound: float | None, check: float, seed: int
) -> list[dict[str, Any]]:
    """Return lines for people: unsure comparisons, least sure first, and a random check share."""
    rng = random.Random(f"route-{seed}")
    lines = []
    for at in np.argsort(pool, kind="stable"):
        c, sure = judged[at], float(pool[at])
        if bound is None or sure < bound:
            lines.append({"comparison": c.id, "why": "judge unsure", "score": sure})
        elif rng.random() < check:
            lines.append({"comparison": c.id, "why": "check", "score": sure})
    return lines
