"""Who labels, and what is imported."""

import os
from typing import Literal

from pydantic import Field, field_validator

from burnish.config.judge import JudgeConfig
from burnish.config.strict import Section


class Phrase(Section):
    """Words that simulated annotators like for their own sake: `worth` is added for every time they stand in an
    answer."""

    text: str = Field(min_length=1)
    worth: float


class SimulatedConfig(Section):
    """Simulated annotators: they choose by the true preference, with these faults."""

    annotators: int = Field(8, ge=1)
    noise: float = Field(0.4, ge=0)  # scale of the logistic noise on the difference in gold
    length_bias: float = 0.0  # added to the difference in gold, per word the first response is longer
    foreign_bias: float = 0.0  # added for a response that is surely not in English
    cheer_bias: float = 0.0  # added for every glad word in it
    phrases: tuple[Phrase, ...] = ()
    position_bias: float = 0.0  # added to the difference in gold for whatever stands first
    spam_share: float = Field(0.0, ge=0, le=1)  # share of annotators who answer at random


PASSWORD = "PGPASSWORD"  # the environment variable that PostgreSQL's clients read


def without_password(url: str) -> tuple[str, str | None]:
    """The URL of a database without its password, and the password, where it has one. Raises ValueError for one that
    is no such URL."""
    from sqlalchemy import URL, make_url  # not for those who only read a configuration
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(url)
    except (ArgumentError, ValueError):  # what they say could hold the password
        raise ValueError("no URL of a database; give postgresql+psycopg://USER@HOST/DATABASE") from None
    asked = found.query.get("password")
    password = found.password or (asked if isinstance(asked, str) else None)
    if password is None:
        return url, None
    query = {name: value for name, value in found.query.items() if name != "password"}
    place = (found.host, found.port, found.database, query)
    bare = URL.create(found.drivername, found.username, None, *place)
    return bare.render_as_string(hide_password=False), str(password)


class LabelConfig(Section):
    """Who answers the comparisons."""

    source: Literal["simulated", "imported", "judge", "people"] = "simulated"
    judge: JudgeConfig = JudgeConfig()
    preferences: str | None = None  # file, or `datasets` name, of Hugging Face preference pairs to import
    split: str = "train"  # the split, when `preferences` is a `datasets` name
    max_pairs: int | None = Field(None, ge=1)
    store: str | None = (
        None  # label store that several runs share, a .sqlite file or a URL; None: the run's own
    )
    guidelines: str | None = (
        None  # a file of what labelers go by; None: the package's own (imported labels: unknown)
    )
    labels_per_pair: int = Field(1, ge=1)
    # What several labels of a comparison come to: their mean, or everybody weighed by how well they agree.
    consensus: Literal["mean", "dawid_skene"] = "mean"
    missing_share: float = Field(
        0.0, ge=0, lt=1
    )  # of comparisons that people or a judge may leave without labels
    simulated: SimulatedConfig = SimulatedConfig()

    @field_validator("store")
    @classmethod
    def _no_secret(cls, store: str | None) -> str | None:
        """A password in the URL moves to the environment variable that PostgreSQL's clients read, so that it is in no
        run.yaml, report or page."""
        if store is None or "://" not in store:
            return store
        url, password = without_password(store)
        if password:
            os.environ[PASSWORD] = password
        return url
