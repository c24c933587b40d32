"""What only a GPU can show: the same decisions as on the CPU. `make test-gpu`; skipped, and said so, without one."""

from __future__ import annotations

import json

import pytest
import torch

from tests.command import burnish

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and there is none here"),
]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The quickstart on the GPU and on the CPU."""
    found = {}
    for device in ("cuda", "cpu"):
        folder = tmp_path_factory.mktemp("runs") / device
        burnish("quickstart", "--dir", str(folder), "--set", f"model.device={device}")
        found[device] = json.loads((folder / "summary.json").read_text())
    return found


def test_decisions_are_those_of_the_cpu(summaries: dict[str, dict]) -> None:
    gpu, cpu = summaries["cuda"], summaries["cpu"]
    assert gpu["champion"] == cpu["champion"]
    assert gpu["ppo"]["state"] == cpu["ppo"]["state"]


def test_figures_agree_within_their_intervals(summaries: dict[str, dict]) -> None:
    """Rounding moves tokens, and a run with them: intervals must meet, figures need not be the same."""
    gpu, cpu = (summaries[d]["evaluation"]["ppo"] for d in ("cuda", "cpu"))
    assert gpu["ci_low"] < cpu["ci_high"]
    assert cpu["ci_low"] < gpu["ci_high"]
    gpu, cpu = (summaries[d]["reward"]["accuracy"] for d in ("cuda", "cpu"))
    assert gpu["ci_low"] < cpu["ci_high"]
    assert cpu["ci_low"] < gpu["ci_high"]
