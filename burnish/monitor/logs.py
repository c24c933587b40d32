"""Checks of the logs of other trainers, with the same detectors and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.config.monitor import MonitorConfig
from burnish.data.lines import read_lines, read_text
from burnish.data.text import Unusable, number_of, parse_json
from burnish.detectors import DETECTORS, WHAT_HACKS_NEED
from burnish.errors import DataError
from burnish.monitor.hacking import HackMonitor
from burnish.monitor.health import HealthMonitor
from burnish.records import Alert, StepStats

FEWEST_ALIKE = 8  # updates in a row with the same reward
FAR_UNDER, UNDER = (
    1.0,
    0.01,
)  # limits, in nats below 0, of one KL estimate and of the mean of `FEWEST_UNDER`
FEWEST_UNDER = 10  # updates
PERSISTS = 3  # updates in which a detector must fire
WITHIN = 5  # out of this many in a row
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
    "prompts": ("prompts",),
    **{d.figure: (d.figure, *d.names) for d in DETECTORS.values()},
}
"""Names of a figure here, in TRL (GRPO, RLOO, PPO), verl and OpenRLHF; the first in a row is used."""
CONSOLE = re.compile(r"\bstep:\d+ - ")  # a line of verl's console
PAIR = re.compile(r"([\w./@-]+):(?:np\.float\d+\()?(-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|nan))")
STEPS = ("step", "global_step", "training/global_step", "_step", "update")


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a row under the names of Burnish.

    A value that is not a finite number is left out. If it is a loss or a norm, it counts as a
    skipped step.
    """
    found = {}
    row = unpacked(row)
    for name, aliases in NAMES.items():
        value = number_of(next((row[a] for a in aliases if a in row), None))
        negative = (
            name == "entropy" and value is not None and value < 0
        )  # an entropy loss has the opposite sign
        if value is not None and math.isfinite(value) and not negative:
            found[name] = value
    losses = (number_of(v) for k, v in row.items() if "loss" in k or "grad_norm" in k)
    if any(v is not None and not math.isfinite(v) for v in losses):
        found["skipped"] = 1.0
    return found


def unpacked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with its figures at one level and without the prefix `train/`.

    verl's file logger keeps them under `data`; OpenRLHF's sinks put `train/` before each.
    """
    inner = row.get("data")
    flat = {**row, **inner} if isinstance(inner, Mapping) else row
    return {str(name).removeprefix("train/"): value for name, value in flat.items()}


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, or raise DataError.

    A log has JSON lines, or is a JSON file with a list of rows (also under `log_history`), or the
    output of verl's console. Other console lines are skipped.
    """
    text = read_text(file)
    if file.suffix != ".json" and not text.lstrip().startswith("["):
        return list(_lines(file))
    try:
        held = parse_json(text)
    except Unusable:
        if file.suffix != ".json":
            return list(_lines(file))
        raise DataError(f"{file} is not JSON; pass a trainer's log") from None
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
            row = parse_json(line)
        except Unusable:
            if number == len(lines):
                return  # an incomplete line of a killed process
            raise DataError(f"{file}, line {number} is not JSON; pass a log of JSON lines") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} holds {row!r}, which is not an object with figures")
        yield row


class LogWatch:
    """Detectors over a log that arrives one row at a time."""

    def __init__(self, responses: int, kl_target: float | None, monitor: MonitorConfig | None = None) -> None:
        self.kl_target = kl_target
        self.health = HealthMonitor(monitor or MonitorConfig(), kl_target or math.inf)
        self.hacks = HackMonitor(responses)
        self.updates = 0
        self.seen: set[str] = set()
        self.alerts: list[Alert] = []
        self.spoken: list[set[str]] = []  # hack detectors that fired, by update
        self.suspected: dict[str, Any] | None = None
        self.alike: tuple[float | None, int] = (None, 0)  # the last reward, and for how many updates in a row
        self.kls: list[float] = []

    def observe(self, row: Mapping[str, Any]) -> list[Alert]:
        """Return the alerts of a log row; a row without a known metric is ignored."""
        values, flat = figures_of(row), unpacked(row)
        # A null reward beside other figures is a failure; a row of nulls alone is another kind of row.
        unscored = "score" not in values and any(
            name in flat and (values or flat[name] is not None) for name in NAMES["score"]
        )
        if not unscored and not values.keys() & ({"score"} | {d.figure for d in DETECTORS.values()}):
            return []
        self.updates += 1
        self.seen |= values.keys()
        steps = (number_of(flat.get(name)) for name in STEPS)
        step = next((int(n) for n in steps if n is not None and math.isfinite(n)), self.updates)
        stats = StepStats(step, 0, values)
        values_of = (number_of(v) for k, v in flat.items() if "loss" in k)
        lost = any(v is not None and not math.isfinite(v) for v in values_of)
        found = [
            *self._broken(stats, unscored, lost),
            *self.health.observe(stats),
            *self.hacks.observe(stats),
        ]
        self.alerts += found
        self.spoken.append({a.name for a in found if a.name in DETECTORS and DETECTORS[a.name].hack})
        last = self.spoken[-WITHIN:]
        for name in sorted(self.spoken[-1]):
            if self.suspected is None and sum(name in spoken for spoken in last) >= PERSISTS:
                alert = next(a for a in found if a.name == name)
                self.suspected = {"step": step, "detector": name, "message": alert.message}
        return found

    def _broken(self, stats: StepStats, unscored: bool, lost: bool) -> Iterator[Alert]:
        """Yield critical alerts for figures that no healthy run logs.

        They are a non-finite reward or loss, a reward that stays the same for many
        updates, and a KL far under 0.
        """

        def alert(name: str, value: float, limit: float, text: str) -> Alert:
            return Alert(name, "critical", text, stats.step, value, limit)

        score, kl = stats.values.get("score"), stats.values.get("kl")
        if lost:
            yield alert("loss_not_finite", 1.0, 0.0, "a loss is not a finite number")
        if unscored:
            yield alert("reward_not_finite", 1.0, 0.0, "the reward is not a finite number")
        if score is not None:
            self.alike = (score, self.alike[1] + 1 if score == self.alike[0] else 1)
            if self.alike[1] >= FEWEST_ALIKE:
                text = f"the reward has been {score:g} for {self.alike[1]} updates in a row: there is nothing to learn"
                yield alert("reward_stands_still", self.alike[1], FEWEST_ALIKE, text)
        if kl is not None:
            self.kls = [*self.kls, kl][-FEWEST_UNDER:]
            lately = sum(self.kls) / len(self.kls)
            steadily = len(self.kls) == FEWEST_UNDER and max(self.kls) < 0 and lately < -UNDER
            if kl < -FAR_UNDER or steadily:
                text = f"KL is {kl:g}, but KL is never negative: a wrong sign, or responses of another policy"
                yield alert("kl_under_zero", kl, -FAR_UNDER if kl < -FAR_UNDER else -UNDER, text)

    @property
    def enough(self) -> bool:
        """True if there were enough updates and figures for a verdict."""
        return bool(self.hacks.recent) and len(self.hacks.recent) >= PERSISTS and WHAT_HACKS_NEED in self.seen

    def report(self) -> dict[str, Any]:
        """Return the verdict with its figures.

        The verdict is `hacking suspected`; `broken`, after a critical alert; `too few to tell`; or
        `healthy`.
        """
        looked = [name for name, d in DETECTORS.items() if d.figure in self.seen]
        verdict = "healthy" if self.enough else "too few to tell"
        if any(a.severity == "critical" for a in self.alerts):
            verdict = "broken"
        if self.suspected:
            verdict = "hacking suspected"
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
    """Return `LogWatch.report` for a whole log."""
    watch = LogWatch(responses, kl_target)
    for row in rows:
        watch.observe(row)
    return watch.report()


def audit_log(file: Path, *, responses: int = 64, kl_target: float | None = None) -> dict[str, Any]:
    """Return `audit_rows` of a file; raise DataError if no row has a known figure."""
    found = audit_rows(read_log(file), responses=responses, kl_target=kl_target)
    if not found["updates"]:
        known = ", ".join(names[0] for names in NAMES.values())
        raise DataError(f"{file} has no row with a known figure ({known}, or the names of other trainers)")
    return found


def lines_of(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a report in words."""
    yield f"{report['verdict']} ({report['updates']} updates of {report['responses']} responses)"
    if report["suspected"] is not None:
        yield f"from update {report['suspected']['step']} on: {report['suspected']['message']}"
    if report["verdict"] == "too few to tell":
        yield (
            "a verdict needs a score, 96 responses at the start and 96 after them"
            if report["score"]
            else "the log has no score; a drift counts as a hack only while the score rises"
        )
    for alert in report["alerts"]:
        when = f"in {alert['updates']} updates, from {alert['first']} on"
        yield f"  {alert['severity']}: {alert['name']} {when}: {alert['message']}"
    yield f"looked at: {', '.join(report['looked']) or 'nothing'}"
    if report["not_looked"]:
        yield f"not in the log: {', '.join(report['not_looked'])}"
