"""The order audit: could a model name the class, or the picture, from WHEN it was shown instead of from what was seen?

Each check compares what the data set shows with what it would show if class had nothing to do with time. For that null
the pictures of a recording (a session of a subject) trade classes at random: nothing else changes, and all
presentations of a picture move together. Several recordings are combined as `permutation` describes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from eegvision.ingest.permutation import (
    Comparison,
    Statistic,
    against_null,
    entropy_bits,
    information,
    lag,
    overlaps,
    pictures_trade,
    shuffles,
)
from eegvision.vocab import InputError

Grade = Literal["green", "amber", "red"]

GRADES: tuple[Grade, ...] = ("green", "amber", "red")

_PERMUTATIONS = (29, 999)  # at least, at most
_ROWS_PERMUTED = 8_000_000  # rows times permutations that still take seconds
_MOST_BINS = 64

_LEAST_BEST_Z = 3.0  # of the guess in a blocked design; below, information and lag would miss it too

# Effects a check must reach, beside being no accident, before it matters: (amber, red).
_GUESS = (0.01, 0.1)  # of the way from chance to 1
_INFORMATION = (0.02, 0.3)  # of the entropy of the class
_SESSION_INFORMATION = (0.02, 0.5)
_LAG = (0.75, 1 / 3)  # of the lag expected
_CODE_BITS = 0.25  # a sixth of a gallery is ruled out; a few lost segments stay below

_BY_BLOCK = "Train and test on different blocks or sessions (data.split leave-block-out), or record with classes mixed."
_WITHIN_SESSIONS = "Compare only pictures shown in the same sessions, or test on pictures shown in all of them."
_ELSEWHERE = "Take scores on these data for what they are, and show the effect on recordings with classes mixed."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    `expected` is the mean under the null, `limit` the value from which the check warns, `p` the one-sided permutation
    p-value; None where there is none. `sentence` says what was found, `remedy` what to do about it.
    """

    check: str
    grade: Grade
    value: float | None = None
    expected: float | None = None
    limit: float | None = None
    p: float | None = None
    sentence: str
    remedy: str = ""

    def __post_init__(self) -> None:
        # Manifests carry findings and are compared by hash: the last digits depend on the processor.
        for name in ("value", "expected", "limit", "p"):
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(f"{number:.6g}"))


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings and the worst of their grades.

    Red: class and time coincide. Amber: a special split or more knowledge is needed. Validation segments must be
    `purge_s` seconds away from training segments to share no sample with them (0: any distance will do).
    """

    grade: Grade
    findings: tuple[Finding, ...]
    purge_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self) | {"findings": [dataclasses.asdict(finding) for finding in self.findings]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """Return the audit of which `to_dict` gave these values."""
        findings = tuple(Finding(**finding) for finding in values["findings"])
        return cls(grade=values["grade"], findings=findings, purge_s=values["purge_s"])


@dataclass(frozen=True, kw_only=True)
class _Presentations:
    """Segments with a known place in time, sorted by recording and time; label -1: no class."""

    subject_N: np.ndarray
    session_N: np.ndarray
    recording_N: np.ndarray
    block_N: np.ndarray
    position_N: np.ndarray
    image_N: np.ndarray
    label_N: np.ndarray
    gap_s_N: np.ndarray  # since the onset before: inf at the start of a recording (or of its clock), NaN unknown


def audit(
    segments: pa.Table,
    images: pa.Table,
    *,
    n_times: int,
    sfreq_hz: float,
    published: Mapping[str, Sequence[str]] | None = None,
    critique: str = "",
    seed: int = 0,
    n_permutations: int | None = None,
) -> Audit:
    """Examine in which order the pictures of a data set were shown.

    Args:
        segments: columns subject, session, block, order, onset_s, image_id; unknown is -1 or NaN.
        images: columns image_id, label (-1: none), sha256.
        n_times: samples of a segment, which with `sfreq_hz` gives the window that segments may share.
        sfreq_hz: samples per second.
        published: image ids by name of the side they are on, where the publishers defined sides.
        critique: what is known to be wrong with the design though the tables cannot show it; makes the grade red.
        seed: of the permutations.
        n_permutations: of every null; by default 29 to 999, fewer for more segments.
    Raises:
        InputError: a segment shows a picture that is not among `images`.
    """
    published = published or {}
    image_N = _numbers(segments["image_id"], images["image_id"])
    unknown = np.flatnonzero(image_N < 0)
    if len(unknown):
        name = segments["image_id"][int(unknown[0])].as_py()
        raise InputError(f"segments show image {name!r}, which is not among the images; ingest the data again")
    label_M = images["label"].to_numpy().astype(np.int64)
    side_M = _sides(images, published)
    known, findings = _in_order(segments, image_N, label_M)
    n_rounds = n_permutations or int(np.clip(_ROWS_PERMUTED // max(1, segments.num_rows), *_PERMUTATIONS))
    rng = np.random.default_rng(seed)
    if len(known.image_N):
        findings += _class_findings(known, side_M, rng, n_rounds)
        findings += _picture_findings(known, rng, n_rounds)
    overlap, purge_s = _overlap(known, segments["onset_s"].to_numpy(), n_times / sfreq_hz, 1 / sfreq_hz)
    findings += [overlap, *_session_findings(segments, image_N, label_M, side_M, published, rng, n_rounds)]
    findings.append(_repeated_pictures(images, side_M, published))
    if critique:
        findings.append(Finding(check="published critique", grade="red", sentence=critique, remedy=_ELSEWHERE))
    grade = max((finding.grade for finding in findings), key=GRADES.index)
    return Audit(grade=grade, findings=tuple(findings), purge_s=purge_s)


# ---- when was what


def _sides(images: pa.Table, published: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return the number of the side each picture is on, -1 for none."""
    side_M = np.full(images.num_rows, -1)
    for number, ids in enumerate(published.values()):
        is_on_M = _numbers(images["image_id"], pa.chunked_array([pa.array(ids, pa.string())])) >= 0
        side_M[is_on_M] = number
    return side_M


def _numbers(names: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the place of every name in another list, -1 for none."""
    place = {name: number for number, name in enumerate(among.to_pylist())}
    return np.array([place.get(name, -1) for name in names.to_pylist()], dtype=np.int64)


def _subjects(segments: pa.Table) -> np.ndarray:
    return _numbers(segments["subject"], segments["subject"].unique())


def _in_order(segments: pa.Table, image_N: np.ndarray, label_M: np.ndarray) -> tuple[_Presentations, list[Finding]]:
    """Sort by order where it is known, else by onset; recordings with neither are left out and said."""
    subject_N = _subjects(segments)
    session_N, block_N, order_N = (segments[name].to_numpy().astype(np.int64) for name in ("session", "block", "order"))
    onset_N = segments["onset_s"].to_numpy()
    _, recording_N = np.unique(np.column_stack([subject_N, session_N]), axis=0, return_inverse=True)
    n_recordings = int(recording_N.max(initial=-1)) + 1
    has_order_R, has_onset_R = (
        _is_unambiguous(recording_N, values, is_known, n_recordings)
        for values, is_known in ((order_N, order_N >= 0), (onset_N, np.isfinite(onset_N)))
    )
    is_timed_N = (has_order_R | has_onset_R)[recording_N]
    when_N = np.where(has_order_R[recording_N], order_N, onset_N)
    rows = np.flatnonzero(is_timed_N)
    rows = rows[np.lexsort((when_N[rows], recording_N[rows]))]
    recording_N, block_N, onset_N = recording_N[rows], block_N[rows], onset_N[rows]
    is_first_N = np.diff(recording_N, prepend=-1) != 0
    gap_s_N = np.diff(onset_N, prepend=np.nan)
    # Where the clock starts again with each block, what lies between two blocks is not known to be short.
    is_restart_N = (gap_s_N <= 0) & (np.diff(block_N, prepend=-1) != 0)
    is_backward_N = (gap_s_N <= 0) & ~is_restart_N & ~is_first_N
    gap_s_N[is_backward_N] = np.nan
    gap_s_N[is_first_N | is_restart_N] = np.inf
    starts = np.flatnonzero(is_first_N)
    known = _Presentations(
        subject_N=subject_N[rows],
        session_N=session_N[rows],
        recording_N=np.cumsum(is_first_N) - 1,
        block_N=block_N,
        position_N=np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows))),
        image_N=image_N[rows],
        label_N=label_M[image_N[rows]],
        gap_s_N=gap_s_N,
    )
    return known, _time_findings(len(rows), len(is_timed_N), len(starts), int(is_backward_N.sum()))


def _is_unambiguous(group_N: np.ndarray, values: np.ndarray, is_known_N: np.ndarray, n_groups: int) -> np.ndarray:
    """Return per group whether all its values are known and no two are equal."""
    n_known = np.bincount(group_N[is_known_N], minlength=n_groups)
    order = np.lexsort((values, group_N))
    is_equal_N = (np.diff(values[order]) == 0) & (np.diff(group_N[order]) == 0)
    n_equal = np.bincount(group_N[order][1:][is_equal_N], minlength=n_groups)
    return (n_known == np.bincount(group_N, minlength=n_groups)) & (n_equal == 0)


def _time_findings(n_known: int, n_all: int, n_recordings: int, n_backward: int) -> list[Finding]:
    share = n_known / n_all if n_all else 0.0
    if share == 1:
        sentence = f"The order of all {n_all:,} presentations in {n_recordings} recordings is known."
        findings = [Finding(check="order known", grade="green", value=1.0, limit=1.0, sentence=sentence)]
    else:
        which = "any segment was" if n_known == 0 else f"{n_all - n_known:,} of {n_all:,} segments were"
        findings = [
            Finding(
                check="order known",
                grade="amber",
                value=share,
                limit=1.0,
                sentence=f"When {which} recorded is not known, so nobody can tell whether classes came in blocks; "
                "if they did, slow drifts would give the class away.",
                remedy="Ask the owners for the presentation order; until then treat scores as an upper bound.",
            )
        ]
    if n_backward:
        sentence = f"{n_backward:,} presentations start before the one ahead of them in the order: order and onset "
        sentence += "times contradict each other."
        remedy = "Check whether onsets of several files were joined without an offset."
        findings.append(
            Finding(check="clock", grade="amber", value=n_backward, limit=1, sentence=sentence, remedy=remedy)
        )
    return findings


# ---- statistics of presentations


def _neighbour(known: _Presentations) -> np.ndarray:
    """Return the presentation of another picture nearest in time within the recording, -1 where there is none."""
    n = len(known.image_N)
    starts = np.flatnonzero((np.diff(known.image_N, prepend=-1) != 0) | (known.position_N == 0))
    run_N = np.repeat(np.arange(len(starts)), np.diff(starts, append=n))
    before_N, after_N = starts[run_N] - 1, np.append(starts[1:], n)[run_N]
    has_before_N, has_after_N = (
        (there_N >= 0) & (there_N < n) & (known.recording_N[np.clip(there_N, 0, n - 1)] == known.recording_N)
        for there_N in (before_N, after_N)
    )
    # Seconds where the whole recording has them, else presentations.
    has_gap_N = np.isfinite(known.gap_s_N) | (known.position_N == 0)
    n_gaps_R = np.bincount(known.recording_N, weights=~has_gap_N)
    step_N = np.where(n_gaps_R[known.recording_N] == 0, known.gap_s_N, 1.0)
    step_N[known.position_N == 0] = 0.0
    when_N = np.cumsum(step_N)
    to_before_N = np.where(has_before_N, when_N - when_N[before_N], np.inf)
    to_after_N = np.where(has_after_N, when_N[np.clip(after_N, 0, n - 1)] - when_N, np.inf)
    is_before_N = to_before_N <= to_after_N + 1e-6
    neighbour_N = np.where(is_before_N, before_N, after_N)
    neighbour_N[~has_before_N & ~has_after_N] = -1
    return neighbour_N


def _guess(known: _Presentations, n_groups: int) -> Statistic:
    """Share of presentations whose class is that of the neighbour in time; those without a class do not count."""
    neighbour_N = _neighbour(known)
    rows = np.flatnonzero((neighbour_N >= 0) & (known.label_N >= 0))
    neighbour_N, group_N = neighbour_N[rows], known.recording_N[rows]
    n_G = np.bincount(group_N, minlength=n_groups).astype(np.float64)
    n_G[n_G == 0] = np.nan

    def statistic(label_N: np.ndarray) -> np.ndarray:
        return np.bincount(group_N, weights=label_N[rows] == label_N[neighbour_N], minlength=n_groups) / n_G

    return statistic


# ---- what the numbers mean


def _class_findings(
    known: _Presentations, side_M: np.ndarray, rng: np.random.Generator, n_rounds: int
) -> list[Finding]:
    """Guess of the class from time, information of block and time about it, lag to the next of the same class."""
    has_class_N = known.label_N >= 0
    n_recordings = int(known.recording_N[-1]) + 1
    is_blocked_N = has_class_N & (known.block_N >= 0)
    bin_N = known.recording_N * _MOST_BINS + _time_bin(known)
    block_N = known.recording_N * (int(known.block_N.max()) + 1) + known.block_N
    statistics = {
        "class from time": (_guess(known, n_recordings), 1),
        "class and block": (information(known.recording_N, block_N, is_blocked_N, n_recordings), 1),
        "class and time": (information(known.recording_N, bin_N, has_class_N, n_recordings), 1),
        "same class again": (lag(known.recording_N, known.position_N, has_class_N, n_recordings), -1),
    }
    # Pictures without a class keep to themselves.
    own_side_M = side_M.copy()
    own_side_M[known.image_N[~has_class_N]] = side_M.max() + 1
    draw = pictures_trade(known.recording_N, known.image_N, known.label_N, own_side_M, rng)
    overlap_RR = overlaps(known.recording_N, known.image_N, n_recordings)
    tests = against_null(statistics, known.label_N, draw, known.recording_N, overlap_RR, n_rounds)
    guess = tests["class from time"]
    if not (guess.sd_G > 0).any():
        sentence = "No recording shows two classes with several pictures each, so only pictures could be told by time."
        return [Finding(check="class from time", grade="green", sentence=sentence)]
    n_pictures = len(np.unique(known.image_N[has_class_N]))
    return [
        _guess_finding(guess, _best_z(known, guess, overlap_RR), n_pictures),
        _block_finding(tests["class and block"], bool(is_blocked_N.any())),
        _information_finding("class and time", "the time within the recording", tests["class and time"], _INFORMATION),
        _lag_finding("same class again", "class", tests["same class again"]),
    ]


def _time_bin(known: _Presentations) -> np.ndarray:
    """Return the number of the time bin within the recording: sqrt(n) bins of as many presentations, at most 64."""
    n_R = np.bincount(known.recording_N)
    n_bins_R = np.clip(np.sqrt(n_R).astype(np.int64), 1, _MOST_BINS)
    return known.position_N * n_bins_R[known.recording_N] // n_R[known.recording_N]


def _best_z(known: _Presentations, guess: Comparison, overlap_RR: np.ndarray) -> float:
    """Return the Z that a perfectly blocked design of the same pictures would reach."""
    pairs = np.unique(np.column_stack([known.recording_N, known.image_N, known.label_N]), axis=0)
    n_pictures_R = np.bincount(pairs[:, 0])
    n_classes_R = np.bincount(np.unique(pairs[:, [0, 2]], axis=0)[:, 0])
    has_say_R = guess.sd_G > 0
    gain_R = (1 - n_classes_R / n_pictures_R - guess.expected)[has_say_R] / guess.sd_G[has_say_R]
    return float(gain_R.sum() / math.sqrt(overlap_RR[np.ix_(has_say_R, has_say_R)].sum()))


def _grade(test: Comparison, effect: float, limits: tuple[float, float]) -> Grade:
    if not test.is_no_accident or effect < limits[0]:
        return "green"
    return "red" if effect >= limits[1] else "amber"


def _guess_finding(test: Comparison, best_z: float, n_pictures: int) -> Finding:
    from scipy.special import betainc

    skill = (test.value - test.expected) / max(1e-9, 1 - test.expected)
    grade = _grade(test, skill, _GUESS)
    # One observation per picture: repeated presentations add no certainty.
    hits = math.floor(test.value * n_pictures + 1e-9)
    binomial = float(betainc(hits, n_pictures - hits + 1, test.expected)) if hits and test.expected > 0 else 1.0
    sentence = (
        f"Guessing the class of a picture from the picture shown nearest in time is right in {_percent(test.value)} "
        f"of cases; with classes in random order it would be {_percent(test.expected)}"
    )
    remedy = ""
    if grade == "green" and best_z < _LEAST_BEST_Z:
        grade, sentence = "amber", f"{sentence}. There are too few pictures to tell these apart."
        remedy = "Judge the order by eye, or record more pictures."
    elif grade == "green":
        sentence += ": time does not give the class away."
    else:
        sentence += f" (binomial p {_p_text(binomial)} for {n_pictures} pictures). "
        sentence += "Slow drifts of the EEG alone can name the class; scores would measure when, not what."
        remedy = _BY_BLOCK
    limit = test.expected + _GUESS[0] * (1 - test.expected)
    return Finding(
        check="class from time",
        grade=grade,
        value=test.value,
        expected=test.expected,
        limit=limit,
        p=test.p,
        sentence=sentence,
        remedy=remedy,
    )


def _block_finding(test: Comparison, has_blocks: bool) -> Finding:
    if has_blocks:
        return _information_finding("class and block", "the block", test, _INFORMATION)
    sentence = "Blocks are not numbered; the checks by time cover them."
    return Finding(check="class and block", grade="green", sentence=sentence)


def _information_finding(
    check: str, what: str, test: Comparison, limits: tuple[float, float], remedy: str = _BY_BLOCK
) -> Finding:
    """Value: (I - E) / (H - E), the share of the class's entropy that is known beyond accident."""
    if not test.sd_G.any() or test.expected >= 1:
        return Finding(check=check, grade="green", sentence=f"Knowing {what} cannot tell classes apart here.")
    share = (test.value - test.expected) / (1 - test.expected)
    grade = _grade(test, share, limits)
    sentence = f"Knowing {what} tells {_percent(max(0.0, share))} of what there is to know about the class"
    sentence += ", no more than by accident." if grade == "green" else ", far more than by accident."
    remedy = "" if grade == "green" else remedy
    return Finding(
        check=check, grade=grade, value=share, expected=0.0, limit=limits[0], p=test.p, sentence=sentence, remedy=remedy
    )


def _lag_finding(check: str, what: str, test: Comparison) -> Finding:
    ratio = test.value / test.expected
    grade: Grade = "green"
    if test.is_no_accident and ratio <= _LAG[0]:
        grade = "red" if ratio <= _LAG[1] and what == "class" else "amber"
    sentence = (
        f"The next presentation of the same {what} is {_lag_text(test.value)} away (median); "
        f"in random order it would be {_lag_text(test.expected)} away."
    )
    remedy = "" if grade == "green" else _BY_BLOCK
    if grade != "green" and what == "picture":
        remedy = "Keep all presentations of a picture on one side (every split here does), and sessions apart."
    return Finding(
        check=check,
        grade=grade,
        value=test.value,
        expected=test.expected,
        limit=_LAG[0] * test.expected,
        p=test.p,
        sentence=sentence,
        remedy=remedy,
    )


def _picture_findings(known: _Presentations, rng: np.random.Generator, n_rounds: int) -> list[Finding]:
    """Lag to the next presentation of the same picture, against presentations in random order."""
    n_recordings = int(known.recording_N[-1]) + 1
    everything_N = np.full(len(known.image_N), True)
    draw = shuffles(known.image_N, known.recording_N, rng)
    statistics = {"lag": (lag(known.recording_N, known.position_N, everything_N, n_recordings), -1)}
    overlap_RR = overlaps(known.recording_N, known.image_N, n_recordings)
    test = against_null(statistics, known.image_N, draw, known.recording_N, overlap_RR, n_rounds)["lag"]
    return [_lag_finding("same picture again", "picture", test)] if test.sd_G.any() else []


def _overlap(known: _Presentations, onset_s_N: np.ndarray, window_s: float, sample_s: float) -> tuple[Finding, float]:
    """Say which share of segments holds samples that are in another segment as well, and the purge that takes."""
    is_close_N = known.gap_s_N < window_s - sample_s / 2  # False for NaN
    is_shared_N = is_close_N.copy()
    is_shared_N[:-1] |= is_close_N[1:]
    n_segments, n_unknown = len(onset_s_N), int(np.isnan(onset_s_N).sum())
    share = float(is_shared_N.mean()) if len(is_shared_N) else 0.0
    if share:
        shortest_s = float(known.gap_s_N[is_close_N].min())
        sentence = (
            f"{_percent(share)} of segments share samples with a neighbour: pictures follow each other after "
            f"{shortest_s:.3g} s, segments last {window_s:.3g} s. A model can know a validation segment from training."
        )
        remedy = "Keep training windows clear of validation and test windows: data.purge_s 0, with whatever split."
        found = Finding(check="overlap", grade="amber", value=share, limit=0.0, sentence=sentence, remedy=remedy)
        return found, window_s
    if n_unknown:
        sentence = f"The onset of {n_unknown:,} of {n_segments:,} segments is not known, so nobody can tell whether "
        sentence += "segments share samples."
        remedy = "Ask the owners for onset times, or keep neighbours on one side."
        return Finding(check="overlap", grade="amber", limit=0.0, sentence=sentence, remedy=remedy), 0.0
    sentence = f"No two segments share a sample; each lasts {window_s:.3g} s."
    return Finding(check="overlap", grade="green", value=0.0, limit=0.0, sentence=sentence), 0.0


def _session_findings(
    segments: pa.Table,
    image_N: np.ndarray,
    label_M: np.ndarray,
    side_M: np.ndarray,
    published: Mapping[str, Sequence[str]],
    rng: np.random.Generator,
    n_rounds: int,
) -> list[Finding]:
    """What the sessions in which a picture was shown tell about the picture and about its class."""
    session_N, subject_N = segments["session"].to_numpy().astype(np.int64), _subjects(segments)
    if (session_N < 0).any():
        remedy = "Ask the owners for session numbers; until then do not average presentations of a picture."
        sentence = "Sessions are not numbered: a picture may be told by the sessions in which it was shown."
        return [Finding(check="session code", grade="amber", sentence=sentence, remedy=remedy)]
    n_sessions = int(session_N.max(initial=0)) + 1
    visit_N = subject_N * n_sessions + session_N
    if len(np.unique(visit_N)) == len(np.unique(subject_N)):
        return [Finding(check="session code", grade="green", value=0.0, sentence="Every subject has one session.")]
    findings = [_code_finding(visit_N, subject_N, image_N, side_M, n_sessions, tuple(published))]
    is_used_N = label_M[image_N] >= 0
    if not is_used_N.any():
        return findings
    rows = np.flatnonzero(is_used_N)
    n_subjects = int(subject_N.max()) + 1
    subject_N, image_N, visit_N = subject_N[rows], image_N[rows], visit_N[rows]
    draw = pictures_trade(subject_N, image_N, label_M[image_N], side_M, rng)
    statistics = {"session": (information(subject_N, visit_N, np.full(len(rows), True), n_subjects), 1)}
    overlap_GG = overlaps(subject_N, image_N, n_subjects)
    test = against_null(statistics, label_M[image_N], draw, subject_N, overlap_GG, n_rounds)["session"]
    found = _information_finding("class and session", "the session", test, _SESSION_INFORMATION, _WITHIN_SESSIONS)
    return [*findings, found]


def _code_finding(
    visit_N: np.ndarray,
    subject_N: np.ndarray,
    image_N: np.ndarray,
    side_M: np.ndarray,
    n_sessions: int,
    sides: tuple[str, ...],
) -> Finding:
    """Value: bits that the set of sessions tells about the picture; mean over subjects, of the side with the most.

    H = - sum_s p(s) log2 p(s)        s: set of sessions in which a picture was shown, p over pictures of the side
    """
    visits = np.unique(np.column_stack([subject_N, image_N, visit_N]), axis=0)
    # A set is named by the sum of random numbers of its sessions.
    name_V = np.random.default_rng(0).integers(0, 2**63, n_sessions, dtype=np.uint64)
    starts = np.flatnonzero(np.any(np.diff(visits[:, :2], axis=0, prepend=-1) != 0, axis=1))
    with np.errstate(over="ignore"):
        set_P = np.add.reduceat(name_V[visits[:, 2] % n_sessions], starts)
    subject_P, side_P = visits[starts, 0], side_M[visits[starts, 1]]
    bits = {}
    for side in np.unique(side_P).tolist():
        name = sides[side] if side >= 0 else "other" if sides else "all"
        counts = [
            np.unique(set_P[(subject_P == subject) & (side_P == side)], return_counts=True)[1]
            for subject in np.unique(subject_P[side_P == side]).tolist()
        ]
        bits[name] = float(np.mean([entropy_bits(n) for n in counts]))
    worst = max(bits.values())
    told = ", ".join(f"{name} pictures {value:.2f} bit" for name, value in bits.items())
    is_told = worst >= _CODE_BITS
    sentence = f"The set of sessions in which a picture was shown says: {told}. "
    if is_told:
        sentence += (
            "EEG carries its session, so a model can rule out "
            f"{_percent(1 - 2**-worst)} of a gallery without having seen anything."
        )
    else:
        sentence += "That does not help to tell pictures apart."
    return Finding(
        check="session code",
        grade="amber" if is_told else "green",
        value=worst,
        expected=0.0,
        limit=_CODE_BITS,
        sentence=sentence,
        remedy=_WITHIN_SESSIONS if is_told else "",
    )


def _repeated_pictures(images: pa.Table, side_M: np.ndarray, published: Mapping[str, Sequence[str]]) -> Finding:
    """Say which pictures are stored under several ids, and whether sides or classes differ between these."""
    code_M = images["sha256"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    count_C = np.bincount(code_M)
    is_copy_M = count_C[code_M] > 1
    if not is_copy_M.any():
        sentence = f"All {images.num_rows:,} pictures differ."
        return Finding(check="repeated pictures", grade="green", value=0, limit=0, sentence=sentence)
    label_M = images["label"].to_numpy()
    n_extra = int((count_C - 1).clip(min=0).sum())
    n_across = {
        name: len(np.unique(np.column_stack([code_M, values_M]), axis=0)) - len(count_C)
        for name, values_M in (("classes", label_M), ("published sides", side_M))
    }
    sentence = f"{n_extra:,} pictures are copies of others under another name"
    sentence += "".join(f", {count:,} of them across {name}" for name, count in n_across.items() if count > 0) + "."
    first, second = np.flatnonzero(code_M == code_M[is_copy_M.argmax()])[:2].tolist()
    sentence += f" For example {images['image_id'][first].as_py()!r} and {images['image_id'][second].as_py()!r}."
    remedy = "Keep copies on one side (every split here does)"
    remedy += "; the published split cannot be used as it is." if published and n_across["published sides"] else "."
    return Finding(
        check="repeated pictures", grade="amber", value=n_extra, expected=0, limit=0, sentence=sentence, remedy=remedy
    )


def _lag_text(lag_: float) -> str:
    return f"{lag_:,.0f}" if lag_ >= 100 else f"{lag_:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _p_text(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001" if p >= 1e-9 else "< 1e-9"
