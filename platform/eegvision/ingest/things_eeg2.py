"""THINGS-EEG2: ten subjects see 16,540 training and 200 test pictures, 200 ms apart, in five file layouts.

- raw: `sub-XX/ses-YY/raw_eeg_*.npy`, a saved dict with the recording in volts, 63 channels and `stim` at 1 kHz.
- preprocessed: `sub-XX/preprocessed_eeg_*.npy`, a saved dict with [pictures, repetitions, channels, samples].
- preprocessed-nice: the same names, but a bare pickle, and `times` still has the samples before onset that were cut.
- whitened: `sub-XX/{train,test}.pt`, a torch dict that names the picture of every segment.
- reshaped: `sub-XX/{train,test}.npy` [concepts, pictures, repetitions, channels, samples] and one `info.json`.

Layouts are told apart by what is in the files. Names only say whose recording it is and which partition it should be,
which is then compared with the pictures.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegvision.ingest import prepare, sources, things_images, unpickle
from eegvision.ingest.prepare import Preparation, Signal
from eegvision.ingest.sources import Drops, Header, OnBad, Part, Recording
from eegvision.ingest.things_eeg2_files import (
    RELEASE,
    TARGET_CODE,
    File,
    Place,
    array,
    compare,
    find,
    is_zip,
    open_file,
    source_steps,
)
from eegvision.ingest.things_images import ImageSet, Partition
from eegvision.vocab import InputError, Montage, Segment, Unit

# What NICE's script does to raw recordings. MNE's epochs include the sample at their end, 1201 of them at 1 kHz, which
# become 300: without that last millisecond, every later sample would lie up to 1 ms beside the published one.
NICE = Preparation(window_s=(0.0, 1.001), baseline_s=(-0.2, 0.001), resample_hz=250.0, scale="mvnn-epochs")
_SEGMENTS_PER_PART = 4096
_TAG = {"training": "tr", "test": "te"}


def read(
    source: Path,
    images: Path,
    *,
    metadata: Path | None = None,
    subjects: Sequence[str] = (),
    preparation: Preparation,
    partitions: Sequence[Partition] = ("training", "test"),
    unit: Literal["V", "uV"] = "V",
    on_bad: OnBad = "fail",
) -> Recording:
    """Read THINGS-EEG2 in any of its five layouts; all presentations of every picture are kept.

    Raw recordings are cut and prepared as asked; fitted scales learn from the training partition of each session.
    Files that are preprocessed keep their publisher's scale. Where `times` is longer than the data, as NICE writes it,
    the last samples are those that are there. Image ids are PARTITION/NNNNN_concept/stem, classes are concepts.

    Args:
        source: the folder of `sub-01`, `sub-02` ..., or one of these.
        images: the folder of `training_images` and `test_images`.
        metadata: `image_metadata.npy`, to compare names and order with.
        subjects: those to keep, as `sub-04`; none means all.
        preparation: what to do to the samples; raw recordings need at least a window.
        partitions: which to read.
        unit: what raw recordings are stored in; the publisher's are in volts.
        on_bad: refuse a segment with NaN, infinite or throughout constant EEG, or leave it out and count it.
    Raises:
        InputError: files of two layouts; a file is missing, damaged or holds code; what is said twice (names, counts,
            lengths, rates, pictures) differs; a fitted scale is asked for what is scaled already; a picture is missing.
    """
    places = find(Path(source), tuple(subjects), tuple(partitions))
    files = [open_file(place, unit) for place in places]
    first = files[0]
    for file in files[1:]:
        compare(first, file)
    sets = things_images.read_sets(images, partitions, metadata)
    classes = tuple(dict.fromkeys(name for image_set in sets.values() for name in image_set.concepts))
    is_raw = first.dialect == "raw"
    if not is_raw and preparation.scale != "none":
        raise InputError(
            f"{first.place.path} is {first.unit} already, with what its publisher fitted; scaling it again "
            f"({preparation.scale}) would hide that: leave --scale at none, or read the raw recordings"
        )
    facts = prepare.outcome(
        preparation, channels=first.channels, sfreq_hz=first.sfreq_hz, t_min_s=first.t_min_s, n_times=first.n_times,
        unit=first.unit, is_continuous=is_raw,
    )  # fmt: skip
    said: list[str] = [*sources.check_sums([place.path for place in places], Path(source))]
    make_parts = _raw_parts if is_raw else _epoched_parts
    parts, shown = make_parts(files, sets, preparation, on_bad, said)
    header = Header(
        name=f"things-eeg2-{first.dialect}",
        dialect=f"things-eeg2/{first.dialect}",
        licence="CC-BY-4.0",
        montage=Montage(channels=facts.channels, positions_m=prepare.positions_m(facts.channels)),
        sfreq_hz=facts.sfreq_hz,
        t_min_s=facts.t_min_s,
        n_times=facts.n_times,
        unit=facts.unit,
        steps=(*source_steps(files), *facts.steps),
        classes=classes,
        published={
            side: tuple(p.image_id for p in sets[partition].pictures if p.image_id in shown)
            for side, partition in (("train", "training"), ("test", "test"))
            if partition in sets
        },
        facts=tuple(said),
    )
    return Recording(header=header, parts=parts, stimuli=things_images.stimuli(sets, classes, shown))


def is_raw(source: Path) -> bool:
    """Return whether `read` would find raw recordings; raises InputError where it would find none of its layouts."""
    return open_file(find(Path(source), (), ())[0], "V").dialect == "raw"


# ---- files of segments


def _epoched_parts(
    files: Sequence[File], sets: dict[Partition, ImageSet], preparation: Preparation, on_bad: OnBad, said: list[str]
) -> tuple[list[Part], set[str]]:
    parts: list[Part] = []
    shown: set[str] = set()
    for file in files:
        place, eeg = file.place, file.eeg
        image_N = _images_of(file, sets)
        shown.update(image_N)
        n_reps = eeg.shape[-3]
        # What is stored as text is decoded from the beginning, so it is read in one go.
        per_part = len(image_N) if isinstance(eeg, unpickle.TextArray) else max(1, _SEGMENTS_PER_PART // n_reps)
        session_NR = _sessions_of(file, len(image_N), n_reps)
        for start in range(0, len(image_N), per_part):
            stop = min(start + per_part, len(image_N))
            read_part = functools.partial(
                _read_epoched, place, range(start, stop), image_N[start:stop], session_NR[start:stop],
                files[0].channels, preparation, on_bad,
            )  # fmt: skip
            parts.append(
                Part(
                    name=f"{place.subject} {place.partition} {start + 1}-{stop}",
                    rows=(stop - start) * n_reps,
                    read=read_part,
                    # the names and times of a reshaped file are in another one
                    key=_key([place.path], (*read_part.args, file.channels, file.sfreq_hz, file.t_min_s, file.unit)),
                )
            )
    if files[0].dialect == "whitened":
        said.append("sessions are counted from 0 in the source, from 1 here")
    return parts, shown


def _images_of(file: File, sets: dict[Partition, ImageSet]) -> tuple[str, ...]:
    """Return the image id of every condition, compared with all that the file says of it."""
    path, image_set = file.place.path, sets[file.place.partition]
    shape = tuple(file.eeg.shape[:-3])
    n_images = len(image_set.pictures)
    expected = (len(image_set.concepts), image_set.per_concept) if file.dialect == "reshaped" else (n_images,)
    if shape != expected:
        raise InputError(
            f"{path} holds {' x '.join(map(str, shape))} conditions, {image_set.folder} "
            f"{' x '.join(map(str, expected))} pictures; is it the file of the other partition, or another image set? "
            f"{RELEASE}, without renaming"
        )
    if file.dialect != "whitened":
        return tuple(picture.image_id for picture in image_set.pictures)
    columns = {key: array(file.content.get(key), from_list=True) for key in ("img", "label", "text")}
    for key, column in columns.items():
        if (
            column is None
            or column.shape != file.eeg.shape[:2]
            or column.dtype.kind not in ("iu" if key == "label" else "U")
        ):
            found = None if column is None else f"{list(column.shape)} {column.dtype}"
            raise InputError(f"{path}: `{key}` is {found}, not one entry per segment {list(file.eeg.shape[:2])}")
    values = {key: unpickle.array(column).tolist() for key, column in columns.items()}  # type: ignore[union-attr]
    picture_of = {picture.name: picture for picture in image_set.pictures}
    label_of = {concept: label for label, concept in enumerate(image_set.concepts)}
    ids = []
    for row in range(n_images):
        where = f"{path}, condition {row + 1}"
        (name, *others), labels, texts = (dict.fromkeys(values[key][row]) for key in ("img", "label", "text"))
        sources.child(image_set.folder.parent, name)
        if others or (picture := picture_of.get("/".join(name.split("/")[-2:]))) is None:
            raise InputError(f"{where}: picture {others[0] if others else name!r} is not (alone) in {image_set.folder}")
        said = {
            "label": ([*labels], [label_of[picture.concept]]),
            "text": ([*texts], [picture.path.stem.rpartition("_")[0]]),
        }
        for key, (found, right) in said.items():
            if found != right:
                raise InputError(
                    f"{where}: `{key}` is {found[:2]}, but picture {name!r} makes it {right[0]!r}; {RELEASE}"
                )
        ids.append(picture.image_id)
    if len(set(ids)) != n_images:
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise InputError(f"{path}: picture {twice} stands for two conditions; download the file again")
    return tuple(ids)


def _sessions_of(file: File, n_rows: int, n_reps: int) -> tuple[tuple[int, ...], ...]:
    if file.dialect != "whitened":
        return ((-1,) * n_reps,) * n_rows
    column = array(file.content.get("session"), from_list=True)
    session_NR = None if column is None else unpickle.array(column)
    is_whole = session_NR is not None and session_NR.shape == (n_rows, n_reps) and session_NR.dtype.kind in "iuf"
    if session_NR is None or not is_whole or not np.isin(session_NR, range(100)).all():
        raise InputError(f"{file.place.path}: `session` is not one number per segment; download the file again")
    return tuple(tuple(int(session) + 1 for session in row) for row in session_NR)


def _fetch_ahead(path: Path, stored: np.ndarray, rows: range, n_rows: int) -> None:
    """Have the system read these rows of a mapped file while the first of them are worked on."""
    if hasattr(os, "posix_fadvise") and isinstance(stored, np.memmap) and stored.filename == path:
        row_bytes = stored.nbytes // n_rows
        with path.open("rb") as file:
            start = stored.offset + rows.start * row_bytes
            os.posix_fadvise(file.fileno(), start, len(rows) * row_bytes, os.POSIX_FADV_WILLNEED)


def _read_epoched(
    place: Place,
    rows: range,
    image_N: tuple[str, ...],
    session_NR: tuple[tuple[int, ...], ...],
    channels: tuple[str, ...],
    preparation: Preparation,
    on_bad: OnBad,
    dropped: Drops,
) -> Iterator[Segment]:
    if rows.start == 0 and is_zip(place.path):
        unpickle.load_torch(place.path, verify=True)
    file = open_file(place, "V")
    stored = unpickle.array(file.eeg)
    assert stored is not None  # _open saw to it
    eeg_NRCT = stored.reshape(-1, *stored.shape[-3:])
    _fetch_ahead(place.path, stored, rows, len(eeg_NRCT))
    places = [file.channels.index(name) for name in channels]
    order = slice(None) if places == list(range(len(file.channels))) else places  # a slice copies nothing
    for row, image_id, session_R in zip(rows, image_N, session_NR, strict=True):
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite and is found below
            eeg_RCT = eeg_NRCT[row][:, order].astype(np.float32)
        faults = _faults(
            eeg_RCT, lambda rep, row=row: f"{place.path}, condition {row + 1}, repetition {rep + 1}", on_bad
        )
        dropped.update(fault for fault in faults if fault)
        kept = [rep for rep, fault in enumerate(faults) if not fault]
        if not kept:
            continue
        signal = Signal(
            eeg=eeg_RCT[kept], channels=channels, sfreq_hz=file.sfreq_hz, t_min_s=file.t_min_s, unit=file.unit
        )
        signal = prepare.epochs(signal, preparation)
        signal = prepare.scaled(signal, preparation, np.zeros(len(kept), bool), np.zeros(len(kept), int))
        for rep, eeg_CT in zip(kept, signal.eeg, strict=True):
            yield Segment(
                segment_id=f"{place.subject}_{_TAG[place.partition]}-{row + 1:05d}-{rep:02d}",
                subject=place.subject,
                session=session_R[rep],
                block=-1,
                order=-1,
                onset_s=float("nan"),
                repetition=rep,
                image_id=image_id,
                eeg_CT=np.asarray(eeg_CT, np.float32),
            )


def _faults(eeg_NCT: np.ndarray, where: Callable[[int], str], on_bad: OnBad, limit: float = np.inf) -> list[str | None]:
    """Say of every segment what is wrong with it; the first fault is raised if nothing may be dropped."""
    is_finite_N = np.asarray(np.isfinite(eeg_NCT).all(axis=(1, 2)))
    is_constant_N = np.asarray((eeg_NCT == eeg_NCT[:, :, :1]).all(axis=(1, 2)))
    is_beyond_N = (eeg_NCT.max(axis=(1, 2)) > limit) | (eeg_NCT.min(axis=(1, 2)) < -limit)
    tests = (
        ("NaN or infinite EEG", ~is_finite_N),
        ("EEG constant in every channel", is_constant_N),
        ("EEG beyond 1 V, which no amplifier gives", is_beyond_N),
    )
    faults: list[str | None] = []
    for index in range(len(eeg_NCT)):
        fault = next((name for name, is_so_N in tests if is_so_N[index]), None)
        if fault and on_bad == "fail":
            raise InputError(f"{where(index)}: {fault}; drop such segments (--on-bad drop), or download the file again")
        faults.append(fault)
    return faults


def _key(paths: Sequence[Path], arguments: tuple[Any, ...]) -> str:
    return f"{sources.file_key(*paths)};{hashlib.sha256(repr(arguments).encode()).hexdigest()}"


# ---- raw recordings


def _raw_parts(
    files: Sequence[File], sets: dict[Partition, ImageSet], preparation: Preparation, on_bad: OnBad, said: list[str]
) -> tuple[list[Part], set[str]]:
    ids = {partition: tuple(p.image_id for p in image_set.pictures) for partition, image_set in sets.items()}
    if preparation.scale != "none" and "training" not in ids:
        raise InputError(
            f"{preparation.scale} is fitted on the training partition; read it too (--partitions), or give --scale none"
        )
    facts = prepare.outcome(
        preparation, channels=files[0].channels, sfreq_hz=files[0].sfreq_hz, t_min_s=None, n_times=None,
        unit=files[0].unit, is_continuous=True,
    )  # fmt: skip
    sessions: dict[tuple[str, int], list[File]] = {}
    for file in files:
        sessions.setdefault((file.place.subject, file.place.session), []).append(file)
    parts: list[Part] = []
    seen: dict[str, Counter[str]] = {}
    for (subject, session), runs in sessions.items():
        runs.sort(key=lambda run: [*_TAG].index(run.place.partition))
        before = seen.setdefault(subject, Counter())
        read_part = functools.partial(
            _read_session, tuple(run.place for run in runs), ids, dict(before), facts.channels, preparation,
            files[0].unit, on_bad,
        )  # fmt: skip
        n_segments = 0
        for run in runs:
            image_N = _presentations(run, ids[run.place.partition], on_bad, Counter()).image_N
            before.update(image_N)
            n_segments += len(image_N)
            said += _check(run)
        parts.append(
            Part(
                name=f"{subject} session {session}",
                rows=n_segments,
                read=read_part,
                key=_key([run.place.path for run in runs], read_part.args),
                # the segments twice while they are scaled, and what MNE takes to resample some of them
                peak_bytes=(512 << 20) + 8 * n_segments * len(facts.channels) * facts.n_times,
            )
        )
    shown = set().union(*seen.values())
    for partition, names in ids.items():
        if unseen := len(set(names) - shown):
            said.append(f"{unseen} of {len(names)} {partition} pictures were shown to none of these subjects")
    said.append(
        "within a session the test recording is counted after the training recording: the files do not say which "
        "came first"
    )
    said[:] = dict.fromkeys(said)
    return parts, shown


@dataclass(frozen=True, kw_only=True, eq=False)
class _Presentations:
    """What a run shows and when; `order_N` counts all its events, `n_events` of them."""

    sample_N: np.ndarray
    order_N: np.ndarray
    image_N: list[str]
    n_events: int


def _presentations(run: File, ids: tuple[str, ...], on_bad: OnBad, dropped: Drops) -> _Presentations:
    """Return the presentations of pictures, without targets; a stim channel that cannot be right is refused."""
    path = run.place.path
    sample_M, code_M = _events(run, len(ids))
    is_kept_M = code_M != TARGET_CODE
    dropped["target presentations"] += int((~is_kept_M).sum())
    if not is_kept_M.any():
        raise InputError(f"{path}: the stim channel shows no picture; download the file again")
    times_K = np.bincount(code_M[is_kept_M], minlength=len(ids) + 1)
    # Every picture of a session is shown twice (test: 20 times), some of them more often, none less.
    usual = int(np.bincount(times_K[times_K > 0]).argmax())
    rare_K = np.flatnonzero((times_K > 0) & (times_K < usual))
    if len(rare_K):
        if on_bad == "fail":
            raise InputError(
                f"{path}: picture {rare_K[0]} ({ids[rare_K[0] - 1]}) is shown {times_K[rare_K[0]]} times, the others "
                f"{usual} times or more: the stim channel is damaged, or the recording was cut short; leave the "
                f"{len(rare_K)} such pictures out (--on-bad drop), or download the file again"
            )
        is_rare_M = np.isin(code_M, rare_K)
        dropped["presentations of pictures shown less often than the others"] += int(is_rare_M.sum())
        is_kept_M &= ~is_rare_M
    order_N = np.flatnonzero(is_kept_M)
    return _Presentations(
        sample_N=sample_M[order_N], order_N=order_N, image_N=[ids[code - 1] for code in code_M[order_N]],
        n_events=len(code_M),
    )  # fmt: skip


def _events(run: File, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sample and code of every event: where the stim channel leaves 0."""
    path = run.place.path
    stored = unpickle.array(run.eeg)
    assert stored is not None  # open_file saw to it
    stim_S = np.asarray(stored[run.content["names"].index("stim")])
    is_on_S = stim_S != 0
    was_on_S = np.concatenate([[False], is_on_S[:-1]])
    changed = np.flatnonzero(is_on_S[1:] & is_on_S[:-1] & (stim_S[1:] != stim_S[:-1]))
    if len(changed):
        raise InputError(f"{path}: the stim channel changes from one code to another at sample {changed[0] + 1}")
    sample_M = np.flatnonzero(is_on_S & ~was_on_S)
    value_M = stim_S[sample_M]
    is_code_M = np.isin(value_M, np.arange(1, n_images + 1)) | (value_M == TARGET_CODE)
    if not is_code_M.all():
        at = int(np.flatnonzero(~is_code_M)[0])
        raise InputError(
            f"{path}: the stim channel is {value_M[at]:g} at sample {sample_M[at]}, which is no picture of 1 to "
            f"{n_images} and not {TARGET_CODE}; is it the file of the other partition, or another image set? {RELEASE}"
        )
    apart_M = np.diff(sample_M)
    if len(apart_M) and apart_M.min() < np.median(apart_M) / 2:
        at = int(apart_M.argmin())
        raise InputError(
            f"{path}: events at samples {sample_M[at]} and {sample_M[at + 1]} are {apart_M[at]} samples apart, usually "
            f"{np.median(apart_M):g}: the stim channel is damaged; download the file again"
        )
    return sample_M, value_M.astype(np.int64)


def _check(run: File) -> tuple[str, ...]:
    """Hold unit and rate against the middle minute of a recording, and look for channels without a usable signal."""
    stored = unpickle.array(run.eeg)
    assert stored is not None
    start = max(0, stored.shape[1] // 2 - int(30 * run.sfreq_hz))
    piece_CS = stored[_rows_of(run, run.channels), start : start + int(60 * run.sfreq_hz)]
    with np.errstate(over="ignore"):
        eeg_CS = np.asarray(piece_CS, np.float32)
    signal = Signal(eeg=eeg_CS, channels=run.channels, sfreq_hz=run.sfreq_hz, t_min_s=0, unit=run.unit)
    where = str(run.place.path)
    doubts = prepare.check_samples(signal, where)
    with np.errstate(invalid="ignore", over="ignore"):  # a segment with NaN or infinite samples is found by itself
        return (*doubts, *prepare.refuse_bad_channels(signal, where))


def _rows_of(run: File, channels: Sequence[str]) -> list[int]:
    rows = [row for row, name in enumerate(run.content["names"]) if name != "stim"]
    return [rows[run.channels.index(name)] for name in channels]


def _read_session(
    places: tuple[Place, ...],
    ids: dict[Partition, tuple[str, ...]],
    before: dict[str, int],
    channels: tuple[str, ...],
    preparation: Preparation,
    unit: Unit,
    on_bad: OnBad,
    dropped: Drops,
) -> Iterator[Segment]:
    runs = [open_file(place, unit) for place in places]
    window_s = prepare.event_window_s(preparation)
    shown: list[_Presentations] = []
    for run in runs:
        found = _presentations(run, ids[run.place.partition], on_bad, dropped)
        fits_N = prepare.fits(run.eeg.shape[1], run.sfreq_hz, found.sample_N, window_s)
        dropped["window leaves the recording"] += int((~fits_N).sum())
        shown.append(
            replace(
                found,
                sample_N=found.sample_N[fits_N],
                order_N=found.order_N[fits_N],
                image_N=[image for image, fits in zip(found.image_N, fits_N, strict=True) if fits],
            )
        )
    signal = _session_signal(runs, shown, channels, preparation)
    images = [image for each in shown for image in each.image_N]
    is_train_N = np.array(
        [run.place.partition == "training" for run, each in zip(runs, shown, strict=True) for _ in each.image_N]
    )
    labels = [
        (run, int(order), int(sample)) for run, each in zip(runs, shown, strict=True)
        for order, sample in zip(each.order_N, each.sample_N, strict=True)
    ]  # fmt: skip
    faults = _faults(
        signal.eeg,
        lambda row: f"{labels[row][0].place.path}, event {labels[row][1]} at sample {labels[row][2]}",
        on_bad,
        # One such sample would spoil what is fitted on the whole session.
        limit=1.0 if unit == "V" else 1e6,
    )
    dropped.update(fault for fault in faults if fault)
    kept_N = np.array([fault is None for fault in faults])
    if not kept_N.all():
        signal = replace(signal, eeg=signal.eeg[kept_N])
    condition_N = np.unique(images, return_inverse=True)[1][kept_N]
    signal = prepare.scaled(signal, preparation, is_train_N[kept_N], condition_N)

    n_shown, row = Counter(before), 0
    first_order = {places[0]: 0, places[-1]: shown[0].n_events if len(places) > 1 else 0}
    first_s = {places[0]: 0.0, places[-1]: runs[0].eeg.shape[1] / runs[0].sfreq_hz if len(places) > 1 else 0.0}
    for image_id, is_kept, (run, order, sample) in zip(images, kept_N, labels, strict=True):
        place = run.place
        n_shown[image_id] += 1
        if not is_kept:
            continue
        yield Segment(
            segment_id=f"{place.subject}_ses-{place.session:02d}_{_TAG[place.partition]}-{order:05d}",
            subject=place.subject,
            session=place.session,
            block=-1,
            order=first_order[place] + order,
            onset_s=first_s[place] + sample / run.sfreq_hz,
            repetition=n_shown[image_id] - 1,
            image_id=image_id,
            eeg_CT=signal.eeg[row],
        )
        row += 1


def _session_signal(
    runs: Sequence[File], shown: Sequence[_Presentations], channels: tuple[str, ...], preparation: Preparation
) -> Signal:
    """Return the segments of all runs [N, C, T], float32, not scaled; the recordings are read channel by channel."""
    alone = replace(preparation, channels=(), scale="none", clamp=None)
    out_NCT, made = np.empty((0, 0, 0), np.float32), None
    first = 0
    n_segments = sum(len(each.image_N) for each in shown)
    for run, each in zip(runs, shown, strict=True):
        stored = unpickle.array(run.eeg)
        assert stored is not None
        rows = slice(first, first := first + len(each.image_N))
        for index, (name, channel) in enumerate(zip(channels, _rows_of(run, channels), strict=True)):
            signal = Signal(
                eeg=np.asarray(stored[channel : channel + 1], np.float64), channels=(name,),
                sfreq_hz=run.sfreq_hz, t_min_s=0, unit=run.unit,
            )  # fmt: skip
            made = prepare.segments(prepare.continuous(signal, alone), alone, each.sample_N)
            if not out_NCT.size:
                out_NCT = np.empty((n_segments, len(channels), made.n_times), np.float32)
            with np.errstate(over="ignore"):  # becomes infinite, which is found later
                out_NCT[rows, index] = made.eeg[:, 0]
    assert made is not None
    return replace(made, eeg=out_NCT, channels=channels)
