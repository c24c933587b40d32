"""`burnish label mturk ...`: batches on Mechanical Turk's API; in the sandbox unless --live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import JsonOption, print_report, store_place

app = typer.Typer(
    no_args_is_help=True,
    help="A batch of `burnish label export --vendor mturk` on Mechanical Turk, through its API. Needs burnish[mturk].",
)

FolderArg = Annotated[Path, typer.Argument(help="The folder that `burnish label export` wrote.")]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Use the real market, which costs money; default: the sandbox.")
]
GoldOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of gold questions that a worker must get right.")
]


@app.command()
def send(
    folder: FolderArg,
    reward: Annotated[float, typer.Option(min=0.01, help="Dollars per answer, without the market's fee.")],
    budget: Annotated[float, typer.Option(min=0.0, help="Dollars at most, fees included.")],
    workers: Annotated[int, typer.Option(min=1, help="Workers who answer each item.")] = 3,
    minutes: Annotated[int, typer.Option(min=1, help="Minutes for one answer.")] = 30,
    days: Annotated[int, typer.Option(min=1, help="Days for which items are offered.")] = 7,
    approved_share: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Percentage of a worker's work that must have been approved; 0: any."
        ),
    ] = 95,
    live: LiveOption = False,
    as_json: JsonOption = False,
) -> None:
    """Offer every item of a batch to workers; given again, offer only what is missing."""
    from burnish.commands.label_mturk import requester, send as send_batch
    from burnish.labels.mturk import Job

    job = Job(reward, workers, minutes, days, approved_share=approved_share)

    def on_progress(number: int) -> None:
        if number % 50 == 0:
            print(f"{number} offered", file=sys.stderr)

    print_report(send_batch(requester(folder, live), job, budget, on_progress), as_json)


@app.command()
def fetch(
    store: Annotated[
        str, typer.Argument(help="The label store that the batch came from: a file, a run, or a URL.")
    ],
    folder: FolderArg,
    least_gold: GoldOption = 0.7,
    live: LiveOption = False,
    as_json: JsonOption = False,
) -> None:
    """Import workers' answers so far as labels; given again, add later answers."""
    from burnish.commands.label_mturk import fetch as fetch_batch, requester

    print_report(fetch_batch(requester(folder, live), store_place(store), least_gold), as_json)


@app.command()
def approve(
    folder: FolderArg, least_gold: GoldOption = 0.7, live: LiveOption = False, as_json: JsonOption = False
) -> None:
    """Approve submitted work, except that of workers who fail gold questions.

    Those workers are named, and their work is left to you.
    """
    from burnish.commands.label_mturk import approve as approve_batch, requester

    print_report(approve_batch(requester(folder, live), least_gold), as_json)


@app.command()
def block(
    folder: FolderArg,
    worker: Annotated[str, typer.Option(help="The worker's id on the market.")],
    reason: Annotated[str, typer.Option(help="Reason, which is sent to the worker.")],
    live: LiveOption = False,
    as_json: JsonOption = False,
) -> None:
    """Block a worker of this batch from all your work."""
    from burnish.commands.label_mturk import block as block_worker, requester

    print_report(block_worker(requester(folder, live), worker, reason), as_json)
