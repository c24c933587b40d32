"""A real browser at the labelling page: by keyboard alone, without an error, without a request elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from burnish.data.store import LabelStore
from burnish.labels.tasks import Rules
from burnish.rehearse.examples import FOURS, PAIRS, add_examples
from tests.web.desk import Person, Watched, comparisons, joins, opened, serving

pytestmark = pytest.mark.browser


def violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def following(page: Any, task: str) -> None:
    page.locator(f"#answer:not([data-task='{task}']), #task .empty").first.wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1360, "light"), (390, "dark")])
def test_thirty_pairs_and_ten_rankings_by_keyboard(
    tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    place = tmp_path / "example.sqlite"
    with LabelStore(place) as store:
        add_examples(store)
    app = opened(place, [], Rules(most=4, practice=2, least=0.0, gold_share=0.0))
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    with serving(app) as url:
        watched = Watched(context)
        page = watched.page
        joins(page, app, url, "Ada")
        seen = {"compare": 0, "rank": 0}
        looked: set[str] = set()
        while True:
            page.locator("#answer, #task .empty").first.wait_for()
            if page.locator("#task .empty").count():
                break
            task = page.get_attribute("#answer", "data-task")
            kind = page.get_attribute("#answer", "data-kind")
            if kind not in looked:
                looked.add(kind)
                assert violations(page) == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            if kind == "rank":
                for key in ("3", "=", "1", "Backspace", "2", "1", "4", "Enter"):
                    page.keyboard.press(key)
            else:
                page.keyboard.press("1234567b"[seen[kind] % 8])
            following(page, task)
            seen[kind] += 1
        page.get_by_role("button", name="Finish").click()
        page.get_by_text("Your answers are saved").wait_for()
        assert violations(page) == []
    assert seen == {"compare": PAIRS + 2, "rank": FOURS}
    assert watched.problems == []
    assert watched.hosts == {url.removeprefix("http://")}
    with LabelStore(place) as store:
        assert store.count()["labels"] == PAIRS + 6 * FOURS
        assert len(list(store.checks())) == 2
        assert all(label.seconds is not None for label in store.labels())


def test_a_save_that_meets_an_error_is_sent_again_until_it_is_kept(tmp_path: Path, browser: Any) -> None:
    place = tmp_path / "s.sqlite"
    app = opened(place, comparisons(3))
    with serving(app) as url:
        page = Watched(browser.new_context()).page
        joins(page, app, url, "Ada")
        task = page.get_attribute("#answer", "data-task")
        met: list[str] = []

        def meet(route: Any) -> None:
            met.append(route.request.post_data)
            if len(met) == 1:
                route.abort()
            elif len(met) == 2:
                route.fulfill(status=503, body="busy")
            elif len(met) == 3:
                route.fetch()  # it is carried out, and the reply is lost
                route.abort()
            else:
                route.continue_()

        page.route("**/save", meet)
        page.keyboard.press("1")
        following(page, task)
        assert len(met) == 4
        assert len(set(met)) == 1  # the same key, the same answer
        assert page.inner_text("[data-feedback]") == "Saved."
        assert page.inner_text("#notice") == ""
        page.get_by_role("button", name="Finish").click()
        page.get_by_text("Your answers are saved").wait_for()
    with LabelStore(place) as store:
        assert store.count()["labels"] == 1


def test_a_tab_with_an_unsaved_answer_asks_before_it_closes(tmp_path: Path, browser: Any) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(3))
    with serving(app) as url:
        page = Watched(browser.new_context()).page
        joins(page, app, url, "Ada")
        task = page.get_attribute("#answer", "data-task")
        page.route("**/save", lambda route: route.fulfill(status=503, body="busy"))
        page.keyboard.press("1")
        page.wait_for_function("document.querySelector('#notice').innerText !== ''")
        asked = []

        def stay(dialog: Any) -> None:
            asked.append(dialog.type)
            dialog.dismiss()

        page.on("dialog", stay)
        with page.expect_event("dialog"):
            page.close(run_before_unload=True)
        assert asked == ["beforeunload"]
        page.unroute("**/save")
        following(page, task)
        with page.expect_event("close"):
            page.close(run_before_unload=True)  # the answer is saved: the browser does not ask
        assert asked == ["beforeunload"]


def test_the_first_question_is_asked_for_until_it_is_there(tmp_path: Path, browser: Any) -> None:
    place = tmp_path / "s.sqlite"
    app = opened(place, comparisons(3))
    with serving(app) as url:
        page = Watched(browser.new_context()).page
        met: list[str] = []

        def meet(route: Any) -> None:
            met.append(route.request.url)
            if len(met) == 1:
                page.keyboard.type(
                    "skip b"
                )  # typed at a question that is not there yet: no answer to anything
                route.fulfill(status=503, body="busy")
            else:
                route.continue_()

        page.route("**/next", meet)
        joins(page, app, url, "Ada")
        page.locator("#answer").wait_for()
        assert len(met) == 2
        page.get_by_role("button", name="Finish").click()
        page.get_by_text("Your answers are saved").wait_for()
    with LabelStore(place) as store:
        assert store.count()["labels"] == 0


def test_reason_guidelines_undo_and_mouse(tmp_path: Path, browser: Any) -> None:
    place = tmp_path / "s.sqlite"
    app = opened(place, comparisons(3))
    with serving(app) as url:
        page = Watched(browser.new_context()).page
        joins(page, app, url, "Ada")
        page.locator("#answer").wait_for()
        assert page.locator("#guidelines[open]").count() == 1  # never seen before
        page.keyboard.press("g")
        assert page.locator("#guidelines[open]").count() == 0
        page.keyboard.press("r")
        page.keyboard.type("1 is better, u see")
        page.keyboard.press("Escape")
        task = page.get_attribute("#answer", "data-task")
        page.get_by_role("button", name="B is slightly better").click()
        following(page, task)
        page.keyboard.press("u")
        page.locator(f"#answer[data-task='{task}']").wait_for()
        page.get_by_role("button", name="They are equally good").click()
        following(page, task)
        page.reload()
        page.locator("#answer").wait_for()
        assert page.locator("#guidelines[open]").count() == 0
        page.get_by_role("button", name="Finish").click()
        page.get_by_text("Your answers are saved").wait_for()
    with LabelStore(place) as store:
        assert [label.preference for label in store.labels()] == [0.5]


def test_the_admins_pages_have_no_serious_violation_and_no_error(tmp_path: Path, browser: Any) -> None:
    app: FastAPI = opened(
        tmp_path / "s.sqlite", comparisons(8), Rules(each=2, practice=0, pay=0.1, budget=9.0)
    )
    for name in ("Ada", "Bob"):
        person = Person(app, name)
        while task := person.next():
            person.save(task["task"], "flag" if "prompt 7" in str(task["prompt"]) else "a1")
        person.post("/label/p/finish")
    with serving(app) as url:
        watched = Watched(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = watched.page
        joins(page, app, url, "Root", "admin")
        page.goto(f"{url}/dashboard/p")
        page.locator("#now .main-svg").first.wait_for()
        page.get_by_text("Krippendorff").wait_for()
        assert violations(page) == []
        with page.expect_download() as download:
            page.get_by_text("pairs of chosen").click()
        assert download.value.suggested_filename == "p-pairs.jsonl"
        page.goto(f"{url}/people")
        page.get_by_role("button", name="Make a link").click()
        assert "/join/" in page.get_by_label("Invitation link").input_value()
        assert violations(page) == []
        page.goto(f"{url}/guidelines/p")
        page.get_by_role("textbox").fill("# Be kind\n\nand <b>fair</b>.")
        page.get_by_role("button", name="Publish").click()
        page.get_by_text("Edition 2 is now shown to annotators").wait_for()
        assert "<b>fair</b>" in page.inner_text("article")
        assert violations(page) == []
        for path in ("/login", "/projects"):
            page.goto(url + path)
            assert violations(page) == []
    assert watched.problems == []
    assert watched.hosts == {url.removeprefix("http://")}
