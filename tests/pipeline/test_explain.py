"""A score explained: contributions add up, agree with what is scored elsewhere, and make a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from burnish.commands.reward_explain import contributions, explain, raw_score_of, write_page
from burnish.models.standalone import Member
from burnish.records import Prompt
from tests.command import burnish

PROMPT = "One day, Zoe had a red ball."
ANSWER = " She was happy and laughed <with> her friends."


def test_contributions_add_up_to_the_score_that_is_told_elsewhere(short_run: Path, tmp_path: Path) -> None:
    found = explain(short_run, Prompt(PROMPT), ANSWER)
    done = burnish("reward", "score", str(short_run), "--prompt", PROMPT, "--json", stdin=f"{ANSWER}\n")
    assert found.score == pytest.approx(json.loads(done.stdout)["score"], abs=1e-3)
    assert sum(found.contributions) == pytest.approx(found.score - found.baseline, abs=0.05)
    assert found.gap == pytest.approx(sum(found.contributions) - (found.score - found.baseline), abs=1e-3)
    assert "".join(found.tokens).startswith(ANSWER)
    assert len(found.tokens) == len(found.contributions)
    assert [n["likeness"] for n in found.nearest] == sorted(
        (n["likeness"] for n in found.nearest), reverse=True
    )
    assert {n["was"] for n in found.nearest} <= {"chosen", "rejected"}
    page = tmp_path / "why.html"
    write_page(found, PROMPT, page)
    text = page.read_text()
    assert "&lt;" in text
    assert "<with>" not in text, "an answer is text, not markup"
    assert f"{found.score:+.2f}" in text


class Linear(torch.nn.Module):
    """A score that is the sum of weights of the tokens: its contributions are known."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding.from_pretrained(
            torch.tensor([[0.0], [1.0], [-2.0], [5.0]]), freeze=False
        )

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        class Output:
            last_hidden_state = self.embedding(input_ids)

        return Output()


def test_of_a_linear_score_the_contributions_are_its_weights() -> None:
    member = object.__new__(Member)
    member.model, member.weight = Linear(), torch.tensor([3.0])
    ids, empty = torch.tensor([[3, 1, 2]]), torch.tensor([[3, 0, 0]])
    assert raw_score_of(member, 1)(ids).tolist() == [pytest.approx(-1.5)]  # (1 - 2) / 2 * 3
    found, ends, off = contributions(member, ids, empty, 1, 1.0)
    assert found.tolist() == [pytest.approx(1.5), pytest.approx(-3.0)]
    assert ends == (pytest.approx(-1.5), pytest.approx(0.0))
    assert off == pytest.approx(0.0, abs=1e-6)
