"""Logs of other trainers, looked at by the same detectors with the same limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from burnish.config.monitor import MonitorConfig
from burnish.data.lines import read_lines
from burnish.errors import DataError
from burnish.monitor.hacking import DETECTORS, WHAT_HACKS_NEED, HackMonitor
from burnish.monitor.health import HealthMonitor
from burnish.records import Alert, StepStats

PERSISTS = 3  # updates in which a detector must speak
WITHIN = 5  # of so many in a row
NAMES: Mapping[str, Sequence[str]] = {
    "score": (
        "score",
        "reward",
        "objective/scores",
        "critic/score/mean",
        "critic/rewards/mean",
        "reward/mean",
    ),
    "score_sd": ("score_sd", "reward_std", "critic/score/std"),
    "length": (
        *(
            "length",
            "completions/mean_length",
            "completion_length",
            "response_length/mean",
            "response_length",
        ),
        *("mean_response_length", "response_length_mean"),
    ),
    "truncated": ("truncated", "completions/clipped_ratio", "response_length/clip_ratio", "truncated_rate"),
    "entropy": (
        "entropy",
        "policy/entropy_avg",
        "actor/entropy",
        "actor/entropy_loss",
        "objective/entropy",
        "entropy_loss",
    ),
    "kl": ("kl", "objective/kl"),
    "clip_fraction": (
        "clip_fraction",
        "clip_ratio/region_mean",
        "policy/clipfrac_avg",
        "actor/pg_clipfrac",
        "ppo_clip_ratio",
    ),
    "approx_kl": ("approx_kl", "policy/approxkl_avg", "actor/ppo_kl", "ppo_kl"),
    "value_loss": ("value_loss", "loss/value_avg", "critic/vf_loss", "critic_loss"),
    "sampling_gap": (
        "sampling_gap",
        "sampling/sampling_logp_difference/max",
        "training/rollout_probs_diff_max",
    ),
    "spread": ("spread",),
    "ref_nll": ("ref_nll",),
    "repetition": ("repetition",),
    "foreign": ("foreign",),
    "formatted": ("formatted",),
    "duplicates": ("duplicates",),
    "stock": ("stock",),
}
"""What a figure is called: here, in TRL (GRPO, RLOO, PPO), verl and OpenRLHF; the first that a row has counts."""
CONSOLE = re.compile(r"\bstep:\d+ - ")  # a line of verl's console
PAIR = re.compile(r"([\w./@-]+):(?:np\.float\d+\()?(-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|nan))")
STEPS = ("step", "global_step", "training/global_step", "_step", "update")


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's figures under our names. What is no finite number is left out, and counted as a step that was skipped
    where it is a loss or a norm."""
    found = {}
    row = unpacked(row)
    for name, aliases in NAMES.items():
        value = next((row[a] for a in aliases if a in row), None)
        negative = name == "entropy" and _number(value) and value < 0  # a loss: entropy with its sign turned
        if _number(value) and math.isfinite(value) and not negative:
            found[name] = float(value)
    losses = (v for k, v in row.items() if ("loss" in k or "grad_norm" in k) and _number(v))
    if any(not math.isfinite(v) for v in losses):
        found["skipped"] = 1.0
    return found


def unpacked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose figures lie side by side, under names without the `train/` before them: verl's file logger keeps
    them under `data`, OpenRLHF's sinks put `train/` before each."""
    inner = row.get("data")
    flat = {**row, **inner} if isinstance(inner, Mapping) else row
    return {str(name).removeprefix("train/"): value for name, value in flat.items()}


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log: JSON lines, a JSON file that holds them as a list or under `log_history`, or what verl's
    console printed, among whatever else. Raises DataError."""
    if not file.exists():
        raise DataError(f"{file} does not exist; give a trainer's log, .jsonl or trainer_state.json")
    if file.suffix != ".json":
        return list(_lines(file))
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is no JSON ({error}); give a trainer's log") from None
    rows = held.get("log_history") if isinstance(held, dict) else held
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise DataError(f"{file} holds no list of rows, nor one under log_history; give a trainer's log")
    return rows


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    lines = list(read_lines(file))
    printed = [line for _, line in lines if CONSOLE.search(line)]
    if printed and not any(line.lstrip().startswith("{") for line in printed):
        yield from ({name: float(value) for name, value in PAIR.findall(line)} for line in printed)
        return
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return  # what a process that was killed had begun
            raise DataError(f"{file}, line {number} is no JSON ({error}); give a log of JSON lines") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} holds {row!r}, no object with figures")
        yield row


class LogWatch:
    """The detectors over a log that comes in a row at a time."""

    def __init__(self, responses: int, kl_target: float | None, monitor: MonitorConfig | None = None) -> None:
        self.kl_target = kl_target
        self.health = HealthMonitor(monitor or MonitorConfig(), kl_target or math.inf)
        self.hacks = HackMonitor(responses)
        self.updates = 0
        self.seen: set[str] = set()
        self.alerts: list[Alert] = []
        self.spoken: list[set[str]] = []  # detectors of hacks that spoke, by update
        self.suspected: dict[str, Any] | None = None

    def observe(self, row: Mapping[str, Any]) -> list[Alert]:
        """The alerts of a row; one that holds none of the figures is no update."""
        values = figures_of(row)
        if not values.keys() & ({"score"} | {d.figure for d in DETECTORS.values()}):
            return []
        self.updates += 1
        self.seen |= values.keys()
        flat = unpacked(row)
        step = next((int(flat[name]) for name in STEPS if _number(flat.get(name))), self.updates)
        stats = StepStats(step, 0, values)
        found = [*self.health.observe(stats), *self.hacks.observe(stats)]
        self.alerts += found
        self.spoken.append({a.name for a in found if a.name in DETECTORS and DETECTORS[a.name].hack})
        last = self.spoken[-WITHIN:]
        for name in sorted(self.spoken[-1]):
            if self.suspected is None and sum(name in spoken for spoken in last) >= PERSISTS:
                alert = next(a for a in found if a.name == name)
                self.suspected = {"step": step, "detector": name, "message": alert.message}
        return found

    @property
    def enough(self) -> bool:
        """Whether there were updates, and figures, to tell by."""
        return bool(self.hacks.recent) and len(self.hacks.recent) >= PERSISTS and WHAT_HACKS_NEED in self.seen

    def report(self) -> dict[str, Any]:
        """The verdict (`healthy`, `hacking suspected`, `too few to tell`) with its figures."""
        looked = [name for name, d in DETECTORS.items() if d.figure in self.seen]
        verdict = "hacking suspected" if self.suspected else "healthy" if self.enough else "too few to tell"
        first: dict[str, Alert] = {}
        for alert in self.alerts:
            first.setdefault(alert.name, alert)
        return {
            "verdict": verdict,
            "suspected": self.suspected,
            "updates": self.updates,
            "responses": self.hacks.responses,
            "score": WHAT_HACKS_NEED in self.seen,
            "looked": looked,
            "not_looked": [name for name in DETECTORS if name not in looked],
            "alerts": [
                {"name": a.name, "severity": a.severity, "first": a.step, "message": a.message,
                 "updates": sum(b.name == a.name for b in self.alerts)}
                for a in first.values()
            ],
        }  # fmt: skip


def audit_rows(
    rows: Iterable[Mapping[str, Any]], *, responses: int = 64, kl_target: float | None = None
) -> dict[str, Any]:
    """`LogWatch.report` over a whole log."""
    watch = LogWatch(responses, kl_target)
    for row in rows:
        watch.observe(row)
    return watch.report()


def audit_log(file: Path, *, responses: int = 64, kl_target: float | None = None) -> dict[str, Any]:
    """`audit_rows` of a file. Raises DataError where no row has a figure that is known."""
    found = audit_rows(read_log(file), responses=responses, kl_target=kl_target)
    if not found["updates"]:
        known = ", ".join(names[0] for names in NAMES.values())
        raise DataError(
            f"{file} has no row with a figure that is known ({known}, or what other trainers call them)"
        )
    return found


def lines_of(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in words."""
    yield f"{report['verdict']} ({report['updates']} updates of {report['responses']} responses)"
    if report["suspected"] is not None:
        yield f"from update {report['suspected']['step']} on: {report['suspected']['message']}"
    if report["verdict"] == "too few to tell":
        yield (
            "a verdict takes a score, and 96 responses at the start and 96 after it"
            if report["score"]
            else "the log has no score, and without a rising one no drift is a hack"
        )
    for alert in report["alerts"]:
        when = f"in {alert['updates']} updates, from {alert['first']} on"
        yield f"  {alert['severity']}: {alert['name']} {when}: {alert['message']}"
    yield f"looked at: {', '.join(report['looked']) or 'nothing'}"
    if report["not_looked"]:
        yield f"not in the log: {', '.join(report['not_looked'])}"
