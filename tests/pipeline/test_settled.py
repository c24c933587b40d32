"""What the machine of a run decides is kept with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.commands import doctor
from burnish.config.model import ModelConfig
from burnish.models import backbone
from burnish.pipeline.context import DEVICE_FILE, Models
from burnish.runs.files import read_json, write_json
from tests.command import burnish


def models(folder: Path, found: list[dict[str, Any]], **config: Any) -> Models:
    return Models(ModelConfig(**config), None, 1.0, folder, on_settle=found.append)


def test_a_new_run_reports_what_was_decided(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    assert models(tmp_path, found).base.pass_price == 64
    assert found == [{"dtype": "float32", "pass_price": 64}]


def test_a_run_continues_as_it_began_on_another_machine(tmp_path: Path) -> None:
    write_json(tmp_path / DEVICE_FILE, {"dtype": "bfloat16", "pass_price": 512})
    found: list[dict[str, Any]] = []
    base = models(tmp_path, found).base
    assert (base.dtype, base.pass_price) == (torch.bfloat16, 512)
    assert base.at(3).pass_price == 512
    assert found == []
    named = models(tmp_path, found, dtype="float32").base
    assert named.dtype == torch.float32, "the configuration names it"


def test_the_doctor_names_a_precision_that_the_processor_computes_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    assert doctor._precision(torch.float32, cpu).ok
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        found = doctor._precision(torch.bfloat16, cpu)
        assert found.ok is there
        assert ("set model.dtype to auto" in found.evidence) is not there


def test_the_price_of_a_device_that_is_not_in_the_table_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def price(forward: Any, device: torch.device) -> int:
        for tokens in (64, 256):
            hidden = forward(tokens)
            sizes.append(len(hidden))
        return 2048

    unknown = backbone.traits(torch.device("cuda"))
    monkeypatch.setattr(backbone, "traits", lambda device: unknown)
    monkeypatch.setattr(backbone, "pass_price", price)
    found: list[dict[str, Any]] = []
    assert models(tmp_path, found).base.pass_price == 2048
    assert sizes == [2, 8], "rows of 32 tokens"
    assert found == [{"dtype": "float32", "pass_price": 2048}]


def test_a_run_of_an_older_version_stays_in_float32(run_copy: Path) -> None:
    """Its `auto` was float32 on every processor; another precision would change its models half-way."""
    (run_copy / DEVICE_FILE).unlink()
    burnish("run", "examples/short.yaml", "--set", "threads=1", "--dir", str(run_copy))
    assert read_json(run_copy / DEVICE_FILE) == {"dtype": "float32", "pass_price": 64}
