"""Labels from people: sessions in a terminal, and runs that wait for answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore, Place, shown
from burnish.errors import ConfigError, DataError, Waiting
from burnish.labels.select import selected
from burnish.labels.served import ASKED, EXAMINATION, page_of
from burnish.labels.tasks import flagged, settle_overdue
from burnish.labels.terminal import Session
from burnish.records import Comparison, Prompt, Response
from burnish.runs.files import atomic_write


def ask_in_terminal(
    file: Place, name: str, only: Path | None, guidelines: str | None, limit: int | None, most: int = 2
) -> None:
    """Ask one person in a terminal for the labels they have not given, `most` answers at a time."""
    if not name.strip() or ":" in name:
        raise ConfigError(f"--name {name!r} is not a valid name; give one without a colon")
    annotator = f"person:{name.strip()}"
    text = load_guidelines(guidelines)
    console = Console()
    with LabelStore(file) as store:
        answered = {label.comparison_id for label in store.labels() if label.annotator == annotator}
        asked = selected(store, answered, only)[:limit]
        if not asked:
            raise DataError(f"{shown(file)} has nothing that {name} has not answered")
        store.add_guidelines(text)
        Session(
            asked,
            annotator,
            text.id,
            text.text,
            keep=store.add_labels,
            read=console.input,
            console=console,
            most=most,
        ).carry_out()


def wait_for_people(
    store: LabelStore,
    asked: Sequence[Comparison],
    path: Path,
    labels_per_pair: int,
    max_unlabelled_share: float,
) -> None:
    """Raise Waiting while too large a share of comparisons has fewer than `labels_per_pair` labels."""
    ids, allowed = [c.id for c in asked], max_unlabelled_share * len(asked)
    missing = len(_missing(store, ids, labels_per_pair))
    if missing > allowed:
        raise Waiting(
            f"waiting for people: {missing} of {len(asked)} comparisons have fewer than {labels_per_pair} label(s). "
            f"{_where(store.where, path)}; `burnish label terminal {path} --name YOU` asks you here, `burnish label "
            "export` sends them to others; then give the same command again, or give it --wait "
            "(label.max_unlabelled_share lets it continue without the last of them)",
            partial(_is_over, store.where, ids, labels_per_pair, allowed),
        )


def examine_by_people(
    path: Path,
    prompts: Sequence[Prompt],
    texts: Mapping[str, Sequence[str]],
    baseline: Sequence[str],
    each: int,
    guidelines: str | None,
) -> tuple[str, dict[str, list[float | None]], dict[str, Any]]:
    """Let people compare every policy's responses with the baseline's, blind.

    Returns who judged, mean preferences by policy and prompt (None: flagged), and counts. Identical
    texts tie without a question. Questions are in a store of their own, and people do not see which
    policy wrote a text. Raises Waiting until every question has `each` answers.
    """
    asked = {
        (prompt.id, ours, theirs): Comparison(prompt, Response(ours, name), Response(theirs, "sft"))
        for name, answers in texts.items()
        for prompt, ours, theirs in zip(prompts, answers, baseline, strict=True)
        if ours != theirs
    }
    with LabelStore(path / EXAMINATION) as store:
        store.add_comparisons(asked.values())
        store.add_guidelines(load_guidelines(guidelines))
        ids = [c.id for c in asked.values()]
        atomic_write(path / ASKED, json.dumps(ids))
        missing = _missing(store, ids, each)
        if missing:
            raise Waiting(
                f"waiting for people to examine: {len(missing)} of {len(ids)} comparisons have fewer than {each} "
                f"answer(s). {_where(path / EXAMINATION, path)}; then give the same command again, or "
                "give it --wait",
                partial(_is_over, path / EXAMINATION, ids, each, 0),
            )
        given: dict[str, list[float]] = {}
        people = set()
        for c in asked.values():
            stored = store.stored(c)
            turned = stored.first.text != c.first.text
            for label in store.labels([c.id]):
                if label.source != "human":
                    continue
                people.add(label.annotator)
                given.setdefault(c.id, []).append(1 - label.preference if turned else label.preference)
    outcomes: dict[str, list[float | None]] = {}
    for name, answers in texts.items():
        outcomes[name] = []
        for prompt, ours, theirs in zip(prompts, answers, baseline, strict=True):
            votes = [0.5] if ours == theirs else given.get(asked[prompt.id, ours, theirs].id)
            outcomes[name].append(mean(votes) if votes else None)
    answered = sum(map(len, given.values()))
    about = {"people": len(people), "answers": answered, "flagged": len(ids) - len(given)}
    return f"blind panel of {len(people)} {'person' if len(people) == 1 else 'people'}", outcomes, about


def _missing(store: LabelStore, ids: Sequence[str], each: int) -> set[str]:
    """Return the unflagged comparisons that fewer than `each` people have labelled.

    Answers that can no longer be taken back count, even if no page converts them to labels.
    """
    settle_overdue(store)
    closed = {i for *_, i in flagged(store)}
    given = Counter(label.comparison_id for label in store.labels() if label.source == "human")
    return {i for i in ids if given[i] < each and i not in closed}


def _is_over(place: Place, ids: Sequence[str], each: int, allowed: float) -> bool:
    with LabelStore(place) as store:
        return len(_missing(store, ids, each)) <= allowed


def _where(place: Place, run: Path) -> str:
    """Describe where people can answer: the page that serves the store, or how to start one."""
    page = page_of(place)
    return f"They are asked at {page}" if page else f"`burnish serve {run.parent}` has a page for them"
