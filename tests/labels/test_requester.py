"""Mechanical Turk's API against recorded answers: nothing is offered twice, budgets hold, answers are read, work is
approved."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from burnish.commands.label_mturk import approve, block, fetch, requester, send
from burnish.commands.label_vendors import export_batch
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError, RunError
from burnish.labels.items import Item, read_key
from burnish.labels.mturk import MARKET, SANDBOX, Job, Requester, answers, chosen, question
from burnish.records import Comparison, Prompt, Response

BEGAN = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
JOB = Job(reward=0.1, workers=2)
SCHEMA = "http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2005-10-01/QuestionFormAnswers.xsd"


def client(endpoint: str = SANDBOX) -> Any:
    return boto3.client(
        "mturk",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


@pytest.fixture
def batch(tmp_path: Path) -> tuple[Path, Path]:
    """A store of five comparisons, the first answer of each the better, and its batch with four gold questions."""
    store, folder, gold = tmp_path / "l.sqlite", tmp_path / "batch", tmp_path / "gold.jsonl"
    with LabelStore(store) as labels:
        labels.add_comparisons(
            Comparison(Prompt(f"q{i}"), Response(f"good {i} <b>"), Response(f"bad {i} $& ]]>"))
            for i in range(5)
        )
    gold.write_text(
        "".join(
            json.dumps({"prompt": f"g{i}", "chosen": "right", "rejected": "wrong"}) + "\n" for i in range(4)
        )
    )
    export_batch(
        store,
        folder,
        "mturk",
        n=None,
        only=None,
        redundancy=2,
        gold=gold,
        gold_share=0.44,
        guidelines=None,
        seed=0,
    )
    return store, folder


def stub_sending(stub: Stubber, n: int, balance: str = "100.00", first: int = 0) -> None:
    stub.add_response("get_account_balance", {"AvailableBalance": balance}, {})
    for i in range(first, first + n):
        request = {
            "MaxAssignments": 2,
            "AutoApprovalDelayInSeconds": 259200,
            "LifetimeInSeconds": 604800,
            "AssignmentDurationInSeconds": 1800,
            "Reward": "0.10",
            **dict.fromkeys(("Title", "Keywords", "Description", "Question", "RequesterAnnotation"), ANY),
            **dict.fromkeys(("UniqueRequestToken", "QualificationRequirements"), ANY),
        }
        stub.add_response("create_hit", {"HIT": {"HITId": f"hit{i}", "HITTypeId": "type"}}, request)


def sent(folder: Path) -> Requester:
    api = client()
    with Stubber(api) as stub:
        stub_sending(stub, 9)
        told = send(Requester(api, folder), JOB, 10.0, lambda n: None)
        stub.assert_no_pending_responses()
    assert (told["new"], told["hits"], told["seen_at"]) == (9, 9, "https://workersandbox.mturk.com")
    assert told["at_most"] == pytest.approx(9 * 2 * 0.12)
    return Requester(client(), folder)


def test_a_batch_is_offered_once(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    assert len(sent(folder).hits) == 9
    api = client()
    with Stubber(api) as stub:
        stub.add_response("get_account_balance", {"AvailableBalance": "0.00"}, {})
        assert send(Requester(api, folder), JOB, 10.0, lambda n: None)["new"] == 0


def test_who_was_stopped_after_asking_finds_what_was_made(batch: tuple[Path, Path]) -> None:
    """Killed between the answer of the market and the line that keeps it, and once before the market heard of it."""
    _, folder = batch
    api = client()
    made: list[dict[str, Any]] = []

    class Stopped(Exception):
        pass

    class Killed(Requester):
        def _keep(self, item: str, hit: Any, job: Job) -> None:
            made.append({"item": item, "annotation": self._annotation(item)})
            if len(made) == 3:
                raise Stopped
            super()._keep(item, hit, job)

    with Stubber(api) as stub:
        stub_sending(stub, 3)
        with pytest.raises(Stopped):
            send(Killed(api, folder), JOB, 10.0, lambda n: None)
    lost = Requester(client(), folder)
    assert (len(lost.hits), lost.unsure) == (2, {made[2]["item"]})
    waiting = next(i for i in read_key(folder / "key.jsonl")[0] if i not in {*lost.hits, *lost.unsure})
    lost._write({"item": waiting})  # asked for, but never heard
    api = client()
    with Stubber(api) as stub:
        stub.add_response(
            "list_hits", {"HITs": [{"HITId": "foreign"}], "NextToken": "more"}, {"MaxResults": 100}
        )
        found = {
            "HITId": "hit2",
            "RequesterAnnotation": made[2]["annotation"],
            "Reward": "0.10",
            "MaxAssignments": 2,
        }
        stub.add_response("list_hits", {"HITs": [found]}, {"MaxResults": 100, "NextToken": "more"})
        stub_sending(stub, 6, first=3)
        told = send(Requester(api, folder), JOB, 10.0, lambda n: None)
        stub.assert_no_pending_responses()
    assert (told["new"], told["hits"]) == (6, 9)
    hits = Requester(client(), folder).hits
    assert hits[made[2]["item"]]["hit"] == "hit2"
    assert len({row["hit"] for row in hits.values()}) == 9


def test_neither_the_budget_nor_the_account_is_overrun(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    with pytest.raises(
        ConfigError, match=r"9 items for 2 workers at 0.120 dollars with the fee come to 2.16, together"
    ):
        send(Requester(client(), folder), JOB, 2.15, lambda n: None)
    api = client()
    with Stubber(api) as stub:
        stub.add_response("get_account_balance", {"AvailableBalance": "2.00"}, {})
        with pytest.raises(ConfigError, match=r"the account has 2.00 dollars, 2.16 are needed"):
            send(Requester(api, folder), JOB, 10.0, lambda n: None)
    assert not (folder / "hits.jsonl").exists()
    sent(folder)
    lines = (folder / "hits.jsonl").read_text().splitlines(keepends=True)
    (folder / "hits.jsonl").write_text("".join(lines[:-2]))  # the last item has still to be offered
    with pytest.raises(
        ConfigError, match=r"1 items for 2 .* come to 0.24, together with earlier HITs to 2.16: more"
    ):
        send(Requester(client(), folder), JOB, 2.0, lambda n: None)


def test_a_line_that_was_cut_off_is_asked_about_again(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    made = sent(folder)
    whole = (folder / "hits.jsonl").read_text()
    (folder / "hits.jsonl").write_text(whole[:-20])
    found = Requester(client(), folder)
    assert len(found.hits) == 8
    assert found.unsure == set(made.hits) - set(found.hits)


def test_what_the_market_refuses_is_said_and_what_it_made_is_kept(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    api = client()
    with Stubber(api) as stub:
        stub_sending(stub, 2)
        stub.add_client_error("create_hit", "RequestError", "No more today")
        with pytest.raises(RunError, match=r"No more today.*earlier work is kept"):
            send(Requester(api, folder), JOB, 10.0, lambda n: None)
    found = Requester(client(), folder)
    assert (len(found.hits), len(found.unsure)) == (2, 1)


def test_a_page_that_is_too_large_is_said_before_anything_is_paid(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    (folder / "template.html").write_text("x" * 70000)
    with pytest.raises(DataError, match="the market takes 65535"):
        send(Requester(client(), folder), JOB, 10.0, lambda n: None)


def test_fees() -> None:
    assert Job(0.5, 3).cost == pytest.approx(0.6)
    assert Job(0.5, 10).cost == pytest.approx(0.7)
    assert Job(0.02, 3).cost == pytest.approx(0.03), "a cent at least"
    for reward in (0.016, 0.0, -1.0):
        with pytest.raises(ConfigError, match="whole cents"):
            Job(reward)


def test_the_sandbox_and_the_market_are_not_mixed_up(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    sent(folder)
    with pytest.raises(RunError, match="was sent to https://mturk-requester-sandbox"):
        Requester(client(MARKET), folder)


def form(**fields: str) -> str:
    inside = "".join(
        f"<Answer><QuestionIdentifier>{k}</QuestionIdentifier><FreeText>{v}</FreeText></Answer>"
        for k, v in fields.items()
    )
    return f'<?xml version="1.0" encoding="ASCII"?><QuestionFormAnswers xmlns="{SCHEMA}">{inside}</QuestionFormAnswers>'


def stub_assignments(stub: Stubber, made: Requester, rounds: int = 1) -> None:
    """Two workers: one who is right, one who always says A; the first answers through the page's own JSON."""
    items, _ = read_key(made.folder / "key.jsonl")
    for _ in range(rounds):
        for number, (item, row) in enumerate(made.hits.items()):
            right = items[item].expected or ("b" if items[item].swapped else "a")
            page = json.dumps([{"choice": {c: c == right for c in ("a", "b", "tie", "skip")}}])
            found = [
                {
                    "AssignmentId": f"{worker}-{number}",
                    "WorkerId": worker,
                    "HITId": row["hit"],
                    "AssignmentStatus": "Approved" if worker == "good" and number == 0 else "Submitted",
                    "AcceptTime": BEGAN,
                    "SubmitTime": BEGAN + timedelta(seconds=30),
                    "Answer": answer,
                }
                for worker, answer in (("good", form(taskAnswers=page)), ("side", form(choice="a")))
            ]
            asked = {"HITId": row["hit"], "MaxResults": 100}
            stub.add_response("list_assignments_for_hit", {"Assignments": found[:1], "NextToken": "t"}, asked)
            stub.add_response(
                "list_assignments_for_hit", {"Assignments": found[1:]}, {**asked, "NextToken": "t"}
            )


def test_answers_become_labels_and_gold_questions_tell_who_gives_them(batch: tuple[Path, Path]) -> None:
    store, folder = batch
    made = sent(folder)
    with Stubber(made.client) as stub:
        stub_assignments(stub, made)
        told = fetch(made, store, 0.7)
        stub.assert_no_pending_responses()
    assert (told["rows"], told["labels"], told["new_labels"]) == (18, 5, 5)
    assert told["rejected"] == {"worker fails gold questions": 9}
    assert told["cost"] == pytest.approx(18 * 0.12)
    with LabelStore(store) as labels:
        given = list(labels.labels())
        assert {label.annotator for label in given} == {"mturk:good"}
        assert [label.preference for label in given] == [1.0] * 5
        assert {(label.seconds, round(label.cost, 6), label.at) for label in given} == {
            (30.0, 0.12, "2026-11-26T12:00:30+00:00")
        }
        assert len({label.swapped for label in given}) == 2
        checks = list(labels.checks())
        assert len(list(labels.gold())) == 4
        right = {
            who: sum(c.preference for c in checks if c.annotator == f"mturk:{who}")
            for who in ("good", "side")
        }
        assert right == {"good": 4.0, "side": 2.0}
    assert len((folder / "results.jsonl").read_text().splitlines()) == 18
    again = Requester(client(), folder)
    with Stubber(again.client) as stub:
        stub_assignments(stub, again)
        assert fetch(again, store, 0.7)["new_labels"] == 0


def test_work_is_approved_but_for_who_fails(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    made = sent(folder)
    with Stubber(made.client) as stub:
        stub_assignments(stub, made, rounds=2)
        for number in range(1, 9):
            stub.add_response("approve_assignment", {}, {"AssignmentId": f"good-{number}"})
        told = approve(made, 0.7)
        stub.assert_no_pending_responses()
    assert told == {"approved": 8, "left": 9, "decided_before": 1, "failing": ["side"]}


def test_a_worker_of_the_batch_can_be_blocked_and_nobody_else(batch: tuple[Path, Path]) -> None:
    _, folder = batch
    made = sent(folder)
    with pytest.raises(ConfigError, match="--reason is empty"):
        block(made, "side", " ")
    with Stubber(made.client) as stub:
        stub_assignments(stub, made, rounds=2)
        with pytest.raises(ConfigError, match="nosuch has answered nothing"):
            block(made, "nosuch", "always A")
        stub.add_response("create_worker_block", {}, {"WorkerId": "side", "Reason": "always A"})
        assert block(made, "side", "always A") == {"blocked": "side"}
        stub.assert_no_pending_responses()


def test_what_is_no_batch_or_has_not_been_sent_is_said(batch: tuple[Path, Path], tmp_path: Path) -> None:
    store, folder = batch
    with pytest.raises(DataError, match="is no batch for Mechanical Turk"):
        requester(tmp_path, False, client())
    with pytest.raises(RunError, match="has not been sent"):
        fetch(requester(folder, False, client()), store, 0.7)


def test_a_page_keeps_markup_as_text_and_cannot_end_its_section() -> None:
    item = Item("i", "a <i> ${answer_a} ]]>", "<script>x</script>", "line\nline", None, False)
    template = "<p>${prompt}</p><p>${answer_a}</p><p>${answer_b}</p>"
    xml = question(item, template)
    content = ElementTree.fromstring(xml)[0].text
    assert content is not None
    assert "<script>" not in content
    assert "<p>a &lt;i&gt; &#36;{answer_a} ]]&gt;</p>" in content
    assert "<p>&lt;script&gt;x&lt;/script&gt;</p><p>line<br>line</p>" in content
    assert ElementTree.fromstring(question(Item("i", "a\x01b", "x", "y", None, False), template))[0].text
    assert ElementTree.fromstring(question(item, template + "]]>"))[0].text == content.replace(
        "</p></body>", "</p>]]></body>"
    )


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"choice": "b"}, "b"),
        ({"choice.a": "false", "choice.tie": "true"}, "tie"),
        ({"taskAnswers": '[{"choice": "skip"}]'}, "skip"),
        ({"taskAnswers": '[{"choice": {"a": true, "b": true}}]'}, None),
        ({"taskAnswers": "no json"}, None),
        ({"taskAnswers": "[3]"}, None),
        ({"choice": "c"}, None),
        ({}, None),
    ],
)
def test_choices_are_read_or_not(fields: dict[str, str], choice: str | None) -> None:
    assert chosen(answers(form(**fields))) == choice


def test_an_answer_that_is_no_xml_is_said() -> None:
    with pytest.raises(DataError, match="is not XML"):
        answers("<oops")
