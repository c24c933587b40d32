"""The pictures of the pages in docs/pages/, from a browser.

usage: python docs/take_screenshots.py RUNS (a folder with a finished run, usually runs)
       python docs/take_screenshots.py PAGE.html CHART FILE.png (one chart of a study's page)
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from burnish.data.store import LabelStore
from burnish.labels.tasks import Rules
from burnish.records import Comparison, Message, Prompt, Response
from burnish.rehearse.examples import add_examples
from burnish.web.app import make_app
from burnish.web.projects import Project, Projects
from burnish.web.waiting import project_for
from tests.browsers import chromium
from tests.web.desk import Person, joins, serving

HERE = Path(__file__).parent / "pages"
CHART = {"width": 760, "height": 900}
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}
CODE = "Use a slice:\n\n```python\nnew = old[::-1]\n```\n\nIt leaves `old` as it was, and takes one line."
PROSE = "You can call `old.reverse()` and then use it. Note that this **changes** the list, which you did not want."


def main() -> None:
    if len(sys.argv) == 4:
        return chart(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    HERE.mkdir(exist_ok=True)
    runs = Path(sys.argv[1])
    with chromium() as browser, tempfile.TemporaryDirectory() as room:
        labelling(browser, Path(room) / "helpful.sqlite")
        watching(browser, runs, Path(room))


def labelling(browser: Any, place: Path) -> None:
    turns = ["How do I reverse a list in Python?", "In place, or as a copy?", "As a copy, please."]
    roles = ["user", "assistant", "user"]
    chat = Prompt.from_messages([Message(r, t) for r, t in zip(roles, turns, strict=True)])
    with LabelStore(place) as store:
        store.add_comparisons([Comparison(chat, Response(CODE), Response(PROSE))])
        add_examples(store)
    projects = Projects()
    project = Project.open(
        "helpful", place, Rules(each=2, practice=0, gold_share=0.0, most=4, pay=0.15, budget=40.0)
    )
    projects.add(project)
    app = make_app(project.store, projects)
    with serving(app) as url:
        page = browser.new_context(viewport=DESK).new_page()
        joins(page, app, url, "Ada")
        page.locator("#answer").wait_for()
        page.screenshot(path=HERE / "labelling.png")
        phone = browser.new_context(viewport=PHONE, color_scheme="dark").new_page()
        joins(phone, app, url, "Zoe")
        phone.keyboard.press("g")
        phone.locator("#answer").wait_for()
        phone.screenshot(path=HERE / "labelling-phone.png")
        answer(app)
        root = browser.new_context(viewport=DESK).new_page()
        joins(root, app, url, "Root", "admin")
        root.goto(f"{url}/dashboard/helpful")
        root.locator("#now .main-svg").first.wait_for()
        root.get_by_text("Krippendorff").wait_for()
        root.wait_for_timeout(500)
        root.screenshot(path=HERE / "dashboard.png", full_page=True)
        root.goto(f"{url}/guidelines/helpful")
        root.screenshot(path=HERE / "guidelines.png")
        while page.locator("#answer[data-kind=rank]").count() == 0:
            task = page.get_attribute("#answer", "data-task")
            page.keyboard.press("2")
            page.locator(f"#answer:not([data-task='{task}'])").wait_for()
        for key in ("3", "1", "=", "4"):
            page.keyboard.press(key)
        page.screenshot(path=HERE / "ranking.png")


def chart(file: Path, name: str, into: Path) -> None:
    with chromium() as browser:
        page = browser.new_context(viewport=CHART, device_scale_factor=2).new_page()
        page.goto(f"file://{file.resolve()}")
        page.locator(".main-svg").first.wait_for()
        page.wait_for_timeout(1000)
        page.locator("figure", has_text=name).first.screenshot(path=into)


def answer(app: Any) -> None:
    """Two people answer some questions, by what they find glad."""
    for name, least in (("Bea", 0), ("Cy", 1)):
        person = Person(app, name)
        for n in range(24):
            task = person.json("/label/helpful/next")["next"]
            a, b = (len(r) for r in task["responses"][:2])
            data = {"task": task["task"], "key": f"{name}-{n:08d}"}
            if task["kind"] == "rank":
                data["order"] = ",".join(map(str, range(len(task["responses"]))))
            else:
                data["choice"] = "tie" if abs(a - b) < 9 * least else "a2" if a < b else "b1"
            person.json("/label/helpful/save", data)
        person.post("/label/helpful/finish")


def watching(browser: Any, runs: Path, room: Path) -> None:
    name = max(runs.glob("*/evaluation.json"), key=lambda p: p.stat().st_mtime).parent.name
    store = LabelStore(room / "accounts.sqlite")
    app = make_app(store, Projects(lambda n: project_for(runs, n)), runs=runs)
    with serving(app) as url:
        page = browser.new_context(viewport=DESK).new_page()
        page.set_default_timeout(180_000)
        joins(page, app, url, "Root", "admin")
        page.goto(f"{url}/runs/{name}")
        page.locator("#now .main-svg").first.wait_for()
        page.locator("#samples .sample").first.wait_for()
        time.sleep(2)
        page.screenshot(
            path=HERE / "run.png", clip={"x": 0, "y": 0, "width": 1280, "height": 1400}, full_page=True
        )
        page.goto(f"{url}/runs/{name}/inspect")
        page.get_by_label("Prompt").fill("One day, Zoe had a red ball.")
        page.get_by_label("Answer").first.fill(
            "The ball was bright and full of joy. Zoe laughed and sang gladly."
        )
        page.get_by_label("Another").fill("The ball was bleak and full of fear. Zoe wept.")
        page.get_by_role("button", name="Score").click()
        page.locator("#found section").nth(1).wait_for()
        page.screenshot(path=HERE / "inspector.png", full_page=True)
        page.goto(f"{url}/runs/{name}/chat")
        page.get_by_label("Ask both").fill("One day, Zoe had a red ball.")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="A is better").wait_for()
        page.screenshot(path=HERE / "chat.png")


if __name__ == "__main__":
    main()
