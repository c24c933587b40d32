"""Batches: every row once, little padding, nothing lost on the way back."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, strategies as st

from burnish.models import device
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import SHORT, micro_batches
from burnish.models.device import pass_price, rounded_price
from burnish.models.sequences import Sequences

PRICE = 64


def padded(groups: list[list[int]], prompts: list[int], responses: list[int]) -> int:
    """Tokens of all groups, padding included, and the price of every group."""
    return sum(len(g) * (max(prompts[i] for i in g) + max(responses[i] for i in g)) + PRICE for g in groups)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=40),
    size=st.integers(1, 12),
)
def test_groups_cover_every_row_once_hold_the_limit_and_cost_no_more_than_plain_slices(
    lengths: list[tuple[int, int]], size: int
) -> None:
    prompts, responses = [p for p, _ in lengths], [r for _, r in lengths]
    groups = list(micro_batches(prompts, responses, size, range(len(lengths)), PRICE))
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    widths = [max(prompts[i] for i in g) + max(responses[i] for i in g) for g in groups]
    most = size * (max(prompts) + max(responses))
    assert all(len(g) == 1 or len(g) * w <= most for g, w in zip(groups, widths, strict=True))
    assert max(map(len, groups)) <= SHORT * size
    order = sorted(range(len(lengths)), key=lambda i: (responses[i], prompts[i], i))
    slices = [order[i : i + size] for i in range(0, len(order), size)]
    assert padded(groups, prompts, responses) <= padded(slices, prompts, responses)


def test_the_cheapest_cut_is_found() -> None:
    # Three short and three long rows: by hand, one cut between them beats every other way.
    prompts, responses = [1] * 6, [10, 500, 10, 500, 10, 500]
    assert [sorted(g) for g in micro_batches(prompts, responses, 6, range(6), 64)] == [[0, 2, 4], [1, 3, 5]]
    assert list(micro_batches(prompts, [10] * 6, 6, range(6), 64)) == [[0, 1, 2, 3, 4, 5]]


def test_a_device_with_dear_passes_takes_few_and_a_micro_batch_holds_more_short_rows() -> None:
    rng = random.Random(0)
    prompts, responses = [rng.randint(20, 60) for _ in range(512)], [rng.randint(4, 96) for _ in range(512)]
    passes = {p: len(list(micro_batches(prompts, responses, 32, range(512), p))) for p in (16, 64, 4096)}
    assert passes[16] > passes[64] > passes[4096]
    assert passes[4096] < 512 / 32
    assert [len(g) for g in micro_batches([1] * 9, [9] * 8 + [99], 2, range(9), 64)] == [8, 1]


def test_a_price_is_a_power_of_two_within_its_range() -> None:
    assert rounded_price(1.0, 1 / 900) == rounded_price(1.1, 1 / 900) == 1024
    assert rounded_price(-1.0, 1.0) == 16
    assert rounded_price(1.0, 0.0) == rounded_price(1e9, 1.0) == 1 << 14


def test_the_price_of_a_pass_is_read_from_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def forward(tokens: int) -> None:
        now[0] += 2e-3 + tokens * 4e-6

    monkeypatch.setattr(device, "perf_counter", lambda: now[0])
    assert pass_price(forward, torch.device("cpu")) == 512


@pytest.mark.parametrize("mode", ["all", "top:1"])
def test_each_answers_in_the_order_asked_duplicates_too(tiny, codec, prompts, mode: str) -> None:
    rng = random.Random(0)
    base = Backbone(tiny[0], mode)
    ids = [codec.encode_prompt(p) for p in prompts[:10]]
    responses = [[rng.randrange(5, 500) for _ in range(rng.randint(1, 30))] for _ in ids]
    sequences = Sequences(base, ids, responses, codec.pad_id)
    rows = [3, 9, 3, 0, 7, 7, 7, 1]
    lengths = sequences.each(lambda b: b.response_mask.sum(1), 3, rows)
    assert lengths.tolist() == [len(responses[i]) for i in rows]


def test_activations_that_are_there_are_not_computed_again(tiny, codec, prompts, monkeypatch) -> None:
    base = Backbone(tiny[0], "top:1")
    ids = [codec.encode_prompt(p) for p in prompts[:5]]
    whole = Sequences(base, ids, [[7, 8, 9]] * 5, codec.pad_id)
    assert whole.features is not None
    asked = []
    own = base.row_features
    monkeypatch.setattr(base, "row_features", lambda *rows: asked.append(len(rows[0])) or own(*rows))
    again = Sequences(base, ids, [[7, 8, 9]] * 5, codec.pad_id, features=whole.features)
    assert again.features is not None
    assert all(a is b for a, b in zip(again.features, whole.features, strict=True))
    assert asked == []


def test_only_the_top_layers_of_a_value_function_learn(tiny) -> None:
    top = TrainableLayers(Backbone(tiny[0], "top:2"))
    top.train_only(1)
    assert {n.split(".")[2] for n in top.trained_state() if "layers" in n} == {"1"}
    assert any("norm" in n for n in top.trained_state())


@pytest.mark.parametrize("mode", ["all", "top:3"])
def test_frozen_layers_of_a_top_are_run_once_and_give_the_same(tiny, codec, prompts, mode: str) -> None:
    base = Backbone(tiny[0], mode)
    ids = [codec.encode_prompt(p) for p in prompts[:6]]
    sequences = Sequences(base, ids, [[7, 8, 9, 11][: 1 + i % 4] for i in range(6)], codec.pad_id)
    top = TrainableLayers(base)
    assert sequences.with_frozen_layers_run(top, 4) is sequences  # every layer is trained
    top.train_only(1)
    with torch.no_grad():
        for parameter in top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    computed = sequences.with_frozen_layers_run(top, 4)
    assert computed.layers_done == (2 if base.cut else 3)
    a, b = (top.hidden_at(s.batch(range(6)), slice(-4, None)) for s in (sequences, computed))
    real = sequences.batch(range(6)).attention_mask[:, -4:].bool()
    torch.testing.assert_close(a[real], b[real], atol=1e-5, rtol=1e-4)
    assert computed.batch([0]).features is not sequences.batch([0]).features


def test_a_batch_with_the_features_of_other_sequences_has_none_of_its_own(tiny, codec, prompts) -> None:
    """A value function that reads a whole copy must not be given activations below the policy's cut."""
    base = Backbone(tiny[0], "top:2")
    ids = [codec.encode_prompt(p) for p in prompts[:3]]
    cut, whole = (Sequences(b, ids, [[7, 8]] * 3, codec.pad_id) for b in (base, base.at(base.depth, "all")))
    batch = cut.batch(range(3))
    assert batch.features is not None
    assert whole.onto(batch, range(3)).features is None
