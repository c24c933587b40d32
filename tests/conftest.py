"""Fixtures every test may use. One thread a worker: two spinning ones would slow each other down."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Studies have planted judges that tests use too.
sys.path.append(str(Path(__file__).parents[1] / "experiments"))

# The process that hands tests to workers imports this file too: what takes seconds to import, fixtures import.
import pytest
from hypothesis import settings

from tests.browsers import CHROMIUM, chromium
from tests.databases import server, server_programs

if TYPE_CHECKING:
    from burnish.data.store import LabelStore, Place
    from burnish.models.backbone import Backbone
    from burnish.models.load import Codec
    from burnish.records import Prompt

pytest_plugins = ["tests.leftovers", "tests.selection"]

# The same examples on every machine, however slow it is.
settings.register_profile("burnish", deadline=None, derandomize=True)
settings.load_profile("burnish")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes new databases of one server."""
    programs = server_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's server (Debian: apt-get install postgresql)")
    from sqlalchemy import create_engine, text

    from tests.leftovers import keep_children  # a plugin: pytest must load it first

    number = count()
    with server(programs) as url:
        keep_children()
        admin = create_engine(url.format(database="postgres"), isolation_level="AUTOCOMMIT")

        def new() -> str:
            name = f"labels{next(number)}"
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            return url.format(database=name)

        yield new
        admin.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium, which is not here")
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new label store is to be: a file, and a database of PostgreSQL."""
    if request.param == "sqlite":
        return tmp_path / "labels.sqlite"
    new: Callable[[], str] = request.getfixturevalue("postgres")
    return new()


@pytest.fixture
def store(place: Place) -> Iterator[LabelStore]:
    """A new label store, in a file and on PostgreSQL."""
    from burnish.data.store import LabelStore

    with LabelStore(place) as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny() -> tuple[object, Codec]:
    """The embedded model and its codec; never trained in place (tops copy or freeze it)."""
    from burnish.config.model import ModelConfig
    from burnish.models.load import load_model

    return load_model(ModelConfig())


@pytest.fixture(scope="session")
def codec(tiny: tuple[object, Codec]) -> Codec:
    return tiny[1]


@pytest.fixture(scope="session")
def base(tiny: tuple[object, Codec]) -> Backbone:
    from burnish.models.backbone import Backbone

    return Backbone(tiny[0])


@pytest.fixture(scope="session")
def short_run() -> Path:
    """examples/short.yaml, carried out by a process of its own; to read, not to write to."""
    from tests.shared_run import shared_run

    return shared_run()


@pytest.fixture
def run_copy(short_run: Path, tmp_path: Path) -> Path:
    """A copy of the short run, to write to."""
    return Path(shutil.copytree(short_run, tmp_path / "copy"))


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Prompts of mixed length."""
    from burnish.rehearse.grammar import prompts

    return prompts(64, seed=7)
