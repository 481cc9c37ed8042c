"""Data broken on purpose, to see what a score is made of: another pairing of pictures and EEG, or codes for EEG.

Every draw is a function of a seed and of the samples alone, so that all processes break the data alike. Axes: N
samples, M images, K classes, U distinct pictures of a stratum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from eegvision.stream.repeats import Repeats
from eegvision.vocab import InputError

Control = Literal["shuffled-pairs", "shuffled-in-blocks", "block-labels", "class-codes"]

UNKNOWN, SEVERAL = -1, -2
_SEED_PAIRS, _SEED_CLASSES, _SEED_PICTURES, _SEED_CODES = 1, 2, 3, 4


def applied(
    control: Control | None,
    image_N: np.ndarray,
    *,
    side_N: np.ndarray,
    subject_N: np.ndarray,
    session_N: np.ndarray,
    block_N: np.ndarray,
    time_N: np.ndarray,
    label_M: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return which picture each sample is said to show; labels follow pictures, and sides stay as they are.

    - `shuffled-pairs`: the pictures of a subject and side trade segments. Nothing is left to learn.
    - `shuffled-in-blocks`: only pictures of one recording block trade; what is left is what a block as a whole tells.
    - `block-labels`: the pictures of a subject, session and side are given out anew in the order of recording, class
      after class; the order of classes is the recording's own and the same on every side. What was seen is lost,
      what time tells about it is what a block design would have had. Source: Li et al. 2021, TPAMI 43, 316.
    - `class-codes` changes the EEG (`class_codes`) and no picture.

    Where two or more pictures trade none keeps its own segments: with a chance picture in its place, one segment in so
    many would still be labelled rightly, and a network learns from a few right labels among many random ones.

    Args:
        image_N: the picture that was shown.
        side_N: side of the split.
        session_N, block_N: number, UNKNOWN, or SEVERAL where a sample is a mean over several.
        time_N: anything that grows with the time of recording within a session; NaN unknown.
        label_M: class of every image, -1 none.
        seed: of the draws.
    Raises:
        InputError: the control needs blocks, sessions, an order or classes that the samples do not have.
    """
    if control in (None, "class-codes"):
        return image_N
    keys = [side_N, subject_N]
    if control == "shuffled-in-blocks":
        _refuse(control, "block", session_N, block_N)
        keys += [session_N, block_N]
    if control == "block-labels":
        _refuse(control, "session", session_N)
        if not np.isfinite(time_N).all():
            raise InputError(
                f"data.control {control!r} gives out pictures in the order of recording, but when "
                f"{int((~np.isfinite(time_N)).sum())} of {len(time_N)} samples were recorded is not known; "
                "use 'shuffled-pairs', or ingest from a source that tells the order"
            )
        return _in_blocks_of_classes(image_N, side_N, subject_N, session_N, time_N, label_M, seed)
    given_N = np.empty_like(image_N)
    for number, own in enumerate(_strata(keys)):
        picture_U, index = np.unique(image_N[own], return_inverse=True)
        given_N[own] = _deranged(picture_U, np.random.default_rng([seed, _SEED_PAIRS, number]))[index]
    return given_N


def class_codes(label_N: np.ndarray, shape_CT: tuple[int, int], seed: int) -> np.ndarray:
    """Return, in place of EEG, one random pattern per class: float32 [N,C,T], white, every channel standardised.

    Source: the random codebook of Li et al. 2021, TPAMI 43, 316.

    Args:
        label_N: class of each row.
        shape_CT: channels and samples.
    Raises:
        InputError: a row has no class.
    """
    if (label_N < 0).any():
        raise InputError(
            f"data.control 'class-codes' replaces EEG by a pattern of its class, but {int((label_N < 0).sum())} of "
            f"{len(label_N)} samples show a picture without a class; give pictures classes, or use another control"
        )
    pattern_KCT = np.stack(
        [np.random.default_rng([seed, _SEED_CODES, k]).standard_normal(shape_CT) for k in range(label_N.max() + 1)]
    )
    pattern_KCT -= pattern_KCT.mean(axis=-1, keepdims=True)
    pattern_KCT /= np.maximum(pattern_KCT.std(axis=-1, keepdims=True), 1e-9)  # of one sample there is no deviation
    return pattern_KCT.astype(np.float32)[label_N]


def common(value_n: np.ndarray, samples: Repeats) -> np.ndarray:
    """Return the value that all segments of a sample share, SEVERAL where they differ; `value_n` is of all segments."""
    value_R = value_n[samples.row_R]
    low_N, high_N = (reduce.reduceat(value_R, samples.start_N[:-1]) for reduce in (np.minimum, np.maximum))
    return np.where(low_N == high_N, low_N, SEVERAL)


def recorded_at(order_n: np.ndarray, onset_s_n: np.ndarray) -> np.ndarray:
    """Return places in the order of recording where all are known, else onsets; NaN where neither is."""
    return order_n.astype(np.float64) if (order_n >= 0).all() else onset_s_n.astype(np.float64)


def _refuse(control: Control, what: str, *numbers: np.ndarray) -> None:
    for number_N in numbers:
        n_unknown, n_several = int((number_N == UNKNOWN).sum()), int((number_N == SEVERAL).sum())
        if n_unknown:
            raise InputError(
                f"data.control {control!r} works within each {what}, but those of {n_unknown} of {len(number_N)} "
                f"samples are unknown; use 'shuffled-pairs', or ingest from a source that tells the {what}s"
            )
        if n_several:
            raise InputError(
                f"data.control {control!r} works within each {what}, but {n_several} of {len(number_N)} samples are "
                f"means over several; set data.repetitions 1"
            )


def _strata(keys: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the rows of every combination of the keys, in sorted order."""
    codes = np.column_stack([np.unique(key, return_inverse=True)[1] for key in keys])
    _, stratum_N = np.unique(codes, axis=0, return_inverse=True)
    order_N = np.argsort(stratum_N, kind="stable")
    yield from np.split(order_N, np.flatnonzero(np.diff(stratum_N[order_N])) + 1)


def _deranged(value_U: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the values along one random cycle, so that none stays in its place unless it is alone (Sattolo 1986)."""
    cycle_U = rng.permutation(len(value_U))
    moved_U = np.empty_like(value_U)
    moved_U[cycle_U] = value_U[np.roll(cycle_U, 1)]
    return moved_U


def _in_blocks_of_classes(
    image_N: np.ndarray,
    side_N: np.ndarray,
    subject_N: np.ndarray,
    session_N: np.ndarray,
    time_N: np.ndarray,
    label_M: np.ndarray,
    seed: int,
) -> np.ndarray:
    given_N = np.empty_like(image_N)
    for number, recording in enumerate(_strata([subject_N, session_N])):
        # -1 is the last place: pictures without a class come at the end.
        place_K = np.random.default_rng([seed, _SEED_CLASSES, number]).permutation(label_M.max(initial=-1) + 2)
        for side in np.unique(side_N[recording]):
            own = recording[side_N[recording] == side]
            rng = np.random.default_rng([seed, _SEED_PICTURES, number, *str(side).encode()])
            shown = image_N[own][rng.permutation(len(own))]
            by_class = shown[np.argsort(place_K[label_M[shown]], kind="stable")]
            given_N[own[np.argsort(time_N[own], kind="stable")]] = by_class
    return given_N
