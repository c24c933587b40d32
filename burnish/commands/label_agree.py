"""`burnish label agree`: agreement, annotators and consensus of a store's labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from burnish.data.store import LabelStore, Place, shown
from burnish.errors import DataError
from burnish.labels.agreement import Questions, alpha_interval, annotators, flip_rate, hits_of, over_time
from burnish.labels.consensus import How, Votes, votes_of, weigh
from burnish.records import Label
from burnish.textstats import n_words


def agreement(place: Place, how: How = "dawid_skene", seed: int = 0) -> dict[str, Any]:
    """Return agreement, annotators and consensus of a store; raise DataError without labels."""
    with LabelStore(place) as store:
        return agreement_of(store, how, seed)


def agreement_of(store: LabelStore, how: How = "dawid_skene", seed: int = 0) -> dict[str, Any]:
    """Return the report of `agreement` for an open store."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    sources: dict[str, str] = {}

    def counted() -> Any:
        for label in store.labels():
            spent[label.annotator][0] += label.seconds or 0.0
            spent[label.annotator][1] += label.cost
            sources[label.annotator] = label.source
            yield label

    votes = votes_of(counted())
    if not len(votes):
        raise DataError(f"{shown(store.where)} has no labels; collect or load some")
    questions = _questions(store, votes)
    right, checks = _checks(store)
    for answer in checks:  # workers who failed gold questions may have no label left, but were paid
        spent[answer.annotator][0] += answer.seconds or 0.0
        spent[answer.annotator][1] += answer.cost
        sources.setdefault(answer.annotator, "human")
    votes = replace(votes, names=[*votes.names, *sorted(right.keys() - set(votes.names))])
    weighed = weigh(votes, how)
    mean = weigh(votes, "mean").consensus
    rows, found = annotators(
        votes, questions, weighed, right, {name: (s, c) for name, (s, c) in spent.items()}, seed
    )
    for row in rows:
        row["source"] = sources[row["annotator"]]
    turned = ((weighed.consensus > 0.5) != (mean > 0.5)) & (mean != 0.5)
    whole = alpha_interval(votes, questions.group, seed=seed)
    people = _of_people(votes, sources)
    among_people = (
        None if len(people) in (0, len(votes)) else alpha_interval(people, questions.group, seed=seed)
    )
    return {
        "comparisons": len(votes.ids),
        "labels": len(votes),
        "annotators": rows,
        "overlap": weighed.overlap,
        "alpha": None if whole is None else asdict(whole),
        "alpha_of_people": None if among_people is None else asdict(among_people),
        "over_time": over_time(votes, hits_of(votes)),
        "consensus": how if weighed.accuracy is not None else "mean",
        "winners_that_differ_from_the_mean": int(turned.sum()),
        "ties": int((weighed.consensus == 0.5).sum()),
        "flip_rate": flip_rate(votes, weighed.consensus) if weighed.overlap else None,
        "findings": [asdict(f) for f in found],
        "cost": sum(c for _, c in spent.values()),
        "hours": sum(s for s, _ in spent.values()) / 3600,
    }


def _questions(store: LabelStore, votes: Votes) -> Questions:
    number = {i: at for at, i in enumerate(votes.ids)}
    group = np.zeros(len(number), dtype=np.int32)
    longer = np.full(len(number), -1, dtype=np.int8)
    groups: dict[str, int] = {}
    for c in store.comparisons():
        at = number.get(c.id)
        if at is not None:
            group[at] = groups.setdefault(c.prompt.group, len(groups))
            a, b = n_words(c.first.text), n_words(c.second.text)
            longer[at] = -1 if a == b else int(a > b)
    return Questions(group, longer)


def _checks(store: LabelStore) -> tuple[dict[str, list[bool]], list[Label]]:
    """Return, for each annotator, which gold questions were answered right, and all answers."""
    expected = {c.id: p for c, p in store.gold()}
    right: dict[str, list[bool]] = defaultdict(list)
    answers = list(store.checks())
    for answer in answers:
        known = expected[answer.comparison_id]
        right[answer.annotator].append(np.sign(answer.preference - 0.5) == np.sign(known - 0.5))
    return right, answers


def _of_people(votes: Votes, sources: dict[str, str]) -> Votes:
    """Return the votes of all annotators except judges."""
    people = np.array([sources[name] != "judge" for name in votes.names])
    kept = people[votes.annotator]
    return Votes(
        votes.ids,
        votes.names,
        votes.comparison[kept],
        votes.annotator[kept],
        votes.value[kept],
        votes.swapped[kept],
    )
