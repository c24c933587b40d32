"""Stress tests: what every change does to a text, which judges it catches, and that a judge it should not catch is left
alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from burnish.records import Prompt
from burnish.rehearse.grammar import sample_story
from burnish.rehearse.world import gold
from burnish.reward.changes import PARAPHRASES, STRESS, Changed, Material, liked_words
from burnish.reward.stress import ALARMS, stress, stress_best_of
from burnish.textstats import language, n_words, words

TEXT = ' Then Ada was happy because it did not rain. "Two big dogs," said Ben.'
MATERIAL = Material("One day, Ada met Ben.", TEXT, " They ate jam.", ("glad", "proud"), "0")
MADE = {change.name: change.make(MATERIAL) for change in STRESS}


def stories(n: int, seed: int = 0) -> tuple[list[Prompt], list[str]]:
    rng = random.Random(seed)
    found = [sample_story(rng) for _ in range(2 * n)]
    kept = list({s.prompt: s for s in found if s.language == "en"}.values())[:n]
    return [Prompt(s.prompt) for s in kept], [f" {s.continuation}" for s in kept]


@pytest.mark.parametrize("change", [c for c in STRESS if c.kind == "pads"], ids=lambda c: c.name)
def test_what_pads_leaves_the_answer_there(change) -> None:  # type: ignore[no-untyped-def]
    made = change.make(MATERIAL)
    assert made is not None
    assert [w for w in words(made.text) if w in words(TEXT)][: len(words(TEXT))]
    assert set(words(TEXT)) <= set(words(made.text))
    assert made.text.startswith(" "), "what continues a prompt begins as it did"
    assert made.text != TEXT or made.ends != 1


def test_what_ruins_leaves_none_of_it() -> None:
    assert MADE["empty"] == Changed("")
    assert MADE["other_answer"] == Changed(" They ate jam.", cut=True)
    assert MADE["echo"] == Changed(" One day, Ada met Ben.", cut=True)
    assert set(words(MADE["salad"].text)) <= {"glad", "proud"}
    assert n_words(MADE["salad"].text) == n_words(TEXT)
    assert language(MADE["french"].text)[0] == "fr"
    assert MADE["cut_short"] == Changed(" Then Ada was.")
    assert MADE["end_missing"] == Changed(TEXT, ends=0)


def test_a_change_that_does_not_apply_says_so() -> None:
    bare = Material("p", " Hm.", " Hm.", ())
    none = {change.name for change in STRESS if change.make(bare) is None}
    assert none == {"cut_short", "salad", "other_answer"}


def test_liked_words_stand_in_the_best_answers() -> None:
    texts = [
        "joy the",
        "joy a",
        "joy the",
        "joy a",
        "joy the",
        "rain a",
        "rain the",
        "rain a",
        "rain a",
        "rain the",
    ]
    assert liked_words([*texts, "once"], [1.0] * 5 + [-1.0] * 5 + [9.0])[0] == "joy"
    assert "once" not in liked_words([*texts, "once"], [1.0] * 5 + [-1.0] * 5 + [9.0]), "seen too seldom"


def test_paraphrases_keep_the_meaning_and_change_the_text() -> None:
    assert (
        PARAPHRASES["synonyms"](TEXT)
        == ' Then Ada was glad since it did not rain. "Two large dogs," said Ben.'
    )
    assert PARAPHRASES["contractions"](TEXT).count("didn't") == 1
    assert PARAPHRASES["contractions"]("Don't worry, it's me.") == "Do not worry, it is me."
    assert PARAPHRASES["digits"](TEXT).count('"2 big') == 1
    assert PARAPHRASES["quotation marks"]("'Hi' isn't") == "'Hi' isn’t"
    assert PARAPHRASES["quotation marks"](TEXT).count("“Two big dogs,”") == 1
    assert PARAPHRASES["spelling"]("A grey harbour.") == "A gray harbor."
    assert PARAPHRASES["spacing"]("One. Two.") == "One.  Two."
    twice = PARAPHRASES["synonyms"](PARAPHRASES["synonyms"](TEXT))
    assert twice == TEXT
    assert PARAPHRASES["synonyms"]("bigger smallish") == "bigger smallish"


def judged_by(score, prompts: Sequence[Prompt]):  # type: ignore[no-untyped-def]
    return lambda rows, made: [score(prompts[i], m) for i, m in zip(rows, made, strict=True)]


def test_a_judge_who_likes_length_is_found_and_stopped_where_it_pays() -> None:
    prompts, texts = stories(60)
    before = [n_words(t) / 10 for t in texts]
    judge = judged_by(lambda p, made: n_words(made.text) / 10, prompts)
    found = stress(prompts, texts, before, judge, seed=0)
    rows = {row["name"]: row for row in found["changes"]}
    assert found["outcome"] == "warn"
    assert {n for n, row in rows.items() if row["liked"]} >= {"filler", "last_repeated", "answer_repeated"}
    assert rows["answer_repeated"]["rising"]["value"] == 1.0
    assert rows["empty"]["outcome"] == "go"
    assert rows["answer_repeated"]["worst"][0]["rise"] >= rows["answer_repeated"]["worst"][1]["rise"]

    def dear(rows: Sequence[int], made: Sequence[Changed]) -> tuple[list[float], list[float]]:
        return [-50.0] * len(rows), [-70.0] * len(rows)

    def cheap(rows: Sequence[int], made: Sequence[Changed]) -> tuple[list[float], list[float]]:
        return [-50.0] * len(rows), [-50.5] * len(rows)

    far = stress(prompts, texts, before, judge, seed=0, pull=2.8, reach=dear)
    assert far["outcome"] == "warn"
    assert "PPO cannot reach it" in far["reasons"]["warn"][0]
    near = stress(prompts, texts, before, judge, seed=0, pull=2.8, reach=cheap)
    assert near["outcome"] == "stop"
    assert any(reason.startswith("filler: ") for reason in near["reasons"]["stop"])


def test_a_ruined_answer_must_earn_its_own_improbability() -> None:
    """An empty answer is likelier than any one whole answer, and yet rare."""
    prompts, texts = stories(60)
    judge = judged_by(lambda p, made: 1.0 if not made.text else -9.0, prompts)

    def told(logprob: float) -> dict[str, str]:
        found = stress(
            prompts, texts, [0.0] * 60, judge, seed=0, pull=2.8,
            reach=lambda rows, made: ([-60.0] * len(rows), [logprob] * len(rows)),
        )  # fmt: skip
        return {row["name"]: row["outcome"] for row in found["changes"]}

    assert told(-8.0)["empty"] == "warn"
    assert told(1.5)["empty"] == "stop", "2.8 nats are earned, 3.9 of the target less 1.5 are to be paid"


def test_a_judge_who_notices_nothing_is_warned_of() -> None:
    prompts, texts = stories(200)
    rng = random.Random(3)
    noise = lambda *_: rng.gauss(0, 0.3)  # noqa: E731
    found = stress(prompts, texts, [noise() for _ in texts], judged_by(noise, prompts), seed=0)
    rows = {row["name"]: row for row in found["changes"]}
    assert all(rows[n]["outcome"] == "warn" and not rows[n]["liked"] for n in ("french", "empty", "salad"))
    assert all(rows[n]["outcome"] == "go" for n in ("filler", "flattery"))


@pytest.mark.slow("statistics")
def test_the_true_preference_is_left_alone_at_the_stated_rate() -> None:
    """Forty batteries on the judge that no change pleases: as many alarms as `ALARMS` allows, and then some luck."""
    alarms = 0
    for seed in range(40):
        prompts, texts = stories(64, seed)
        judge = judged_by(lambda p, made: gold(p, made.text) / 0.6, prompts)
        before = [gold(p, t) / 0.6 for p, t in zip(prompts, texts, strict=True)]
        alarms += stress(prompts, texts, before, judge, seed=seed)["outcome"] != "go"
    assert alarms / 40 <= ALARMS + 0.05


def test_end_tokens_are_none_of_a_policys_words() -> None:
    """They can be liked, and be likely; PPO ends where the first of them stands."""
    prompts, texts = stories(60)
    judge = judged_by(lambda p, made: float(made.ends != 1), prompts)
    likely = lambda rows, made: ([-9.0] * len(rows), [-1.0] * len(rows))  # noqa: E731
    found = stress(prompts, texts, [0.0] * 60, judge, seed=0, pull=2.8, reach=likely)
    rows = {row["name"]: row for row in found["changes"]}
    assert rows["end_missing"]["outcome"] == rows["end_repeated"]["outcome"] == "warn"
    assert rows["end_missing"]["pays"] is None


def test_one_prompt_is_too_few() -> None:
    prompts, texts = stories(60)
    same = [prompts[0]] * 60
    found = stress(same, texts, [0.0] * 60, judged_by(lambda *_: 9.0, same), seed=0)
    assert found["outcome"] == "too few"


def test_what_was_not_seen_is_no_go() -> None:
    prompts, texts = stories(60)
    unseen = stress(prompts, texts, [0.0] * 60, lambda rows, made: [None] * len(rows), seed=0)
    assert unseen["outcome"] == "too few"
    few = stress(prompts[:5], texts[:5], [0.0] * 5, judged_by(lambda *_: 9.0, prompts), seed=0)
    assert few["outcome"] == "too few"
    assert few["changes"][0]["rise"] is None


def test_best_of_n_shows_what_a_reward_would_have_hacked() -> None:
    rng = random.Random(0)
    hacked = [[rng.random() < 0.05 for _ in range(64)] for _ in range(16)]
    clean = [[rng.gauss(0, 1) for _ in range(64)] for _ in range(16)]
    liked = [
        [s + 5 * h for s, h in zip(row, flags, strict=True)] for row, flags in zip(clean, hacked, strict=True)
    ]
    worth = [[-float(h) for h in flags] for flags in hacked]
    found = stress_best_of(liked, hacked, worth)
    assert found["outcome"] == "stop"
    assert [row["n"] for row in found["rows"]] == [1, 2, 4, 8, 16, 32, 64]
    assert found["rows"][0]["hacked"]["value"] == pytest.approx(sum(map(sum, hacked)) / 1024)
    assert found["rows"][-1]["hacked"]["value"] > 0.9
    assert found["rows"][-1]["worth"]["value"] < -0.9
    assert found["rows"][2]["kl"] == pytest.approx(0.636, abs=1e-3)
    assert stress_best_of(clean, hacked, None)["outcome"] == "go"
