"""A base whose frozen layers are sharded over processes: results, memory, and requests between processes."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.config.checks import check_config
from burnish.config.loading import load_config
from burnish.config.model import ModelConfig
from burnish.distributed import collectives
from burnish.errors import ConfigError, ModelError, OutOfMemory, PeerFailed
from burnish.models.artefacts import save_plain_policy
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import CPU
from burnish.models.generate import sample_rollout
from burnish.models.heads import new_reward_head
from burnish.models.load import load_model
from burnish.models.logprobs import make_policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.rehearse import grammar
from tests.processes import shared

MODES = ("top:2", "lora", "lora_top:2")


def story_base(layers: str, *, cut: bool, checkpointing: bool = False) -> tuple[Backbone, Any]:
    """The embedded model in double precision, by its own forward pass; `cut` over the processes that share it."""
    lm, codec = load_model(ModelConfig())
    base = Backbone(lm.double(), layers, checkpointing=checkpointing)
    base.__dict__["_fast"] = False
    if cut:
        base.shard(CPU)
        assert base.shards is not None
        base.shards.join(base)
    return base, codec


def learned(base: Backbone, codec: Any, rows: list[int], layers: str) -> dict[str, Any]:
    """Log-probabilities, their gradients, a reward model's at another depth, and answers."""
    prompts = grammar.prompts(6, 0)
    ids = [codec.encode_prompt(p) for p in prompts]
    answers = [codec.encode_response("He found a small dog.") for _ in prompts]
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    sequences = Sequences(base, [ids[r] for r in rows], [answers[r] for r in rows], codec.pad_id)
    found = {}
    for own, batch in sequences.batches(2):
        logprobs = token_logprobs(policy, batch)
        logprobs.sum().backward()
        for k, r in enumerate(own):
            found[f"logprobs {rows[r]}"] = logprobs[k].detach()
    gradients = [p.grad.clone() for p in policy.top.trained_parameters() if p.grad is not None]
    part = base.at(3, layers)
    head = new_reward_head(part, 0, "m", layers=layers, dropout=0.0).double()
    judged = Sequences(part, ids, answers, codec.pad_id)
    score = torch.cat([head.score(batch) for _, batch in judged.batches(3)])
    score.sum().backward()
    gradients += [p.grad.clone() for p in head.trained() if p.grad is not None]
    reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    with collectives.alone():
        rollout = sample_rollout(
            reference, codec, prompts[:2], max_tokens=8, batch_size=2, seed=0, where=("test",)
        )
    return {**found, "score": score.detach(), "gradients": gradients, "said": rollout.response_ids}


def single(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)


@pytest.mark.e2e
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", MODES)
def test_what_is_computed_does_not_depend_on_who_holds_the_weights(layers: str, checkpointing: bool) -> None:
    """Each process on rows of its own, one of them with more: they need not run the same layers as often."""

    def work(number: int, cut: bool = True) -> dict[str, Any]:
        single()
        base, codec = story_base(layers, cut=cut, checkpointing=checkpointing)
        found = learned(base, codec, [[0, 1, 2, 3, 4], [5]][number], layers)
        collectives.settled()  # whoever is done takes part until all are
        return found

    alone = [shared(1, lambda _, number=number: work(number, cut=False))[0] for number in (0, 1)]
    together = shared(2, work)
    for ours, theirs in zip(together, alone, strict=True):
        assert isinstance(ours, dict), ours
        assert isinstance(theirs, dict), theirs
        assert ours.keys() == theirs.keys()
        assert ours["said"] == theirs["said"]
        assert len(ours["gradients"]) == len(theirs["gradients"]) > 2
        for a, b in zip(ours.pop("gradients"), theirs.pop("gradients"), strict=True):
            assert float((a - b).abs().max()) < 1e-9
        for name in set(ours) - {"said"}:
            assert float((ours[name] - theirs[name]).abs().max()) < 1e-9, name


def weight_bytes(base: Backbone) -> int:
    """That the weights of a base take now."""
    storages = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in base.lm.parameters()}
    return sum(storages.values())


@pytest.mark.e2e
def test_a_process_holds_its_part_and_one_layer() -> None:
    def work(_: int) -> tuple[int, int, int, int, int]:
        whole, codec = story_base("lora", cut=False)
        before = weight_bytes(whole)
        base, codec = story_base("lora", cut=True)
        assert base.shards is not None
        idle = weight_bytes(base)
        layer = max(own.numel() for own in base.shards._own) * collectives.size() * 8
        most: list[int] = []
        for block in base.lm.base_model.layers:
            block.register_forward_hook(lambda *_: most.append(weight_bytes(base)))
        learned(base, codec, [0, 1], "lora")
        collectives.settled()
        return before, idle, max(most), base.shards.bytes_kept, layer

    for before, idle, most, kept, layer in shared(2, lambda n: (single(), work(n))[1]):
        frozen = before - idle
        assert frozen > before / 3, "layers are what can be cut; embeddings lie on all"
        assert frozen / 2 <= kept <= frozen / 2 + 4096
        assert idle < most <= idle + layer


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_whole_jobs_of_different_lengths_and_the_leader_alone_are_served_by_all() -> None:
    def work(number: int) -> tuple[list[float], float, list[float]]:
        single()
        base, codec = story_base("lora", cut=True)
        ids = [codec.encode_prompt(p) for p in grammar.prompts(2, 0)]
        answers = [codec.encode_response("So they went home.")] * 2

        def score(job: int) -> float:
            head = new_reward_head(base, job, "m", layers="lora", dropout=0.0).double()
            batch = Sequences(base, ids, answers, codec.pad_id).batch([0, 1])
            for _ in range(job):
                head.score(batch)
            return float(head.score(batch).sum().detach())

        def slow(own: list[int]) -> list[float]:
            time.sleep(5.0 * number)  # longer than anybody waits for an answer
            return [score(job) for job in own]

        jobs = collectives.deal([1, 2, 3], slow)

        def leader() -> float:
            time.sleep(5.0)
            value = score(2)
            time.sleep(4.0)
            return value

        word = collectives.from_lead(leader)
        return jobs, word, collectives.each(lambda: score(1))

    ours, theirs = shared(2, work, timeout=4)
    assert not isinstance(ours, Exception), (ours, theirs)
    assert ours == theirs
    jobs, word, each = ours
    assert word == jobs[1]
    assert each == [jobs[0]] * 2


@pytest.mark.e2e
def test_a_policy_is_saved_whole_by_the_leader(tmp_path: Path) -> None:
    def work(_: int) -> None:
        single()
        base, codec = story_base("lora", cut=True)
        save_plain_policy(TrainableLayers(base), tmp_path / "cut", codec.tokenizer)

    assert shared(2, work) == [None, None]
    before, _ = load_model(ModelConfig())
    after, _ = load_model(ModelConfig(), path=tmp_path / "cut")
    theirs = dict(after.named_parameters())
    for name, p in before.named_parameters():
        assert torch.equal(p, theirs[name]), name


@pytest.mark.e2e
def test_pairs_are_read_as_by_a_whole_base() -> None:
    """By `row_features`, as reward models have them read."""

    def work(cut: bool) -> Callable[[int], list[torch.Tensor]]:
        def read(_: int) -> list[torch.Tensor]:
            single()
            base, codec = story_base("top:2", cut=cut)
            ids = [codec.encode_prompt(p) for p in grammar.prompts(4, 0)]
            rows = base.row_features(ids, [codec.encode_response("Yes.")] * 4, codec.pad_id, {1, 2})
            collectives.settled()
            return [x for cut in (1, 2) for x in rows[cut]]

        return read

    (whole,) = shared(1, work(False))
    for found in shared(2, work(True)):
        assert len(found) == len(whole)
        # Where in memory a weight lies may round a product in another way.
        assert all(float((a - b).abs().max()) < 1e-9 for a, b in zip(found, whole, strict=True))


@pytest.mark.e2e
def test_what_nobody_uses_any_more_is_let_go_of_by_all() -> None:
    def work(number: int) -> tuple[list[bool], bool]:
        single()
        first, codec = story_base("lora", cut=True)
        kept = first if number == 1 else None  # one process still has it
        second, _ = story_base("top:2", cut=True)
        first = second
        gc.collect()
        collectives.tidy()
        assert collectives._world is not None
        still = [x is not None for x in collectives._world.lent]
        kept = None
        gc.collect()
        collectives.tidy()
        rows = first.row_features([[5, 6]], [[7]], codec.pad_id, {1})
        collectives.settled()
        return [*still, *(x is not None for x in collectives._world.lent)], kept is None and bool(rows)

    assert shared(2, work) == [([True, True, False, True], True)] * 2


@pytest.mark.e2e
def test_a_process_whose_memory_runs_out_in_a_turn_takes_part_in_nothing_more() -> None:
    """The others would take what it says next for a layer."""

    def work(number: int) -> str:
        single()
        base, codec = story_base("lora", cut=True)
        assert base.shards is not None
        if number == 1:

            def full(*_: Any) -> None:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

            base.shards._give = full  # type: ignore[method-assign]
            collectives._world.lent[0].give = full  # type: ignore[union-attr]
        batch = Sequences(base, [[5, 6]], [[7]], codec.pad_id).batch([0])
        with pytest.raises((OutOfMemory, PeerFailed)) as told:
            collectives.each(lambda: TrainableLayers(base, trainable=False).hidden(batch))
        with pytest.raises((OutOfMemory, PeerFailed)):
            collectives.settled()
        return type(told.value).__name__

    assert shared(2, work, timeout=5) == ["PeerFailed", "OutOfMemory"]


@pytest.mark.slow("several")
@pytest.mark.e2e
@pytest.mark.parametrize("when", ["rows", "jobs"])
def test_who_asks_one_that_hangs_ends_in_words(when: str) -> None:
    def work(number: int) -> bool:
        single()
        base, codec = story_base("lora", cut=True)
        batch = Sequences(base, [[5, 6]], [[7]], codec.pad_id).batch([0])
        collectives.settled()
        if number == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

        def use(own: list[int]) -> list[int]:
            TrainableLayers(base, trainable=False).hidden(batch)
            return own

        try:
            with pytest.raises(PeerFailed, match="had no answer from another one within 5 s"):
                collectives.deal([1, 2], use) if when == "jobs" else use([])
            return True
        finally:
            for line in Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split():
                if int(line) != os.getpid():
                    os.kill(int(line), signal.SIGKILL)

    assert shared(2, work, timeout=5)[0] is True


@pytest.mark.e2e
def test_a_base_of_which_nothing_is_frozen_is_not_cut() -> None:
    def work(_: int) -> None:
        with pytest.raises(ModelError, match=r"model\.layers='all' has no list of frozen layers"):
            story_base("all", cut=True)

    assert shared(2, work) == [None, None]


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["model.layers=all"], "every layer is trained"),
        (["model.layers=lora", "ppo.update_seconds=30"], "set ppo.batch_size"),
    ],
)
def test_what_leaves_nothing_to_cut_or_needs_a_whole_model_is_refused(sets: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_config(load_config(None, ["scale.shard=true", *sets]))
