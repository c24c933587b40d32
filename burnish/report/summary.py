"""summary.json: a run's figures, from its directory alone; a missing one is null, never 0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.runs.directory import RunDirectory

PAIRS_WANTED = 10_000
MEMBERS_WANTED = 3
KL_TOLERANCE = 0.25


def read(path: Path) -> Any:
    """Read a JSON file of the run; None if it does not exist yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def build_summary(run_path: Path, *, completing: str | None = None) -> dict[str, Any]:
    """Build the summary that the command line prints and the report begins with.

    Keys: docs/reference/run_directory.md. `completing` is the stage that writes this summary; it counts as done.
    """
    run = RunDirectory.open(run_path)
    config = run.config.model_dump(mode="json")
    manifest = run.manifest()["stages"]
    evaluation = read(run_path / "evaluation.json")
    examination = read(run_path / "reward" / "examination.json")
    aligned = read(run_path / "align.json") or {}
    summary: dict[str, Any] = {
        "name": config["name"],
        "seed": config["seed"],
        "champion": evaluation and evaluation["champion"],
        "reason": evaluation and evaluation["reason"],
        "provisional": bool(evaluation and evaluation["provisional"]),
        "stages": {
            n: {"seconds": s.get("seconds"), "state": "done" if n == completing else run.stage_state(n)}
            for n, s in manifest.items()
        },
        "reward": _reward(examination),
        "ppo": _ppo(aligned, evaluation, config),
        "fallback": aligned.get("fallback", {"triggered": False, "reason": None}),
        "evaluation": _evaluation(evaluation),
        "gold": _gold(evaluation),
        "frontier": _frontier(read(run_path / "frontier.json")),
        "rounds": (evaluation or {}).get("rounds"),
    }
    summary["checklist"] = checklist(run, summary, config)
    return summary


def _reward(examination: Any) -> dict[str, Any]:
    if examination is None:
        return {"members": None, "accuracy": None, "baselines": None, "watcher": None, "pairs": None}
    return {
        "members": examination.get("n_members", len(examination["members"])),
        "accuracy": examination["accuracy"],
        "baselines": examination["baselines"],
        "watcher": examination["watcher"],
        "pairs": examination["pairs"],
    }


def _ppo(aligned: Any, evaluation: Any, config: Any) -> dict[str, Any]:
    ppo = aligned.get("ppo", {})
    measured = (evaluation or {}).get("policies", {}).get("ppo", {})
    return {
        "state": ppo.get("state"),
        "kl_final": measured.get("kl"),
        "kl_final_se": measured.get("kl_se"),
        "kl_target": config["ppo"]["kl"]["target"],
        "rollbacks": ppo.get("rollbacks"),
        "updates": ppo.get("updates"),
    }


def _evaluation(evaluation: Any) -> dict[str, Any]:
    if evaluation is None:
        return {}
    rows: dict[str, Any] = {"judge": evaluation["examiner"]}
    for name, figures in evaluation["policies"].items():
        test = figures.get("test") or {}
        rows[name] = {
            **{key: test.get(key) for key in ("win_rate", "ci_low", "ci_high", "n")},
            "mean_length": figures["mean_length"],
            "length_controlled": figures.get("length_controlled"),
            "kl": figures.get("kl"),
            "kl_se": figures.get("kl_se"),
        }
    return rows


def _frontier(measured: Any) -> dict[str, Any] | None:
    """Return each policy's KL, gain and share of the frontier, by ensemble and judge."""
    if measured is None:
        return None
    return {
        name: {
            "kl": row["kl"]["value"],
            "by": {by: {k: found[k] for k in ("gain", "share", "reason")} for by, found in row["by"].items()},
        }
        for name, row in measured["policies"].items()
    }


def _gold(evaluation: Any) -> dict[str, Any] | None:
    return None if evaluation is None else evaluation["gold"]


def checklist(run: RunDirectory, summary: dict[str, Any], config: Any) -> list[dict[str, Any]]:
    """Return the production checklist with evidence; `ok` is None where a stage has not run yet."""
    pairs = summary["reward"]["pairs"]
    total = sum(pairs.values()) if pairs else None
    members = summary["reward"]["members"]
    rows = run.read_rows("metrics/ppo.jsonl")
    monitored = [r for r in rows if "kl" in r and "score" in r]
    return [
        {
            "item": "10,000 or more preference pairs",
            "ok": None if total is None else total >= PAIRS_WANTED,
            "evidence": "not there yet" if total is None else f"{total:,} labelled pairs",
        },
        {
            "item": "an ensemble of three reward models",
            "ok": None if members is None else members >= MEMBERS_WANTED,
            "evidence": "not there yet"
            if members is None
            else f"{members} members, aggregated by {config['reward']['aggregate']}",
        },
        _kl_item(summary["ppo"], config),
        {
            "item": "KL and reward monitored",
            "ok": None if not rows else len(monitored) == len(rows),
            "evidence": f"{len(monitored)} of {len(rows)} updates have both",
        },
        _fallback_item(summary, config),
    ]


def _kl_item(ppo: dict[str, Any], config: Any) -> dict[str, Any]:
    item = {"item": "adaptive KL held"}
    final, target = ppo["kl_final"], ppo["kl_target"]
    if final is None:
        return item | {"ok": None, "evidence": "no PPO policy was kept" if ppo["state"] else "not there yet"}
    off = abs(final / target - 1)
    text = f"{final:.2f} nats per response on held-out prompts, target {target:g} ({off:.0%} off)"
    return item | {"ok": bool(config["ppo"]["kl"]["adaptive"] and off <= KL_TOLERANCE), "evidence": text}


def _fallback_item(summary: dict[str, Any], config: Any) -> dict[str, Any]:
    item = {"item": "fallback to DPO ready or taken"}
    if summary["fallback"]["triggered"]:
        return item | {"ok": True, "evidence": f"taken: {summary['fallback']['reason']}"}
    if config.get("align", {}).get("start") == "dpo":
        return item | {"ok": True, "evidence": "DPO ran before PPO and is a candidate"}
    when = config["dpo"]["when"]
    ready = {"fallback": "ready, not needed", "always": "DPO trained beside PPO", "never": "switched off"}[
        when
    ]
    return item | {"ok": when != "never", "evidence": ready}


def main_figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures by which runs are compared: numbers, or intervals with `value`, bounds and `n`."""
    found: dict[str, Any] = {}
    for judge, table in (("examiner", summary["evaluation"]), ("true preference", summary["gold"] or {})):
        for policy, row in table.items():
            if policy != "judge" and row.get("win_rate") is not None:
                found[f"{policy}, win rate by {judge}"] = {**row, "value": row["win_rate"]}
    for policy, row in summary["evaluation"].items():
        if policy != "judge":
            found[f"{policy}, mean tokens"] = row["mean_length"]
            if row["kl"] is not None:
                found[f"{policy}, KL in nats"] = row["kl"]
    for policy, row in (summary["frontier"] or {}).items():
        for by, share in row["by"].items():
            if share["share"] is not None:
                found[f"{policy}, share of the frontier by {by}"] = share["share"]
    if summary["reward"]["accuracy"] is not None:
        found["reward accuracy"] = summary["reward"]["accuracy"]
    return found


def seconds_of(summary: Mapping[str, Any]) -> float:
    """Return the seconds of a run's stages, each of its last attempt."""
    return float(sum(s["seconds"] for s in summary["stages"].values() if s["seconds"] is not None))
