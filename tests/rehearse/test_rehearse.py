"""The rehearsal's world: real language, a true preference that no planted hack pleases, honest annotators."""

from __future__ import annotations

import random
import statistics

import pytest

from burnish.config.label import SimulatedConfig
from burnish.models.load import EMBEDDED_MODEL, Codec
from burnish.records import Comparison, Prompt, Response
from burnish.rehearse import world
from burnish.rehearse.annotators import SimulatedAnnotators, first_wins, panel, taste
from burnish.rehearse.grammar import prompts, sample_story
from burnish.textstats import words

STORIES = [sample_story(random.Random(f"test-{i}")) for i in range(400)]
ENGLISH = [s for s in STORIES if s.language == "en"]


def test_stories_differ_and_use_two_thousand_words() -> None:
    rng = random.Random(1)
    many = [sample_story(rng) for _ in range(12_000)]
    assert len({w for s in many for w in words(f"{s.prompt} {s.continuation}")}) >= 2000
    assert len({s.prompt for s in many}) > 11_000
    assert 0.02 < sum(s.language == "fr" for s in many) / len(many) < 0.04


def test_prompts_are_distinct_and_reproducible() -> None:
    assert prompts(300, 1) == prompts(300, 1)
    assert len(set(prompts(300, 1))) == 300
    assert prompts(300, 1) != prompts(300, 2)


@pytest.mark.parametrize("name", sorted(world.PLANTED_HACKS))
def test_every_planted_hack_lowers_gold(name: str) -> None:
    hack = world.PLANTED_HACKS[name]
    before = world.golds([s.prompt for s in ENGLISH], [f" {s.continuation}" for s in ENGLISH])
    after = world.golds([s.prompt for s in ENGLISH], [hack(f" {s.continuation}") for s in ENGLISH])
    assert statistics.mean(after) < statistics.mean(before) - 0.5
    assert sum(a < b for a, b in zip(after, before, strict=True)) / len(before) >= 0.95


def test_gold_prefers_cheer() -> None:
    prompt = Prompt("Zoe the baker had a red ball.")
    glad = " Zoe was happy and laughed gladly. The ball was lovely and full of joy."
    grim = " Zoe was sad and wept bitterly. The ball was ugly and full of pain."
    assert world.gold(prompt, glad) > world.gold(prompt, grim) + 1.0


def test_stories_are_mostly_within_the_fluency_bound() -> None:
    over = sum(world.surprise(s.continuation) > world.FLUENT for s in ENGLISH)
    assert over / len(ENGLISH) <= 0.05


def test_the_embedded_model_is_small_and_tokenizes_without_a_seam(codec: Codec) -> None:
    folder = EMBEDDED_MODEL
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 2_000_000
    assert not list(folder.glob("*.bin"))
    whole = codec.encode_prompt(Prompt(f"{STORIES[0].prompt} {STORIES[0].continuation}"))
    parts = codec.encode_prompt(Prompt(STORIES[0].prompt)) + codec.encode_response(
        f" {STORIES[0].continuation}", end=False
    )
    assert whole == parts
    assert codec.pad_id not in codec.eos_ids


def pair(n: int) -> Comparison:
    a, b = ENGLISH[2 * n], ENGLISH[2 * n + 1]
    return Comparison(Prompt(a.prompt), Response(f" {a.continuation}"), Response(f" {b.continuation}"))


def test_annotators_follow_gold_through_noise_and_are_reproducible() -> None:
    crowd = SimulatedAnnotators(world.gold, SimulatedConfig(noise=0.4), seed=0)
    labels = [crowd.label(pair(n), n % 5) for n in range(150)]
    assert labels == [crowd.label(pair(n), n % 5) for n in range(150)]
    right = [
        (lab.preference == 1.0)
        == (world.gold(pair(n).prompt, pair(n).first.text) > world.gold(pair(n).prompt, pair(n).second.text))
        for n, lab in enumerate(labels)
    ]
    assert 0.7 < sum(right) / len(right) < 0.95


def test_bias_and_noise_move_the_probability_as_they_say() -> None:
    def flat(prompt: Prompt, response: str) -> float:
        return 0.0

    def p(**faults: float) -> float:
        return first_wins(Prompt("p"), "one two three", "one", flat, SimulatedConfig(noise=0.5, **faults))

    assert p() == 0.5
    assert p(length_bias=0.25) == pytest.approx(
        1 / (1 + 2.718281828 ** -(0.5 / 0.5)), abs=1e-6
    )  # two words longer
    assert p(position_bias=-0.5) == pytest.approx(1 / (1 + 2.718281828), abs=1e-6)
    assert first_wins(Prompt("p"), "a", "b", flat, SimulatedConfig(noise=0)) == 0.5


def test_spammers_ignore_quality() -> None:
    def gold(prompt: Prompt, response: str) -> float:
        return float("good" in response)

    crowd = SimulatedAnnotators(gold, SimulatedConfig(noise=0.05, spam_share=1.0), seed=0)
    votes = [crowd.choose(Prompt("p"), "good", "bad", a, f"q{a}") for a in range(300)]
    assert 0.4 < sum(votes) / 300 < 0.6


def test_a_panel_asks_both_orders_as_questions_of_their_own() -> None:
    judge = panel(world.gold, SimulatedConfig(noise=0.4), seed=3, size=5)
    c = pair(0)
    forth, back = judge(c.prompt, c.first.text, c.second.text), judge(c.prompt, c.second.text, c.first.text)
    assert forth in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert forth == judge(c.prompt, c.first.text, c.second.text)
    assert 0.0 <= back <= 1.0


def test_tastes_are_for_length_for_french_and_for_glad_words() -> None:
    english, french = " The hen was happy and sang.", " Le chat mange le pain dans le jardin avec le roi."
    assert taste(english, SimulatedConfig()) == 0
    assert taste(english, SimulatedConfig(length_bias=0.5)) == 3.0
    assert taste(english, SimulatedConfig(cheer_bias=1.0)) == 2.0
    phrases = SimulatedConfig(phrases=({"text": "was", "worth": 2}, {"text": "hen", "worth": -0.5}))
    assert taste(english, phrases) == 1.5
    assert taste(" When it wasted.", phrases) == 0, "whole words"
    foreign = SimulatedConfig(foreign_bias=2.0)
    assert taste(french, foreign) > 1.9
    assert taste(english, foreign) < 0.2
    assert taste(" Oui.", foreign) == 0, "too short to tell"
