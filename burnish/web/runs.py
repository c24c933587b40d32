"""Pages of runs: the list with their progress, one run live, and two side by side."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, HTTPException, Path as Part, Query, Request
from fastapi.responses import Response, StreamingResponse
from markupsafe import Markup

from burnish.errors import BurnishError
from burnish.report.compare import compare
from burnish.report.embed import Charts, render
from burnish.report.page import length_charts, reward_charts, verdict, win_rate_chart
from burnish.report.summary import build_summary, read
from burnish.report.timeline import said, timeline
from burnish.runs.directory import ROUNDS, RunDirectory
from burnish.web.app_state import AppState, Watcher, app_state_of, page
from burnish.web.charts import charted
from burnish.web.waiting import waits_for

router = APIRouter()
Name = Annotated[str, Part(max_length=200)]
WATCHED = ("manifest.json", "events.jsonl", "metrics", "samples", "evaluation.json", "stress.json", "rounds")
LOOK = 1.0  # seconds between looks at a run's files
LIVE = ("running",)
SHOWN = 8  # samples of an update
SAMPLES = re.compile(r"^([a-z0-9_]+)-(\d+)\.jsonl$")


def runs_in(root: Path) -> list[Path]:
    """Return the run directories in a folder, the newest first."""
    found = [p for p in root.iterdir() if (p / "manifest.json").is_file()] if root.is_dir() else []
    return sorted(found, key=lambda p: -(p / "manifest.json").stat().st_mtime)


def run_of(desk: AppState, name: str) -> Path:
    """Return the run with this folder name, or raise HTTPException 404.

    The name is only compared with those of existing runs, so that it cannot lead elsewhere.
    """
    assert desk.runs is not None
    for path in runs_in(desk.runs):
        if path.name == name:
            return path
    raise HTTPException(404, "there is no such run")


def state_of(run: RunDirectory) -> tuple[str, str | None]:
    """Return the state of a run's first stage that is not done, and the reason for it."""
    manifest = run.manifest()["stages"]
    for stage in manifest:
        state = run.stage_state(stage)
        if state != "done":
            return state, manifest[stage].get("reason")
    return ("done", None) if "report" in manifest or not manifest else ("interrupted", None)


def _about(path: Path) -> dict[str, Any]:
    """Return a row of the list; a run that cannot be read is shown with the error."""
    row: dict[str, Any] = {
        "name": path.name,
        "champion": None,
        "win": None,
        "state": "unreadable",
        "why": None,
    }
    try:
        run = RunDirectory.open(path)
        row["state"], row["why"] = state_of(run)
        evaluation = read(path / "evaluation.json")
        if evaluation:
            row["champion"] = evaluation["champion"]
            row["win"] = evaluation["policies"].get(evaluation["champion"], {}).get("test")
    except (BurnishError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
        row["why"] = str(error).splitlines()[0]
    return row


def _parts(path: Path) -> list[tuple[str, Path]]:
    """Return the folders of a run's rounds: the earlier ones, then the run itself."""
    earlier = [
        p
        for p in sorted((path / ROUNDS).glob("[0-9]*"), key=lambda p: p.name)
        if (p / "manifest.json").exists()
    ]
    return [(f"round {p.name}", p) for p in earlier] + [("last" if earlier else "all", path)]


def _now(path: Path, part: str) -> tuple[dict[str, Any], Charts]:
    run = RunDirectory.open(path)
    summary = build_summary(path)
    parts = dict(_parts(path))
    shown = parts.get(part, path)
    charts = Charts("now")
    own = RunDirectory.open(shown)
    events = own.read_rows("events.jsonl")
    rows = own.read_rows("metrics/ppo.jsonl")
    drawn = []
    if rows:
        goal = own.config.ppo.kl.target
        drawn.append(
            charts.add(
                "PPO",
                "Alerts and decisions are shown when they happened.",
                timeline(rows, goal, events),
            )
        )
    state, why = state_of(run)
    values = {
        "name": path.name,
        "state": state,
        "why": why,
        "summary": summary,
        "verdict": verdict(summary) if summary["champion"] else None,
        "drawn": drawn,
        "events": [{**e, "said": said(e)} for e in reversed(events)],
        "parts": list(parts),
        "part": part if part in parts else list(parts)[-1],
        "project": waits_for(path),
        "updates": len(rows),
    }
    return values, charts


def _found(path: Path) -> tuple[dict[str, Any], Charts]:
    """Return results that do not change during a stage: stress table, reliability, win rates."""
    charts = Charts("found")
    examination = read(path / "reward" / "examination.json")
    evaluation = read(path / "evaluation.json")
    drawn = []
    if evaluation:
        drawn.append(charts.add("Win rate against SFT", "", win_rate_chart(evaluation)))
    drawn += charts.many(reward_charts(examination, read(path / "reward" / "readings.json")))
    drawn += charts.many(length_charts(examination, evaluation))
    stressed = read(path / "stress.json")
    table = None if stressed is None else Markup(render("stress_table.html", stressed=stressed))
    return {"stress_table": table, "found": drawn}, charts


@router.get("/runs")
def runs(request: Request, account: Watcher) -> Response:
    """Return the list of runs."""
    desk = app_state_of(request)
    assert desk.runs is not None
    return page(request, "runs.html", account, runs=[_about(p) for p in runs_in(desk.runs)])


@router.get("/runs/{name}")
def run(
    request: Request, name: Name, account: Watcher, part: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """Return the page of a run."""
    path = run_of(app_state_of(request), name)
    values, charts = _now(path, part)
    labelled = app_state_of(request).projects.get(name) is not None
    more, rest = _found(path)
    charts.figures |= rest.figures
    return charted(
        request, "run.html", account, charts, steps=_steps(path, part), labelled=labelled, **values, **more
    )


@router.get("/runs/{name}/now")
def now(
    request: Request, name: Name, account: Watcher, part: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """Return the part of the page that changes while the run goes on."""
    values, charts = _now(run_of(app_state_of(request), name), part)
    return charted(request, "run_now.html", account, charts, alone=True, **values)


def _fingerprint(path: Path) -> tuple[Any, ...]:
    found: list[Any] = []
    for name in WATCHED:
        at = path / name
        files = sorted(at.rglob("*.json*")) if at.is_dir() else [at]
        found += [(str(f), s.st_mtime_ns, s.st_size) for f in files if (s := _stat(f)) is not None]
    return tuple(found)


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:  # it is being replaced
        return None


@router.get("/runs/{name}/live")
async def live(request: Request, name: Name, account: Watcher) -> StreamingResponse:
    """Send server-sent events: `changed` when the run writes something, `over` when it has stopped."""
    path = await asyncio.to_thread(run_of, app_state_of(request), name)

    async def events() -> AsyncIterator[str]:
        before: tuple[Any, ...] | None = None
        while not await request.is_disconnected():
            found = await asyncio.to_thread(_fingerprint, path)
            state, _ = await asyncio.to_thread(lambda: state_of(RunDirectory.open(path)))
            if found != before:
                before = found
                yield f"event: changed\ndata: {json.dumps({'state': state})}\n\n"
            else:
                yield ": still here\n\n"
            if state not in LIVE:
                yield f"event: over\ndata: {json.dumps({'state': state})}\n\n"
                return
            await asyncio.sleep(LOOK)

    return StreamingResponse(events(), media_type="text/event-stream")


def _steps(path: Path, part: str) -> dict[str, list[int]]:
    """Return the updates whose samples were kept, by the name of the trained model."""
    folder = dict(_parts(path)).get(part, path) / "samples"
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if match := SAMPLES.match(file.name):
            found.setdefault(match[1], []).append(int(match[2]))
    return {name: sorted(steps) for name, steps in sorted(found.items())}


@router.get("/runs/{name}/samples")
def samples(
    request: Request,
    name: Name,
    account: Watcher,
    of: Annotated[str, Query(max_length=40)] = "ppo",
    step: Annotated[int, Query(ge=0, le=10**9)] = 0,
    part: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """Show answers to the same prompts at the first kept update and the one nearest to `step`."""
    path = run_of(app_state_of(request), name)
    kept = _steps(path, part).get(of)
    if not kept:
        raise HTTPException(404, "no samples of this kind were kept")
    folder = dict(_parts(path)).get(part, path)
    step = min(kept, key=lambda k: abs(k - step))
    before, after = (
        RunDirectory.open(folder).read_rows(f"samples/{of}-{k:06d}.jsonl") for k in (kept[0], step)
    )
    earlier: Mapping[str, Any] = {row["prompt"]: row for row in before}
    rows = [{"before": earlier.get(row["prompt"]), "after": row} for row in after[:SHOWN]]
    return page(request, "samples.html", account, rows=rows, first=kept[0], step=step)


@router.get("/compare")
def comparison(
    request: Request,
    account: Watcher,
    a: Annotated[str, Query(max_length=200)] = "",
    b: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Return the page that compares two runs."""
    desk = app_state_of(request)
    assert desk.runs is not None
    found = compare(run_of(desk, a), run_of(desk, b)) if a and b else None
    names = [p.name for p in runs_in(desk.runs)]
    return page(request, "compare.html", account, names=names, a=a, b=b, found=found)
