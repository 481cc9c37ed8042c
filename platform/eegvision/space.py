"""Search space files: Python with a function `space(trial)` that suggests dotted settings of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna

from eegvision.config import RunConfig
from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space file: `space(trial)`, and optionally `BASE` (settings it fixes) and `POINTS` (tried first).

    It is kept as text, because Ray Tune stores the searcher with the sweep and a function of a file cannot be
    stored; a resumed sweep goes on with the text it began with.
    """

    path: Path
    source: str

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Suggest settings through an Optuna trial; return those that are set without being searched."""
        return dict(_names(self)["space"](trial) or {})

    @property
    def base(self) -> dict[str, Any]:
        """Settings the space fixes, dotted."""
        return dict(_names(self).get("BASE", {}))

    @property
    def points(self) -> list[dict[str, Any]]:
        """Known configurations that are tried first."""
        return [dict(point) for point in _names(self).get("POINTS", [])]

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


@cache
def _names(space: Space) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": f"space_{space.path.stem}", "__file__": str(space.path)}
    exec(compile(space.source, str(space.path), "exec"), names)
    return names


def load_space(path: Path) -> Space:
    """Load a search space file. It is Python and runs with your rights: load only files you trust.

    Raises:
        InputError: the file is missing, does not run, or has no function `space(trial)`.
    """
    if not path.is_file():
        near = ", ".join(sorted(str(other) for other in path.parent.glob("*.py"))) or "none there"
        raise InputError(f"no search space at {path}; files beside it: {near}")
    space = Space(path=path, source=path.read_text())
    try:
        names = _names(space)
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if not callable(names.get("space")):
        raise InputError(f"{path} defines no function space(trial); see search_spaces/demo.py")
    return space


def check_space(space: Space, base: RunConfig, *, draws: int = 20) -> list[RunConfig]:
    """Try every known point and some random draws, so that a bad setting stops a sweep before it starts.

    Returns:
        the configurations tried.
    Raises:
        InputError: a name is no setting, a value is refused, or a point does not match what the space suggests.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # not a line per study
    tried = []
    for number, point in enumerate(space.points):
        trial = optuna.trial.FixedTrial(point)
        try:
            constants = space.suggest(trial)
        except ValueError as error:
            raise InputError(f"{space.path}: point {number} {point} does not fit the space: {error}") from error
        if unused := sorted(set(point) - set(trial.params)):
            raise InputError(f"{space.path}: point {number} sets {unused}, which the space does not suggest there")
        tried.append(_settings(space, base, trial.params | constants))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(draws):
        trial = study.ask()
        constants = space.suggest(trial)
        tried.append(_settings(space, base, trial.params | constants))
    return tried


def _settings(space: Space, base: RunConfig, values: dict[str, Any]) -> RunConfig:
    try:
        return base.with_overrides(values)
    except InputError as error:
        raise InputError(f"{space.path} suggested {values}: {error}") from error
