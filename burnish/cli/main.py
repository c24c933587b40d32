"""Command line: parse arguments, call a command, turn an error into a message and an exit code."""

from __future__ import annotations

import _thread
import json
import signal
import sys
import threading
import warnings
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from burnish.cli import launch
from burnish.cli.audit import app as evaluate_app, audit, why
from burnish.cli.data import app as data_app
from burnish.cli.label import app as label_app
from burnish.cli.options import JsonOption, RunArg
from burnish.cli.plan import plan
from burnish.cli.reward import app as reward_app
from burnish.cli.serve import serve_runs
from burnish.cli.sweep import sweep
from burnish.config.stages import StageName
from burnish.distributed import collectives
from burnish.environment import prepare_environment
from burnish.errors import EXIT_CODES, BurnishError, ConfigError, RenamedKeyWarning, Waiting

EXIT_CHAMPION_IS_SFT = 10
"""Exit code of a finished run in which nothing beat SFT."""
EXIT_NOTHING_ALIGNED = 11
"""Exit code of a run whose gate stopped PPO and that trained no other candidate."""
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Exception of a mistyped command; Typer exports no name for this class."""

app = typer.Typer(
    help="Burnish: from preference pairs to a proven champion.\n\nExit codes: "
    + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(data_app, name="data")
app.add_typer(label_app, name="label")
app.add_typer(reward_app, name="reward")
app.add_typer(evaluate_app, name="evaluate")
app.command("serve")(serve_runs)
app.command("why")(why)
app.command("audit")(audit)
app.command("plan")(plan)
app.command("sweep")(sweep)

ConfigArg = Annotated[
    Path | None, typer.Argument(help="YAML configuration; without one, the embedded rehearsal.")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. ppo.learning_rate=1e-6."),
]
DirOption = Annotated[Path | None, typer.Option("--dir", help="Run directory; default runs/NAME.")]
RedoOption = Annotated[
    bool, typer.Option("--redo", help="Delete and redo stages made with other settings or other code.")
]


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Set the options that all commands share."""
    STATE["verbose"] = verbose


STATE: dict[str, Any] = {"verbose": False, "interrupted": False}


@app.command()
def quickstart(
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    sets: SetOption = [],  # noqa: B006
    directory: DirOption = None,
    redo: RedoOption = False,
    as_json: JsonOption = False,
) -> None:
    """Align the embedded story model with simulated annotators, from prompts to report."""
    _run(None, ["name=quickstart", f"seed={seed}", *sets], directory, None, redo, as_json)


@app.command()
def run(
    config: ConfigArg = None,
    until: Annotated[StageName | None, typer.Option(help="Stop after this stage.")] = None,
    sets: SetOption = [],  # noqa: B006
    directory: DirOption = None,
    redo: RedoOption = False,
    force: Annotated[
        bool, typer.Option(help="Run PPO even if the gate says stop (ppo.gate: ignored).")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="If people label or examine: wait, and continue after the last answer."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine that share the run (scale.workers)."),
    ] = None,
    profile: Annotated[
        int,
        typer.Option(min=0, help="Write a torch.profiler trace of this many PPO updates to DIR/profile."),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Carry out a run, or continue one that was stopped.

    A finished run is left as it is. Started by torchrun, the run is shared by the started processes.
    """
    more = [
        *(["ppo.gate=ignored"] if force else []),
        *([] if workers is None else [f"scale.workers={workers}"]),
    ]
    _run(config, [*sets, *more], directory, until, redo, as_json, wait, profile)


def _run(
    config: Path | None,
    sets: list[str],
    directory: Path | None,
    until: StageName | None,
    redo: bool,
    as_json: bool,
    wait: bool = False,
    profile: int = 0,
) -> None:
    from burnish.config.loading import load_config

    loaded = load_config(config, sets)
    prepare_environment()
    path = directory or Path("runs") / loaded.name
    task = launch.Task(loaded, path, until, redo, wait, profile=profile)
    reported = not collectives.first()  # by another process
    if launch.wanted(loaded.scale):
        launch.start(task, sys.argv[1:])
        reported = loaded.scale.ray is None
    elif not launch.carry_out(task):
        return  # the parent process prints the reason
    _tell(path, until, as_json, reported=reported)


def _tell(path: Path, until: str | None, as_json: bool, *, reported: bool) -> None:
    """Print the result of a run unless it was reported, and exit with its code."""
    summary_file = path / "summary.json"
    if until is not None or not summary_file.exists():
        if not reported:
            _print({"run": str(path), "stages": _states(path)}, as_json)
        return
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    if not reported:
        print(json.dumps(summary, indent=1) if as_json else _summary_text(summary, path))
    if (
        summary["champion"] == "sft" and not collectives.launched()
    ):  # torchrun treats any exit code except 0 as a failure
        from burnish.evaluation.champion import ROUND, TRAINED

        trained = any(name in TRAINED or name.startswith(ROUND) for name in summary["evaluation"])
        nothing = summary["ppo"]["state"] == "stopped" and not trained
        raise typer.Exit(EXIT_NOTHING_ALIGNED if nothing else EXIT_CHAMPION_IS_SFT)


@app.command()
def report(directory: RunArg, as_json: JsonOption = False) -> None:
    """Rewrite report.html and summary.json of a run, as far as it has come."""
    from burnish.report.page import write_reports

    page = write_reports(directory)
    if as_json:
        print((directory / "summary.json").read_text(encoding="utf-8"))
    else:
        print(f"Report: {page}")


@app.command()
def status(directory: RunArg, as_json: JsonOption = False) -> None:
    """Show which stages of a run are done, running, interrupted or failed."""
    _print({"run": str(directory), "stages": _states(directory)}, as_json)


def _states(path: Path) -> dict[str, str]:
    from burnish.runs.directory import RunDirectory

    run = RunDirectory.open(path)
    return {name: run.stage_state(name) for name in run.stages()}


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
        return
    print(result["run"])
    for name, state in result["stages"].items():
        print(f"  {name:<10} {state}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("align.yaml"),
    kind: Annotated[str, typer.Option(help="rehearsal or real.")] = "rehearsal",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of a model, for --kind real.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="A GGUF file in that folder.")] = None,
    preferences: Annotated[
        str | None, typer.Option(help="File or `datasets` name of preference pairs, for --kind real.")
    ] = None,
) -> None:
    """Write a commented configuration that runs as it stands.

    With --model and --preferences, limits are taken from the model and the pairs.
    """
    from burnish.config.template import template

    if path.exists():
        raise ConfigError(f"{path} exists already; choose another name or remove it")
    if kind not in ("rehearsal", "real"):
        raise ConfigError(f"--kind {kind!r} is not known; use rehearsal or real")
    known = None
    if model is not None or preferences is not None:
        if kind != "real" or model is None or preferences is None:
            raise ConfigError("--model and --preferences belong together, and to --kind real")
        prepare_environment()
        from burnish.commands.init import head, suited_settings

        known = head(*suited_settings(model, gguf_file, preferences))
    path.write_text(template("real" if kind == "real" else "rehearsal", known), encoding="utf-8")
    print(f"Wrote {path}. Next: burnish {'doctor' if kind == 'real' else 'run'} {path}")


@app.command()
def doctor(
    config: ConfigArg = None,
    sets: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Check data, model and machine before a run: lengths, leakage, length bias, memory, time."""
    from dataclasses import asdict

    from burnish.config.loading import load_config

    loaded = load_config(config, sets)
    prepare_environment()
    from burnish.commands.doctor import examine_setup

    if as_json:
        print(json.dumps([asdict(f) for f in examine_setup(loaded)], indent=1))
        return
    for f in examine_setup(loaded, lambda what: print(f"{what} ...", file=sys.stderr, flush=True)):
        mark = {True: "ok", False: "look", None: "-"}[f.ok]
        print(f"{mark:<5}{f.check:<33}{f.evidence}", flush=True)


class Kind(StrEnum):
    """Kinds of output of `export`."""

    PAIRS = "pairs"
    POLICY = "policy"
    ADAPTER = "adapter"
    REWARD = "reward"


@app.command()
def export(
    directory: RunArg,
    path: Annotated[
        Path, typer.Argument(help="Pairs: .jsonl, .jsonl.gz or .parquet; otherwise a new folder.")
    ],
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            help="Labelled pairs, the champion or its adapter, the reward models; default: pairs, if PATH ends so.",
        ),
    ] = None,
    conversational: Annotated[bool, typer.Option(help="Pairs as lists of messages.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export pairs, the champion or the reward models of a run as plain Hugging Face data and models."""
    from burnish.commands.export import export_adapter, export_pairs, export_policy, export_reward

    if kind is None:
        if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
            raise ConfigError(f"--as is missing: give --as {', --as '.join(k.value for k in Kind)}")
        kind = Kind.PAIRS
    if kind is Kind.PAIRS:
        result = export_pairs(directory, path, conversational=conversational)
    else:
        write = {Kind.POLICY: export_policy, Kind.ADAPTER: export_adapter, Kind.REWARD: export_reward}[kind]
        result = write(directory, path)
    what = ", ".join(f"{value} {name}" for name, value in result.items() if name != "path")
    print(json.dumps(result) if as_json else f"Wrote {kind.value} to {path}: {what}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Directory of a run, or of a sweep.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same kind.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, or two sweeps: settings that differ, and their figures."""
    from dataclasses import asdict

    from burnish.report.compare import compare as side_by_side

    found = side_by_side(first, second)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    rows = [("", first.name, second.name), *found.settings, ("", "", ""), *found.figures]
    cells = [tuple("-" if cell is None else str(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    for key, a, b in cells:
        print(f"{key:<{widths[0]}}  {a:<{widths[1]}}  {b}".rstrip())


@app.command()
def chat(
    directory: RunArg,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Default: as in the run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask SFT and the champion the same prompts.

    A line holds a prompt, or messages as a JSON list. An empty line ends the chat.
    """
    prepare_environment()
    from burnish.commands.chat import answers

    asked = (line for line in iter(_ask, "") if line.strip())
    for said in answers(directory, asked, temperature):
        if as_json:
            print(json.dumps(said, ensure_ascii=False), flush=True)
            continue
        width = max(map(len, said))
        for name, text in said.items():
            print(f"{name:>{width}} | " + text.strip().replace("\n", f"\n{'':>{width}} | "), flush=True)


def _ask() -> str:
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().rstrip("\r\n")


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration."""
    from burnish.config.loading import json_schema

    print(json.dumps(json_schema(), indent=1))


def _summary_text(summary: dict[str, Any], path: Path) -> str:
    champion = summary["champion"]
    lines = [f"Champion: {champion}" + (" (provisional)" if summary["provisional"] else "")]
    for name, figures in summary["evaluation"].items():
        if name != "judge" and figures.get("win_rate") is not None:
            lines.append(
                f"  {name} against SFT: win rate {figures['win_rate']:.3f} "
                f"[{figures['ci_low']:.3f}, {figures['ci_high']:.3f}], n = {figures['n']}"
                f", judged by {summary['evaluation']['judge']}"
            )
    for name, figures in (summary.get("gold") or {}).items():
        lines.append(
            f"  {name} by the true preference: {figures['win_rate']:.3f} "
            f"[{figures['ci_low']:.3f}, {figures['ci_high']:.3f}]"
        )
    ppo = summary["ppo"]
    if ppo["kl_final"] is not None:
        lines.append(
            f"KL: {ppo['kl_final']:.2f} nats per response, target {ppo['kl_target']:g} ({ppo['state']})"
        )
    accuracy = summary["reward"]["accuracy"]
    lines.append(
        f"Reward ensemble: {summary['reward']['members']} members, held-out accuracy {accuracy['value']:.3f} "
        f"[{accuracy['ci_low']:.3f}, {accuracy['ci_high']:.3f}]"
    )
    if summary["fallback"]["triggered"]:
        lines.append(f"Fallback to DPO: {summary['fallback']['reason']}")
    lines.append(f"Report: {path / 'report.html'}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line and exit with its code; show tracebacks only with --verbose."""
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable
    warnings.showwarning = _show_warning
    try:
        # Typer returns the code of `Exit` here, and 130 for Ctrl-C, instead of raising.
        code = app(standalone_mode=False) or 0
    except BaseException as error:  # noqa: BLE001 - _failed raises other errors again
        code = _failed(error)
    if STATE["interrupted"]:
        # Also if a library caught Ctrl-C during an import and raised another error.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("burnish: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        code = EXIT_INTERRUPTED
        # Ctrl-C during an import that executes source text sets a flag in CPython. The flag turns the
        # exit into death by signal, although Ctrl-C was caught. Executing any source text clears it.
        exec("")
    sys.exit(code)


_SHOW_WARNING = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    """Print a renamed key as one line; show other warnings as Python does."""
    if issubclass(category, RenamedKeyWarning):
        print(f"burnish: warning: {message}", file=sys.stderr)
    else:
        _SHOW_WARNING(message, category, *rest, **named)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    STATE["interrupted"] = True
    raise KeyboardInterrupt


def _unraisable(caught: sys.UnraisableHookArgs) -> None:
    """Raise Ctrl-C again if it came within a destructor, where Python ignores it; show other errors."""
    if caught.exc_type is KeyboardInterrupt:
        # From a thread: at once, it would be raised within this function and be ignored again.
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(caught)


def _failed(error: BaseException) -> int:
    """Print an error unless the user stopped the run, and return the exit code."""
    if STATE["interrupted"]:
        return EXIT_INTERRUPTED
    if isinstance(error, UsageError):
        print(f"burnish: {usage(error)}; `burnish --help` lists the commands", file=sys.stderr)
        return EXIT_USAGE
    if STATE["verbose"] or not isinstance(error, Exception):
        raise error
    if isinstance(error, BurnishError):
        if error.of_process is None or collectives.first():  # otherwise the failed process prints it
            print(f"burnish: {error}", file=sys.stderr)
        # torchrun must not count a waiting run as a failure.
        return 0 if collectives.launched() and isinstance(error, Waiting) else error.exit_code
    text = f"{type(error).__name__}: {error}"
    print(f"burnish: unexpected {text}; `burnish --verbose ...` shows where", file=sys.stderr)
    return 1


def usage(error: Exception) -> str:
    """Describe a mistyped command; name a missing option or argument as the user types it."""
    parameter = getattr(error, "param", None)
    if type(error).__name__ != "MissingParameter" or parameter is None:
        return str(error)
    kind = str(parameter.param_type_name)
    name = parameter.opts[0] if kind == "option" else str(parameter.name).upper()
    return f"the {kind} {name} is missing"


if __name__ == "__main__":
    main()
