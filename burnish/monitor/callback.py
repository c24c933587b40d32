"""`burnish.watch`: the detectors as a callback for TRL (GRPO, RLOO) or any transformers trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.data.text import Unusable, content_of, printable
from burnish.monitor.logs import LogWatch, figures_of, lines_of
from burnish.monitor.texts import text_figures
from burnish.monitor.trackers import open_webhook

if TYPE_CHECKING:
    from transformers import TrainerCallback

FILE = "burnish_watch.jsonl"
MOST = 8192  # texts kept between two rows with a score


def watch(
    *, responses: int = 64, kl_target: float | None = None, stop: bool = False, webhook: str | None = None
) -> TrainerCallback:
    """Return a callback for `Trainer(callbacks=[...])` that checks every logged update.

    An update has `responses` answers. Alerts are printed and kept, with the verdict, in
    burnish_watch.jsonl of the output folder. `stop` ends the training once hacking is suspected.
    `webhook` names an environment variable with an address that alerts are sent to. `kl_target`, in
    the trainer's unit of KL, turns on alerts of KL.

    The callback's `texts` is a reward function that reads the answers and returns 0. Give it to the
    trainer beside the other rewards, with weight 0. Then the detectors of language, repetition,
    format, duplicates and stock phrases work too. After training, `report()` returns the verdict.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Callback that checks the logs of a trainer."""

        def __init__(self) -> None:
            self.log = LogWatch(responses, kl_target)
            self.hook = open_webhook(webhook, "watch", print)
            self.prompts: list[str] = []
            self.answers: list[str] = []

        def texts(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
            """Read the answers of a batch and return a reward of 0 for each."""
            self.prompts += [plain(p) for p in prompts]
            self.answers += [plain(c) for c in completions]
            self.prompts, self.answers = self.prompts[-MOST:], self.answers[-MOST:]
            return [0.0] * len(completions)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
            """Check one logged update."""
            if not state.is_world_process_zero:
                self.prompts, self.answers = [], []
                return control
            if not logs:
                return control
            row = {"step": state.global_step, **logs}
            if any(name.startswith("eval_") for name in logs):  # responses of an evaluation do not count
                self.prompts, self.answers = [], []
            if self.answers and "score" in figures_of(row):  # not a row of an evaluation, or of times alone
                row |= text_figures(self.prompts, self.answers)
                self.prompts, self.answers = [], []
            before = self.log.suspected
            for alert in self.log.observe(row):
                print(f"burnish: {alert.severity}: {alert.message}")
                self._keep(args, {"kind": "alert", **alert.as_row()})
            if before is None and self.log.suspected is not None:
                found = {"kind": "decision", "action": "suspect", "reason": self.log.suspected["message"]}
                print(f"burnish: hacking suspected: {found['reason']}")
                self._keep(args, {**found, **self.log.suspected})
                control.should_training_stop = control.should_training_stop or stop
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            """Save and print the verdict."""
            if state.is_world_process_zero:
                self._keep(args, {"kind": "verdict", **self.report()})
                print("burnish: " + "\nburnish: ".join(lines_of(self.report())))
            return control

        def report(self) -> dict[str, Any]:
            """Return the verdict so far, in the form of `burnish audit`."""
            return self.log.report()

        def _keep(self, args: Any, row: dict[str, Any]) -> None:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if self.hook is not None and row["kind"] != "verdict":
                self.hook.send(row)

    return Watch()


def plain(text: Any) -> str:
    """Return the text of a prompt or completion, a string or messages; other values have none."""
    if isinstance(text, str):
        return printable(text)
    turns = text if isinstance(text, list | tuple) else [text]
    return "\n".join(_words(turn.get("content") if isinstance(turn, dict) else turn) for turn in turns)


def _words(content: Any) -> str:
    try:
        return content_of(content)
    except Unusable:
        return ""
