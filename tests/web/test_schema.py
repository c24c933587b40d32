"""Requests made up from the interface's own description, right ones and wrong ones: every one is answered in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from burnish.data.store import LabelStore
from burnish.labels.tasks import Rules
from burnish.web.app import make_app
from burnish.web.app_state import LIMITS, session_cookie
from burnish.web.models import ModelRoom
from burnish.web.projects import Project, Projects
from tests.web.desk import accounts, comparisons, made, serving

EXAMPLES = 12  # of each operation and mode


@pytest.mark.slow("pages")
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_nothing_that_can_be_sent_ends_in_an_error_of_ours(
    tmp_path: Path, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    import schemathesis
    from schemathesis import GenerationMode

    said = {"sft": "one", "ppo": "two"}
    monkeypatch.setattr(
        ModelRoom, "ask", lambda self, what, *given: said if what.__name__ == "both" else {"answers": []}
    )
    monkeypatch.setattr("burnish.web.app_state.LIMITS", {n: type(i)(10**6) for n, i in LIMITS.items()})
    place = tmp_path / "p.sqlite"
    with LabelStore(place) as store:
        store.add_comparisons(comparisons(200))
    projects = Projects()
    project = Project.open("p", place, Rules(practice=0))
    projects.add(project)
    (tmp_path / "runs").mkdir()
    app = make_app(project.store, projects, runs=tmp_path / "runs")
    told = accounts(app)
    made(app, "Spare", "admin")  # so that whoever asks may be shut out, and asks on with a fresh account
    statuses: dict[int, int] = {}
    with serving(app) as url:

        def session(number: int) -> tuple[requests.Session, dict[str, str]]:
            token = told.enter(made(app, f"Root{number}", "admin"))
            http = requests.Session()
            http.cookies.set(session_cookie(told), token)
            return http, {"x-csrf-token": told.signature(token)}

        people = iter(range(10**6))
        http, headers = session(next(people))

        def try_out(operation: Any) -> None:
            mode = GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def tried(case: Any) -> None:
                nonlocal http, headers
                case.path_parameters = {
                    k: "p" if k == "name" and not wrong else v
                    for k, v in (case.path_parameters or {}).items()
                }
                try:
                    reply = case.call(
                        base_url=url, session=http, headers=headers, allow_redirects=False, timeout=300
                    )
                except (requests.exceptions.InvalidHeader, UnicodeError):
                    return  # what cannot be sent at all
                statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
                assert reply.status_code < 500, (case.method, case.path, case.body, case.query, reply.text)
                assert "content-security-policy" in {k.lower() for k in reply.headers}
                if reply.status_code == 401 or case.path == "/logout":
                    http, headers = session(next(people))

            try:
                tried()
            except Unsatisfiable:  # it takes nothing, and nothing can be wrong with it
                assert wrong

        try:
            schema = schemathesis.openapi.from_dict(app.openapi())
            operations = [found.ok() for found in schema.get_all_operations()]
            assert len(operations) > 25
            for operation in operations:
                try_out(operation)
        finally:
            http.close()
    assert statuses.get(200, 0) > 20 or wrong
    assert sum(statuses.values()) > 100
    assert any(code in statuses for code in (404, 422, 403))
