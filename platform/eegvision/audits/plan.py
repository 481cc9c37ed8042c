"""Which trainings an audit needs: configurations derived from the audited one, each with one thing taken away.

The test side of the audited run is on no side of any of them that is scored or chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eegvision import stream
from eegvision.config import RunConfig
from eegvision.grid import Cell
from eegvision.ingest.shards import Manifest
from eegvision.stream import Store
from eegvision.vocab import InputError

SLOW_HZ = (1.0, 5.0)
"""Below these a wave counts as slow: our choice; Palazzo et al.'s own bands begin at 5 Hz."""

_BY_IMAGE = ("by-image", "time-purged", "leave-subject-out")  # rules with the validation pictures of `by-image`


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Trainings of one control, a configuration per part (fold); or why there are none."""

    parts: Mapping[str, RunConfig] = field(default_factory=dict)
    why_not: str = ""

    def cells(self, name: str, seeds: tuple[int, ...]) -> list[Cell]:
        """Return every part with every seed."""
        return [
            Cell(key=key_of(name, part, seed), config=config.with_overrides({"seed": seed}))
            for part, config in self.parts.items()
            for seed in seeds
        ]


def key_of(name: str, part: str, seed: int) -> str:
    """Name the folder of a training."""
    return "-".join(filter(None, (name.replace(" ", "_"), part, f"seed{seed}")))


def plan(base: RunConfig, store: Store, manifest: Manifest, *, folds: int) -> dict[str, Planned]:
    """Derive the trainings of every control but the claim itself.

    Args:
        base: the audited configuration, with the number of passes of the audit.
        store: its data, of which the split is used.
        manifest: of the data set as stored.
        folds: parts into which blocks are divided.
    """
    planned = {
        "shuffled-pairs": _one(base, {"data.control": "shuffled-pairs"}),
        "shuffled-in-blocks": _one(base, {"data.control": "shuffled-in-blocks"}),
        "relabel": _one(base, {"data.control": "block-labels"}),
        "pre-stimulus": _before_onset(base, manifest),
        "random-codebook": _codes(base),
        "leave-block-out": _folds(base, manifest, folds),
    }
    planned |= {f"slow-drift below {high_hz:g} Hz": _slow(base, high_hz) for high_hz in SLOW_HZ}
    if _needs_purge(base, manifest):
        planned["time-purged"] = _one(base, {"data.purge_s": 0.0})
        if planned["time-purged"].parts:
            left = stream.load_store(planned["time-purged"].parts[""].data, None).split.rows["train"]
            planned["thinned-purge"] = _thinned(base, len(left) / len(store.split.rows["train"]))
    return planned


def _needs_purge(base: RunConfig, manifest: Manifest) -> bool:
    return manifest.audit["purge_s"] > 0 and base.data.purge_s is None


def _one(base: RunConfig, overrides: dict[str, Any]) -> Planned:
    """Return a training with these settings changed, if the data can serve it."""
    try:
        config = base.with_overrides(overrides)
        stream.load_store(config.data, None)  # stays in Ray's object store, where the trainings find it
    except InputError as error:
        return Planned(why_not=str(error))
    return Planned(parts={"": config})


def _before_onset(base: RunConfig, manifest: Manifest) -> Planned:
    if manifest.t_min_s >= 0:
        return Planned(why_not=f"segments begin {manifest.t_min_s:g} s after onset; nothing before it is stored")
    return _one(base, {"data.window_s": (manifest.t_min_s, 0.0)})


def _codes(base: RunConfig) -> Planned:
    if base.loss.arm != "joint":
        return Planned(why_not="no image encoder is trained")
    if base.image.is_frozen:
        return Planned(why_not="the image encoder is frozen, so nothing in it comes from EEG")
    return _one(base, {"data.control": "class-codes"})


def _slow(base: RunConfig, high_hz: float) -> Planned:
    low_hz, old_high_hz = base.data.band_hz or (0.0, high_hz)
    if low_hz >= high_hz:
        return Planned(why_not=f"the run itself keeps nothing below {low_hz:g} Hz")
    return _one(base, {"data.band_hz": (low_hz, min(high_hz, old_high_hz))})


def _thinned(base: RunConfig, share: float) -> Planned:
    """Return a training on this share of the training pictures, drawn at random."""
    data = base.data
    if data.split not in _BY_IMAGE:
        return Planned(why_not=f"data.split {data.split} has no smaller training set with the same test pictures")
    left_out = (1 - share) * (1 - data.val_fraction - data.test_fraction)
    return _one(base, {"data.val_fraction": data.val_fraction + left_out})


def _folds(base: RunConfig, manifest: Manifest, folds: int) -> Planned:
    """Return a training per fold of the blocks, or of the sessions where blocks are unknown."""
    data = base.data
    overrides: dict[str, Any] = {}
    rule = "by-image" if data.split in _BY_IMAGE else data.split
    if data.split in ("leave-block-out", "leave-session-out"):
        return Planned(why_not=f"validation pictures of data.split {data.split} cannot be divided further")
    if data.split in ("zero-shot", "concept-disjoint") and data.held_out is not None:
        return Planned(why_not=f"data.split {data.split} with a subject held out cannot be divided by blocks as well")
    if data.split == "leave-subject-out":
        others = set(data.subjects or manifest.subjects) - {data.held_out}
        overrides["data.subjects"] = sorted(name for name in others if name is not None)
    reasons = []
    for unit in ("leave-block-out", "leave-session-out"):
        planned: dict[str, RunConfig] = {}
        for number in range(1, folds + 1):
            held_out = {"data.split": unit, "data.held_out": f"{number}/{folds} of {rule}"}
            one = _one(base, overrides | held_out)
            planned |= {f"{number}of{folds}": config for config in one.parts.values()}
            if one.why_not:
                reasons.append(one.why_not)
                break
        if len(planned) == folds:
            return Planned(parts=planned)
    return Planned(why_not="; ".join(reasons))


def fold_queries(config: RunConfig, *, of_class: bool) -> tuple[np.ndarray, int]:
    """Return the validation segments of a fold that its training can answer, and how many it cannot.

    A class (`of_class`) of which nothing was shown outside the fold was not trained on, so its segments say nothing
    of drift.
    """
    store = stream.load_store(config.data, None)
    rows = store.split.rows["val"]
    is_known = np.isin(store.label_N[rows], store.label_N[store.split.rows["train"]]) | (not of_class)
    return store.segment_id_N[rows[is_known]], int((~is_known).sum())
