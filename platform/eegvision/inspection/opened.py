"""The model of a run and the side of its data that it is looked at with.

Axes: B pictures or samples of a chunk, M all pictures of the data set, N all samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eegvision import features, runs, stream, trials
from eegvision.analyses.association import network_of
from eegvision.assess.embedding import side_batches
from eegvision.assess.selected import Selected, open_test
from eegvision.config import RunConfig
from eegvision.ingest import shards
from eegvision.tracking import Tracker, code_version
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]

_BATCH = 256
_NOT_LOGGED = ("chunks", "maps", "manifest.jsonl")


@dataclass(frozen=True, kw_only=True)
class Opened(Selected):
    """Which model is looked at, and on which side of its data; all that other processes need to know.

    `opening` says which line of the ledger stands for it, where the side is the test set.
    """

    number: int
    side: SplitName
    config: RunConfig
    dataset: dict[str, str]
    opening: dict[str, Any] | None = None

    def view(self, config: RunConfig) -> RunConfig:
        """Return the settings with which data are looked at: with the pictures that were shown, also for a control."""
        return replace(config, data=replace(config.data, control=None))

    def identity(self, analysis: str, settings: Any) -> dict[str, Any]:
        """Return what decides the results of an analysis, in words of JSON; `settings` is its dataclass."""
        known = {
            "analysis": analysis,
            "run": self.run.name,
            "trial": self.trial.name,
            "model_sha256": self.model_sha256,
            "dataset": self.dataset,
            "side": self.side,
            "settings": dataclasses.asdict(settings),
        }
        return json.loads(json.dumps(known, default=str))

    def folder(self, analysis: str, settings: Any) -> Path:
        """Return where an analysis with these settings lies, whether it is there or not."""
        return self.run / analysis / f"{self.trial.name}.{self.side}.{_hash(self.identity(analysis, settings))}"

    def about(self, settings: Any) -> dict[str, Any]:
        """Return what the numbers of an analysis must be read with, in words of JSON."""
        known = {
            "run": self.run.name,
            "trial": self.number,
            "model_sha256": self.model_sha256,
            "dataset": self.dataset,
            "side": self.side,
            "opening": self.opening,
            "code": code_version(),
            "settings": dataclasses.asdict(settings),
        }
        return json.loads(json.dumps(known, default=str))


def open_run(
    name: str, *, trial: int | None, side: SplitName, purpose: str, again: str | None = None, say: Say
) -> Opened:
    """Return a model of the run `name`: of this trial, or of the best one. Call it in the driver, connected to Ray.

    What is read of the data set is kept for the processes of the cluster. The test side is opened with a line in the
    ledger.

    Raises:
        InputError: no such run or trial, no checkpoint, the data set has changed, or its test set was opened before for
            another model of the run and `again` does not say why.
    """
    folder = runs.named_folder("runs", name)
    own = trials.find_trial(folder, trial)
    found = Selected.of(folder, own)
    model = found.load()
    manifest = found.store_of(model, has_pictures=False).manifest
    opening = open_test([found], folder, purpose=purpose, again=again, say=say)[own] if side == "test" else None
    return Opened(
        **vars(found),
        number=trials.number_of(own),
        side=side,
        config=model.config,
        dataset={"name": manifest.name, "fingerprint": manifest.fingerprint, "grade": manifest.grade},
        opening=opening,
    )


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:6]


class Bench:
    """A model and its data in one process, on the GPU where there is one.

    Attributes:
        model: in evaluation mode.
        store: its data, without pictures; these are decoded when they are asked for.
        image_M: rows (in the store) of the pictures that the side shows, sorted.
    """

    def __init__(self, opened: Opened) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = opened.load()
        self.store = opened.store_of(model, has_pictures=False)
        self.model = model.to(self.device)
        self.side: SplitName = opened.side
        self._row_N = self.store.split.rows[opened.side]
        self.image_M = np.unique(self.store.image_N[self._row_N])
        self._batches = side_batches(
            opened.view(model.config), self.store, opened.side, batch_size=_BATCH, device=self.device, has_images=False
        )

    def rows_of(self, image: int) -> np.ndarray:
        """Return the side's samples that show a picture, in the order of the store."""
        return self._row_N[self.store.image_N[self._row_N] == image]

    def eeg(self, row_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return samples [B, C, T] as the model sees them, and rows of their subjects [B], -1 for an unknown one."""
        batch = self._batches.at(np.asarray(row_B))
        return batch.eeg_BCT, batch.subject_B

    def pixels(self, image_B: np.ndarray) -> Tensor:
        """Return the central crop of pictures [B, 3, H, W], normalised as in batches, of the network's size.

        Raises:
            InputError: the model runs no network from pixels.
        """
        _, size_px = network_of(self.model)
        root = shards.dataset_root(self.model.config.data.dataset)
        return stream.central_views(root, self._stored, np.asarray(image_B), size_px).to(self.device)

    @torch.no_grad()
    def image_embeddings(self, image_B: np.ndarray) -> Tensor:
        """Return θ(v) of pictures [B, D], from pixels or from the frozen features that the run was trained with."""
        image_B = np.asarray(image_B)
        parts = np.split(image_B, range(_BATCH, len(image_B), _BATCH))
        if self._feature_MF is None:
            return torch.cat([self.model.encode_image(self.pixels(part)) for part in parts])
        found = [torch.from_numpy(self._feature_MF[part]).to(self.device) for part in parts]
        return torch.cat([self.model.encode_image(feature_BF) for feature_BF in found])

    @cached_property
    def _feature_MF(self) -> np.ndarray | None:
        return features.image_features(self.model.config)

    @cached_property
    def _stored(self) -> shards.Manifest:
        return shards.read_manifest(shards.dataset_root(self.model.config.data.dataset))


def require_both_sides(opened: Opened) -> None:
    """Raise `InputError` unless the model encodes EEG and pictures."""
    if opened.config.loss.arm != "joint":
        raise InputError(
            f"trial {opened.number} of {opened.run.name!r} was trained with loss.name {opened.config.loss.name!r}, "
            "which knows one side alone; look into a joint model"
        )


def log_run(
    opened: Opened,
    analysis: str,
    folder: Path,
    *,
    settings: Any,
    metrics: Mapping[str, float],
    note: str,
    say: Say,
) -> None:
    """Log an analysis as an MLflow run that names the model it looked at, with all files of `folder` but the large.

    Chunks and `maps/`, which may take gigabytes, stay where they are.

    The same analysis again continues its run; one that shares its folder and differs in how results are shown or scored
    has a run of its own.

    Args:
        note: Markdown, shown at the top of the run.
    """
    asked = dataclasses.asdict(settings)
    key = f"{opened.run.name}/{analysis}/{folder.name}.{_hash(asked)}"
    with Tracker(opened.run / "spool", experiment=opened.run.name) as tracker:
        tags = {
            "eegvision.kind": analysis,
            "eegvision.model": f"{opened.run.name}/{opened.trial.name}",
            "eegvision.config": opened.config.fingerprint(),
            "eegvision.dataset": opened.dataset["fingerprint"],
            "eegvision.side": opened.side,
            "eegvision.code": code_version(),
        }
        params = {"run": opened.run.name, "trial": opened.number, **asked}
        if opened.opening is not None:
            params["opening"] = opened.opening["line"]
        tracker.start(key, name=f"{analysis} {opened.number:03d} {opened.side}", tags=tags, params=params)
        tracker.metrics(key, metrics, step=0)
        tracker.note(key, note)
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] not in _NOT_LOGGED and not path.name.startswith("."):
                tracker.artifact(key, path, folder=str(inside.parent) if len(inside.parts) > 1 else "")
        tracker.finish(key, "FINISHED")
        url = tracker.ui_url
    say(f"MLflow              {url}\nfiles               {folder}")
