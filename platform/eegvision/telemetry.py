"""What a run tells a monitoring system: gauges for Prometheus, and log lines that machines can read.

Gauges go through Ray, which serves them on every node's metrics port and puts `ray_` before their names:

    eegvision_trials{run, state}          trials (trainings) by state: running, waiting (lost, to be started again),
                                          finished, stopped early, diverged, refused, failed, ...
    eegvision_passes{run}                 passes over the training set that were reported, repeated ones counted again
    eegvision_best_score{run, metric}     best value of the metric so far, in its unit (val/top1: share, 0 to 1)
    eegvision_attempts_lost{run, reason}  attempts that were cut short: killed, oom host, oom cuda, stall, node
    eegvision_spool_backlog{run}          events that wait in the spool for MLflow

`EEGVISION_LOG=json` turns the log of driver and workers into one JSON object per line on stderr, from where Ray's
`worker-*.err` files and log collectors take it:

    {"time": "2026-11-21T10:00:00.000Z", "level": "WARNING", "logger": "eegvision.resume", "host": "node-3",
     "pid": 4711, "training": "demo/3f2a", "pass": 7, "message": "..."}
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eegvision.vocab import InputError

_COUNT_EVERY_S = 5.0  # counting reads the part of the spool that waits

_where: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("eegvision_where")


@contextmanager
def at(*, training: str | None = None, pass_number: int | None = None) -> Iterator[None]:
    """Name the training and the pass in every log line of this thread while the block runs."""
    given = {"training": training, "pass": pass_number}
    token = _where.set(_where.get({}) | {name: value for name, value in given.items() if value is not None})
    try:
        yield
    finally:
        _where.reset(token)


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "host": socket.gethostname(),
            "pid": record.process,
            **_where.get({}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def is_wanted() -> bool:
    """Say whether the log is to be JSON lines."""
    if (asked := os.environ.get("EEGVISION_LOG", "")) in ("", "text", "json"):
        return asked == "json"
    raise InputError(f"EEGVISION_LOG is {asked!r}; expected 'json' or 'text'")


def set_up_logs() -> None:
    """Write this process's log as JSON lines to stderr, if `EEGVISION_LOG=json`; called again it changes nothing.

    Workers call it through Ray when they start, the driver when it connects.
    """
    root = logging.getLogger()
    if not is_wanted() or any(isinstance(handler.formatter, JsonLines) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root.handlers = [handler]  # one line per event: what was there before would write it a second time
    logging.getLogger("eegvision").setLevel(logging.INFO)
    logging.captureWarnings(True)


class Gauges:
    """Turns the events of a run's history into gauges; does nothing where Ray is not connected.

    Args:
        run: name of the run, the label of every gauge.
        backlog: returns how many events wait for MLflow (`Tracker.pending`).
    """

    def __init__(self, run: str = "", *, backlog: Callable[[], int] | None = None) -> None:
        self._run, self._backlog = run, backlog
        self._metric, self._better = "", max
        self._states: dict[str, str] = {}  # trial -> state
        self._shown: set[str] = set()  # states that were ever set: one that nobody is in any more is shown as 0
        self._lost: Counter[str] = Counter()
        self._passes = 0
        self._best: float | None = None
        self._gauges: dict[str, Any] = {}
        self._count_at = 0.0

    def see(self, event: Mapping[str, Any]) -> None:
        """Take one event into account; of a run that is resumed, the earlier ones first (`history.read`)."""
        do, trial = event["do"], event.get("id", "")
        if do in ("begin", "resume"):
            self._metric, self._better = event["metric"], min if event["mode"] == "min" else max
            self._states = {key: "waiting" if state == "running" else state for key, state in self._states.items()}
        elif do in ("attempt", "pass"):
            self._states[trial] = "running"
        elif do == "trial":
            self._states[trial] = self._states.pop(event.get("was", ""), "waiting")
        elif do == "lost":
            self._states[trial] = "waiting"
            self._lost[_kind(event["reason"])] += 1
        elif do == "end":
            self._states[trial] = event["status"]
        if do == "pass":
            self._passes += 1
            if (score := event["metrics"].get(self._metric)) is not None:
                self._best = score if self._best is None else self._better(self._best, score)
        self._show()

    def _show(self) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        count_of = Counter(self._states.values())
        self._shown |= count_of.keys()
        for state in self._shown:
            self._set("trials", "trials by state", count_of[state], state=state)
        self._set("passes", "passes over the training set reported", self._passes)
        if self._best is not None:
            self._set("best_score", "best value of the metric so far", self._best, metric=self._metric)
        for reason, count in self._lost.items():
            self._set("attempts_lost", "attempts that were cut short", count, reason=reason)
        if self._backlog and time.monotonic() >= self._count_at:
            self._set("spool_backlog", "events that wait in the spool for MLflow", self._backlog())
            self._count_at = time.monotonic() + _COUNT_EVERY_S

    def _set(self, name: str, meaning: str, value: float, **labels: str) -> None:
        from ray.util import metrics

        if name not in self._gauges:
            self._gauges[name] = metrics.Gauge(f"eegvision_{name}", meaning, tag_keys=("run", *labels))
        self._gauges[name].set(float(value), tags={"run": self._run, **labels})


def _kind(reason: str) -> str:
    """Return a reason without its details: every new label value is a new time series for ever."""
    return reason.partition(":")[0][:40]
