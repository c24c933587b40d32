"""Room for activations, and what happens when memory runs out: less is done at once, and the same comes out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from burnish.config.dpo import DPOConfig
from burnish.config.reward import RewardConfig
from burnish.config.sft import SftConfig
from burnish.errors import ran_out
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import Batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.logprobs import make_policy
from burnish.models.memory import Memory
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.policy.dpo import DPO
from burnish.policy.sft import demonstrated, fine_tune, rows_gradient
from burnish.records import Preference
from burnish.reward.train import train_reward_model

TORCHS_OWN = "[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried"


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert ran_out(RuntimeError(TORCHS_OWN))
    assert not ran_out(RuntimeError("shapes differ"))
    assert not ran_out(ValueError("out of memory"))


def test_half_as_much_is_done_until_it_fits_and_no_more_from_then_on() -> None:
    told: list[tuple[str, int, str]] = []
    memory = Memory(on_reduce=lambda *what: told.append(what))
    tried = []

    def work(rows: int) -> int:
        tried.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("no room\nand more of it")
        return rows

    assert memory.fit("x", 32, work) == 4
    assert memory.fit("x", 32, work) == 4
    assert memory.fit("x", 3, work) == 3
    assert memory.fit("y", 5, work) == 5
    assert tried == [32, 16, 8, 4, 4, 3, 5]
    assert told == [("x", 16, "no room"), ("x", 8, "no room"), ("x", 4, "no room")]


def test_one_row_that_does_not_fit_and_any_other_error_are_raised() -> None:
    def work(rows: int) -> int:
        raise MemoryError if rows < 3 else torch.OutOfMemoryError

    with pytest.raises(MemoryError):
        Memory().fit("x", 4, work)

    def wrong(rows: int) -> int:
        raise ValueError(rows)

    with pytest.raises(ValueError, match="4"):
        Memory().fit("x", 4, wrong)


def test_rows_beyond_the_budget_lie_in_a_file_and_read_the_same(tmp_path: Path) -> None:
    memory = Memory(budget=40 * 4, folder=tmp_path)
    first, second = torch.randn(5, 4), torch.randn(7, 4)
    assert memory.keep(first) is first
    kept = memory.keep(second)
    assert kept is not second
    assert torch.equal(kept, second)
    assert not list(tmp_path.iterdir()), "nobody else sees the file"
    third = memory.keep(torch.randn(5, 4))
    assert memory.keep(torch.randn(1, 4)).sum() != 0
    del first, third
    gc.collect()
    again = torch.randn(10, 4)
    assert memory.keep(again) is again, "room that was given back is used again"


def test_a_row_larger_than_a_file_gets_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.models.memory.CHUNK", 64)
    memory = Memory(budget=0)
    rows = [torch.randn(n, 4) for n in (2, 2, 30, 1)]
    kept = [memory.keep(row) for row in rows]
    assert all(torch.equal(a, b) for a, b in zip(kept, rows, strict=True))


@pytest.mark.parametrize("engine", [True, False])
def test_activations_from_a_file_give_the_scores_they_give_from_memory(
    tiny, codec, prompts, engine: bool
) -> None:
    found = []
    for budget in (1 << 30, 1 << 16, 0):
        base = Backbone(tiny[0], "top:2", memory=Memory(budget))
        if not engine:
            base.__dict__["_fast"] = False
        policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
        rollout = sample_rollout(
            policy, codec, prompts[:12], max_tokens=12, batch_size=5, seed=0, where=("x",)
        )
        sequences = Sequences.of(base, rollout, codec.pad_id)
        value = ScalarHead(TrainableLayers(base), torch.nn.Linear(base.hidden_size, 1, bias=False)).eval()
        with torch.no_grad():
            value.head.weight.fill_(0.1)
        value.top.train_only(1)
        computed = sequences.with_frozen_layers_run(value.top, 4)
        found.append(torch.cat([raw_scores(value, s) for s in (sequences, computed)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Narrow:
    """A machine on which no forward pass of more than `most` rows fits: reading a batch of more raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.refused = most, 0
        self.own: Callable[..., torch.Tensor] = TrainableLayers.hidden_at
        monkeypatch.setattr(TrainableLayers, "hidden_at", lambda top, batch, at: self.read(top, batch, at))

    def read(self, top: TrainableLayers, batch: Batch, at: object) -> torch.Tensor:
        if len(batch) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("no room for these rows")
        return self.own(top, batch, at)


def test_training_that_does_not_fit_goes_on_in_smaller_parts(
    tiny, codec, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reward model, SFT and DPO, with room for four rows and with room for all: the same figures."""
    pairs = [Preference(p, " She sang.", " He wept and wept.") for p in prompts[:8]]
    texts = [(p.prompt, p.chosen) for p in pairs]

    def figures() -> list[float]:
        base = Backbone(tiny[0], "top:2")
        head = new_reward_head(base, 0, "m", layers="top:2", dropout=0.0)
        config = RewardConfig(batch_size=8, epochs=2)
        rewards = train_reward_model(
            head, EncodedPairs(base, codec, pairs), config, learning_rate=1e-3, seed=0, member="m"
        )
        policies = [make_policy(TrainableLayers(base), codec.pad_id) for _ in range(2)]
        reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
        sft = fine_tune(
            policies[0], demonstrated(base, codec, texts), SftConfig(epochs=2), learning_rate=1e-3, seed=0
        )
        dpo = DPO(
            policies[1],
            reference,
            EncodedPairs(base, codec, pairs),
            DPOConfig(batch_size=8, epochs=2),
            1e-3,
            0,
        )
        return [s["loss"] for updates in (rewards, sft, dpo.updates()) for s in updates]

    whole = figures()
    assert len(whole) == 6
    narrow = Narrow(monkeypatch, 4)
    assert figures() == pytest.approx(whole, rel=1e-3)
    assert narrow.refused >= 5, "16, 8 for pairs; 8 for texts; 16 for the reference and 16, 8 for DPO"


def test_micro_batches_of_sft_change_nothing_but_rounding(tiny, codec, prompts) -> None:
    base = Backbone(tiny[0], "top:2")
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    texts = [" She sang." + " And so on." * (i % 3) for i in range(7)]
    sequences = Sequences(
        base,
        [codec.encode_prompt(p) for p in prompts[:7]],
        [codec.encode_response(t) for t in texts],
        codec.pad_id,
    )
    found = []
    tokens = sum(sequences.response_lengths)
    for size in (7, 3, 1):
        policy.top.zero_grad()
        loss = rows_gradient(policy, sequences, range(7), size, tokens)
        found.append((loss, [p.grad.clone() for p in policy.top.trained_parameters()]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for ours, whole in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(ours, whole, atol=1e-4 * float(whole.abs().max()), rtol=1e-4)
