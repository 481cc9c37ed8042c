"""From recordings that were looked at to segments: who saw what when, what can be cut out, what all files share.

Nothing here knows how samples are stored: who reads them hands over a function that does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eegvision.ingest import events as pairing
from eegvision.ingest import prepare, sources
from eegvision.ingest.pictures import read_picture
from eegvision.vocab import InputError, Montage, Segment, Stimulus, Unit

BAD_SPAN = "overlaps an annotation named BAD"
BREAK = "crosses a break in the recording"
EDGE = "window reaches over the ends of the recording"
NOT_FINITE = "NaN or infinite EEG"
CONSTANT = "EEG constant in every channel"

_ABSURD = 1e15  # in any unit; counted as not finite
_BLOCK_ROWS = 512
_EXCERPT_S, _EXCERPT_ROWS = 60.0, 200


@dataclass(frozen=True, kw_only=True)
class File:
    """One recording, looked at but not read: what reading its samples needs, and what its header says.

    `n_samples` counts those of a continuous recording, `n_times` those of an epoch (the other is 0). `paths` are all
    files it consists of. `notes` are what MNE had to say.
    """

    path: Path
    bids_root: Path | None
    is_epochs: bool
    paths: tuple[Path, ...]
    channels: tuple[str, ...]
    positions_m: tuple[tuple[float, float, float], ...]
    unit: Unit
    sfreq_hz: float
    t_min_s: float
    n_times: int
    n_samples: int
    n_epochs: int
    run: int
    bads: tuple[str, ...]
    bad_spans: tuple[tuple[float, float], ...]  # from and to, in samples; of epochs: numbers of those that overlap one
    breaks: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Take:
    """A segment to be: all but its samples; `number` is the epoch in the file, `sample` the onset in a recording."""

    number: int
    sample: int
    segment_id: str
    subject: str
    session: int
    block: int
    order: int
    onset_s: float
    repetition: int
    image_id: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What to take from one file."""

    file: File
    takes: tuple[Take, ...]


# Samples of a file: [C, S], or of the epochs with these numbers [N, C, T]; with a limit, at most so many of [C, S].
Samples = Callable[[File, Sequence[int], int | None], np.ndarray]


def of_subjects(
    files: Sequence[File], pairs: Sequence[pairing.Pairing], subjects: Sequence[str]
) -> list[tuple[str, File, pairing.Pairing]]:
    """Say whose each file is, and keep those of the subjects wanted (none: all).

    Raises:
        InputError: one of several files does not say whose it is; there is no such subject.
    """
    found = list(zip(files, pairs, strict=True))
    named = []
    for file, one in found:
        subject = one.subject
        if not subject and len(found) > 1:
            raise InputError(
                f"{file.path} does not say whose it is; name it like sub-01_{file.path.name}, put it into a folder "
                "sub-01, or add columns file and subject to the table"
            )
        named.append((subject or "sub-" + re.sub(r"[^\w-]", "-", file.path.stem)[:40], file, one))
    wanted = {pairing.entity("sub", subject) for subject in subjects}
    present = {subject for subject, _, _ in named}
    if wanted - present:
        raise InputError(f"there is no subject {min(wanted - present)}; present are {', '.join(sorted(present))}")
    return [one for one in named if not wanted or one[0] in wanted]


def header(
    kept: Sequence[tuple[str, File, pairing.Pairing]],
    pictures: dict[str, pairing.Picture],
    preparation: prepare.Preparation,
    session_of: Mapping[str, int],
    *,
    name: str,
    dialect: str,
    licence: str,
) -> sources.Header:
    """Return what all files have in common once they are prepared.

    Raises:
        InputError: channels, rate or time of two files differ; or a step of the preparation does not fit them.
    """
    files = [file for _, file, _ in kept]
    outcomes = [outcome(file, preparation) for file in files]
    first = outcomes[0]
    for file, other in zip(files, outcomes, strict=True):
        for what, here, there in (
            ("channels", first.channels, other.channels),
            ("sfreq_hz", first.sfreq_hz, other.sfreq_hz),
            ("t_min_s", first.t_min_s, other.t_min_s),
            ("n_times", first.n_times, other.n_times),
        ):
            if here != there:
                raise InputError(
                    f"{file.path} differs from {files[0].path}: {what} {_difference(here, there)}; "
                    "choose --channels, --resample-hz and --window-s that make them alike"
                )
    formats = sorted({file.path.suffix.lower() for file in files})
    source = {"step": "source", "files": len(files), "formats": formats, "kind": _kind(files)}
    return sources.Header(
        name=name,
        dialect=dialect,
        licence=licence,
        montage=Montage(channels=first.channels, positions_m=positions_m(files[0], preparation)),
        sfreq_hz=first.sfreq_hz,
        t_min_s=first.t_min_s,
        n_times=first.n_times,
        unit=first.unit,
        steps=(source, *first.steps),
        classes=pairing.class_names(picture.label for picture in pictures.values()),
        published=pairing.split_ids(pictures),
        facts=tuple(_facts(kept, session_of)),
    )


def outcome(file: File, preparation: prepare.Preparation) -> prepare.Facts:
    """Return what preparation makes of a file; errors name it."""
    try:
        return prepare.outcome(
            preparation,
            channels=file.channels,
            sfreq_hz=file.sfreq_hz,
            t_min_s=file.t_min_s if file.is_epochs else None,
            n_times=file.n_times if file.is_epochs else None,
            unit=file.unit,
            is_continuous=not file.is_epochs,
        )
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error


def positions_m(file: File, preparation: prepare.Preparation) -> tuple[tuple[float, float, float], ...]:
    """Return where the sensors are that preparation keeps: as the file has it, else the places of the 10-05 names."""
    kept = outcome(file, preparation).channels
    position_of = dict(zip(prepare.canonical_channels(file.channels), file.positions_m, strict=False))
    position_of |= dict(zip(file.channels, file.positions_m, strict=False))
    if position_of:
        return tuple(position_of[name] for name in kept)
    return prepare.positions_m(prepare.canonical_channels(kept))


def plan(
    kept: Sequence[tuple[str, File, pairing.Pairing]],
    preparation: prepare.Preparation,
    session_of: Mapping[str, int],
    on_bad: sources.OnBad,
    dropped: sources.Drops,
) -> list[Piece]:
    """Decide which presentation becomes which segment, and count those that cannot: by reason, in `dropped`.

    Raises:
        InputError: a window reaches over the ends of its recording and `on_bad` is `fail`.
    """
    position: Counter[tuple[str, int]] = Counter()
    repetition: Counter[tuple[str, str]] = Counter()
    pieces = []
    for subject, file, one in kept:
        session = session_of[one.session]
        sample_N = np.array([shown.sample for shown in one.shown], dtype=np.int64)
        faults = _epoch_faults(file, one) if file.is_epochs else _window_faults(file, sample_N, preparation)
        is_ordered = not file.is_epochs or bool((np.diff(sample_N) > 0).all())
        takes = []
        for shown, fault in zip(one.shown, faults, strict=True):
            order = position[subject, session]
            position[subject, session] += 1
            if fault == EDGE and on_bad == "fail":
                raise InputError(
                    f"{file.path}: the window of {shown.where} at {shown.sample / file.sfreq_hz:g} s reaches over the "
                    "ends of the recording; make the window shorter, or leave such events out (--on-bad drop)"
                )
            if fault:
                dropped[fault] += 1
                continue
            image_id = pairing.image_id_of(shown.image)
            takes.append(
                Take(
                    number=shown.number,
                    sample=shown.sample,
                    segment_id=f"{subject}_ses-{session:02d}_tr-{order:05d}",
                    subject=subject,
                    session=session,
                    block=shown.block if shown.block >= 0 else file.run,
                    order=order if is_ordered else -1,
                    onset_s=float("nan") if file.is_epochs else shown.sample / file.sfreq_hz,
                    repetition=repetition[subject, image_id],
                    image_id=image_id,
                )
            )
            repetition[subject, image_id] += 1
        if takes:
            pieces.append(Piece(file=file, takes=tuple(takes)))
    if not pieces:
        raise InputError(
            f"{kept[0][1].path}: no presentation is left "
            f"({', '.join(f'{reason}: {count}' for reason, count in dropped.items())}); choose another window or source"
        )
    return pieces


def parts(
    pieces: Sequence[Piece],
    preparation: prepare.Preparation,
    train: Sequence[str],
    on_bad: sources.OnBad,
    samples: Samples,
) -> list[sources.Part]:
    """Make one part of each piece; when values are scaled, of all pieces of a subject's session, which share a scale.

    Raises:
        InputError: values are to be scaled, and no picture is known to be for training.
    """
    if preparation.scale != "none" and not train:
        raise InputError(
            f"--scale {preparation.scale} is fitted on training segments, but no picture is known to be one; "
            "add a column split to the table, or leave --scale at none"
        )
    groups: dict[Any, list[Piece]] = {}
    for number, piece in enumerate(pieces):
        take = piece.takes[0]
        is_grouped = preparation.scale != "none"
        groups.setdefault((take.subject, take.session) if is_grouped else number, []).append(piece)
    is_train = frozenset(train) if preparation.scale != "none" else frozenset()
    made = []
    for group in groups.values():
        arguments = (tuple(group), preparation, is_train, on_bad, samples)
        digest = hashlib.sha256(repr((group, preparation, sorted(is_train), on_bad)).encode()).hexdigest()[:16]
        rows = sum(len(piece.takes) for piece in group)
        made.append(
            sources.Part(
                name=f"{', '.join(piece.file.path.name for piece in group)} from {group[0].takes[0].segment_id}",
                rows=rows,
                read=partial(segments, *arguments),
                key=f"{sources.file_key(*(path for piece in group for path in piece.file.paths))};{digest}",
                peak_bytes=(256 << 20) + sum(_peak_bytes(piece, preparation) for piece in group),
            )
        )
    return made


def segments(
    pieces: Sequence[Piece],
    preparation: prepare.Preparation,
    train: frozenset[str],
    on_bad: sources.OnBad,
    samples: Samples,
    dropped: sources.Drops,
) -> Iterator[Segment]:
    """Read the segments of a part (`Part.read`)."""
    if preparation.scale == "none":
        blocks = (block for piece in pieces for block in _blocks(piece, preparation, samples))
    else:
        held = [block for piece in pieces for block in _blocks(piece, preparation, samples)]
        takes = [take for block, _ in held for take in block]
        eeg_NCT = np.concatenate([signal.eeg for _, signal in held])
        blocks = iter([(takes, dataclasses.replace(held[0][1], eeg=eeg_NCT))])
    for takes, signal in blocks:
        good = _good(takes, signal.eeg, pieces, on_bad, dropped)
        takes = [take for take, is_good in zip(takes, good, strict=True) if is_good]
        if not takes:
            continue
        signal = dataclasses.replace(signal, eeg=signal.eeg[good])
        condition_of = {image: number for number, image in enumerate(sorted({take.image_id for take in takes}))}
        signal = prepare.scaled(
            signal,
            preparation,
            np.array([take.image_id in train for take in takes]),
            np.array([condition_of[take.image_id] for take in takes]),
        )
        for take, eeg_CT in zip(takes, signal.eeg.astype(np.float32, copy=False), strict=True):
            values = {f.name: getattr(take, f.name) for f in dataclasses.fields(take)}
            del values["number"], values["sample"]
            yield Segment(eeg_CT=eeg_CT, **values)


def excerpt(piece: Piece, preparation: prepare.Preparation, samples: Samples) -> tuple[str, ...]:
    """Doubt the first minute of a recording, or its first epochs.

    Returns:
        sentences for the header's facts: what could not be checked, and channels without a usable signal.
    Raises:
        InputError: samples do not look like the unit or rate they should have.
    """
    file = piece.file
    numbers = [take.number for take in piece.takes[:_EXCERPT_ROWS]]
    values = samples(file, numbers, math.ceil(_EXCERPT_S * file.sfreq_hz))
    signal = _signal(file, values)
    where = str(file.path)
    doubts = prepare.check_samples(signal, where)
    return (*doubts, *prepare.refuse_bad_channels(_chosen(signal, preparation), where))


def stimuli(pictures: dict[str, pairing.Picture], classes: Sequence[str]) -> Iterator[Stimulus]:
    """Read the pictures, in the order of their first presentation."""
    label_of = {name: label for label, name in enumerate(classes)} | {"": -1}
    for image_id, picture in pictures.items():
        yield Stimulus(
            image_id=image_id,
            label=label_of[picture.label],
            label_name=picture.label,
            encoded=read_picture(picture.path),
        )


def _signal(file: File, eeg: np.ndarray) -> prepare.Signal:
    eeg[~(np.abs(eeg) < _ABSURD)] = np.nan  # damaged bytes: squares of such numbers are infinite
    return prepare.Signal(eeg=eeg, channels=file.channels, sfreq_hz=file.sfreq_hz, t_min_s=file.t_min_s, unit=file.unit)


def _chosen(signal: prepare.Signal, preparation: prepare.Preparation) -> prepare.Signal:
    return prepare.continuous(signal, prepare.Preparation(channels=preparation.channels))


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, tuple):
        return f"{other:g} instead of {one:g}"
    lacks, more = set(one) - set(other), set(other) - set(one)
    said = [f"without {', '.join(sorted(lacks)[:5])}"] * bool(lacks) + [f"with {', '.join(sorted(more)[:5])}"] * bool(
        more
    )
    return " and ".join(said) or "in another order"


def _kind(files: Sequence[File]) -> str:
    kinds = {file.is_epochs for file in files}
    return "epochs and continuous" if len(kinds) > 1 else "epochs" if kinds == {True} else "continuous"


def _facts(kept: Sequence[tuple[str, File, pairing.Pairing]], session_of: Mapping[str, int]) -> Iterator[str]:
    bads = Counter(name for _, file, _ in kept for name in file.bads)
    if bads:
        named = ", ".join(f"{name} (in {count})" for name, count in bads.most_common())
        yield f"recordings mark bad channels, which are kept: {named}"
    for _, file, one in kept:
        for note in file.notes[:3]:
            yield f"{file.path.name}: {note}"
        if not one.subject:
            yield f"{file.path.name} does not say whose it is; its name was taken for the subject's"
    if any(not session.removeprefix("ses-").isdecimal() for session in session_of if session):
        numbered = (f"{name} is {number}" for name, number in sorted(session_of.items()) if name)
        yield "sessions were numbered: " + ", ".join(numbered)


def session_numbers(sessions: Sequence[str]) -> dict[str, int]:
    """Return the numbers of sessions: their own if all have one, else their rank by the alphabet; 0 for no session."""
    texts = sorted({session.removeprefix("ses-") for session in sessions} - {""})
    if all(text.isdecimal() and int(text) < 10**6 for text in texts):
        return {session: int(session.removeprefix("ses-") or 0) for session in sessions}
    return {session: 1 + texts.index(session.removeprefix("ses-")) if session else 0 for session in sessions}


def _epoch_faults(file: File, one: pairing.Pairing) -> list[str]:
    bad = {number for number, _ in file.bad_spans}
    return [BAD_SPAN if shown.number in bad else "" for shown in one.shown]


def _window_faults(file: File, sample_N: np.ndarray, preparation: prepare.Preparation) -> list[str]:
    """For every onset the reason why it cannot be cut out, or nothing."""
    window_s = prepare.event_window_s(preparation)
    fits_N = prepare.fits(file.n_samples, file.sfreq_hz, sample_N, window_s)
    first_N = sample_N + window_s[0] * file.sfreq_hz
    last_N = sample_N + window_s[1] * file.sfreq_hz
    faults = []
    for fits, first, last in zip(fits_N, first_N, last_N, strict=True):
        if not fits:
            faults.append(EDGE)
        elif any(start < last and max(stop, start + 1) > first for start, stop in file.bad_spans):
            faults.append(BAD_SPAN)
        elif any(first < at < last for at in file.breaks):
            faults.append(BREAK)
        else:
            faults.append("")
    return faults


def _blocks(
    piece: Piece, preparation: prepare.Preparation, samples: Samples
) -> Iterator[tuple[list[Take], prepare.Signal]]:
    """Segments of a file, prepared but for their scale, some hundreds at a time."""
    file, where = piece.file, str(piece.file.path)
    recording = None
    if not file.is_epochs:
        recording = _signal(file, samples(file, (), None))
        prepare.check_samples(recording, where)
        recording = prepare.continuous(recording, preparation)
    for start in range(0, len(piece.takes), _BLOCK_ROWS):
        takes = list(piece.takes[start : start + _BLOCK_ROWS])
        if recording is not None:
            signal = prepare.segments(recording, preparation, np.array([take.sample for take in takes]))
        else:
            signal = _signal(file, samples(file, [take.number for take in takes], None))
            if start == 0:
                prepare.check_samples(signal, where)
            signal = prepare.epochs(signal, preparation)
        yield takes, dataclasses.replace(signal, eeg=signal.eeg.astype(np.float32))


def _good(
    takes: Sequence[Take],
    eeg_NCT: np.ndarray,
    pieces: Sequence[Piece],
    on_bad: sources.OnBad,
    dropped: sources.Drops,
) -> np.ndarray:
    """Say which segments carry a signal, bool [N]; the others are refused or counted."""
    is_finite_N = np.asarray(np.isfinite(eeg_NCT).all(axis=(1, 2)))
    is_constant_N = np.asarray((eeg_NCT == eeg_NCT[:, :, :1]).all(axis=(1, 2)))
    for row in np.flatnonzero(~is_finite_N | is_constant_N).tolist():
        fault = CONSTANT if is_finite_N[row] else NOT_FINITE
        if on_bad == "fail":
            where = ", ".join(str(piece.file.path) for piece in pieces)
            raise InputError(
                f"{where}: segment {takes[row].segment_id} (event or epoch {takes[row].number}): {fault}; leave such "
                "segments out (--on-bad drop), or repair the file"
            )
        dropped[fault] += 1
    return is_finite_N & ~is_constant_N


def _peak_bytes(piece: Piece, preparation: prepare.Preparation) -> int:
    file = piece.file
    facts = outcome(file, preparation)
    per_row = 8 * max(len(facts.channels) * facts.n_times, len(file.channels) * file.n_times)
    rows = len(piece.takes) if preparation.scale != "none" else min(len(piece.takes), _BLOCK_ROWS)
    return 3 * 8 * len(file.channels) * file.n_samples + 4 * per_row * rows
