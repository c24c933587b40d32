"""The report: opens offline without an error, fits a phone, tells hostile text from markup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from burnish.report.page import render_report, verdict
from burnish.report.summary import build_summary


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_it_opens_offline_without_an_error_and_fits(
    short_run: Path, browser: Any, width: int, scheme: str
) -> None:
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(f"file://{short_run / 'report.html'}")
    page.wait_for_selector(".main-svg")
    assert problems == []
    assert [u for u in requests if not u.startswith(("file://", "data:", "blob:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "champion is" in page.inner_text("h1")
    assert page.inner_text("h2 >> nth=0") == "Production checklist"
    assert page.locator(".main-svg").count() >= 10


def test_hostile_text_stays_text(run_copy: Path) -> None:
    file = run_copy / "evaluation.json"
    evaluation = json.loads(file.read_text())
    evaluation["examples"][0]["ppo"] = "<script>alert(1)</script>"
    evaluation["policies"]["</script><b>x"] = evaluation["policies"]["ppo"]
    file.write_text(json.dumps(evaluation))
    text = render_report(run_copy).read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "</script><b>x" not in text


def test_a_run_that_has_not_come_far_still_renders(short_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(
        short_run, copy, ignore=shutil.ignore_patterns("evaluation.json", "align.json", "ppo*", "summary*")
    )
    summary = build_summary(copy)
    assert summary["champion"] is None
    assert summary["ppo"]["kl_final"] is None
    assert "has no champion yet" in render_report(copy).read_text()


def summary_of(champion: str, *, provisional: bool) -> dict[str, Any]:
    figures = {"win_rate": 0.6123, "ci_low": 0.55, "ci_high": 0.67, "n": 200}
    return {
        "champion": champion,
        "provisional": provisional,
        "reason": "ppo does not significantly beat sft",
        "evaluation": {"judge": "panel of 5", "ppo": figures},
    }


def test_the_first_line_says_who_ships_and_how_sure_that_is() -> None:
    line = verdict(summary_of("ppo", provisional=False))
    assert line.startswith(
        "The champion is PPO: it wins 61.2% against SFT (95 % interval 55.0% to 67.0%, 200 held-out"
    )
    assert "provisional" not in line
    assert "provisional" in verdict(summary_of("ppo", provisional=True))
    assert verdict(summary_of("sft", provisional=False)).startswith(
        "The champion is SFT: no candidate clearly beat it."
    )
