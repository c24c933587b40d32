"""Mechanical Turk batches through the API.

HITs are made only once, even after an interruption. Assignments are fetched and approved, and
workers blocked. Everything goes to the sandbox unless the market is named.

Source: Amazon Mechanical Turk API reference (CreateHIT, ListHITs, ListAssignmentsForHIT,
ApproveAssignment, CreateWorkerBlock; HTMLQuestion and QuestionFormAnswers data structures; request
tokens) and its pricing page.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burnish.errors import ConfigError, DataError, RunError
from burnish.labels.items import Item, Returned
from burnish.labels.vendors import chosen
from burnish.records import content_id

SANDBOX = "https://mturk-requester-sandbox.us-east-1.amazonaws.com"
MARKET = "https://mturk-requester.us-east-1.amazonaws.com"
PREVIEW = {SANDBOX: "https://workersandbox.mturk.com", MARKET: "https://worker.mturk.com"}
QUESTION_SCHEMA = (
    "http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2011-11-11/HTMLQuestion.xsd"
)
APPROVED_SHARE = "000000000000000000L0"  # the market's qualification: percentage of assignments approved
FEE, FEE_OF_MANY, MANY, LEAST_FEE = (
    0.2,
    0.4,
    10,
    0.01,
)  # shares of the reward; assignments of a HIT from which the second applies; dollars
LARGEST = 65535  # bytes of a HIT's question
PAGE = 100  # results of one call
HITS = "hits.jsonl"
UNSPEAKABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")  # not allowed in XML


@dataclass(frozen=True)
class Job:
    """Terms that workers are offered.

    `reward` is in dollars. `workers` answer each item, in `minutes` at most. The item is offered
    for `days` and is paid without review after `approve_after_days`. `approved_share` is the
    percentage of a worker's earlier work that must have been approved (0: any worker).
    """

    reward: float
    workers: int = 3
    minutes: int = 30
    days: int = 7
    approve_after_days: int = 3
    approved_share: int = 95
    title: str = "Which of two answers is better?"
    description: str = "Read a request and two answers to it, and say which one is better."
    keywords: str = "comparison, text, reading, preference"

    def __post_init__(self) -> None:
        if abs(self.reward * 100 - round(self.reward * 100)) > 1e-9 or self.reward < 0.01:
            raise ConfigError(f"--reward {self.reward:g} is not possible: give whole cents, at least 0.01")

    @property
    def cost(self) -> float:
        """Dollars for one assignment, including the market's fee."""
        share = FEE_OF_MANY if self.workers >= MANY else FEE
        return self.reward + max(LEAST_FEE, share * self.reward)


def open_client(endpoint: str) -> Any:
    """Open a client of the API; raise ConfigError if boto3 or credentials are missing."""
    try:
        import boto3
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError
    except ImportError:
        raise ConfigError(
            "Mechanical Turk's API needs boto3; install it with `pip install 'burnish[mturk]'`"
        ) from None
    client = boto3.client("mturk", region_name="us-east-1", endpoint_url=endpoint)
    try:
        client.get_account_balance()
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(
            f"{endpoint} needs credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    return client


class Requester:
    """Batch in its folder (`key.jsonl`, `template.html`) and on the market.

    `hits.jsonl` has a line before a HIT is requested and one when it exists. After an interruption
    in between, the market is searched for the HIT.
    """

    def __init__(self, client: Any, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.endpoint = str(client.meta.endpoint_url)
        self.hits: dict[str, dict[str, Any]] = {}  # by item
        self.unsure: set[str] = set()  # requested items whose HIT is not known to exist
        key = (folder / "key.jsonl").read_bytes()
        self.batch = hashlib.sha256(key).hexdigest()[:16]  # identifies its HITs on the market
        self._read()

    def _read(self) -> None:
        path = self.folder / HITS
        if not path.exists():
            return
        whole = path.read_text(encoding="utf-8")
        if whole and not whole.endswith("\n"):  # the last line is incomplete; `_adopt` looks for its HIT
            path.write_text(whole[: whole.rfind("\n") + 1], encoding="utf-8")
        for line in whole.split("\n")[:-1]:
            row = json.loads(line)
            if row["endpoint"] != self.endpoint:
                raise RunError(
                    f"{self.folder} was sent to {row['endpoint']}, not to {self.endpoint}; use --live only if the "
                    "batch was sent with it"
                )
            if "hit" in row:
                self.hits[row["item"]] = row
                self.unsure.discard(row["item"])
            else:
                self.unsure.add(row["item"])

    def _write(self, row: Mapping[str, Any]) -> None:
        with (self.folder / HITS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"endpoint": self.endpoint, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def send(self, items: Sequence[Item], job: Job, budget: float, on_progress: Callable[[int], None]) -> int:
        """Make a HIT of every item that has none and return the number of new ones.

        Raises ConfigError if the batch may cost more than `budget` dollars or than the account has.
        Raises DataError for an item whose page is too large.
        """
        template = (self.folder / "template.html").read_text(encoding="utf-8")
        for item in items:
            size = len(question(item, template).encode())
            if size > LARGEST:
                raise DataError(
                    f"item {item.id} makes a page of {size} bytes; the market takes {LARGEST}: leave it out"
                )
        self._adopt()
        wanted = [item for item in items if item.id not in self.hits]
        committed = sum(row["cost"] * row["workers"] for row in self.hits.values())
        needed = len(wanted) * job.workers * job.cost
        if committed + needed > budget + 1e-9:
            raise ConfigError(
                f"{len(wanted)} items for {job.workers} workers at {job.cost:.3f} dollars with the fee come to "
                f"{needed:.2f}, together with earlier HITs to {committed + needed:.2f}: more than --budget "
                f"{budget:g}; export fewer, or raise it"
            )
        left = float(self.client.get_account_balance()["AvailableBalance"])
        if needed > left:
            raise ConfigError(
                f"the account has {left:.2f} dollars, {needed:.2f} are needed; prepay, or export fewer"
            )
        for number, item in enumerate(wanted, 1):
            self._write({"item": item.id})
            self._keep(item.id, self.client.create_hit(**self._request(item, job, template))["HIT"], job)
            on_progress(number)
        return len(wanted)

    def _request(self, item: Item, job: Job, template: str) -> dict[str, Any]:
        day = 86400
        request = {
            "MaxAssignments": job.workers,
            "AutoApprovalDelayInSeconds": job.approve_after_days * day,
            "LifetimeInSeconds": job.days * day,
            "AssignmentDurationInSeconds": job.minutes * 60,
            "Reward": f"{job.reward:.2f}",
            "Title": job.title,
            "Keywords": job.keywords,
            "Description": job.description,
            "Question": question(item, template),
            "RequesterAnnotation": self._annotation(item.id),
            "UniqueRequestToken": content_id("hit", self._annotation(item.id), self.endpoint),
        }
        if job.approved_share:
            request["QualificationRequirements"] = [
                {
                    "QualificationTypeId": APPROVED_SHARE,
                    "Comparator": "GreaterThanOrEqualTo",
                    "IntegerValues": [job.approved_share],
                }
            ]
        return request

    def _annotation(self, item: str) -> str:
        return f"burnish:{self.batch}:{item}"

    def _keep(self, item: str, hit: Mapping[str, Any], job: Job) -> None:
        row = {
            "item": item,
            "hit": hit["HITId"],
            "type": hit.get("HITTypeId"),
            "cost": job.cost,
            "workers": job.workers,
        }
        self._write(row)
        self.hits[item] = {"endpoint": self.endpoint, **row}
        self.unsure.discard(item)

    def _adopt(self) -> None:
        """Find HITs on the market that were requested before an interruption."""
        if not self.unsure:
            return
        ours = {self._annotation(item): item for item in self.unsure}
        for hit in self._pages("list_hits", "HITs"):
            item = ours.get(hit.get("RequesterAnnotation", ""))
            if item is not None:
                reward, workers = float(hit.get("Reward", 0)), int(hit.get("MaxAssignments", 1))
                self._keep(item, hit, Job(reward, workers))

    def _pages(self, call: str, what: str, **given: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = getattr(self.client, call)(MaxResults=PAGE, **given, **token)
            yield from page[what]
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def assignments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (item, assignment) of all submitted work; raise RunError if nothing was sent."""
        if not self.hits:
            raise RunError(f"{self.folder} has not been sent; run `burnish label mturk send`")
        for item, row in self.hits.items():
            for found in self._pages("list_assignments_for_hit", "Assignments", HITId=row["hit"]):
                yield item, found

    def returned(self) -> list[Returned]:
        """Return the workers' answers."""
        return [_returned(item, a, self.hits[item]["cost"]) for item, a in self.assignments()]

    def approve(self, except_of: Sequence[str] = ()) -> dict[str, int]:
        """Approve submitted work, except that of the workers in `except_of`.

        Their work is left for a person to decide; the market pays it automatically after its delay.
        """
        counts = {"approved": 0, "left": 0, "decided_before": 0}
        for _, assignment in list(self.assignments()):
            if assignment["AssignmentStatus"] != "Submitted":
                counts["decided_before"] += 1
            elif assignment["WorkerId"] in except_of:
                counts["left"] += 1
            else:
                self.client.approve_assignment(AssignmentId=assignment["AssignmentId"])
                counts["approved"] += 1
        return counts

    def block(self, worker: str, reason: str) -> None:
        """Block a worker from all work of this account; too many blocks count against the account."""
        self.client.create_worker_block(WorkerId=worker, Reason=reason)


@contextmanager
def market_errors() -> Iterator[None]:
    """Turn an error of the market into one clear message; earlier HITs stay in hits.jsonl."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise RunError(
            f"the request to the market failed ({error}); earlier work is kept: fix this and run the same command again"
        ) from error


def question(item: Item, template: str) -> str:
    """Return the XML of a HIT's page with its variables filled in; markup in an answer is escaped."""
    page = template
    for name, value in item.shown.items():
        page = page.replace(f"${{{name}}}", html.escape(value).replace("\n", "<br>").replace("$", "&#36;"))
    page = UNSPEAKABLE.sub(" ", page)
    whole = f"<!DOCTYPE html><html><head><meta charset='utf-8'></head><body>{page}</body></html>"
    inside = whole.replace("]]>", "]]]]><![CDATA[>")  # keeps an answer from ending the section early
    return (
        f'<HTMLQuestion xmlns="{QUESTION_SCHEMA}"><HTMLContent><![CDATA[{inside}]]></HTMLContent>'
        "<FrameHeight>0</FrameHeight></HTMLQuestion>"
    )


def answers(xml: str) -> dict[str, str]:
    """Return the fields of a QuestionFormAnswers document; raise DataError if it is not XML."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise DataError(f"an assignment's answer is not XML ({error}); check it on Mechanical Turk") from None
    found = {}
    for answer in root.iter():
        if answer.tag.rpartition("}")[2] == "Answer":
            parts = {child.tag.rpartition("}")[2]: child.text or "" for child in answer}
            found[parts.get("QuestionIdentifier", "")] = parts.get("FreeText", "")
    return found


def _returned(item: str, assignment: Mapping[str, Any], cost: float) -> Returned:
    began, ended = assignment.get("AcceptTime"), assignment.get("SubmitTime")
    seconds = (ended - began).total_seconds() if began is not None and ended is not None else None
    return Returned(
        item,
        assignment["WorkerId"],
        chosen(answers(assignment["Answer"])),
        seconds,
        cost,
        "rejected" if assignment["AssignmentStatus"] == "Rejected" else None,
        None if ended is None else ended.isoformat(timespec="seconds"),
    )


def as_json(rows: Sequence[Returned]) -> str:
    """Return answers as JSON lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
