"""`burnish reward ...`: score, explain, examine, stress, compare and serve reward models."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.options import JsonOption, RunArg, print_progress
from burnish.environment import prepare_environment

app = typer.Typer(no_args_is_help=True, help="Use and test a run's reward models.")


@app.command()
def score(
    directory: RunArg,
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines with prompt and response; default: standard input.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt; every line is then a response to it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
) -> None:
    """Score texts with a run's reward models: the ensemble, every member, and how far they disagree."""
    from burnish.commands.reward_score import as_table, read_answers, score_texts
    from burnish.data.lines import decode, read_text

    text = decode(sys.stdin.buffer.read(), "standard input") if file is None else read_text(file)
    prepare_environment()
    rows = list(score_texts(directory, read_answers(text, prompt)))
    print("\n".join(json.dumps(row) for row in rows) if as_json else as_table(rows))


@app.command()
def explain(
    directory: RunArg,
    out: Annotated[Path, typer.Argument(help="Page to write, .html.")],
    prompt: Annotated[str, typer.Option(help="The request.")],
    response: Annotated[str, typer.Option(help="The answer whose score is explained.")],
    as_json: JsonOption = False,
) -> None:
    """Explain the score of an answer on a page.

    The page shows what every token contributes, and the labelled answers most like this one. Needs
    burnish[explain].
    """
    from dataclasses import asdict

    from burnish.data.text import Unusable, prompt_of, text_of
    from burnish.errors import DataError

    prepare_environment()
    from burnish.commands.reward_explain import explain as explained, write_page

    try:
        asked, answer = prompt_of(prompt), text_of(response)
    except Unusable as reason:
        raise DataError(f"--prompt or --response cannot be read: {reason}") from None
    found = explained(directory, asked, answer)
    write_page(found, prompt, out)
    print(json.dumps(asdict(found)) if as_json else f"Score {found.score:+.2f}. Wrote {out}")


@app.command()
def examine(
    directory: RunArg,
    on: Annotated[
        str | None,
        typer.Option(help="File or `datasets` name of other pairs; default: the run's validation pairs."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set, for a `datasets` name.")] = "train",
    own_pairs: Annotated[int, typer.Option(min=0, help="Pairs of the policy's own answers to sample.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Examine whether a run's reward models can be trusted.

    Reports accuracy by slice, calibration, length, wording, and accuracy on the policy's own answers,
    as a page (examined.html, or examined_on.html with --on).
    """
    prepare_environment()
    from burnish.commands.reward_examine import examine_run

    report = examine_run(directory, on=on, split=split, own_pairs=own_pairs, on_progress=print_progress)
    if as_json:
        print(json.dumps(report))
        return
    accuracy, calibration = report["accuracy"], report["calibration"]
    print(f"Examination: {report['outcome']}")
    for reason in report["reasons"]:
        print(f"  {reason}")
    print(f"accuracy     {_interval(accuracy)} on {accuracy['pairs']} pairs of {accuracy['n']} prompts")
    for name, value in report["baselines"].items():
        print(f"             {value:.3f} '{name} wins'")
    print(f"calibration  error {calibration['ece']:.3f}, temperature {calibration['temperature']:.2f}")
    print(f"wording      {report['wording']['why']}")
    if report["own"]:
        print(f"own answers  {report['own']['why']}")
    for name, by in (("section", report["sections"]), ("subset", report["slices"].get("subset", {}))):
        for part, row in (by or {}).items():
            figure = (
                _interval(row) if "ci_low" in row else f"{row['value']:.3f}" if "value" in row else "too few"
            )
            print(f"{name:<12} {figure}  {part}" + (f" ({row['pairs']} pairs)" if "pairs" in row else ""))
    print(f"Wrote {directory / ('examined.html' if on is None else 'examined_on.html')}")


@app.command()
def stress(
    directory: RunArg,
    answers: Annotated[int, typer.Option(min=1, help="SFT answers to change.")] = 256,
    best_of: Annotated[int, typer.Option(min=1, help="Answers to a prompt for best-of-n; 1: none.")] = 256,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts for best-of-n.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Stress-test a run's reward models.

    Tries changes that must not raise a score, and shows the best of n answers, as a page
    (examined.html). PPO's gate does the same on a smaller scale.
    """
    prepare_environment()
    from burnish.commands.reward_examine import stress_run

    report = stress_run(
        directory, answers=answers, best_of=best_of, prompts=prompts, on_progress=print_progress
    )
    if as_json:
        print(json.dumps(report))
        return
    print(f"Stress tests: {report['outcome']}")
    for kind in ("stop", "warn"):
        for reason in report["reasons"][kind]:
            print(f"  {kind}: {reason}")
    for row in report["changes"]:
        rise = "too few answers" if row["rise"] is None else f"{_interval(row['rise'], '+.2f')} sd"
        print(f"{row['name']:<16} {row['outcome']:<8} {rise}")
    if report["best_of"]:
        print(report["best_of"]["why"])
    print(f"Wrote {directory / 'examined.html'}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Run directory.")],
    second: Annotated[Path, typer.Argument(help="Another run directory.")],
    on: Annotated[
        str | None,
        typer.Option(help="File or `datasets` name of pairs; default: the first run's validation pairs."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set, for a `datasets` name.")] = "train",
    as_json: JsonOption = False,
) -> None:
    """Compare the reward models of two runs on pairs that neither has learned from."""
    prepare_environment()
    from burnish.commands.reward_compare import compare_rewards

    found = compare_rewards(first, second, on, split)
    if as_json:
        print(json.dumps(found))
        return
    for run, accuracy in zip(found["runs"], found["accuracy"], strict=True):
        print(f"{_interval(accuracy)}  {run}")
    print(
        f"difference {_interval(found['difference'], '+.3f')} on {found['pairs']} pairs, {found['left_out']} left out"
    )
    print(f"verdicts agree on {found['agree']:.1%}")
    for pair in found["apart"]:
        ours, theirs = pair["margins"]
        print(f"\n{pair['prompt']}\n  preferred ({ours:+.2f}, {theirs:+.2f}): {pair['preferred'].strip()}")
        print(f"  over: {pair['other'].strip()}")


@app.command()
def serve(
    directory: RunArg,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    average: Annotated[
        bool, typer.Option(help="Serve the average of the members' weights instead (reward.shared_head).")
    ] = False,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with a token that requests must carry.")
    ] = None,
    public: Annotated[
        str | None, typer.Option(help="Name by which clients reach the server, if not the host's.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--key", help="Its private key, PEM.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this machine speaks TLS for this server.")
    ] = False,
) -> None:
    """Serve a run's reward models over HTTP, e.g. to `ppo.rewards` (url) of a run: POST /score."""
    from burnish.errors import ConfigError

    token = None if token_env is None else os.environ.get(token_env)
    if token_env is not None and not token:
        raise ConfigError(f"--token-env {token_env} names a variable that is not set; set it to the token")
    prepare_environment()
    from burnish.web.reward_server import serve as run_server

    scheme = "http" if certificate is None else "https"
    print(f"Rewards of {directory} at {scheme}://{host}:{port} (POST /score, GET /health)", file=sys.stderr)
    run_server(
        directory,
        host,
        port,
        average=average,
        token=token,
        public=public,
        certificate=certificate,
        key=tls_key,
        proxy=behind_proxy,
    )


def _interval(found: dict[str, Any], form: str = ".3f") -> str:
    return f"{found['value']:{form}} [{found['ci_low']:{form}}, {found['ci_high']:{form}}]"
