"""Training, sampling and evaluation on a device that is not there, and how often the host waits for it.

The budgets are what the code reaches. One more wait in a loop fails a test; the message names the lines that wait.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.pretended import pretended_run, table

BUDGETS = {
    "rewards": {
        "operations": {"top:2": 560, "all": 880, "lora": 1250, "lora_top:2": 730},
        "waits": 2,
        "uploads": 6,
    },
    "sampling": {"operations": 220, "waits": 1 / 16 + 0.03, "uploads": 0.4},
    "PPO": {
        "operations": {"top:2": 920, "all": 1650, "lora": 2250, "lora_top:2": 1230},
        "waits": 1.25,  # the fourth more is the gradient signal, once an update
        "uploads": 2,
    },
    "DPO": {
        "operations": {"top:2": 560, "all": 1000, "lora": 1400, "lora_top:2": 750},
        "waits": 2,
        "uploads": 5,
    },
    "an update": {
        "operations": {"top:2": 10300, "all": 14000, "lora": 20000, "lora_top:2": 13200},
        "waits": 36,
        "uploads": 35,
    },
}
"""What each phase may cost a unit. An update samples 8 answers of at most 24 tokens and takes 4 micro-batches."""


def within_budget(layers: str, phases: dict[str, Any]) -> None:
    for name, limits in BUDGETS.items():
        for kind, limit in limits.items():
            most = limit[layers] if isinstance(limit, dict) else limit
            lines = "\n".join(f"{n} {where}" for of, where, n in phases[name]["lines"] if of == kind)
            assert phases[name][kind] <= most, f"{name}: {kind}\n{lines}\n{table(phases)}"


@pytest.fixture(scope="module")
def top_layers() -> dict[str, Any]:
    (found,) = pretended_run("top:2")
    return found


def test_training_in_top_layers_runs_on_another_device_within_its_budget(top_layers: dict[str, Any]) -> None:
    found = top_layers
    within_budget("top:2", found["phases"])
    assert found["figures"]["kl at the start"] == 0
    assert found["figures"]["gap"] < 1e-4


@pytest.mark.e2e
@pytest.mark.parametrize("layers", ["all", "lora", "lora_top:2"])
def test_other_ways_of_training_run_on_another_device_within_their_budget(layers: str) -> None:
    (found,) = pretended_run(layers)
    within_budget(layers, found["phases"])
    assert found["figures"]["kl at the start"] == 0
    assert found["figures"]["gap"] < 1e-4


@pytest.mark.e2e
@pytest.mark.parametrize("layers", ["top:2", "all", "lora", "lora_top:2"])
def test_bfloat16_stays_near_float32(layers: str) -> None:
    (exact,), (rounded,) = pretended_run(layers), pretended_run(layers, "bfloat16")
    assert rounded["phases"]["sampling"]["waits"] <= 1 / 16 + 0.03
    assert rounded["figures"]["kl at the start"] == 0
    assert rounded["figures"]["gap"] < 0.02
    for name in ("probe", "rewards"):
        assert rounded["figures"][name] == pytest.approx(exact["figures"][name], rel=0.05), name
    # After steps of Adam, which enlarge what a processor rounds: in nats, where chance is 0.69.
    assert rounded["figures"]["dpo"] == pytest.approx(exact["figures"]["dpo"], abs=0.03)


@pytest.mark.e2e
def test_an_output_layer_in_bfloat16_gives_log_probabilities_and_gradients_near_those_of_float32() -> None:
    """Factors are rounded to 8 bits, sums are float32."""
    (errors,) = pretended_run("output")
    assert len(errors) == 5
    assert all(0 < error < 0.02 for error in errors.values()), errors


@pytest.mark.e2e
def test_two_processes_train_on_another_device() -> None:
    ours, theirs = pretended_run("top:2", processes=2)
    assert ours["figures"] == pytest.approx(theirs["figures"], rel=1e-4, abs=1e-5)
    assert ours["figures"]["kl at the start"] == 0
