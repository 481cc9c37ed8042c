"""What a report is made from: the files that sweeps, grids, evaluations and audits leave in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eegvision import runs
from eegvision.config import RunConfig, SweepConfig
from eegvision.overrides import flatten
from eegvision.report.grid_tables import Table
from eegvision.trials import TrialRow, ranked
from eegvision.vocab import InputError

SUPPORTED, UNSUPPORTED = "supported", "unsupported"
_EVALUATION_KEYS = ("protocol", "trial", "side", "config", "dataset", "rows")
_ROW_KEYS = ("metric", "value", "chance", "group_name", "group", "n_queries")
_CONTROL_KEYS = ("name", "verdict", "reason")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One folder of `EEGVISION_HOME/runs`; what is not there is empty or None.

    `identity` says what was asked for (flat, `sweep.json`); `trials` are the best first; `evaluations`, `audit` and
    `environment` are the files as they are; `code` is the version that ran.
    """

    name: str
    folder: Path
    identity: Mapping[str, Any]
    trials: Sequence[TrialRow]
    evaluations: Sequence[Mapping[str, Any]]
    audit: Mapping[str, Any] | None
    tables: Sequence[Table]
    environment: Mapping[str, Any]
    code: str
    chance: Mapping[str, float]
    command: str

    @property
    def verdict(self) -> str | None:
        """Verdict of the audit, None where there was none."""
        return None if self.audit is None else str(self.audit["verdict"])

    @property
    def is_struck(self) -> bool:
        """Whether scores of this run are struck through: its audit, or the order of its data, speaks against them."""
        return self.verdict == UNSUPPORTED or any(found["dataset"].get("grade") == "red" for found in self.evaluations)

    @property
    def is_searched(self) -> bool:
        """Whether a search space was searched."""
        return bool(self.identity.get("space"))

    @cached_property
    def base(self) -> RunConfig:
        """Settings all trials began with."""
        return _base_of(self.identity)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the search that are not the default ones."""
        default = vars(SweepConfig())
        return {name: value for name, value in self.identity.items() if name in default and value != default[name]}

    @property
    def datasets(self) -> dict[str, str]:
        """Fingerprints of the data sets that were used, by name."""
        found = {evaluation["dataset"]["name"]: evaluation["dataset"]["fingerprint"] for evaluation in self.evaluations}
        if "dataset.fingerprint" in self.identity:
            name = self.identity.get("dataset", self.base.data.dataset)
            found.setdefault(Path(name).name, self.identity["dataset.fingerprint"])
        return found

    def trial(self, trial_id: str) -> TrialRow | None:
        """Return the trial in the folder of this name."""
        return next((trial for trial in self.trials if trial.trial_id == trial_id), None)


def read_run(name: str) -> Run:
    """Read the run `name`.

    Raises:
        InputError: there is no such run, or one of its files is damaged; names the file.
    """
    folder = runs.named_folder("runs", name)
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*") if path.is_dir() and not path.name.startswith("."))
        raise InputError(f"there is no run {name!r} in {folder.parent}; runs there: {', '.join(there) or 'none'}")
    identity = _read(folder / "sweep.json", _mapping) or {}
    return Run(
        name=name,
        folder=folder,
        identity=identity,
        trials=ranked(_trials(folder, _base_of(identity))),
        evaluations=[_evaluation(path) for path in sorted((folder / "evaluations").glob("*.json"))],
        audit=_read(folder / "audit.json", _audit),
        tables=_read(folder / "tables.json", _tables) or [],
        environment=_read(folder / "environment.json", _mapping) or {},
        code=_code(folder),
        chance=_chance(folder / "trials.csv"),
        command=(folder / "command.txt").read_text() if (folder / "command.txt").exists() else "",
    )


def _read(path: Path, check: Callable[[Any], Any]) -> Any:
    """Return what `check` makes of a JSON file, None where there is no file."""
    if not path.exists():
        return None
    try:
        return check(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); run again the job that wrote it, or remove the file"
        ) from error


def _mapping(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"expected names and values, got a {type(found).__name__}")
    return found


def _with(found: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if missing := [name for name in names if name not in _mapping(found)]:
        raise ValueError(f"{', '.join(missing)} missing")
    return found


def _evaluation(path: Path) -> Mapping[str, Any]:
    def check(found: Any) -> Mapping[str, Any]:
        for row in _with(found, _EVALUATION_KEYS)["rows"]:
            _with(row, _ROW_KEYS)
        _with(found["dataset"], ("name", "fingerprint"))
        RunConfig.from_dict(found["config"])
        if found.get("confusion"):
            _with(found["confusion"], ("classes", "count_KK"))
        return found

    return _read(path, check)


def _audit(found: Any) -> Mapping[str, Any]:
    for control in _with(found, ("verdict", "controls"))["controls"]:
        _with(control, _CONTROL_KEYS)
    return found


def _tables(found: Any) -> list[Table]:
    return [Table.from_dict(table) for table in _with(found, ("tables",))["tables"]]


def _base_of(identity: Mapping[str, Any]) -> RunConfig:
    known = flatten(RunConfig().to_dict())
    return RunConfig().with_overrides({path: identity[path] for path in known if path in identity})


def _trials(folder: Path, base: RunConfig) -> list[TrialRow]:
    return [_trial(path.parent, base) for path in sorted((folder / "trials").glob("*/trial.json"))]


def _trial(folder: Path, base: RunConfig) -> TrialRow:
    """Read a trial without its tensors: hashing the checkpoints of a large sweep would take minutes."""
    own = _read(folder / "trial.json", lambda found: _with(found, ("number",)))
    end = _read(folder / "end.json", lambda found: _with(found, ("status",))) or {"status": "stopped early"}
    states = sorted((folder / "last").glob("[!.]*/state.json"))
    state = _read(states[-1], lambda found: _with(found, ("config", "history"))) if states else None
    if state and not own.get("suggested"):
        config = _read(states[-1], lambda found: RunConfig.from_dict(found["config"]))
    else:  # what was set apart, without what followed from it
        config = _read(folder / "trial.json", lambda found: base.with_overrides(found.get("suggested", {})))
    history = tuple(state["history"]) if state else ()
    better = min if config.mode == "min" else max
    best = better(range(len(history)), key=lambda done: history[done][config.metric], default=None)
    return TrialRow(
        trial_id=folder.name,
        number=own["number"],
        status=end["status"],
        config=config,
        passes=len(history),
        best_pass=0 if best is None else best + 1,
        metrics={} if best is None else history[best],
        history=history,
        seconds=sum(done.get("seconds", 0.0) for done in history),
        folder=folder,
        message=end.get("message", ""),
    )


def _code(folder: Path) -> str:
    """Return the version of the code from the first event of the run, which is what was tracked."""
    path = folder / "spool" / "events.jsonl"
    if not path.exists():
        return ""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        return str(json.loads(first)["tags"]["eegvision.code"])
    except (ValueError, KeyError, TypeError):
        return ""


def _chance(path: Path) -> dict[str, float]:
    """Return the levels of guessing on the validation side, by metric."""
    if not path.exists():
        return {}
    import pandas as pd

    try:
        row = pd.read_csv(path, nrows=1)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run the sweep's command again, or remove the file") from error
    names = [name for name in row.columns if name.startswith("chance ")]
    return {name.removeprefix("chance "): float(row[name].iloc[0]) for name in names if len(row)}
