"""`burnish why`, `burnish evaluate` and `burnish audit`: reports on runs and any trainer's log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import JsonOption, RunArg

EXIT_HACKING = 20
EXIT_TOO_FEW = 21
EXIT_BROKEN = 22
CODES = {
    "healthy": 0,
    "hacking suspected": EXIT_HACKING,
    "too few to tell": EXIT_TOO_FEW,
    "broken": EXIT_BROKEN,
}

app = typer.Typer(no_args_is_help=True, help="Further measurements of a run's result.")


def why(
    directory: RunArg,
    replay: Annotated[
        bool, typer.Option("--replay", help="Replay the guard's decisions on the recorded figures.")
    ] = False,
    sets: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --replay: another setting, e.g. guard.patience=5."
        ),
    ] = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Explain why PPO ended as it did: a paragraph and the guard's actions.

    Only the run's events and metrics are read.
    """
    from burnish.report.text_report import as_text
    from burnish.report.why import as_report, why as account

    found, again = account(directory), None
    if replay or sets:
        from burnish.commands.replay import replay as decide_again

        again = decide_again(directory, sets)
    print(json.dumps({**found, "replay": again}, indent=1) if as_json else as_text(as_report(found, again)))


def audit(
    log: Annotated[
        Path, typer.Argument(help="A trainer's log: JSON lines, one per update, or trainer_state.json.")
    ],
    responses: Annotated[int, typer.Option(min=1, help="Responses per update.")] = 64,
    kl_target: Annotated[
        float | None, typer.Option(min=0.0, help="Target KL of the run, in the unit of its log.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check any trainer's log for reward hacking, with the detectors and limits of a run.

    Reads logs of TRL, verl and OpenRLHF, and Burnish's own metrics. Exit codes: 0 healthy, 20 hacking
    suspected, 21 too few figures to tell, 22 broken (a critical alert: a reward or a loss that is not a
    number, a KL under 0, ...).
    """
    from burnish.monitor.logs import audit_log, lines_of

    found = audit_log(log, responses=responses, kl_target=kl_target)
    print(json.dumps(found, indent=1) if as_json else "\n".join(lines_of(found)))
    if CODES[found["verdict"]]:
        raise typer.Exit(CODES[found["verdict"]])


PromptsOption = Annotated[int, typer.Option(min=2, help="Held-out prompts.")]
AnswersOption = Annotated[int, typer.Option(min=16, help="SFT answers to each prompt.")]


@app.command()
def frontier(
    directory: RunArg,
    prompts: PromptsOption = 32,
    answers: AnswersOption = 256,
    samples: Annotated[int, typer.Option(min=1, help="Answers of each policy to each prompt.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Measure what each policy of a run gains for its KL, as a share of best of n.

    Best of n by the run's own ensemble, at the same KL, is 1. Writes frontier.json, and the report again.
    """
    from burnish.environment import prepare_environment

    prepare_environment()
    from burnish.commands.frontier import frontier as measured
    from burnish.report.frontier import as_report
    from burnish.report.text_report import as_text

    found = measured(directory, prompts=prompts, answers=answers, samples=samples, on_progress=_progress)
    print(json.dumps(found) if as_json else as_text(as_report(found)))


@app.command()
def overoptimization(
    directory: RunArg,
    prompts: PromptsOption = 32,
    answers: AnswersOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a run's reward can be optimised before its answers get worse.

    Best of n from one pool, and the updates of PPO, are judged by a judge that was not optimised
    against. Writes overoptimization.html with fitted curves.
    """
    from burnish.environment import prepare_environment

    prepare_environment()
    from burnish.commands.overoptimization import overoptimization as measured
    from burnish.report.overoptimized import as_report
    from burnish.report.text_report import as_text

    found = measured(directory, prompts=prompts, answers=answers, on_progress=_progress)
    if as_json:
        print(json.dumps(found))
        return
    print(as_text(as_report(found)))
    print(f"Wrote {directory / 'overoptimization.html'}")


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
