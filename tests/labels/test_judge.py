"""AI judges: both orders, a bias that is recovered and removed, failures that are never labels, a budget that holds."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish.config.judge import JudgeConfig
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError, RunError
from burnish.labels import local
from burnish.labels.endpoint import EndpointJudge, log_odds, read_reply
from burnish.labels.judge import behaviour, judge_comparisons, preference
from burnish.labels.ledger import Answer, Ledger
from burnish.labels.local import LocalJudge
from burnish.labels.rubric import FIELDS, Rubric, load_rubric
from burnish.models.load import resolve_path
from burnish.records import Comparison, Prompt, Response
from tests.command import begun, burnish
from tests.killing import kill_at
from tests.labels.scripted import Script, draw, serving

RUBRIC = load_rubric(None, load_guidelines())


def worth(answer: str) -> float:
    """In log-odds, spread over (-2, 2)."""
    return 4 * draw(answer) - 2


def comparisons(n: int) -> list[Comparison]:
    return [
        Comparison(Prompt(f"question {i}"), Response(f"one {i}"), Response(f"two {i} more")) for i in range(n)
    ]


def config(url: str, **more: Any) -> JudgeConfig:
    return JudgeConfig(**{"model": "scripted", "endpoint": url, "retries": 3, "timeout": 60.0, **more})


def judged(script: Script, asked: list[Comparison], ledger: Path, **more: Any):  # type: ignore[no-untyped-def]
    with serving(script) as url:
        return judged_at(url, asked, ledger, **more)


def judged_at(url: str, asked: list[Comparison], ledger: Path, **more: Any):  # type: ignore[no-untyped-def]
    settings = config(url, **more)
    with Ledger(ledger, settings.budget) as book:
        return judge_comparisons(asked, EndpointJudge(settings), RUBRIC, book, settings)


def test_preference_golden() -> None:
    """Log-odds 2 when first and 1 (for the other) when second: (2 - 1) / 2 = 0.5, sigmoid 0.6225."""
    assert preference(Answer(log_odds=2.0), Answer(log_odds=1.0)) == pytest.approx(0.62246, abs=1e-5)
    assert preference(Answer(vote="first"), Answer(vote="second")) == 1.0
    assert preference(Answer(vote="first"), Answer(vote="first")) == 0.5
    assert preference(Answer(vote="tie"), Answer(vote="second")) == 0.75
    assert preference(Answer(log_odds=2.0), Answer(vote="second")) == 1.0
    assert preference(Answer(log_odds=2.0), Answer(why="time-out", again=True)) is None


@pytest.mark.parametrize("bias", [-1.5, 0.0, 3.0])
def test_a_bias_added_for_the_first_is_removed_and_told(tmp_path: Path, bias: float) -> None:
    asked = comparisons(120)
    found = judged(Script(worth, bias=bias), asked, tmp_path / "l.jsonl")
    assert len(found.labels) == 120
    for label, c in zip(found.labels, asked, strict=True):
        lean = worth(c.first.text) - worth(c.second.text)
        assert label.preference == pytest.approx(1 / (1 + math.exp(-lean)), abs=1e-6)
        assert (label.source, label.guidelines) == ("judge", RUBRIC.guidelines.id)
    report = behaviour(found, asked)
    assert report["position_log_odds"] == pytest.approx(bias, abs=1e-6)
    true_flips = sum(abs(worth(c.first.text) - worth(c.second.text)) < abs(bias) for c in asked)
    assert report["flips"]["value"] * report["flips"]["n"] == pytest.approx(true_flips)
    assert (report["first"]["ci_low"] > 0.5) == (bias > 0)


def test_the_flip_rate_of_votes_lies_within_its_interval(tmp_path: Path) -> None:
    """Votes of a judge with bias 1: pairs whose worth differs by less turn with the order."""
    asked = comparisons(150)
    found = judged(Script(worth, bias=1.0, logprobs=False), asked, tmp_path / "l.jsonl", verdict="votes")
    share = sum(abs(worth(c.first.text) - worth(c.second.text)) < 1.0 for c in asked) / len(asked)
    report = behaviour(found, asked)
    assert report["flips"]["ci_low"] < share < report["flips"]["ci_high"]
    soft = [label for label in found.labels if label.preference == 0.5]
    assert len(soft) == round(share * len(asked)), "a verdict that turns is a soft label"


def test_failures_are_tried_again_and_never_become_labels(tmp_path: Path) -> None:
    """First tries fail in every way there is; some questions fail for good."""
    kinds = ("429", "500", "half", "slow", None, None, None)
    for_good = {"unreadable": 0.06, "refused": 0.12, "malformed": 0.18, "503": 0.24}

    def fail(question: str, times: int) -> str | None:
        ever = draw(question, "ever")
        for kind, share in for_good.items():
            if ever < share:
                return kind
        return kinds[int(draw(question, "first") * len(kinds))] if times == 1 else None

    asked = comparisons(60)
    script = Script(worth, bias=0.7, fail=fail)
    found = judged(script, asked, tmp_path / "l.jsonl", concurrency=16, timeout=2.0)  # the slow take 3 s
    reasons = behaviour(found, asked)["abstentions"]
    assert {"unreadable verdict", "refused", "malformed reply", "status 503"} <= reasons.keys()
    whole = {
        c.id: all(
            fail(RUBRIC.question(c.prompt.text, a, b), 2) is None
            for a, b in ((c.first.text, c.second.text), (c.second.text, c.first.text))
        )
        for c in asked
    }
    assert {label.comparison_id for label in found.labels} == {i for i, ok in whole.items() if ok}
    right = {c.id: worth(c.first.text) - worth(c.second.text) for c in asked}
    for label in found.labels:
        assert label.preference == pytest.approx(1 / (1 + math.exp(-right[label.comparison_id])), abs=1e-6)


def test_an_endpoint_without_log_probabilities_is_asked_for_votes(tmp_path: Path) -> None:
    script = Script(worth, fail=lambda q, n: "no logprobs")
    found = judged(script, comparisons(12), tmp_path / "l.jsonl", concurrency=8)
    assert {label.preference for label in found.labels} <= {0.0, 0.5, 1.0}
    assert len(found.labels) == 12, "those that were under way when the first was refused, too"


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_what_no_question_can_pass_is_told_at_once(tmp_path: Path, status: str) -> None:
    script = Script(worth, fail=lambda q, n: status)
    with pytest.raises(ConfigError, match=f"does not accept 'scripted' \\({status}"):
        judged(script, comparisons(40), tmp_path / "l.jsonl")
    assert sum(script.asked.values()) <= 8, "those under way, no more"


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    script, asked = Script(worth), comparisons(20)
    with serving(script) as url:
        first, again = (judged_at(url, asked, tmp_path / "l.jsonl", price_in=10.0) for _ in range(2))
        assert set(script.asked.values()) == {1}
        judged_at(url, asked[:2], tmp_path / "l.jsonl", verdict="votes")
        assert sorted(Counter(script.asked.values())) == [1, 2], "asked otherwise, it is another judge"
    assert [a.preference for a in again.labels] == [b.preference for b in first.labels]
    assert (again.cost, first.cost > 0) == (0.0, True)


@pytest.mark.parametrize("failing", [False, True])
def test_a_budget_holds_whatever_is_under_way(tmp_path: Path, failing: bool) -> None:
    """32 at once: what was billed stays under it, also when replies are lost that may have been billed."""

    def fail(question: str, times: int) -> str | None:
        return "half" if failing and draw(question, "lost") < 0.3 else None

    script = Script(worth, fail=fail, seconds=0.01)
    budget, price = 8.0, 100.0
    found = judged(
        script,
        comparisons(300),
        tmp_path / "l.jsonl",
        concurrency=32,
        budget=budget,
        price_in=price,
        price_out=price,
    )
    sent = sum(len(q) // 4 + 1 for q, n in script.asked.items() for _ in range(n))
    billed = script.billed if not failing else sent
    assert billed * price / 1e6 <= budget
    assert found.unasked > 0
    assert found.cost <= budget
    if not failing:
        assert script.most_at_once > 4
        assert len(found.labels) > 3
        # A connection that is lost on a busy machine is booked at its most: never less than was billed.
        assert found.cost >= script.billed * price / 1e6 - 1e-9


@pytest.mark.e2e
def test_a_killed_judge_pays_for_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL in the middle; the second time only what had no answer is asked."""
    script = Script(worth, seconds=0.02)
    store = tmp_path / "labels.sqlite"
    with LabelStore(store) as labels:
        labels.add_comparisons(comparisons(60))
    with serving(script) as url:
        command = [
            *("label", "judge", str(store), "--model", "scripted"),
            *("--endpoint", url, "--concurrency", "4", "--price-in", "10", "--budget", "5", "--json"),
        ]
        ledger = store.with_suffix(".judge.jsonl")
        kill_at(
            lambda: ledger.exists() and ledger.read_text().count('"answer"') >= 30,
            begun(*command, quiet=True),
        )
        settled = {json.loads(x)["key"] for x in ledger.read_text().split("\n")[:-1] if '"answer"' in x}
        before = asked_so_far(script)
        done = burnish(*command)
    report = json.loads(done.stdout)
    assert report["labels"] == 60
    assert 30 <= len(settled) < 120
    twice = [q for q, n in script.asked.items() if n > 1]
    assert len(twice) <= 4, "what was under way when it was killed, and had no answer on disk"
    assert sum(script.asked.values()) - before <= 120 - len(settled)
    with LabelStore(store) as labels:
        assert labels.count()["labels"] == 60


def asked_so_far(script: Script) -> int:
    with script.lock:
        return sum(script.asked.values())


def test_a_line_that_was_cut_off_counts_as_paid(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    with Ledger(file, 1.0) as ledger:
        ledger.reserve("a", 0.25)
        ledger.settle("a", Answer(vote="first"), 0.125)
        ledger.reserve("b", 0.5)
    file.write_text(file.read_text() + '{"key": "b", "cost": 0.0')
    with Ledger(file, 1.0) as again:
        assert again.spent == 0.625
        assert again.known("a") == Answer(vote="first")
        assert again.known("b") is None
        assert again.fits(0.375)
        assert not again.fits(0.376)
        again.reserve("b", 0.25)
    with Ledger(file, 1.0) as last:
        assert last.spent == 0.875
        last.reserve("b", 0.125)
        last.settle("b", Answer(vote="second"), 0.0625)
    with Ledger(file, 1.0) as settled:
        assert settled.spent == 0.9375, "both killed tries count, and the one that was answered"
    file.write_text("no JSON\n" + file.read_text())
    with pytest.raises(DataError, match="line 1, is not JSON"):
        Ledger(file)


def test_log_odds_sum_spellings_and_bound_what_is_missing() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    assert log_odds([("A", quarter), (" A", quarter), ("B", half)]) == pytest.approx(0.0)
    assert log_odds([("A", half), ("The", math.log(0.01))]) == pytest.approx(math.log(50))
    assert log_odds([("The", half)]) is None
    assert log_odds([("I", half), (" a", quarter), ("A", math.log(0.01))]) is None, "an article is no verdict"
    tied = log_odds([("C", math.log(0.9)), ("A", math.log(0.08)), ("B", math.log(0.01))])
    assert tied == pytest.approx(math.log(0.53 / 0.46)), "a tie is half for each"


def reply(content: str, **more: Any) -> Any:
    message = SimpleNamespace(content=content, refusal=None)
    choice = SimpleNamespace(message=message, finish_reason="stop", logprobs=None, **more)
    return SimpleNamespace(choices=[choice], usage=SimpleNamespace(prompt_tokens=3, completion_tokens=1))


@pytest.mark.parametrize(
    ("content", "vote"),
    [
        ("A", "first"),
        (" **B**", "second"),
        ("C.", "tie"),
        ("A: it is shorter", "first"),
        ("A good answer would be B", None),
        ("Both are fine", None),
        ("", None),
    ],
)
def test_a_verdict_is_a_letter_that_stands_alone(content: str, vote: str | None) -> None:
    answer = read_reply(reply(content))
    assert answer.vote == vote
    assert (answer.why is None) == (vote is not None)


def test_a_tie_in_words_outweighs_what_is_left_of_the_odds() -> None:
    forth, back = Answer(log_odds=2.0, vote="tie"), Answer(log_odds=-2.0, vote="tie")
    assert preference(forth, back) == 0.5


def test_questions_that_are_the_same_are_asked_once(tmp_path: Path) -> None:
    """Answers that differ in white space around them make one question."""
    asked = [Comparison(Prompt("q"), Response(f"{' ' * i}one"), Response("two")) for i in range(4)]
    script = Script(worth, seconds=0.05)
    found = judged(script, asked, tmp_path / "l.jsonl", price_in=10.0)
    assert set(script.asked.values()) == {1}
    assert len(found.labels) == 4
    assert found.cost == pytest.approx(sum(len(q) // 4 for q in script.asked) * 10 / 1e6)


def test_two_processes_do_not_share_a_purse(tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "l.jsonl", 1.0),
        pytest.raises(RunError, match="another process is asking its judge"),
    ):
        Ledger(tmp_path / "l.jsonl", 1.0)
    with Ledger(tmp_path / "l.jsonl", 1.0) as again:
        assert again.fits(1.0)


def test_a_rubric_leaves_alone_what_stands_in_an_answer(tmp_path: Path) -> None:
    text = RUBRIC.question("Q {first}", "answer with {second} in it", "other")
    assert "answer with {second} in it" in text
    assert "Q {first}" in text
    assert RUBRIC.guidelines.text.strip() in text
    file = tmp_path / "rubric.md"
    file.write_text("{guidelines} {prompt} {first}")
    with pytest.raises(ConfigError, match=r"has no \{second\}; a rubric needs"):
        load_rubric(str(file), RUBRIC.guidelines)
    assert len(FIELDS) == 4
    assert Rubric(RUBRIC.template + " ", RUBRIC.guidelines).id != RUBRIC.id


def test_a_budget_needs_prices_and_a_remote_endpoint_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"judge\.budget needs prices"):
        JudgeConfig(budget=1.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set the environment variable OPENAI_API_KEY"):
        EndpointJudge(JudgeConfig(model="m", endpoint="https://api.example.org/v1"))


def test_a_local_model_gives_the_log_odds_of_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded story model: no judge, and it says so, but a causal language model like any other."""
    judge = LocalJudge(JudgeConfig(model=resolve_path("embedded")))
    question = "Which is better, A or B?"
    assert asyncio.run(judge.ask(question)).why == "the model does not answer with a letter"
    monkeypatch.setattr(local, "LEAST_SHARE", 0.0)
    answer = asyncio.run(judge.ask(question))
    tokenizer = AutoTokenizer.from_pretrained(judge.path)
    lm = AutoModelForCausalLM.from_pretrained(judge.path, dtype=torch.float32)
    ids = tokenizer(question + "\n\n")["input_ids"]
    with torch.no_grad():
        logits = lm(torch.tensor([ids])).logits[0, -1]
    mass = []
    for letter in "AB":
        spellings = {
            tuple(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in (letter, f" {letter}")
        }
        mass.append(sum(float(logits[s[0]].exp()) for s in spellings if len(s) == 1))
    assert answer.log_odds == pytest.approx(math.log(mass[0] / mass[1]), abs=1e-3)
    assert (answer.tokens_in, answer.why) == (len(ids), None)
    long = asyncio.run(judge.ask("word " * 2000))
    assert long.log_odds is None
    assert "tokens, the model takes" in (long.why or "")
