"""One process against several: the same draws, advantages, gradients and decisions, up to rounding."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from burnish.config.model import ModelConfig
from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
from burnish.errors import Diverged, PeerFailed
from burnish.models import generate
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import CPU
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.load import load_model
from burnish.models.logprobs import make_policy
from burnish.models.sequences import Sequences
from burnish.pipeline.guarded import run_guarded
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.records import Rollout, Scores
from burnish.rehearse import grammar
from tests.pipeline.test_ladder import actions, start
from tests.processes import shared


def story_ppo(config: dict[str, Any], layers: str = "top:2", *, cut: bool | None = None) -> PPO:
    """PPO of the embedded model in double precision, paid by the sum of two reward models that nobody trained; by the
    model's own forward pass where its frozen layers are `cut` over the processes, or are said not to be."""
    lm, codec = load_model(ModelConfig())
    base = Backbone(lm.double(), layers)
    if cut is not None:
        base.__dict__["_fast"] = False
    if cut:
        base.shard(CPU)
        assert base.shards is not None
        base.shards.join(base)
    heads = [new_reward_head(base, k, f"m{k}", layers=layers, dropout=0.0).double() for k in range(2)]

    def score(rollout: Rollout) -> Scores:
        sequences = Sequences.of(base, rollout, codec.pad_id)
        members = torch.stack([raw_scores(head, sequences) for head in heads], 1)
        return Scores(members.mean(1), members, members.std(1, unbiased=False))

    head = nn.Linear(base.hidden_size, 1, dtype=torch.float64, device=CPU)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    full = PPOConfig(**{"updates": 2, "epochs": 2, "learning_rate": 1e-3, "adaptive_rate": False, **config})
    return PPO(
        policy=make_policy(TrainableLayers(base), codec.pad_id),
        reference=make_policy(TrainableLayers(base, trainable=False), codec.pad_id),
        value=ScalarHead(TrainableLayers(base), head).eval(),
        codec=codec,
        score=score,
        prompts=grammar.prompts(24, 0),
        config=full,
        controller=AdaptiveKLController(coef=0.1, target=1.0, horizon=64),
        max_tokens=24,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        seed=3,
    )


def told(config: dict[str, Any], layers: str = "top:2", *, cut: bool | None = None) -> dict[str, Any]:
    """Two updates, and all that several processes must agree on with one."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    drawn: dict[int, list[float]] = {}
    own = generate.sample_ids

    def watched(policy: Any, codec: Any, prompts: Any, uniforms: torch.Tensor, size: int) -> Any:
        for row in uniforms:
            drawn.setdefault(len(drawn), row.tolist())
        return own(policy, codec, prompts, uniforms, size)

    generate.sample_ids = watched
    try:
        ppo = story_ppo(config, layers, cut=cut)
        rows = []
        for stats in ppo.updates():
            assert ppo.experience is not None
            rows.append(
                {
                    "tokens": ppo.experience.rollout.response_ids,
                    "advantages": ppo.experience.advantages,
                    "gradients": [p.grad.clone() for p in ppo.policy_parameters if p.grad is not None],
                    "coef": ppo.controller.coef,
                    "values": stats.values,
                    "weights": [p.detach().clone() for p in (*ppo.policy_parameters, *ppo.value_parameters)],
                }
            )
    finally:
        generate.sample_ids = own
        torch.set_default_dtype(torch.float32)
    return {"rows": rows, "drawn": list(drawn.values())}


CASES = {
    "even": (2, {"batch_size": 8, "minibatches": 2, "micro_batch": 2}),
    "uneven rows": (2, {"batch_size": 9, "minibatches": 3, "micro_batch": 2}),
    "a process without a row": (3, {"batch_size": 2, "minibatches": 1, "micro_batch": 2}),
    "minibatches of one row": (2, {"batch_size": 4, "minibatches": 4, "micro_batch": 1}),
    "answers compared": (
        2,
        {"batch_size": 8, "advantage": "rloo", "samples_per_prompt": 4, "minibatches": 1, "micro_batch": 4},
    ),
}


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_several_processes_learn_what_one_learns(case: str) -> None:
    """In double precision, so that what differs is a mistake; tokens are compared too."""
    n, config = CASES[case]
    (alone,) = shared(1, lambda _: told(config))
    agree(shared(n, lambda _: told(config)), alone)


@pytest.mark.e2e
@pytest.mark.parametrize("layers", ["top:2", "lora"])
def test_several_processes_that_hold_a_part_of_every_layer_learn_what_one_learns(layers: str) -> None:
    """Also one without a row: it has what others need."""
    _, config = CASES["a process without a row"]
    (alone,) = shared(1, lambda _: told(config, layers, cut=False))
    agree(shared(3, lambda _: told(config, layers, cut=True)), alone)


def agree(several: list[Any], alone: Any) -> None:
    assert isinstance(alone, dict), alone
    for found in several:
        assert isinstance(found, dict), found
        for ours, theirs in zip(found["rows"], alone["rows"], strict=True):
            assert ours["tokens"] == theirs["tokens"]
            assert float((ours["advantages"] - theirs["advantages"]).abs().max()) < 1e-9
            assert abs(ours["coef"] - theirs["coef"]) < 1e-9
            assert ours["values"].keys() == theirs["values"].keys()
            for kind in ("gradients", "weights"):
                gaps = [float((a - b).abs().max()) for a, b in zip(ours[kind], theirs[kind], strict=True)]
                assert max(gaps) < 1e-9, kind
            for name, value in ours["values"].items():
                assert value == pytest.approx(theirs["values"][name], abs=1e-7), name


@pytest.mark.e2e
def test_every_row_is_drawn_by_the_uniforms_that_one_process_draws_it_by() -> None:
    n, config = CASES["uneven rows"]
    (alone,) = shared(1, lambda _: told(config))
    parts = [found["drawn"] for found in shared(n, lambda _: told(config))]
    size, updates = config["batch_size"], 2
    for update in range(updates):
        for row in range(size):
            of_process = -(-(size - row % n) // n)  # rows an update
            assert parts[row % n][update * of_process + row // n] == alone["drawn"][update * size + row]


def poisoned(number: int, at: int) -> Callable[[PPO], None]:
    """NaN in the loss of process `number`, the `at`-th time it is taken."""

    def plant(ppo: PPO) -> None:
        own, asked = ppo.policy_loss, []

        def loss(*args: Any) -> Any:
            value, figures = own(*args)
            asked.append(1)
            bad = collectives.rank() == number and len(asked) == at
            return (value * float("nan") if bad else value), figures

        ppo.policy_loss = loss  # type: ignore[method-assign]

    return plant


@pytest.mark.e2e
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all() -> None:
    def work(_: int) -> tuple[float, bool, list[list[float]]]:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        ppo = story_ppo({"batch_size": 8, "minibatches": 2, "micro_batch": 8, "updates": 1})
        poisoned(1, 2)(ppo)
        stats = next(iter(ppo.updates()))
        finite = all(bool(torch.isfinite(p).all()) for p in ppo.policy_parameters)
        return stats.values["skipped"], finite, [p.detach().flatten().tolist() for p in ppo.policy_parameters]

    ours, theirs = shared(2, work)
    assert not isinstance(ours, Exception), (ours, theirs)
    assert ours[:2] == (1.0, True)
    assert ours == theirs


@pytest.mark.e2e
def test_what_diverges_in_one_process_is_rolled_back_by_all(tmp_path: Path) -> None:
    def score(rollout: Rollout) -> Scores:
        asked.append(1)
        hit = torch.tensor([float(3 in r) for r in rollout.response_ids])
        if len(asked) == 5:

            def read(own: list[int]) -> tuple[torch.Tensor]:
                if collectives.rank() == 1:
                    raise Diverged("the reward of process 1 is not finite")
                return (hit[own],)

            collectives.gather(len(rollout), read)
        return Scores(hit, hit[:, None], torch.zeros_like(hit))

    asked: list[int] = []

    def work(_: int) -> tuple[int, list[str], int, list[list[float]]]:
        torch.set_num_threads(1)
        guarded = start(tmp_path / "run", score)
        assert run_guarded(guarded, 100) is None
        ppo = guarded.ppo
        return (
            guarded.oversight.guard.rollbacks,
            actions(guarded),
            ppo.step,
            [p.detach().flatten().tolist() for p in ppo.policy_parameters],
        )

    ours, theirs = shared(2, work)
    assert not isinstance(ours, Exception), (ours, theirs)
    assert ours[0] == 1
    assert "roll_back" in ours[1]
    assert ours == theirs


@pytest.mark.e2e
def test_a_process_that_is_not_the_leader_writes_nothing(tmp_path: Path) -> None:
    """It works in a folder that nobody may write to, but the leader, whose user may."""

    def work(number: int) -> list[str]:
        torch.set_num_threads(1)
        written: list[str] = []

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(args[0], str | Path) and str(args[0]).startswith(str(tmp_path)):
                if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    written.append(str(args[0]))
            elif (
                event in ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree")
                and str(tmp_path) in str(args[0])
                and not (event == "os.mkdir" and Path(args[0]).exists())
            ):
                written.append(f"{event} {args[0]}")

        import sys

        sys.addaudithook(audit)
        guarded = start(tmp_path / "run")
        assert run_guarded(guarded, 3) is None
        return written

    (tmp_path / "run").mkdir()
    ours, theirs = shared(2, work)
    assert not isinstance(ours, Exception), (ours, theirs)
    assert any("checkpoint" in line for line in ours)
    assert any(line.endswith("events.jsonl") for line in ours)
    assert theirs == []


@pytest.mark.e2e
def test_processes_that_are_killed_go_on_from_the_last_checkpoint_and_so_does_one_alone(
    tmp_path: Path,
) -> None:
    def work(path: Path, at: int | None) -> Callable[[int], Any]:
        def run(number: int) -> Any:
            torch.set_num_threads(1)
            guarded = start(path)
            own = guarded.checkpoint

            def checkpoint(**kwargs: Any) -> None:
                own(**kwargs)
                if at is not None and guarded.ppo.step >= at:
                    os.kill(os.getpid(), signal.SIGKILL)

            guarded.checkpoint = checkpoint  # type: ignore[method-assign]
            assert run_guarded(guarded, 100) is None
            return actions(guarded), [p.detach().flatten().tolist() for p in guarded.ppo.policy_parameters]

        return run

    whole = shared(2, work(tmp_path / "whole", None))
    gone, other = shared(2, work(tmp_path / "stopped", 9))
    assert gone is None, "the leader was killed"
    assert other is None or isinstance(other, PeerFailed)
    (tmp_path / "alone").mkdir()
    import shutil

    shutil.copytree(tmp_path / "stopped", tmp_path / "alone", dirs_exist_ok=True)
    assert shared(2, work(tmp_path / "stopped", None)) == whole, "the same bits, by as many processes"
    (decided, weights) = shared(1, work(tmp_path / "alone", None))[0]
    assert decided == whole[0][0]
    gap = max(
        abs(a - b) for x, y in zip(weights, whole[0][1], strict=True) for a, b in zip(x, y, strict=True)
    )
    assert gap < 1e-3, "up to rounding, by another number of them"
