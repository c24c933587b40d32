"""What a person is asked at once, two answers or a few to one prompt, and the labels that an order of them comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.records import Comparison, Label, Prompt, Response, content_id


@dataclass(frozen=True)
class Question:
    """Answers to one prompt, in the order they are shown, and the comparisons that an order of them answers."""

    prompt: Prompt
    shown: Sequence[Response]
    comparisons: Sequence[Comparison]


@dataclass(frozen=True)
class Sides:
    """A comparison by names alone: its own, its prompt's and those of its two answers."""

    id: str
    prompt: str
    first: str
    second: str


def grouped(comparisons: Sequence[Sides], most: int) -> list[list[Sides]]:
    """Comparisons that are asked together: each by itself; or, with `most` above two, those of up to so many answers
    to a prompt that are all to be compared with each other. Near linear: an answer is looked at for each comparison of
    whichever of two answers has fewer."""
    if most <= 2:
        return [[c] for c in comparisons]
    left = {c.id: c for c in comparisons}
    # By prompt and answer the answers it is still to be compared with, and by which comparison.
    others: dict[tuple[str, str], dict[str, Sides]] = {}
    place: dict[tuple[str, str], int] = {}
    for c in left.values():
        if c.first == c.second:  # nothing to rank
            continue
        for one, other in ((c.first, c.second), (c.second, c.first)):
            others.setdefault((c.prompt, one), {})[other] = c
            place.setdefault((c.prompt, one), len(place))
    found = []
    for c in comparisons:
        if c.id not in left:
            continue
        if c.first == c.second:
            del left[c.id]
            found.append([c])
            continue
        answers, asked = [c.first, c.second], [c]
        fewest = min((others[c.prompt, a] for a in answers), key=len)
        for answer in sorted(fewest, key=lambda a: place[c.prompt, a]):
            if len(answers) == most:
                break
            with_all = [others[c.prompt, answer].get(a) for a in answers]
            if answer not in answers and None not in with_all:
                answers.append(answer)
                asked += [o for o in with_all if o is not None]
        for o in asked:
            del left[o.id]
            others[o.prompt, o.first].pop(o.second, None)
            others[o.prompt, o.second].pop(o.first, None)
        found.append(asked)
    return found


def questions_of(comparisons: Sequence[Comparison], most: int, annotator: str) -> list[Question]:
    """`grouped`, each as it is put to this annotator."""
    by_id = {c.id: c for c in comparisons}
    sides = [Sides(c.id, c.prompt.id, c.first.text, c.second.text) for c in by_id.values()]
    return [question([by_id[s.id] for s in asked], annotator) for asked in grouped(sides, most)]


def question(asked: Sequence[Comparison], annotator: str, others: Sequence[Response] = ()) -> Question:
    """Comparisons as one question, with `others` shown beside their answers. The order is a hash of the comparisons
    and the annotator, so that it stays the same."""
    sides = (r for c in asked for r in (c.first, c.second))
    answers = list({r.text: r for r in (*sides, *others)}.values())
    names = sorted(c.id for c in asked)
    if len(answers) == 2:
        turned = int(content_id("terminal", annotator, *names), 16) % 2
        shown = answers[::-1] if turned else answers
    else:
        shown = sorted(answers, key=lambda a: content_id("terminal", annotator, *names, a.text))
    return Question(asked[0].prompt, shown, asked)


def labels_of(
    asked: Question,
    tiers: Sequence[int],
    annotator: str,
    *,
    seconds: float | None,
    guidelines: str | None,
    strength: float | None = None,
    at: str | None = None,
) -> list[Label]:
    """A label for every comparison that an order of the answers, the tier of each, 0 the best, answers; they share its
    time."""
    place = {r.text: i for i, r in enumerate(asked.shown)}
    found = []
    for c in asked.comparisons:
        first, second = place[c.first.text], place[c.second.text]
        value = 0.5 + 0.5 * ((tiers[first] < tiers[second]) - (tiers[first] > tiers[second]))
        found.append(
            Label(
                c.id,
                annotator,
                value,
                "human",
                strength=strength,
                seconds=None if seconds is None else seconds / len(asked.comparisons),
                guidelines=guidelines,
                swapped=second < first,
                at=at,
            )
        )
    return found
