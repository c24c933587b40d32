"""Explanation of how a run ended: a paragraph and a short table, from its events and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from burnish.errors import RunError
from burnish.report.text_report import Point, Table, TextReport
from burnish.runs.directory import RunDirectory

WINDOW = 5  # updates averaged at the beginning and at the end
ENDS = ("finish", "give_up", "gate_stop")
GUARDS = {
    "raise_kl": "raised the KL coefficient",
    "tighten": "combined the reward models more conservatively",
    "lower_rate": "lowered the learning rates",
    "roll_back": "rolled back",
}
FAILED = {
    "reward": "The reward failed: the policy exploits an error of the reward model.",
    "optimiser": "The optimiser failed: its steps were too large.",
}
Row = Mapping[str, Any]


def why(path: Path) -> dict[str, Any]:
    """Explain how PPO ended and what the guard did, as `text`, `decisions`, `alerts` and `figures`.

    Raises RunError if the run has no events.
    """
    run = RunDirectory.open(path)
    events, rows = run.read_rows("events.jsonl"), run.read_rows("metrics/ppo.jsonl")
    if not events:
        raise RunError(
            f"{path} has no events yet: nothing was decided; `burnish status {path}` says how far it is"
        )
    decided = [e for e in events if e["kind"] == "decision"]
    alerts = [e for e in events if e["kind"] == "alert"]
    acts = [e for e in decided if e["action"] in (*GUARDS, "give_up")]
    figures = moved(rows)
    return {
        "run": str(path),
        "text": " ".join(sentences(decided, alerts, acts, rows, figures)),
        "decisions": [as_row(e) for e in acts],
        "alerts": dict(Counter(e["name"] for e in alerts)),
        "figures": figures,
    }


def as_row(event: Row) -> dict[str, Any]:
    """Return the table row of a guard decision."""
    evidence = event["evidence"]
    return {
        "update": event["step"],
        "attempt": evidence.get("attempt"),
        "action": event["action"],
        "because": evidence.get("alert"),
        "value": evidence.get("value"),
        "limit": evidence.get("threshold"),
        "updates_lost": evidence.get("updates_lost"),
    }


def moved(rows: Sequence[Row]) -> dict[str, Any]:
    """Return recorded figures at the start of the run and at the end of the last attempt, as means."""
    if not rows:
        return {}
    own = [row for row in rows if row["attempt"] == rows[-1]["attempt"]]
    found: dict[str, Any] = {"updates": own[-1]["step"], "all_updates": len(rows)}
    for name in ("score", "watcher", "kl", "length", "entropy"):
        first = [row[name] for row in rows[:WINDOW] if name in row]
        last = [row[name] for row in own if name in row][-WINDOW:]
        if first and last:
            found[name] = {"first": mean(first), "last": mean(last)}
    return found


def sentences(
    decided: Sequence[Row], alerts: Sequence[Row], acts: Sequence[Row], rows: Sequence[Row], figures: Row
) -> list[str]:
    """Return the sentences of the paragraph."""
    lines = []
    ended = next((e for e in reversed(decided) if e["action"] in ENDS), None)
    if ended is None:
        lines.append(
            f"PPO has made {len(rows)} updates and is still running." if rows else "PPO has not begun."
        )
    elif ended["action"] == "gate_stop":
        lines.append(f"PPO was not tried: {ended['reason']}.")
    elif ended["action"] == "give_up":
        lines.append(f"PPO was given up at update {ended['step']}: {ended['reason']}.")
    else:
        lines.append(f"{ended['reason']}.")
    target = next((e["evidence"]["kl_target"] for e in decided if e["action"] == "oversight"), None)
    if "score" in figures and "kl" in figures:
        score, kl = figures["score"], figures["kl"]
        aim = "" if target is None else f" of a target of {target:g}"
        lines.append(
            f"The score went from {score['first']:.2f} to {score['last']:.2f} at {kl['last']:.2f} nats{aim}"
            + _watchers_word(figures.get("watcher"))
            + "."
        )
    lines.append(_heard(alerts))
    counts = Counter(e["action"] for e in acts if e["action"] in GUARDS)
    if counts:
        what = [f"{GUARDS[a]}{_times(n)}" for a, n in counts.items()]
        lost = sum(e["evidence"].get("updates_lost") or 0 for e in acts if e["action"] == "roll_back")
        lines.append(f"The guard {_listed(what)}" + (f"; {lost} updates were repeated." if lost else "."))
    elif rows:
        lines.append("The guard took no action.")
    cause = ended["evidence"].get("cause") if ended is not None else None
    if cause in FAILED:
        lines.append(FAILED[cause])
    for action in ("hardly_moved", "score_did_not_rise", "champion"):
        lines += [f"{e['reason']}." for e in decided if e["action"] == action]
    return lines


def _watchers_word(watcher: Row | None) -> str:
    if watcher is None:
        return ""
    how = "the watcher, which PPO does not optimise, went"
    return f"; {how} from {watcher['first']:.2f} to {watcher['last']:.2f}"


def _heard(alerts: Sequence[Row]) -> str:
    if not alerts:
        return "No monitor raised an alert."
    first = alerts[0]
    names = Counter(e["name"] for e in alerts)
    listed = _listed([f"`{name}` in {n} update{'s' if n > 1 else ''}" for name, n in names.most_common()])
    return f"Alerts: {listed}; the first was `{first['name']}` at update {first['step']}: {first['message']}."


def _times(n: int) -> str:
    return "" if n == 1 else " twice" if n == 2 else f" {n} times"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def as_report(found: Mapping[str, Any], again: Mapping[str, Any] | None = None) -> TextReport:
    """Build the terminal report; `again` holds the guard's decisions replayed on the same figures."""
    report = TextReport("Why", [Point("open" if found["decisions"] else "ok", found["run"], found["text"])])
    columns = ("update", "attempt", "action", "because", "value", "limit", "updates lost")
    if found["decisions"]:
        rows = [[_cell(v) for v in row.values()] for row in found["decisions"]]
        report.tables.append(Table("What the guard did", columns, rows))
    if again is not None:
        rows = [
            [str(a["step"]), str(a["attempt"]), a["action"], a["alert"], a["reason"]]
            for a in again["replayed"]
        ]
        at = again["apart_at"]
        note = "As recorded." if again["same"] else (
            f"Differs from what was recorded from update {at['step']} of attempt {at['attempt']} on; the figures after "
            "it are those of a run that went on as it was recorded."
        )  # fmt: skip
        title = f"What it decides over the {again['updates']} updates' figures"
        report.tables.append(
            Table(title, ("update", "attempt", "action", "because", "reason"), rows or [["-"] * 5], note)
        )
    return report


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
