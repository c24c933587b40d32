"""Everything a run does of tensors, on the device of tests/pretend.py, in a process of its own.

`python -m tests.pretend_run top:2` prints the counts of every phase, with the lines that wait. The device adds a thread
to autograd, after which a process cannot be forked; so tests start another one (tests/pretended.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from tests.pretended import KINDS, table
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
    codec = replace(codec, eos_ids=frozenset())  # counts must not depend on which tokens a processor draws
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


def output_layer() -> dict[str, float]:
    """Largest errors of log-probabilities and gradients with an output layer in bfloat16, relative to the largest."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 64, generator=rng), torch.randn(999, 64, generator=rng)
    targets, slopes = torch.randint(999, (40,), generator=rng), torch.randn(40, generator=rng)
    found: dict[torch.dtype, list[torch.Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for trained in (False, True):
            layer = Output(nn.Parameter(weight.to(DEVICE), requires_grad=trained))
            x = hidden.to(DEVICE).requires_grad_(True)
            top: Any = None
            policy = Policy(top, layer, 0, dtype=dtype)
            out, _ = _TargetLogprobs.apply(x, layer.weight, None, targets.to(DEVICE), policy, None)
            wanted = [x, layer.weight] if trained else [x]
            gradients = torch.autograd.grad((out * slopes.to(DEVICE)).sum(), wanted)
            found.setdefault(dtype, []).extend([out.detach().cpu(), *(g.cpu() for g in gradients)])
    names = ("frozen", "frozen, by hidden", "trained", "trained, by hidden", "trained, by weight")
    pairs = zip(found[torch.float32], found[torch.bfloat16], strict=True)
    return {
        name: float((a - b).abs().max() / a.abs().max()) for name, (a, b) in zip(names, pairs, strict=True)
    }


def of_process(_: int, layers: str, dtype: str) -> dict[str, Any]:
    """The phases and figures of one process, ready for JSON."""
    patch = pytest.MonkeyPatch()
    if collectives.size() > 1:
        patch.setattr(collectives, "_reduce", _reduced)
    phases, figures = work(layers, backwards(patch), dtype=getattr(torch, dtype))
    counts = {
        name: {"unit": p.unit, "units": p.units, "lines": [[*k, n] for k, n in p.count.where.most_common()]}
        | {kind: p.each(kind) for kind in KINDS}
        for name, p in phases.items()
    }
    return {"phases": counts, "figures": figures}


def _reduced(joined: torch.Tensor) -> None:
    """Sum over the processes, which is NCCL's part."""
    torch.distributed.all_reduce(joined.elem if isinstance(joined, PretendTensor) else joined)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("layers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning
    )  # as in pytest
    torch.set_num_threads(1)
    if args.layers == "output":
        print(json.dumps([output_layer()]))
        return
    run = partial(of_process, layers=args.layers, dtype=args.dtype)
    found = shared(args.processes, run) if args.processes > 1 else [run(0)]
    if args.json:
        failed = [one for one in found if not isinstance(one, dict)]
        if failed:
            sys.exit(repr(failed))
        print(json.dumps(found))
        return
    print(found[0]["figures"], table(found[0]["phases"]), sep="\n")
    for name, phase in found[0]["phases"].items():
        print(name, *(f"  {n} {kind}: {line}" for kind, line, n in phase["lines"]), sep="\n")


if __name__ == "__main__":
    main()
