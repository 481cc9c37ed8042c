"""A model that was selected to be looked at, and the line in the ledger that opening the test set for it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from eegvision import checkpoint, ledger, stream, trials
from eegvision.assess.embedding import open_store, side_sha256
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.stream import Store
from eegvision.vocab import InputError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The best pass of a trial; all that another process needs to know to open it."""

    run: Path
    trial: Path
    checkpoint: Path
    model_sha256: str

    @classmethod
    def of(cls, run: Path, trial: Path, **more: Any) -> Self:
        """Return the model in a trial's folder.

        Raises:
            InputError: the trial left no whole checkpoint.
        """
        path = checkpoint.latest(trial / "best")
        if path is None:
            raise InputError(f"trial {trial.name} of {run.name!r} left no whole checkpoint; choose another one")
        files = json.loads((path / "manifest.json").read_text())["files"]
        return cls(run=run, trial=trial, checkpoint=path, model_sha256=files["model.safetensors"]["sha256"], **more)

    def load(self) -> JointModel:
        """Return the model, on the CPU and in evaluation mode."""
        return JointModel.load(self.checkpoint)

    def view(self, config: RunConfig) -> RunConfig:
        """Return the settings with which its data are seen: those it was trained with."""
        return config

    def store_of(self, model: JointModel, *, repetitions: int | None = None, has_pictures: bool = True) -> Store:
        """Return the data that the model was trained on.

        Raises:
            InputError: the data set is another one by now.
        """
        store = open_store(self.view(model.config), repetitions=repetitions, has_pictures=has_pictures)
        if (there := model.data["fingerprint"]) != (here := store.manifest.fingerprint):
            raise InputError(
                f"{self.checkpoint} was trained on the data {there} of {model.data['name']!r}, and {here} is there "
                "now; put the former data set back, or train again"
            )
        return store


def open_test(
    models: Sequence[Selected], run: Path, *, purpose: str, again: str | None, say: Say
) -> dict[Path, dict[str, Any]]:
    """Write into the ledger which models of a run are about to see which test sets; return each trial's opening.

    Raises:
        InputError: a test set was opened for other models of the run, and `again` does not say why that is right.
    """
    by_side: dict[str, list[Selected]] = {}
    names: dict[str, str] = {}
    views: dict[str, str] = {}
    for model in models:
        data = replace(trials.config_of(model.checkpoint).data, residency="stream", control=None, band_hz=None)
        if (view := repr(data)) not in views:
            store = stream.load_store(data, None)
            views[view] = side_sha256(store, "test")
            names[views[view]] = store.manifest.name
        by_side.setdefault(views[view], []).append(model)
    opened: dict[Path, dict[str, Any]] = {}
    for sha256, own in by_side.items():
        entries = [
            {
                "run": run.name,
                "trial": model.trial.name,
                "fingerprint": trials.config_of(model.checkpoint).fingerprint(),
                "model_sha256": model.model_sha256,
            }
            for model in own
        ]
        known = {entry["model_sha256"] for entry in entries}
        before = [
            opening
            for opening in ledger.openings(sha256)
            if opening.study == run.name and not known <= {entry["model_sha256"] for entry in opening.models}
        ]
        if before and again is None:
            raise InputError(
                f"the test set of {names[sha256]!r} was opened for other models of {run.name!r} on {before[-1].time} "
                "(line "
                f"{before[-1].number} of {ledger.ledger_path()}); scoring more of them makes it a validation set. "
                'If that is meant, say why with --again "...": the ledger and every report will show it'
            )
        reason = purpose if not before else f"{purpose}; again, because {again}"
        opening, earlier = ledger.open_test(names[sha256], sha256, study=run.name, models=entries, purpose=reason)
        n_openings = len(ledger.openings(sha256))
        say(f"test set of {names[sha256]}: opening {len(earlier) + 1}, line {opening.number} of {ledger.ledger_path()}")
        record = {"number": len(earlier) + 1, "of": n_openings, "line": opening.number, "models": len(opening.models)}
        opened |= {model.trial: record for model in own}
    return opened
