"""MLflow behind a local spool: events go to a file at once, a background thread ships them, training never waits.

The spool (`spool.py`) is the record and MLflow a view of it. What could not be shipped (server down, process killed)
is shipped by the next `Tracker` on the same folder, once: runs are found by their key, points carry the time they were
spooled (which makes shipping one twice harmless), and a second value for the same (run, metric, step) is ignored.
Pointing a spool at another MLflow ships everything there from the beginning.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import platform
import re
import subprocess
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from eegvision import pseudonyms, spool
from eegvision.spool import Event, Spool, Status
from eegvision.vocab import InputError, RunInUseError, home

log = logging.getLogger(__name__)

_NAME = re.compile(r"[\w\-./: ]+", re.ASCII)  # what MLflow allows in the name of a metric; no quotes for searches
_METRICS_PER_CALL = 500  # MLflow takes 1000 and 1 MB
_PARAMS_PER_CALL = 100
_PARAM_CHARS, _TAG_CHARS = 6000, 8000
_PAUSE_S, _LONGEST_PAUSE_S, _CLOSING_PAUSE_S = 0.5, 60.0, 1.0
_CLOSE_S, _CLOSE_INTERRUPTED_S = 30.0, 5.0
_ARTIFACT_ATTEMPTS = 3
# Our own loop retries, for ever and without noise, so the client must neither wait long nor retry by itself.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# MLflow's verdicts that sending the same thing again cannot change.
_FINAL_VERDICTS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def tracking_uri() -> str:
    """Return where runs are tracked: `MLFLOW_TRACKING_URI`, else a database in `EEGVISION_HOME`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def target(experiment: str, uri: str | None = None) -> str:
    """Return what a spool knows an experiment at an address by; the address is by default `tracking_uri()`."""
    return f"{uri or tracking_uri()}\n{experiment}"


class Tracker:
    """Reports runs to MLflow without ever waiting for it.

    Every call appends one line to `spool/events.jsonl` and returns; a thread ships the lines in order. A run is
    known by its `key`, for example `demo/trial_0003`; starting the same key on the same spool continues the run.

    Args:
        folder: of the events, one per study; it is made if needed and held by one process at a time.
        experiment: MLflow experiment, made if needed.
        uri: MLflow's address; by default `tracking_uri()`.
    Raises:
        RunInUseError: another process holds the spool.
    """

    def __init__(self, folder: Path, experiment: str, uri: str | None = None) -> None:
        uri = uri or tracking_uri()
        self._spool = Spool(folder, target=target(experiment, uri))
        self._store = _Store(uri, experiment, self._spool)
        self._appending = threading.Lock()
        self._closing, self._gave_up = threading.Event(), threading.Event()
        self._failure = ""
        _import_mlflow()
        self._thread = threading.Thread(target=self._ship, name="eegvision-tracking", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An interrupted process has seconds until it is killed; what it cannot ship it ships next time.
        self.close(_CLOSE_S if kind is None else _CLOSE_INTERRUPTED_S)

    def start(
        self,
        key: str,
        *,
        name: str,
        tags: Mapping[str, str] = {},
        params: Mapping[str, Any] = {},
        parent: str | None = None,
    ) -> None:
        """Begin run `key`, or continue it; parameters already logged keep their first value.

        Subjects in `data.subjects` and `data.held_out` are logged by their pseudonyms.
        """
        if not _NAME.fullmatch(key):
            raise InputError(f"run key {key!r}: use letters, digits, spaces and . _ - / : only")
        assert parent is None or parent in self._spool.starts, f"parent {parent!r} was not started"
        texts = {name: str(value)[:_PARAM_CHARS] for name, value in pseudonyms.public(params).items()}
        self._append("start", key, name=name, tags=dict(tags), params=texts, parent=parent)

    def knows(self, key: str) -> bool:
        """Say whether run `key` was ever started, by this process or by one before it."""
        return key in self._spool.starts

    def end_of(self, key: str) -> Status | None:
        """Return how run `key` ended, or None while it is under way."""
        return self._spool.ends.get(key)

    def metrics(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`; the first value of a (run, metric, step) stays, non-finite ones are skipped."""
        fresh = {}
        for name, value in values.items():
            assert _NAME.fullmatch(name), f"{name!r} is not a metric name MLflow takes"
            if not math.isfinite(value):
                log.warning("%s at step %d of %s is %s: not tracked", name, step, key, value)
            elif not self._spool.holds(key, name, step):
                fresh[name] = float(value)
        if fresh:
            self._append("metrics", key, step=int(step), values=fresh)

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Attach a file, or everything in a directory, under `folder`; it must still be there when it is shipped."""
        self._append("artifact", key, path=str(Path(path).absolute()), folder=folder)

    def text(self, key: str, text: str, file: str) -> None:
        """Attach `text` as the artifact `file`, for example `card.md`."""
        self._append("text", key, text=text, file=file)

    def note(self, key: str, markdown: str) -> None:
        """Set the description shown at the top of the run."""
        self.tag(key, {"mlflow.note.content": markdown})

    def tag(self, key: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        self._append("tag", key, tags=dict(tags))

    def finish(self, key: str, status: Status, tags: Mapping[str, str] = {}) -> None:
        """End run `key`; starting it again continues it, ending it again in the same way changes nothing."""
        if self.end_of(key) != status:
            self._append("finish", key, status=status, tags=dict(tags))

    @property
    def pending(self) -> int:
        """Number of events that are not yet in MLflow."""
        return self._spool.pending()

    @property
    def ui_url(self) -> str:
        """Address of the experiment in MLflow's UI, in its view for model training.

        For a database without a server it is where `mlflow ui` serves by default.
        """
        base = self._store.shown if self._store.uri.startswith("http") else "http://127.0.0.1:5000"
        page = f"experiments/{self._store.experiment_id}/runs" if self._store.experiment_id else "experiments"
        return f"{base.rstrip('/')}/#/{page}?workflowType=machine_learning"

    def close(self, timeout_s: float = _CLOSE_S) -> int:
        """Ship what is left for at most `timeout_s` seconds; return the number of events that had to stay behind."""
        if self._gave_up.is_set():
            return self.pending
        self._closing.set()
        self._thread.join(timeout_s)
        with self._appending:
            self._gave_up.set()
            self._spool.write_held()
        self._spool.close()
        pending, lost = self.pending, len(self._spool.held)
        if pending:
            log.warning(
                "%d events did not reach MLflow at %s within %g s%s; %s %s, and the same command, or `make ui`, ships "
                "them when it runs again",
                pending, self._store.shown, timeout_s, f" ({self._failure})" if self._failure else "",
                f"{lost} are lost, the disk being full, the others are in" if lost else "nothing is lost: they are in",
                self._spool.folder,
            )  # fmt: skip
        return pending

    def _append(self, do: str, key: str, **content: Any) -> None:
        assert do == "start" or key in self._spool.starts, f"run {key!r} was not started"
        with self._appending:
            self._spool.append({"t": time.time_ns() // 1_000_000, "do": do, "key": key, **content})

    def _ship(self) -> None:
        """Ship chunk after chunk until told to close and nothing is left, or told to give up."""
        pause_s = _PAUSE_S
        # Closing is asked first: once it is set nothing is added any more, so what is behind then is all there is.
        while not self._gave_up.is_set() and (not self._closing.is_set() or self._spool.is_behind):
            with self._appending:
                if not self._gave_up.is_set():
                    self._spool.write_held()
            failed = self._spool.is_behind and not self._ship_chunk()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if failed else _PAUSE_S  # points gather into batches
            if not self._closing.is_set():
                self._closing.wait(pause_s)
            elif failed:
                self._gave_up.wait(_CLOSING_PAUSE_S)

    def _ship_chunk(self) -> bool:
        """Ship the next events; a failure of any kind leaves the offset where it was."""
        try:
            events, offset = self._spool.read()
            self._store.apply(events)
        except Exception as error:  # the events are safe on disk, and whatever this is must not end the run
            is_news = not self._failure
            self._failure = _first_line(error).replace(self._store.uri, self._store.shown)
            if is_news:
                log.warning(
                    "MLflow at %s takes no events (%s); the run goes on and they wait in %s",
                    self._store.shown, self._failure, self._spool.folder,
                )  # fmt: skip
            return False
        if self._failure:
            log.info("MLflow at %s takes events again", self._store.shown)
            self._failure = ""
        with self._appending:
            if not self._gave_up.is_set():  # else the folder may have another holder by now
                self._spool.commit(offset)
        return True


class _Store:
    """The only place that talks to MLflow; used by the shipping thread alone."""

    def __init__(self, uri: str, experiment: str, spool: Spool) -> None:
        self.uri, self.experiment, self.spool = uri, experiment, spool
        self.shown = without_password(uri)
        self.experiment_id = ""
        self._client: Any = None
        self._run_ids: dict[str, str] = {}
        self._begun = set(spool.starts)  # runs that may be there: an earlier process began them, or this one
        self._bare: set[str] = set()  # runs made by this process that lack their parameters
        self._attempts: dict[str, int] = {}  # artifact -> failed uploads

    def apply(self, events: list[Event]) -> None:
        """Ship events in order; applying them again changes nothing."""
        try:
            self._client = self._client or _connect(self.uri)
            self.experiment_id = self.experiment_id or self._find_experiment()
            self._apply(events)
        except Exception:
            # What was cached may be why: the server can be another one when it answers again.
            self.experiment_id = ""
            self._run_ids.clear()
            self._bare.clear()
            raise

    def _apply(self, events: list[Event]) -> None:
        points: dict[str, list[Event]] = {}
        for event in events:
            if event["do"] == "metrics":
                points.setdefault(event["key"], []).append(event)
            else:
                self._metrics(points.pop(event["key"], []))  # before the run's end
                self._attempt(event, lambda event=event: getattr(self, f"_{event['do']}")(event))
        for waiting in points.values():
            self._metrics(waiting)

    def _attempt(self, event: Event, ship: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            ship()
        except MlflowException as error:
            if error.error_code not in _FINAL_VERDICTS:
                raise
            log.warning("MLflow refused a %s event of %s: %s", event["do"], event["key"], _first_line(error))

    def _start(self, event: Event) -> None:
        from mlflow.entities import Param

        key = event["key"]
        run_id = self._run_id(key)
        run = None if key in self._bare else self._client.get_run(run_id)
        self._bare.discard(key)
        known = run.data.params if run else {}
        changed = [name for name, value in event["params"].items() if known.get(name, value) != value]
        if changed:
            log.warning("%s: parameters %s keep their first value in MLflow", key, ", ".join(changed))
        params = [Param(name, value) for name, value in event["params"].items() if name not in known]
        for i in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[i : i + _PARAMS_PER_CALL])
        if run is None:  # it was made with its tags
            return
        self._tag(event)
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        points = [Metric(name, value, e["t"], e["step"]) for e in events for name, value in e["values"].items()]
        for i in range(0, len(points), _METRICS_PER_CALL):
            batch = points[i : i + _METRICS_PER_CALL]
            run_id = self._run_id(events[0]["key"])
            self._attempt(events[0], lambda run_id=run_id, batch=batch: self._client.log_batch(run_id, metrics=batch))

    def _tag(self, event: Event) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)[:_TAG_CHARS]) for name, value in event["tags"].items()]
        self._client.log_batch(self._run_id(event["key"]), tags=tags)

    def _finish(self, event: Event) -> None:
        if event.get("tags"):  # a spool of an earlier version has none
            self._tag(event)
        self._client.set_terminated(self._run_id(event["key"]), event["status"], end_time=event["t"])

    def _artifact(self, event: Event) -> None:
        path = Path(event["path"])
        if not path.exists():
            log.warning("%s is gone before it could be attached to %s", path, event["key"])
            return
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._upload(event["key"], str(path), lambda run_id: upload(run_id, str(path), event["folder"] or None))

    def _text(self, event: Event) -> None:
        text, file = event["text"], event["file"]
        self._upload(event["key"], file, lambda run_id: self._client.log_text(run_id, text, file))

    def _upload(self, key: str, what: str, upload: Callable[[str], None]) -> None:
        """Upload, but let artifact storage that is out of order not hold up the metrics behind it for ever."""
        run_id = self._run_id(key)
        try:
            upload(run_id)
        except Exception as error:
            self._attempts[what] = self._attempts.get(what, 0) + 1
            if self._attempts[what] < _ARTIFACT_ATTEMPTS:
                raise
            self._client.get_run(run_id)  # raises when the server is down as well: then the artifact is not to blame
            log.warning("%s could not be attached to %s: %s", what, key, _first_line(error))

    def _run_id(self, key: str) -> str:
        if key not in self._run_ids:
            self._run_ids[key] = self._find_run(key) or self._create_run(key)
        return self._run_ids[key]

    def _find_run(self, key: str) -> str:
        """Return the id of a run, or nothing; of one that nobody has begun MLflow is not asked."""
        if key not in self._begun:
            return ""
        from mlflow.entities import ViewType

        # The spool is part of a run's identity: another study of the same name makes its own runs.
        query = f"tags.`eegvision.key` = '{key}' and tags.`eegvision.spool` = '{self.spool.id}'"
        found = self._client.search_runs([self.experiment_id], query, ViewType.ALL, max_results=1)
        return found[0].info.run_id if found else ""

    def _create_run(self, key: str) -> str:
        self._begun.add(key)  # first: the answer may get lost, and the run be there
        event = self.spool.starts[key]
        tags = event["tags"] | {"eegvision.key": key, "eegvision.spool": self.spool.id}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._run_id(event["parent"])
        run = self._client.create_run(self.experiment_id, start_time=event["t"], tags=tags, run_name=event["name"])
        self._bare.add(key)
        return run.info.run_id

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            location = _database(self.uri).parent / "mlartifacts" if _is_local(self.uri) else None
            return self._client.create_experiment(self.experiment, location.as_uri() if location else None)
        if found.lifecycle_stage == "deleted":
            raise InputError(f"the experiment {self.experiment!r} is deleted in MLflow; restore it or choose another")
        return found.experiment_id


def ship_rest(folder: Path, experiment: str, *, uri: str | None = None, timeout_s: float = 60.0) -> str:
    """Ship what an ended run left in its spool, as when MLflow was down at its end; say so in a line, or nothing.

    Nothing is done, and MLflow not imported, where all of it is there already or another process holds the spool.
    """
    uri = uri or tracking_uri()
    before = spool.waiting(folder, target(experiment, uri))
    if not before:
        return ""
    try:
        left = Tracker(folder, experiment, uri).close(timeout_s)
    except RunInUseError:
        return ""
    shipped = f"{before - left} events of {experiment!r} that had waited went to MLflow at {without_password(uri)}"
    return f"{shipped}; {left} wait on in {folder}" if left else shipped


def code_version() -> str:
    """Return the commit of the checkout this package runs from (`+dirty` if it was edited), else its version."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie inside somebody else's checkout
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return _version("eegvision")


def environment() -> dict[str, str]:
    """Return the versions and sizes that a result may depend on; no names of hosts, no paths."""
    import psutil
    import torch

    packages = {
        name: _version(name) for name in ("eegvision", "torch", "torchvision", "ray", "optuna", "mlflow", "numpy")
    }
    return {
        "python": platform.python_version(),
        **packages,
        "cuda": str(torch.version.cuda or "none"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
    }


def _import_mlflow() -> None:
    """Import MLflow (3 s) in the caller's thread: beside another thread's imports it ends half-initialised.

    Its modules import each other in a circle, and Ray imports some of them as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.tracking  # noqa: F401


def _connect(uri: str) -> Any:
    """Return a client of MLflow; here, and not at the top, because the import alone takes seconds."""
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    if _is_local(uri):
        _database(uri).parent.mkdir(parents=True, exist_ok=True)
    # MLflow 3.17 maps a relation in a way that SQLAlchemy 2.1 has deprecated; where warnings are errors that would
    # leave MLflow's database classes half made for the rest of the process.
    warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial MLflow database tables"
    return MlflowClient(tracking_uri=uri)


def _is_local(uri: str) -> bool:
    return uri.startswith("sqlite:///")


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///")).absolute()


def without_password(uri: str) -> str:
    """Return an address as it may be printed and logged."""
    parts = urllib.parse.urlsplit(uri)
    return uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
