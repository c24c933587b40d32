"""Section `label`: the source of preference labels."""

import os
from typing import Literal

from pydantic import Field, field_validator

from burnish.config.judge import JudgeConfig
from burnish.config.strict import Section


class Phrase(Section):
    """A phrase that simulated annotators like for its own sake."""

    text: str = Field(min_length=1, description="The phrase.")
    worth: float = Field(description="Added to the gold score for every time the phrase is in a response.")


class SimulatedConfig(Section):
    """Simulated annotators of the rehearsal: they compare gold scores, with these faults."""

    annotators: int = Field(8, ge=1, description="Number of annotators.")
    noise: float = Field(
        0.4, ge=0, description="Scale of the logistic noise on the difference in gold score."
    )
    length_bias: float = Field(0.0, description="Added per word by which the first response is longer.")
    foreign_bias: float = Field(0.0, description="Added for a response that is surely not in English.")
    cheer_bias: float = Field(0.0, description="Added for every cheerful word of a response.")
    phrases: tuple[Phrase, ...] = Field((), description="Phrases that annotators like for their own sake.")
    position_bias: float = Field(0.0, description="Added for the response that is shown first.")
    spam_share: float = Field(0.0, ge=0, le=1, description="Share of annotators who answer at random.")


PASSWORD = "PGPASSWORD"  # the environment variable that PostgreSQL's clients read


def without_password(url: str) -> tuple[str, str | None]:
    """Split the password, if there is one, from the URL of a database; raise ValueError for another URL."""
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
    """Source of the labels, and how labels of one comparison are combined."""

    source: Literal["simulated", "imported", "judge", "people"] = Field(
        "simulated",
        description="simulated (rehearsal only), imported (the pairs of `preferences`), judge (an AI judge), or "
        "people (the labelling page or a vendor).",
    )
    judge: JudgeConfig = JudgeConfig()
    preferences: str | None = Field(
        None,
        description="Preference pairs or rankings to import: a file, or a name for `datasets`, in a Hugging Face "
        "format.",
    )
    split: str = Field("train", description="Split to import where `preferences` is a `datasets` name.")
    max_pairs: int | None = Field(None, ge=1, description="Imported pairs at most; null imports all.")
    store: str | None = Field(
        None,
        description="Label store that several runs share: a .sqlite file or a PostgreSQL URL; null: the run's own.",
    )
    guidelines: str | None = Field(
        None,
        description="File with the annotator guidelines, shown to people and judges; null: the package's own "
        "(unknown for imported labels).",
    )
    labels_per_pair: int = Field(
        1,
        ge=1,
        description="Labels per comparison, by simulated annotators or people. More show disagreement and "
        "cost as much more.",
    )
    consensus: Literal["mean", "dawid_skene"] = Field(
        "mean",
        description="How labels of one comparison are combined: their mean, or weighted by each annotator's "
        "estimated accuracy (Dawid and Skene 1979). Use dawid_skene where annotators differ in quality.",
    )
    max_unlabelled_share: float = Field(
        0.0, ge=0, lt=1, description="Share of comparisons that people or a judge may leave without a label."
    )
    simulated: SimulatedConfig = SimulatedConfig()

    @field_validator("store")
    @classmethod
    def _no_secret(cls, store: str | None) -> str | None:
        """Move a password in the URL to the environment variable that PostgreSQL's clients read.

        It is then in no run.yaml, report or page.
        """
        if store is None or "://" not in store:
            return store
        url, password = without_password(store)
        if password:
            os.environ[PASSWORD] = password
        return url
