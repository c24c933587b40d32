"""Metric trackers (TensorBoard, W&B, MLflow, trackio) and the webhook for events of a run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

from burnish.errors import ConfigError


class Sink(Protocol):
    """Interface of one metric tracker."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step of a stage."""

    def close(self) -> None:
        """Finish and close the tracker."""


class Trackers:
    """All trackers of a run; one that fails is reported once and dropped, and training continues."""

    def __init__(self, sinks: Mapping[str, Sink], on_failure: Callable[[str], None]) -> None:
        self.sinks = dict(sinks)
        self.on_failure = on_failure

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of one step of a stage to every tracker."""
        self._each(lambda sink: sink.log(stage, step, values))

    def close(self) -> None:
        """Close every tracker."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self.sinks.items()):
            try:
                call(sink)
            except Exception as error:  # noqa: BLE001 - reported; a tracker must never stop a run
                del self.sinks[name]
                self.on_failure(f"tracker {name} failed and is left out from here on: {error}")


def open_trackers(
    names: Sequence[str], run_path: Path, config: dict[str, Any], on_failure: Callable[[str], None]
) -> Trackers:
    """Open the named trackers; raise ConfigError with the install command for a missing package."""
    return Trackers({name: OPENERS[name](run_path, config) for name in names}, on_failure)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"monitor.trackers names {name!r}, which is not installed; run `pip install 'burnish[trackers]'` or "
            "take it out of the list"
        ) from error


class TensorBoard:
    """Event files in RUN/tensorboard.

    A continued run opens a new file; repeated steps keep their newest value.
    """

    def __init__(self, run_path: Path, config: dict[str, Any]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(run_path / "tensorboard"))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step of a stage."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=f"{stage}/{n}", simple_value=v) for n, v in values.items()]
        )
        self.writer.add_event(Event(step=step, summary=summary))

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandB:
    """Weights & Biases, in the mode of its own settings (WANDB_MODE)."""

    def __init__(self, run_path: Path, config: dict[str, Any]) -> None:
        self.run = _package("wandb").init(
            project="burnish", name=config["name"], dir=str(run_path), config=config
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of one step of a stage."""
        self.run.log({f"{stage}/{n}": v for n, v in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """MLflow, in RUN/mlflow.sqlite unless its own settings name a tracking server."""

    def __init__(self, run_path: Path, config: dict[str, Any]) -> None:
        self.mlflow = _package("mlflow")
        if not self.mlflow.is_tracking_uri_set():
            self.mlflow.set_tracking_uri(f"sqlite:///{run_path / 'mlflow.sqlite'}")
        self.mlflow.start_run(run_name=config["name"])

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of one step of a stage."""
        self.mlflow.log_metrics({f"{stage}/{n}": v for n, v in values.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


class Trackio:
    """Trackio, a tracker that stores runs locally."""

    def __init__(self, run_path: Path, config: dict[str, Any]) -> None:
        self.trackio = _package("trackio")
        self.trackio.init(project="burnish", name=config["name"], config=config)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of one step of a stage."""
        self.trackio.log({f"{stage}/{n}": v for n, v in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Finish the run."""
        self.trackio.finish()


OPENERS: dict[str, Callable[[Path, dict[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}

SECONDS = 5.0  # timeout of a request

FAILURES = 3  # consecutive failures after which nothing more is sent

QUIET = 10  # updates before the same alert is sent again


class Webhook:
    """Webhook that posts `{"text": ..., "event": {...}}` as JSON.

    Slack, Mattermost and Discord's compatible address show `text`. A failed request does not stop a
    run: it is reported, and after three failures in a row nothing more is sent.
    """

    def __init__(self, url: str, run: str, on_failure: Callable[[str], None]) -> None:
        self.url, self.run, self.on_failure = url, run, on_failure
        self.sent: dict[str, int] = {}
        self.failures = 0

    def send(self, event: Mapping[str, Any]) -> None:
        """Send a decision, or an alert above `info` that was not sent in the last updates."""
        if self.failures >= FAILURES:
            return
        if event["kind"] == "alert":
            step = int(event["step"])
            if event["severity"] == "info" or abs(step - self.sent.get(event["name"], -2 * QUIET)) < QUIET:
                return
            self.sent[event["name"]] = step
            text = f"{self.run}: {event['severity']}: {event['message']}"
        else:
            text = f"{self.run}: {event['action']}: {event['reason']}"
        import httpx2  # not installed with the labelling page alone

        try:
            answer = httpx2.post(self.url, json={"text": text, "event": dict(event)}, timeout=SECONDS)
            answer.raise_for_status()
            self.failures = 0
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:  # also an event that is no JSON
            self.failures += 1
            end = "; it is left out from here on" if self.failures == FAILURES else ""
            # Do not report the address: it may contain a key.
            self.on_failure(f"the webhook failed ({type(error).__name__}){end}")


def open_webhook(variable: str | None, run: str, on_failure: Callable[[str], None]) -> Webhook | None:
    """Return the webhook at the address in an environment variable, or None without one.

    Raises ConfigError if the variable does not contain an address.
    """
    if variable is None:
        return None
    url = os.environ.get(variable, "")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(
            f"monitor.webhook names the environment variable {variable!r}, which holds no http(s) address; set it, or "
            "take the setting out"
        )
    return Webhook(url, run, on_failure)
