"""Tensors are made where their inputs live, random numbers on the CPU: what can be shown without another device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.config.dpo import DPOConfig
from burnish.config.loading import load_config
from burnish.config.ppo import PPOConfig
from burnish.config.reward import RewardConfig
from burnish.errors import ConfigError
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.load import Codec, find_device
from burnish.models.logprobs import make_policy, response_kl, token_entropy
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.policy.dpo import DPO
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import self_check
from burnish.records import Preference, Prompt
from burnish.reward.ensemble import EnsembleScorer, RewardEnsemble, normalisation
from burnish.reward.train import train_reward_model

ROOT = Path(__file__).parents[1] / "burnish"
ROOMS = ("models", "policy", "reward", "objectives", "pipeline")
FACTORIES = {
    *("tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye", "scalar_tensor"),
    *("rand", "randn", "randint", "randperm"),
}


def factories() -> Iterator[tuple[str, int, bool]]:
    """(file, line, whether it says where) of every call that makes a tensor, or a layer's weights, out of nothing."""
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            if file.name == "standalone.py":
                continue  # a program of its own, for the CPU, that ships with a model
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                of = node.func.value
                made = isinstance(of, ast.Name) and of.id == "torch" and node.func.attr in FACTORIES
                layer = isinstance(of, ast.Name) and of.id == "nn" and node.func.attr == "Linear"
                if made or layer:
                    yield f"{room}/{file.name}", node.lineno, "device" in {k.arg for k in node.keywords}


def test_every_tensor_factory_of_the_tensor_rooms_says_where() -> None:
    found = list(factories())
    assert len(found) > 40
    assert [(file, line) for file, line, says in found if not says] == []


def small_llama(layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=2048, num_hidden_layers=layers, pad_token_id=0, eos_token_id=1)
    )


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("layers", ["all", "top:2", "lora_top:2"])
def test_nothing_is_made_on_the_default_device(
    layers: str, engine: bool, codec: Codec, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything a run does of tensors, the model on the CPU and the default device one that holds no numbers: a tensor
    made without saying where could not be used with the others."""
    if not engine:
        monkeypatch.setattr(Backbone, "fast", False)
    base = Backbone(small_llama(), layers)
    assert base.fast is engine
    # Adapters are made by their library, which moves them to the base's device itself.
    policy, fallback = (make_policy(TrainableLayers(base), codec.pad_id) for _ in range(2))
    value = ScalarHead(TrainableLayers(base), torch.nn.Linear(base.hidden_size, 1)).eval()
    members = [new_reward_head(base, 0, f"m{k}", layers=layers, dropout=0.1) for k in range(2)]
    with torch.device("meta"):
        reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
        pairs = [Preference(p, " She sang.", " He wept and wept.") for p in prompts[:6]]
        config = RewardConfig(batch_size=3)
        for k, member in enumerate(members):
            encoded = EncodedPairs(base, codec, pairs)
            list(train_reward_model(member, encoded, config, learning_rate=1e-3, seed=0, member=f"m{k}"))
        rollout = sample_rollout(
            reference, codec, prompts[:6], max_tokens=6, batch_size=4, seed=0, where=("r",)
        )
        samples = Sequences.of(base, rollout, codec.pad_id)
        raw = torch.stack([raw_scores(m, samples) for m in members], 1)
        ensemble = RewardEnsemble(members, *normalisation(raw), "uwo")
        check = self_check(policy, reference, codec, prompts[:4], max_tokens=4, seed=0)
        ppo = PPO(
            policy=policy,
            reference=reference,
            value=value,
            codec=codec,
            score=EnsembleScorer(ensemble, codec.pad_id, prompts[:6], (raw - ensemble.mean) / ensemble.sd),
            prompts=prompts[:6],
            config=PPOConfig(updates=2, batch_size=6, epochs=2, micro_batch=3),
            controller=AdaptiveKLController(coef=0.1, target=1.0, horizon=60),
            max_tokens=6,
            learning_rate=1e-3,
            value_learning_rate=1e-3,
            seed=0,
        )
        updates = list(ppo.updates())
        dpo = DPO(fallback, reference, encoded, DPOConfig(batch_size=3), 1e-3, 0)
        steps = list(dpo.updates())
        batch = samples.batch(range(6))
        kl, entropy = response_kl(policy, reference, batch), token_entropy(policy, batch)
    assert check["kl"] < 1e-4
    assert len(updates) == len(steps) == 2
    assert all(s["skipped"] == 0 for s in (*updates, *steps))
    assert float(kl.mean()) >= 0
    assert float(entropy.max()) > 1


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigError, match=f"model.device='{name}', but torch finds only cpu here"):
            find_device(name)
    with monkeypatch.context() as several:
        several.setattr("burnish.models.load.collectives.processes", lambda: 2)
        with pytest.raises(ConfigError, match="torch finds only cpu here"):
            find_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="cuda:2"):
        find_device("cuda:2")
    with pytest.raises(ConfigError, match="is no device: use auto"):
        load_config(None, ["model.device=tpu"])


def test_the_engine_does_not_run_a_model_without_numbers() -> None:
    base = Backbone(small_llama().to("meta"), "top:2")
    assert base.device.type == "meta"
    assert base.fast is False
