"""Formats of preference data, recognised by their columns, and the pairs that their rows give."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

from burnish.data.rows import missing_column, tiers_of
from burnish.data.text import TIED, Unusable, content_of, messages_of, number_of, prompt_of, reply_of, text_of
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt

Row = Mapping[str, Any]
MakePair = Callable[[], Preference]
"""Function that returns a pair of a row, or raises Unusable."""
Numbered = tuple[int, Any]

TURN = re.compile(r"\n\n(Human|Assistant):")
STEERED = re.compile(r"\n*<extra_id_1>(User|Assistant)\n+")
ROLES = {"Human": "user", "Assistant": "assistant"}
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
ULTRAFEEDBACK = ("ratings", "overall_score", "fine-grained_score")


@dataclass(frozen=True)
class Format:
    """A format of preference data: its columns, what its rows give, and what may decide in it.

    `read` gives the pairs of a row, and `read_all` those of rows that belong together, each with the
    number and the row that they are counted under. `keys` are the values of data.decided_by, the
    default first; with `must_choose` there is no default.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    public: str
    read: Callable[[Row, str | None, str], list[MakePair]] | None = None
    read_all: (
        Callable[[Sequence[tuple[int, Row]], str | None], Iterator[tuple[int, Row, MakePair]]] | None
    ) = None
    keys: tuple[str, ...] = ()
    must_choose: bool = False

    def key(self, wanted: str | None, source: str) -> str | None:
        """Return what decides between responses; raise DataError for an unknown or a missing choice."""
        if wanted is None and self.must_choose:
            raise DataError(
                f"{source} has the format {self.name}, in which {' and '.join(self.keys)} may decide differently: set "
                f"data.decided_by to one of {', '.join(self.keys)}"
            )
        if wanted is not None and wanted not in self.keys:
            known = f"one of {', '.join(self.keys)}" if self.keys else "nothing to choose from: leave it out"
            raise DataError(
                f"data.decided_by={wanted!r}, but {source} has the format {self.name} with {known}"
            )
        return wanted or (self.keys[0] if self.keys else None)


def recognised(row: Row, source: str) -> Format:
    """Return the format of a row by its columns.

    A row with `chosen` and `rejected` is a pair, whatever else it has. A format whose columns are all
    among those of another match gives way to it. Raises DataError if no format fits, with the nearest
    column name, or if several do.
    """
    if set(PAIRS.columns) <= row.keys():
        return PAIRS
    found = [f for f in FORMATS if set(f.columns) <= row.keys()]
    found = [f for f in found if not any(set(f.columns) < set(other.columns) for other in found)]
    if len(found) > 1:
        readings = " or ".join(f"{f.name} ({', '.join(f.columns)})" for f in found)
        raise DataError(
            f"{source} can be read as {readings}; drop or rename the columns of the reading that is not meant"
        )
    if not found:
        shares = {f.name: len(set(f.columns) & row.keys()) / len(f.columns) for f in FORMATS}
        nearest = max(FORMATS, key=lambda f: (shares[f.name], f is PAIRS))
        if shares[nearest.name] < 0.5:
            nearest = PAIRS
        missing_column(next(c for c in nearest.columns if c not in row), row, source)
    return found[0]


def renamed(row: Row, columns: Mapping[str, str], source: str) -> Row:
    """Return a row with the columns of data.columns under the names that Burnish reads.

    `columns` maps a name that Burnish reads to that in the file. Raises DataError if the file lacks it.
    """
    for theirs in columns.values():
        if theirs not in row:
            missing_column(theirs, row, f"data.columns: {source}")
    back = {theirs: ours for ours, theirs in columns.items()}
    return {back.get(name, name): value for name, value in row.items() if name not in columns or name in back}


def pairs_of_rows(
    rows: Iterable[Numbered],
    source: str,
    key: str | None,
    columns: Mapping[str, str],
    formats: Counter[str] | None = None,
) -> Iterator[tuple[int, Any, MakePair]]:
    """Yield the number, row and function of each pair; the function of a bad row fails.

    Rows whose format needs several rows are read to the end first, and their pairs come in the order of
    the file. `formats` counts the rows by the name of their format.
    """
    together: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for number, row in rows:
        if not isinstance(row, Mapping):
            yield number, row, _failing("malformed JSON" if isinstance(row, str) else "not an object")
            continue
        row = renamed(row, columns, source)
        form = recognised(row, source)
        if formats is not None:
            formats[form.name] += 1
        if form.read is None:
            together[form.name].append((number, row))
            continue
        try:
            pairs = form.read(row, form.key(key, source), source)
        except Unusable as reason:
            pairs = [_failing(str(reason))]
        for make in pairs:
            yield number, row, make
    for name, held in together.items():
        form = next(f for f in FORMATS if f.name == name)
        assert form.read_all is not None
        found = form.read_all(held, form.key(key, source))
        yield from sorted(found, key=lambda pair: pair[0])


def _failing(why: str) -> MakePair:
    def fail() -> Preference:
        raise Unusable(why)

    return fail


# Pairs and rankings.


def _read_pair(row: Row, key: str | None, source: str) -> list[MakePair]:
    if isinstance(row["chosen"], list) and _texts(row["chosen"]) and _texts(row["rejected"]):
        prompt = prompt_of(row.get("prompt"))
        return [partial(checked, prompt, good, bad) for good in row["chosen"] for bad in row["rejected"]]
    return [lambda: _scored(_ended(_pair(row), row), row)]


def _texts(value: Any) -> bool:
    """Check whether a value is a list of texts, several responses of one side (RewardBench 2)."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _scored(pair: Preference, row: Row) -> Preference:
    """Return a pair with the strength that its scores say, if the row has both."""
    chosen, rejected = (_number(row.get(f"score_{side}")) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        return pair
    # Scores that contradict the choice say nothing.
    return replace(pair, strength=max(0.0, chosen - rejected))


def _read_ranking(row: Row, key: str | None, source: str) -> list[MakePair]:
    prompt, responses, tiers, ended = tiers_of(row)

    def pair(better: int, worse: int, apart: int) -> Preference:
        found = checked(prompt, responses[better], responses[worse], strength=float(apart))
        return replace(found, chosen_ended=ended[better], rejected_ended=ended[worse])

    return [
        partial(pair, better, worse, i + 1)
        for number, tier in enumerate(tiers)
        for better in tier
        for i, lower in enumerate(tiers[number + 1 :])
        for worse in lower
    ]


# Responses with scores, ranks or verdicts.


def _by_scores(prompt: Prompt, scored: Sequence[tuple[str, float | None]]) -> list[MakePair]:
    """Return a pair for every two responses with different scores, the higher one chosen."""
    known = [(text, score) for text, score in scored if score is not None]
    if len(known) < 2:
        raise Unusable("fewer than two responses have a score")
    pairs = [(a, b) if a[1] > b[1] else (b, a) for a, b in combinations(known, 2) if a[1] != b[1]]
    if not pairs:
        raise Unusable(TIED)
    return [partial(checked, prompt, a[0], b[0], strength=a[1] - b[1]) for a, b in pairs]


def _read_ultrafeedback(row: Row, key: str | None, source: str) -> list[MakePair]:
    if not isinstance(row["completions"], list) or not all(
        isinstance(c, Mapping) for c in row["completions"]
    ):
        raise Unusable("completions are not a list of objects")

    def score(completion: Row) -> float | None:
        if key != "ratings":
            return _number(completion.get(str(key)))
        aspects = completion.get("annotations") or {}
        if not isinstance(aspects, Mapping):
            raise Unusable("annotations are not an object")
        given = [_number(a.get("Rating")) for a in aspects.values() if isinstance(a, Mapping)]
        known = [v for v in given if v is not None]
        return fmean(known) if known else None

    prompt = prompt_of(row["instruction"])
    return _by_scores(
        prompt, [(text_of(c.get("response"), "a response"), score(c)) for c in row["completions"]]
    )


def _read_nectar(row: Row, key: str | None, source: str) -> list[MakePair]:
    if not isinstance(row["answers"], list) or not all(isinstance(a, Mapping) for a in row["answers"]):
        raise Unusable("answers are not a list of objects")
    prompt = _asked(row["prompt"])
    answers = [(text_of(a.get("answer"), "an answer"), _number(a.get("rank"))) for a in row["answers"]]
    return _by_scores(prompt, [(text, None if rank is None else -rank) for text, rank in answers])


def _read_shp(row: Row, key: str | None, source: str) -> list[MakePair]:
    better = _choice(row["labels"], "labels")
    sides = [text_of(row[f"human_ref_{name}"], f"human_ref_{name}") for name in "AB"]
    # A label of 1 prefers A (the data set's card).
    return [partial(checked, prompt_of(row["history"]), sides[1 - better], sides[better])]


def _read_safe_rlhf(row: Row, key: str | None, source: str) -> list[MakePair]:
    best = _choice(row[f"{key}_response_id"], f"{key}_response_id")
    sides = [text_of(row[f"response_{i}"], f"response_{i}") for i in range(2)]
    return [partial(checked, prompt_of(row["prompt"]), sides[best], sides[1 - best])]


def _read_graded(prompt: str, first: str, second: str, column: str) -> Callable[..., list[MakePair]]:
    """Return a reader of two responses with a grade; a negative one prefers the first (HelpSteer)."""

    def read(row: Row, key: str | None, source: str) -> list[MakePair]:
        grade = _number(row[column])
        if grade is None:
            raise Unusable(f"`{column}` is no number")
        if not grade:
            raise Unusable(TIED)
        sides = [text_of(row[name], name) for name in (first, second)]
        chosen, rejected = sides if grade < 0 else sides[::-1]
        return [partial(checked, _asked(row[prompt]), chosen, rejected, strength=abs(grade))]

    return read


def _read_all_scored(rows: Sequence[tuple[int, Row]], key: str | None) -> Iterator[tuple[int, Row, MakePair]]:
    """Pair the responses to each prompt, one a row, by the score in the column `key`."""
    held: dict[str, list[tuple[int, Row, str, float]]] = defaultdict(list)
    prompts: dict[str, Prompt] = {}
    for number, row in rows:
        try:
            prompt, score = _asked(row["prompt"]), _number(row.get(str(key)))
            if score is None:
                raise Unusable(f"`{key}` is no number")
            response = reply_of(row["response"])
            held[prompt.id].append((number, row, response, score))
            prompts[prompt.id] = prompt
        except Unusable as reason:
            yield number, row, _failing(str(reason))
    for name, found in held.items():
        if len(found) < 2:
            yield *found[0][:2], _failing("the only response to its prompt")
            continue
        for (number, row, first, a), (_, _, second, b) in combinations(found, 2):
            if a == b:
                yield number, row, _failing(TIED)
                continue
            sides = (first, second) if a > b else (second, first)
            yield number, row, partial(checked, prompts[name], *sides, strength=abs(a - b))


def _read_all_unpaired(
    rows: Sequence[tuple[int, Row]], key: str | None
) -> Iterator[tuple[int, Row, MakePair]]:
    """Pair each response that was liked with each that was not, to the same prompt."""
    prompts: dict[str, Prompt] = {}
    held: dict[str, dict[bool, list[tuple[int, Row, str]]]] = {}
    for number, row in rows:
        try:
            prompt = prompt_of(row["prompt"])
            liked = bool(_choice(row["label"], "label"))
            found = (number, row, reply_of(row["completion"], "completion"))
            prompts[prompt.id] = prompt
            held.setdefault(prompt.id, {True: [], False: []})[liked].append(found)
        except Unusable as reason:
            yield number, row, _failing(str(reason))
    for name, by_label in held.items():
        if not all(by_label.values()):
            for number, row, _ in [*by_label[True], *by_label[False]]:
                yield number, row, _failing("no response to its prompt has the other label")
        for number, row, better in by_label[True]:
            for _, _, worse in by_label[False]:
                yield number, row, partial(checked, prompts[name], better, worse)


def _read_all_tree(rows: Sequence[tuple[int, Row]], key: str | None) -> Iterator[tuple[int, Row, MakePair]]:
    """Pair the ranked replies to each message of a tree; the prompt is the path from its root."""
    known = {row["message_id"]: row for _, row in rows if isinstance(row["message_id"], str)}
    replies: dict[str, list[tuple[int, Row, float]]] = defaultdict(list)
    for number, row in rows:
        parent = row.get("parent_id")
        if row["role"] != "assistant" or parent is None or row.get("deleted"):
            continue
        rank = _number(row.get("rank"))
        if not isinstance(parent, str):
            yield number, row, _failing("`parent_id` is not text")
        elif rank is None:
            yield number, row, _failing("a reply without a rank")
        else:
            replies[parent].append((number, row, rank))

    def prompt_before(parent: Any) -> Prompt:
        turns: list[Message] = []
        while parent is not None:
            if not isinstance(parent, str) or parent not in known or len(turns) > len(known):
                raise Unusable("the message that it replies to is missing")
            row = known[parent]
            role = text_of(row["role"], "role")
            turns.append(Message("user" if role == "prompter" else role, text_of(row["text"])))
            parent = row.get("parent_id")
        return prompt_of(turns[0].content) if len(turns) == 1 else Prompt.from_messages(turns[::-1])

    def pair(parent: str, better: Row, worse: Row, apart: float) -> Preference:
        return checked(prompt_before(parent), text_of(better["text"]), text_of(worse["text"]), strength=apart)

    for parent, found in replies.items():
        if len(found) < 2:
            yield *found[0][:2], _failing("the only reply to its prompt")
        for first, second in combinations(sorted(found, key=lambda f: f[2]), 2):
            if first[2] < second[2]:
                yield *first[:2], partial(pair, parent, first[1], second[1], second[2] - first[2])


def _number(value: Any) -> float | None:
    """Return a finite number, given as such or as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    number = number_of(value)
    return number if number is not None and abs(number) < float("inf") else None


def _choice(value: Any, what: str) -> int:
    """Return 0 or 1; raise Unusable for another value."""
    if value not in (0, 1) or isinstance(value, float):
        raise Unusable(f"`{what}` is neither 0 nor 1")
    return int(value)


def _asked(value: Any) -> Prompt:
    """Return a prompt given as text, as messages, or as a dialogue in the markers of HH or HelpSteer."""
    if isinstance(value, str) and STEERED.search(value):
        first, *rest = STEERED.split(value)
        spoken = [
            ("user", first),
            *((ROLES.get(r, "user"), t) for r, t in zip(rest[::2], rest[1::2], strict=True)),
        ]
        return prompt_of([{"role": role, "content": text.strip()} for role, text in spoken])
    if not (isinstance(value, str) and TURN.match(value if value.startswith("\n\n") else f"\n\n{value}")):
        return prompt_of(value)
    turns = _turns(value)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    if not turns:
        raise Unusable("empty prompt")
    return prompt_of(turns[0].content) if len(turns) == 1 else Prompt.from_messages(turns)


def _pair(row: Row) -> Preference:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return checked(*_dialogue(chosen, rejected))
        return checked(prompt_of(prompt), chosen, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        if prompt is not None and _parts(chosen) and _parts(rejected):
            return checked(prompt_of(prompt), content_of(chosen, "chosen"), content_of(rejected, "rejected"))
        a, b = messages_of(chosen), messages_of(rejected)
        if prompt is None:
            return checked(*_shared(a, b))
        before = [Message("user", text_of(prompt))] if isinstance(prompt, str) else messages_of(prompt)
        return checked(_continued(before, a, b), reply(a), reply(b))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(side, str | list):
            text_of(side, name)
    raise Unusable("one side is text and the other is not")


def _parts(value: list[Any]) -> bool:
    """Check whether a list holds content parts rather than turns of a dialogue."""
    return bool(value) and all(isinstance(v, dict) and "type" in v and "role" not in v for v in value)


def reply(turns: Sequence[Message]) -> str:
    """Return the last turn of a dialogue; raise Unusable if it is not the assistant's."""
    if turns[-1].role != "assistant":
        raise Unusable("does not end in an answer")
    return turns[-1].content


def _continued(before: list[Message], chosen: list[Message], rejected: list[Message]) -> Prompt:
    """Return the prompt with the turns that both sides share before their last reply.

    The shared turns may repeat the prompt (perhaps after a system turn) or continue it.
    """
    shared = chosen[:-1]
    if not _same(shared, rejected[:-1]):
        raise Unusable("no shared prompt")
    held = any(_same(shared[i : i + len(before)], before) for i in range(len(shared)))
    return Prompt.from_messages(shared if held else [*before, *shared])


def _same(a: Sequence[Message], b: Sequence[Message]) -> bool:
    """Check whether two dialogues are equal apart from white space at the edges of turns."""
    return [(m.role, m.content.strip()) for m in a] == [(m.role, m.content.strip()) for m in b]


def _ended(pair: Preference, row: Mapping[str, Any]) -> Preference:
    flags = {name: row[name] for name in ("chosen_ended", "rejected_ended") if row.get(name) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise Unusable("ended is neither true nor false")
    return replace(pair, **flags)


def _shared(chosen: list[Message], rejected: list[Message]) -> tuple[Prompt, str, str]:
    if not _same(chosen[:-1], rejected[:-1]) or len(chosen) < 2:
        raise Unusable("no shared prompt")
    return Prompt.from_messages(chosen[:-1]), reply(chosen), reply(rejected)


def _dialogue(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Parse two whole dialogues in the format of Anthropic's HH data."""
    return _shared(_turns(chosen), _turns(rejected))


def _turns(text: str) -> list[Message]:
    parts = TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or len(parts) < 5:
        raise Unusable("no shared prompt")
    return [Message(ROLES[r], t.strip()) for r, t in zip(parts[1::2], parts[2::2], strict=True)]


def checked(prompt: Prompt, chosen: str, rejected: str, strength: float | None = None) -> Preference:
    """Return a pair; raise Unusable if a text is empty, both are the same, or the prompt is no question."""
    for text in (prompt.text, *(m.content for m in prompt.messages), chosen, rejected):
        text_of(text)
    if not prompt.text.strip():
        raise Unusable("empty prompt")
    if prompt.messages and prompt.messages[-1].role == "assistant":
        raise Unusable("the prompt ends with an assistant turn, which is not supported")
    if not (chosen.strip() and rejected.strip()):
        raise Unusable("empty answer")
    if chosen.strip() == rejected.strip():
        raise Unusable("identical sides")
    return Preference(prompt, chosen, rejected, strength=strength)


PAIRS = Format(
    "pairs",
    "a chosen and a rejected response, as text, messages or whole dialogues; or lists of texts",
    ("chosen", "rejected"),
    "Anthropic/hh-rlhf, HuggingFaceH4/ultrafeedback_binarized, allenai/reward-bench, allenai/reward-bench-2",
    _read_pair,
)
FORMATS = (
    PAIRS,
    Format("rankings", "responses and tiers of their indices", ("responses", "ranking"), "", _read_ranking),
    Format(
        "UltraFeedback",
        "completions with ratings of four aspects; `ratings` is their mean",
        ("instruction", "completions"),
        "openbmb/UltraFeedback",
        _read_ultrafeedback,
        keys=ULTRAFEEDBACK,
    ),
    Format(
        "HelpSteer2",
        "one response a row, with grades; responses to the same prompt are paired",
        ("prompt", "response", *HELPSTEER),
        "nvidia/HelpSteer2, nvidia/HelpSteer",
        read_all=_read_all_scored,
        keys=HELPSTEER,
    ),
    Format(
        "HelpSteer2 preferences",
        "two responses and a grade from -3 (the first) to 3 (the second)",
        ("prompt", "response_1", "response_2", "preference_strength"),
        "nvidia/HelpSteer2 (preference)",
        _read_graded("prompt", "response_1", "response_2", "preference_strength"),
    ),
    Format(
        "HelpSteer3",
        "two responses to a dialogue and a grade from -3 (the first) to 3 (the second)",
        ("context", "response1", "response2", "overall_preference"),
        "nvidia/HelpSteer3",
        _read_graded("context", "response1", "response2", "overall_preference"),
    ),
    Format(
        "PKU-SafeRLHF",
        "two responses, the better and the safer one",
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        "PKU-Alignment/PKU-SafeRLHF",
        _read_safe_rlhf,
        keys=("better", "safer"),
        must_choose=True,
    ),
    Format("Nectar", "answers with ranks", ("prompt", "answers"), "berkeley-nest/Nectar", _read_nectar),
    Format(
        "SHP",
        "two comments on a post, and which one readers prefer",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        "stanfordnlp/SHP, stanfordnlp/SHP-2",
        _read_shp,
    ),
    Format(
        "OpenAssistant",
        "messages of trees; ranked replies to the same message are paired",
        ("message_id", "text", "role"),
        "OpenAssistant/oasst1, OpenAssistant/oasst2",
        read_all=_read_all_tree,
    ),
    Format(
        "unpaired",
        "responses that were liked or not; those to the same prompt are paired",
        ("prompt", "completion", "label"),
        "trl-lib/kto-mix-14k",
        read_all=_read_all_unpaired,
    ),
)
"""All formats. docs/reference/data_formats.md lists them."""
