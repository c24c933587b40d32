"""`burnish label serve` and `burnish serve`: pages in a browser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple
from urllib.parse import quote

import typer

from burnish.cli.options import store_place
from burnish.errors import ConfigError, DataError

if TYPE_CHECKING:
    from burnish.data.store import LabelStore, Place
    from burnish.web.accounts import Accounts
    from burnish.web.projects import Projects

HostOption = Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs TLS.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")]
CertificateOption = Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")]
TlsKeyOption = Annotated[Path | None, typer.Option("--key", help="Its private key, PEM.")]
ProxyOption = Annotated[
    bool, typer.Option("--behind-proxy", help="A proxy on this machine speaks TLS for this server.")
]
PublicOption = Annotated[
    str | None, typer.Option(help="Name by which browsers reach the page, if not the host's.")
]
AdminOption = Annotated[
    bool, typer.Option("--admin-link", help="Print a new invitation for an admin; good for one hour.")
]
HOUR = 3600.0


class Listening(NamedTuple):
    """Address, TLS and account options that both servers share."""

    host: str
    port: int
    certificate: Path | None
    key: Path | None
    behind_proxy: bool
    public: str | None
    admin_link: bool


def label_serve(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A label store, a run, a URL of PostgreSQL, or a file of questions (.jsonl, .jsonl.gz, .parquet), "
            "whose store is created beside it; default: labels.sqlite in this folder."
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Forty questions about stories, to try the page.")
    ] = False,
    each: Annotated[int, typer.Option(min=1, help="People per comparison.")] = 1,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of comparisons that are labelled by more people.")
    ] = 0.1,
    overlap_each: Annotated[int, typer.Option(min=1, help="People per comparison in that share.")] = 2,
    gold_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of gold questions among those asked.")
    ] = 0.05,
    practice: Annotated[
        int,
        typer.Option(min=0, help="Gold questions asked first; the right answer is shown after each."),
    ] = 5,
    least: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of practice to get right; with less, an admin must let you continue.",
        ),
    ] = 0.6,
    most: Annotated[int, typer.Option(min=2, max=4, help="Answers ranked at once, if all are compared.")] = 4,
    pay: Annotated[float, typer.Option(min=0.0, help="Dollars per answer.")] = 0.0,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars in total; no question is asked beyond that.")
    ] = None,
    only: Annotated[
        Path | None, typer.Option(help="Only comparisons in a `burnish label select` file.")
    ] = None,
    guidelines: Annotated[str | None, typer.Option(help="Guidelines for labelers, a Markdown file.")] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8300,
    certificate: CertificateOption = None,
    tls_key: TlsKeyOption = None,
    behind_proxy: ProxyOption = False,
    public: PublicOption = None,
    admin_link: AdminOption = False,
) -> None:
    """Label comparisons in a browser, blind: one at a time, or up to four answers ranked by keys.

    The first start prints the link by which you create your account; you invite others on the page.
    Needs no model.
    """
    from burnish.labels.tasks import Rules
    from burnish.web.accounts import open_accounts
    from burnish.web.projects import Project, Projects, project_name, selection

    place = _store(what, example)
    rules = Rules(
        each=each,
        overlap=overlap,
        overlap_each=max(overlap_each, each),
        gold_share=gold_share,
        practice=practice,
        least=least,
        most=most,
        pay=pay,
        budget=budget,
    )
    project = Project.open(project_name(place), place, rules, guidelines, selection(only))
    if not project.queue.progress()[1]:
        print("The store is empty: import questions on the dashboard, or start with a file.", file=sys.stderr)
    projects = Projects()
    projects.add(project)
    at = Listening(host, port, certificate, tls_key, behind_proxy, public, admin_link)
    _serve(open_accounts(place), projects, f"/label/{quote(project.name)}", at)


def serve_runs(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    host: HostOption = "127.0.0.1",
    port: PortOption = 8300,
    certificate: CertificateOption = None,
    tls_key: TlsKeyOption = None,
    behind_proxy: ProxyOption = False,
    public: PublicOption = None,
    admin_link: AdminOption = False,
) -> None:
    """Watch runs in a browser, and label what a run waits for.

    Shows live figures with alerts and decisions, samples, the reward inspector, SFT and champion side
    by side, and two runs compared. The first start prints the link by which you create your account.
    """
    from burnish.data.store import LabelStore
    from burnish.web.accounts import keep_private
    from burnish.web.projects import Projects
    from burnish.web.waiting import project_for, waiting_in

    if not runs.is_dir():
        raise ConfigError(f"{runs} is not a folder; pass the folder of your runs, usually runs")
    keep_private(runs / "accounts.sqlite")
    store = LabelStore(runs / "accounts.sqlite")
    projects = Projects(lambda name: project_for(runs, name), lambda: waiting_in(runs))
    at = Listening(host, port, certificate, tls_key, behind_proxy, public, admin_link)
    _serve(store, projects, "/runs", at, runs)


def _serve(store: LabelStore, projects: Projects, page: str, at: Listening, runs: Path | None = None) -> None:
    """Serve until Ctrl-C; `page` is the path that is printed to open first."""
    from burnish.web.app import make_app, serve

    https = at.certificate is not None or at.behind_proxy
    app = make_app(store, projects, runs=runs, public=at.public, host=at.host, https=https)
    serve(
        app,
        at.host,
        at.port,
        certificate=at.certificate,
        key=at.key,
        proxy=at.behind_proxy,
        public=at.public,
        on_ready=lambda url: _tell(app.state.desk.accounts, url, page, at.admin_link),
    )


def _tell(accounts: Accounts, url: str, page: str, admin_link: bool) -> None:
    print(f"The page is at {url}{page}", file=sys.stderr)
    if admin_link or not accounts.has_admin():
        token = accounts.invite("admin", "the command line", seconds=HOUR)
        print(f"Make your account (admin, one hour, once): {url}/join/{token}", file=sys.stderr)
    print("Ctrl-C stops it; all answers are saved.", file=sys.stderr)


def _store(what: str | None, example: bool) -> Place:
    """Return the label store to serve; create and fill it if needed."""
    from burnish.data.exchange import load_questions
    from burnish.data.store import LabelStore, is_url

    if example:
        from burnish.rehearse.examples import add_examples

        if what is not None:
            raise ConfigError(f"--example has questions of its own; leave {what} out, or --example")
        with LabelStore(Path("example.sqlite")) as store:
            add_examples(store)
        return Path("example.sqlite")
    if what is None:
        LabelStore(Path("labels.sqlite")).close()
        return Path("labels.sqlite")
    if is_url(what) or Path(what).is_dir() or what.endswith(".sqlite"):
        return store_place(what)
    file = Path(what)
    if not file.name.endswith((".jsonl", ".jsonl.gz", ".json", ".parquet")):
        raise DataError(
            f"{what} is not a store, run, URL or file of questions; pass a .sqlite, .jsonl, .jsonl.gz or .parquet file"
        )
    place = file.with_name(file.name.split(".")[0] + ".sqlite")
    with LabelStore(place) as store:
        report = load_questions(store, file)
    print(f"{file}: {json.dumps(report)}", file=sys.stderr)
    return place
