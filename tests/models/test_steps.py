"""One step for every loop: the schedule by hand, norms clipped, nothing taken that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from burnish.models.optim import set_rates, take_step, warm_up_then_down


def test_schedule_by_hand() -> None:
    # Ten steps, two of warm-up: 1/2, 1, then (10 - step) / 8, capped by the warm-up.
    rates = [warm_up_then_down(step, 10, 2) for step in range(10)]
    assert rates == [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [warm_up_then_down(step, 4, 0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert warm_up_then_down(0, 1, 1) == 1.0


def two_groups() -> tuple[list[nn.Parameter], torch.optim.SGD]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([0.5])
    return parameters, torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)


def test_each_group_is_clipped_apart_and_the_norms_before_are_told() -> None:
    (a, b), optimizer = two_groups()
    set_rates(optimizer, 1.0, 2.0)
    assert take_step(optimizer, [[a], [b]], 1.0, [0.3]) == pytest.approx([5.0, 0.5])
    assert a.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)  # norm 5 clipped to 1
    assert b.tolist() == pytest.approx([-1.0], abs=1e-5)  # twice 0.5, not clipped


@pytest.mark.parametrize("where", ["gradient", "figures"])
def test_what_is_not_finite_is_no_step(where: str) -> None:
    (a, b), optimizer = two_groups()
    if where == "gradient":
        b.grad = torch.tensor([math.nan])
    figures = [math.inf] if where == "figures" else [0.0]
    assert take_step(optimizer, [[a], [b]], 1.0, figures) is None
    assert (a.tolist(), b.tolist()) == ([0.0, 0.0], [0.0])
