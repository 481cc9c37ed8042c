"""The words every part of the house shares: records, split names, units, places. Imports nothing of ours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

SplitName = Literal["train", "val", "test"]
SplitRule = Literal[
    "by-image",
    "published",
    "leave-subject-out",
    "leave-block-out",
    "leave-session-out",
    "concept-disjoint",
    "time-purged",
    "zero-shot",
]
Unit = Literal["V", "uV", "T", "zscore", "whitened"]

SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
UNITS: tuple[Unit, ...] = get_args(Unit)


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and the remedy. Jobs exit with code 2."""


class RunInUseError(InputError):
    """A run of this name exists with another configuration, or is being written by another process."""


class TryAgainError(RuntimeError):
    """Something outside the program stood in the way, such as a full disk; what is finished stays.

    The message says what to mend; after that the same command goes on. Jobs exit with code 75.
    """


@dataclass(frozen=True, kw_only=True)
class Montage:
    """Electrodes of a recording, in the order of the rows of every segment.

    `channels` are 10-05 names; `positions_m` holds head coordinates in metres (x right, y front, z up), or
    nothing when they are unknown.
    """

    channels: tuple[str, ...]
    positions_m: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One piece of EEG and the stimulus that evoked it: one row of `segments/`.

    `eeg_CT` is float32 in the data set's unit. Unknown values are -1 (`session`, `block`, `order`) or NaN (`onset_s`).
    """

    segment_id: str
    subject: str
    session: int
    block: int
    order: int
    onset_s: float
    repetition: int
    image_id: str
    eeg_CT: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """One picture as it was shown: one row of `images/`. `encoded` is the original JPEG or PNG file."""

    image_id: str
    label: int
    label_name: str
    encoded: bytes


@dataclass(frozen=True, kw_only=True)
class Fixation:
    """One gaze fixation of one viewer on one stimulus: one row of `gaze/`; pixels from the top left."""

    image_id: str
    viewer: str
    row_px: float
    column_px: float


def home() -> Path:
    """Return the absolute folder that holds data sets, runs and the tracking store.

    `EEGVISION_HOME`, by default `~/eegvision`. Absolute because a submitted job runs in a temporary copy of
    the code.
    """
    return Path(os.environ.get("EEGVISION_HOME", "~/eegvision")).expanduser().absolute()
