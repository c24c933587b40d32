"""What `burnish plan` says before anything is loaded, against what is there once it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.commands.plan import devices, estimate
from burnish.commands.plan.devices import Accelerator
from burnish.commands.plan.estimate import look_ahead, sketched
from burnish.commands.plan.memory_estimate import Lengths, kept_by
from burnish.commands.plan.time_estimate import FALLBACK, Counts, Sharing, time_by_stage
from burnish.config.loading import load_config, with_sets
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import pad_batch
from burnish.models.load import load_model
from burnish.models.logprobs import make_policy
from burnish.models.shards import linear_weights
from burnish.pipeline.speed_estimate import Speed
from tests.command import burnish

MODES = ["top:1", "top:2", "all", "lora", "lora_top:2"]
LENGTHS = Lengths(prompt=12, response=28, longest_prompt=20, longest_response=56)
CPU = torch.device("cpu")


@pytest.fixture
def tiny_device(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """A device of which nothing has enough."""
    device = Accelerator(memory=2e9, half=1e12, single=5e11, bandwidth=1e11, link=1e9)
    monkeypatch.setitem(devices.DEVICES, "h100", device)
    return device


def test_no_weight_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", forbidden)
    found = look_ahead(load_config(None, ["threads=1", "data.n_prompts=200"]), timed=False)
    assert found.fits
    assert found.seconds == {}
    assert {"loading", "collect", "reward", "align", "evaluate"} == found.memory.keys()


@pytest.mark.parametrize("layers", MODES)
def test_weights_are_counted_as_they_are(layers: str) -> None:
    config = load_config(None, [f"model.layers={layers}"])
    shapes = sketched(load_model(config.model, weights=False)[0], config, CPU, None)
    lm, codec = load_model(config.model)
    base = Backbone(lm, layers)
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    assert shapes.policy == sum(p.numel() for p in policy.top.trained_parameters())
    assert shapes.weights == sum(p.numel() * p.element_size() for p in lm.parameters())
    assert shapes.fast == base.fast


@pytest.mark.parametrize("layers", MODES)
def test_what_layers_keep_is_what_they_keep_on_a_cpu(layers: str) -> None:
    """Measured on tensors that are kept for the backward pass of a batch without padding."""
    config = load_config(None, [f"model.layers={layers}"])
    lm, codec = load_model(config.model)
    base = Backbone(lm, layers)
    top = TrainableLayers(base)
    own = {p.untyped_storage()._cdata for p in (*top.parameters(), *lm.parameters())}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes(), storage)
        return x

    batch = pad_batch([[5] * 20] * 4, [[6] * 20] * 4, codec.pad_id)
    batch = batch.with_features(base.features(batch))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        top.hidden(batch)
    measured = sum(n for n, _ in kept.values()) / (4 * 40)
    shapes = sketched(load_model(config.model, weights=False)[0], config, CPU, None)
    assert kept_by(TrainableLayers(shapes.base), checkpointing=False) == pytest.approx(measured, rel=0.2)


def test_what_does_not_fit_is_told_what_would_make_it(tiny_device: Accelerator) -> None:
    large = [
        *("model.layers=all", "model.max_response_tokens=200", "ppo.micro_batch=256", "ppo.batch_size=256"),
        *("reward.micro_batch=256", "reward.batch_size=128", "data.n_prompts=200"),
    ]
    found = look_ahead(load_config(None, large), device="h100", timed=False)
    assert not found.fits
    peaks = [found.peak, *(a.peak for a in found.advice)]
    assert peaks == sorted(peaks, reverse=True)
    assert "micro_batch" in found.advice[0].settings, "what costs only time comes first"
    assert peaks[-1] <= 0.9 * tiny_device.memory
    keys = [part for a in found.advice for part in a.settings.split()]
    again = look_ahead(load_config(None, [*large, *keys]), device="h100", timed=False)
    assert again.fits, "the advice, followed"
    assert again.advice == []


def test_several_devices_share_rows_and_whole_jobs() -> None:
    sets = ["data.n_prompts=200", "ppo.batch_size=512"]
    one = look_ahead(load_config(None, sets), device="h100", timed=True)
    eight = look_ahead(load_config(None, sets), device="h100", world=8, timed=True)
    assert eight.memory["align"].peak < one.memory["align"].peak
    assert eight.memory["reward"].held["reward models"] * 3 == one.memory["reward"].held["reward models"]
    assert one.duration / 8 < eight.duration < one.duration
    assert "processes do not wait for one another" in eight.assumed


def test_layers_that_are_cut_over_devices_take_a_part_of_the_room_and_time_to_put_together(
    tiny_device: Accelerator,
) -> None:
    def ahead(*sets: str, world: int = 4) -> estimate.Estimate:
        small = ["data.n_prompts=200", "model.layers=lora", "reward.layers=lora", *sets]
        return look_ahead(load_config(None, small), device="h100", world=world)

    whole, cut = ahead(), ahead("scale.shard=true")
    config = load_config(None, ["model.layers=lora", "scale.shard=true"])
    shapes = sketched(load_model(config.model, weights=False)[0], config, torch.device("cuda"), "h100")
    lm, _ = load_model(config.model)
    base = Backbone(lm, "lora")
    base.hold(torch.bfloat16)
    blocks = [sum(p.numel() * p.element_size() for p in linear_weights(b)) for b in lm.base_model.layers]
    assert shapes.blocks == blocks
    saved = whole.memory["align"].held["model"] - cut.memory["align"].held["model"]
    assert saved == sum(blocks) - sum(blocks) // 4 - 2 * max(blocks)
    assert cut.duration > whole.duration
    assert ahead("scale.shard=true", world=1).memory["align"].held["model"] == shapes.weights


def test_time_is_what_the_parts_take() -> None:
    pace = Speed(sampling=1.0, features=0.0, reading=0.0, policy=0.0, reward=0.0)
    config = load_config(
        None,
        [
            *("collect.n_pairs=100", "ppo.updates=2", "ppo.batch_size=16", "ppo.gate=ignored"),
            *("ppo.learning_rate=1e-5", "reward.reference_samples=32", "evaluate.best_of_n=1"),
            *("evaluate.n_selection=10", "evaluate.n_test=10"),
        ],
    )
    counts = Counts(pairs=100, answers=200, asked=100, train=100)
    found = time_by_stage(pace, counts, config)
    assert found["collect"] == 200
    assert found["reward"] == 32
    gate, looks = 32 * 8 + 32, 2 * 10
    assert found["align"] == gate + 2 * 16 + looks, "the gate's answers, the updates', two looks"
    assert found["evaluate"] == 20 * 4, "SFT, PPO, its average and its best look"
    assert FALLBACK in found
    shared = time_by_stage(pace, counts, config, Sharing(4, link=0.5))
    assert shared["collect"] == 50
    assert shared["align"] == (gate + 32 + looks) / 4 + 0.5 * 2 * 3
    auto = time_by_stage(pace, counts, with_sets(config, ["align.method=auto"]))
    assert auto["align"] == found["align"] + 3 * (4 * 16 + 2 * 10), "trials, with a look before and after"


def test_the_command_tells_it_in_lines_and_as_json() -> None:
    small = ["--set", "threads=1", "--set", "data.n_prompts=200", "--set", "collect.n_pairs=64"]
    done = burnish("plan", *small)
    assert "fits" in done.stdout
    assert "all of it" in done.stdout
    assert "assumed: responses have 28 tokens" in done.stdout
    told = json.loads(burnish("plan", *small, "--device", "h100", "--devices", "8", "--json").stdout)
    assert told["devices"] == 8
    assert told["seconds"].keys() >= {"collect", "reward", "align", "evaluate"}
    assert told["peak"] == max(stage["peak"] for stage in told["memory"].values())
    wrong = burnish("plan", "--device", "abacus", check=False)
    assert wrong.returncode == 3
    assert "give one of a100, h100" in wrong.stderr


def test_slices_of_a_model_are_timed_and_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer adds to small models is what it adds to them: exact where cost is a straight line."""
    asked = []

    def measure(models: Any, prompts: Any, config: Any) -> Speed:
        base = models.base
        asked.append((base.cut, base.depth - base.cut))
        frozen, trained = base.cut, base.depth - base.cut
        return Speed(5 + frozen + 2 * trained, 1 + 3 * frozen, 1 + trained, 2 + 4 * trained, 2 + 3 * trained)

    monkeypatch.setattr(estimate, "measure", measure)
    seen = []
    monkeypatch.setattr(estimate, "time_by_stage", lambda pace, *_: seen.append(pace) or {"all": 1.0})
    look_ahead(
        load_config(None, ["threads=1", "data.n_prompts=200", "model.layers=top:1"]), response_tokens=56
    )
    assert set(asked) == {(1, 1), (3, 1), (1, 3)}
    (pace,) = seen
    assert pace.sampling == pytest.approx(5 + 3 + 2)
    assert pace.features == pytest.approx(1 + 9)
    assert pace.policy == pytest.approx(2 + 4)
    asked.clear()
    more = ["model.layers=lora", "reward.layers=top:3", "model.max_response_tokens=56"]
    look_ahead(load_config(None, ["threads=1", "data.n_prompts=200", *more]), response_tokens=56)
    assert asked[::2] == [(0, 1), (0, 3), (1, 1), (3, 1), (1, 3)], "reward models, by slices of their own"
    assert seen[-1].policy == pytest.approx(2 + 4 * 4)
    assert seen[-1].reward == pytest.approx(2 + 3 * 3)
