"""Training, sampling and evaluation on a device that is not there, and how often the host waits for it.

The budgets are what the code reaches. One more wait in a loop fails a test; the message names the lines that wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from burnish.config.dpo import DPOConfig
from burnish.config.model import ModelConfig
from burnish.config.ppo import PPOConfig
from burnish.config.reward import RewardConfig
from burnish.distributed import collectives
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import CPU
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.load import load_model
from burnish.models.logprobs import (
    Output,
    Policy,
    _TargetLogprobs,
    likelihood_and_greedy,
    make_policy,
    response_kl,
    token_entropy,
)
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.policy.dpo import DPO
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate, self_check
from burnish.records import Preference, Prompt, StepStats
from burnish.reward.ensemble import EnsembleScorer, RewardEnsemble, normalisation
from burnish.reward.probe import probe, probed_depths
from burnish.reward.train import train_reward_model
from tests.pretend import DEVICE, METER, Meter, PretendTensor, pretended
from tests.processes import shared

WORDS = ("cat", "little dog", "very small bird", "boy", "girl", "king", "old man", "fox")
TOKENS = 24


@dataclass
class Phase:
    """Counts of one phase of the work, and how many units of it there were."""

    unit: str
    units: int
    count: Meter

    def each(self, kind: str) -> float:
        return float(getattr(self.count, kind)) / self.units


def backwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count backward passes, of which every micro-batch has one; return a function that returns the count."""
    own, seen = torch.Tensor.backward, [0]

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        seen[0] += 1
        own(self, *args, **kwargs)

    def taken() -> int:
        n, seen[0] = seen[0], 0
        return n

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return taken


def work(
    layers: str, micro_batches: Callable[[], int], *, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Phase], dict[str, float]]:
    """Everything a run does of tensors, on the pretend device; return its phases, and figures."""
    lm, codec = load_model(ModelConfig())
    prompts = [Prompt(f"Once upon a time there was a {word} who liked") for word in WORDS]
    phases: dict[str, Phase] = {}

    def phase(name: str, unit: str, units: int) -> None:
        phases[name] = Phase(unit, units, METER.take())

    with pretended():
        base = Backbone(lm.to(DEVICE), layers)
        base.check(codec.pad_id)
        base.hold(dtype)
        policy, fallback = (make_policy(TrainableLayers(base), codec.pad_id) for _ in range(2))
        head = nn.Linear(base.hidden_size, 1, device=CPU).to(DEVICE)
        value = ScalarHead(TrainableLayers(base), head).eval()
        members = [new_reward_head(base, 0, f"m{k}", layers=layers, dropout=0.1) for k in range(2)]
        reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
        pairs = EncodedPairs(
            base, codec, [Preference(p, " She sang.", " He wept and wept.") for p in prompts]
        )
        found = probe(base, pairs, probed_depths(base, layers), ["mean", "last"], 0)
        phase("probe", "answer", 16)

        losses: list[StepStats] = []
        for k, member in enumerate(members):
            config = RewardConfig(batch_size=8, micro_batch=8, bootstrap=False)
            losses += train_reward_model(member, pairs, config, learning_rate=1e-3, seed=0, member=f"m{k}")
        phase("rewards", "micro-batch", micro_batches())

        rollout = sample_rollout(
            reference, codec, prompts, max_tokens=TOKENS, batch_size=8, seed=0, where=("r",)
        )
        phase("sampling", "sampled token", max(rollout.lengths))
        samples = Sequences.of(base, rollout, codec.pad_id)
        raw = torch.stack([raw_scores(m, samples) for m in members], 1)
        ensemble = RewardEnsemble(members, *normalisation(raw), "uwo")
        phase("scores", "answer", 8)
        check = self_check(policy, reference, codec, prompts[:4], max_tokens=8, seed=0)
        ppo = PPO(
            policy=policy,
            reference=reference,
            value=value,
            codec=codec,
            score=EnsembleScorer(ensemble, codec.pad_id, prompts, (raw - ensemble.mean) / ensemble.sd),
            prompts=prompts,
            config=PPOConfig(updates=2, batch_size=8, epochs=2, micro_batch=4, minibatches=1),
            controller=AdaptiveKLController(coef=0.1, target=1.0, horizon=60),
            max_tokens=TOKENS,
            learning_rate=1e-3,
            value_learning_rate=1e-3,
            seed=0,
        )
        first_rate(ppo)
        ppo.first_batch = None
        METER.take(), micro_batches()
        experience = ppo.experience = ppo.collect(1)
        phase("collecting", "sampled token", max(experience.rollout.lengths))
        ppo.train_epochs(experience)
        phase("PPO", "micro-batch", micro_batches())
        updates = list(ppo.updates())
        phase("an update", "update", 2)
        micro_batches()
        dpo = DPO(fallback, reference, pairs, DPOConfig(batch_size=4, micro_batch=8), 1e-3, 0)
        dpo.reference_sums = dpo.cache_reference()
        METER.take()
        steps = list(dpo.updates())
        phase("DPO", "micro-batch", micro_batches())
        batch = samples.batch(range(8))
        kl = response_kl(policy, reference, batch)
        entropy = token_entropy(policy, batch)
        nats, _ = likelihood_and_greedy(policy, batch)
        state = policy.top.full_state()
        assert {t.device.type for t in (kl, entropy, nats, *state.values())} == {DEVICE.type}
    assert all(s.values["skipped"] == 0 for s in (*losses, *updates, *steps))
    figures = {
        "probe": found[0].loss,
        "rewards": losses[-1].values["loss"],
        "kl at the start": check["kl"],
        "gap": check["sampled_gap"],
        "kl": float(kl.detach().mean()),
        "entropy": float(entropy.mean()),
        "dpo": steps[-1].values["loss"],
    }
    return phases, figures


def table(phases: dict[str, Phase]) -> str:
    """The counts of every phase, one line each."""
    lines = [
        f"{name:12} {p.each('operations'):9.1f} operations {p.each('waits'):7.2f} waits "
        f"{p.each('uploads'):7.2f} uploads a {p.unit}"
        for name, p in phases.items()
    ]
    return "\n".join(lines)


BUDGETS = {
    "rewards": {
        "operations": {"top:2": 560, "all": 880, "lora": 1250, "lora_top:2": 730},
        "waits": 2,
        "uploads": 6,
    },
    "sampling": {"operations": 220, "waits": 1 / 16 + 0.03, "uploads": 0.4},
    "PPO": {
        "operations": {"top:2": 920, "all": 1650, "lora": 2250, "lora_top:2": 1230},
        "waits": 1,
        "uploads": 2,
    },
    "DPO": {
        "operations": {"top:2": 560, "all": 1000, "lora": 1400, "lora_top:2": 750},
        "waits": 2,
        "uploads": 5,
    },
    "an update": {
        "operations": {"top:2": 10300, "all": 14000, "lora": 20000, "lora_top:2": 13200},
        "waits": 33,
        "uploads": 35,
    },
}
"""What each phase may cost a unit. An update samples 8 answers of at most 24 tokens and takes 4 micro-batches."""


def within_budget(layers: str, phases: dict[str, Phase]) -> None:
    for name, limits in BUDGETS.items():
        phase = phases[name]
        for kind, limit in limits.items():
            most = limit[layers] if isinstance(limit, dict) else limit
            assert phase.each(kind) <= most, f"{name}: {kind}\n{phase.count.lines(kind)}\n{table(phases)}"


def test_training_in_top_layers_runs_on_another_device_within_its_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases, figures = work("top:2", backwards(monkeypatch))
    within_budget("top:2", phases)
    assert figures["kl at the start"] == 0
    assert figures["gap"] < 1e-4


@pytest.mark.e2e
@pytest.mark.parametrize("layers", ["all", "lora", "lora_top:2"])
def test_other_ways_of_training_run_on_another_device_within_their_budget(
    layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases, figures = work(layers, backwards(monkeypatch))
    within_budget(layers, phases)
    assert figures["kl at the start"] == 0
    assert figures["gap"] < 1e-4


@pytest.mark.e2e
@pytest.mark.parametrize("layers", ["top:2", "all", "lora", "lora_top:2"])
def test_bfloat16_stays_near_float32(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, exact = work(layers, backwards(monkeypatch))
    monkeypatch.undo()
    phases, rounded = work(layers, backwards(monkeypatch), dtype=torch.bfloat16)
    assert phases["sampling"].each("waits") <= 1 / 16 + 0.03
    assert rounded["kl at the start"] == 0
    assert rounded["gap"] < 0.02
    for name in ("probe", "rewards", "dpo"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.05), name


def test_an_output_layer_in_bfloat16_gives_log_probabilities_and_gradients_near_those_of_float32() -> None:
    """Factors are rounded to 8 bits, sums are float32: errors do not grow with the logits."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 64, generator=rng), torch.randn(999, 64, generator=rng)
    targets, slopes = torch.randint(999, (40,), generator=rng), torch.randn(40, generator=rng)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for trained in (False, True):
            layer = Output(nn.Parameter(weight.to(DEVICE), requires_grad=trained))
            x = hidden.to(DEVICE).requires_grad_(True)
            top: Any = None
            policy = Policy(top, layer, 0, dtype=dtype)
            out = _TargetLogprobs.apply(x, layer.weight, None, targets.to(DEVICE), policy)
            wanted = [x, layer.weight] if trained else [x]
            gradients = torch.autograd.grad((out * slopes.to(DEVICE)).sum(), wanted)
            found.append([out.detach().cpu(), *(g.cpu() for g in gradients)])
    for exact, rounded in zip(found[:2], found[2:], strict=True):
        for a, b in zip(exact, rounded, strict=True):
            assert 0 < float((a - b).abs().max()) < 0.02 * float(a.abs().max())


@pytest.mark.e2e
def test_two_processes_train_on_another_device() -> None:
    def reduced(joined: torch.Tensor) -> None:
        own = joined.elem if isinstance(joined, PretendTensor) else joined
        torch.distributed.all_reduce(own)

    def run(_: int) -> dict[str, float]:
        torch.set_num_threads(1)
        patch = pytest.MonkeyPatch()
        patch.setattr(collectives, "_reduce", reduced)  # NCCL's part
        return work("top:2", backwards(patch))[1]

    ours, theirs = shared(2, run)
    assert isinstance(ours, dict), ours
    assert ours == theirs
    assert ours["kl at the start"] == 0


if __name__ == "__main__":  # the table, with the lines that wait
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    for layers in sys.argv[1:]:
        phases, figures = work(layers, backwards(patch))
        patch.undo()
        print(layers, json.dumps(figures), table(phases), sep="\n")
        for name, p in phases.items():
            print(name, p.count.lines("waits"), "uploads", p.count.lines("uploads"), sep="\n")
