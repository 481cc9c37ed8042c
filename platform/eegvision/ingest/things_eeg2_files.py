"""The files of THINGS-EEG2: found, told apart by what is in them, and held against each other; no samples are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegvision.ingest import prepare, unpickle
from eegvision.ingest.things_images import Partition
from eegvision.vocab import InputError, Unit

Dialect = Literal["raw", "preprocessed", "preprocessed-nice", "whitened", "reshaped"]

TARGET_CODE = 99999  # the event of pictures that a subject had to answer to
# fmt: off
CHANNELS_63 = (
    "Fp1", "Fp2", "AF7", "AF3", "AFz", "AF4", "AF8", "F7", "F5", "F3", "F1", "F2", "F4", "F6", "F8", "FT9", "FT7",
    "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "FT10", "T7", "C5", "C3", "C1", "Cz", "C2", "C4", "C6",
    "T8", "TP9", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8", "TP10", "P7", "P5", "P3", "P1", "Pz",
    "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
)
# fmt: on
_SUFFIXES = (".npy", ".pt", ".pth", ".pkl", ".pickle")
_NAMED: dict[Partition, str] = {"training": "train", "test": "test"}
_NORMALISED: dict[Any, Unit] = {"mvnn": "whitened", "zscore": "zscore"}
_PRECISION = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}
_MVNN = {
    "preprocessed": {"scale": "mvnn-time", "fitted_on": "training and test segments of each session (a mild leak)"},
    "preprocessed-nice": {"scale": "mvnn-epochs", "fitted_on": "training segments of each session"},
    "whitened": {"scale": "mvnn-epochs", "fitted_on": "training segments of each session"},
    "reshaped": {"scale": "see `normalization`", "fitted_on": "training segments of each session"},
}
RELEASE = "take files and pictures from one release"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the name of a file says."""

    path: Path
    subject: str
    session: int
    partition: Partition


@dataclass(frozen=True, kw_only=True, eq=False)
class File:
    """What a file says, samples still in it: `eeg` is [64, S], [N, R, C, T] or [K, M, R, C, T]."""

    place: Place
    dialect: Dialect
    eeg: Any
    channels: tuple[str, ...]
    sfreq_hz: float
    t_min_s: float
    n_times: int
    unit: Unit
    content: dict[str, Any]
    n_cut: int = 0  # entries of `times` before the first sample there is


# ---- files


def find(source: Path, subjects: tuple[str, ...], partitions: tuple[Partition, ...]) -> list[Place]:
    """Return the files of the subjects and partitions asked for (none given: of all), sessions complete."""
    if not source.is_dir():
        raise InputError(f"there is no folder {source}; give the folder that holds sub-01, sub-02 ...")
    is_subject = re.compile(r"sub-\w+").fullmatch
    inside = sorted(path for path in source.iterdir() if is_subject(path.name) and path.is_dir())
    folders = [source] if is_subject(source.name) else inside
    present = [folder.name for folder in folders]
    for subject in subjects:
        if subject not in present:
            raise InputError(f"{source} has no subject {subject!r}; present are {', '.join(present) or 'none'}")
    places: dict[tuple[str, int, Partition], Place] = {}
    for folder in folders:
        if subjects and folder.name not in subjects:
            continue
        for path in sorted((*folder.glob("*"), *folder.glob("ses-*/*"))):
            in_name = [partition for partition in _NAMED if _NAMED[partition] in path.name.lower()]
            if path.suffix not in _SUFFIXES or path.name.startswith(".") or not in_name:
                continue
            if len(in_name) > 1:
                raise InputError(f"{path} is called both train and test; give it the name its publisher did")
            session = re.fullmatch(r"ses-(\d{1,3})", path.parent.name)
            key = (folder.name, int(session[1]) if session else 0, in_name[0])
            if key in places:
                whose = f"{key[0]}, session {key[1]}" if session else key[0]
                raise InputError(f"{places[key].path} and {path} are both the {key[2]} file of {whose}; move one away")
            places[key] = Place(path=path, subject=key[0], session=key[1], partition=in_name[0])
    for one, other in (
        (one, other) for one in places for other in places if one[0] == other[0] and one[1] == 0 < other[1]
    ):
        raise InputError(
            f"{places[one].path} and {places[other].path} are of different layouts: one is a whole subject's file, the "
            "other a session's; read files of one release at a time"
        )
    _check_complete(source, [*places], partitions)
    return [place for place in places.values() if place.partition in (partitions or _NAMED)]


def _check_complete(source: Path, keys: list[tuple[str, int, Partition]], partitions: tuple[Partition, ...]) -> None:
    if not keys:
        inside = next((f" such as {path.parent}" for path in sorted(source.glob("*/sub-*"))), "")
        raise InputError(
            f"{source} holds no sub-XX with a training or test file ({', '.join(_SUFFIXES)}); give the folder that "
            f"holds sub-01, sub-02 ...{inside}, or one of these"
        )
    sessions: dict[str, list[int]] = {}
    for subject, session, _ in keys:
        if session not in sessions.setdefault(subject, []):
            sessions[subject].append(session)
    whole = [subject for subject, there in sessions.items() if there == [0]]
    if by_session := [subject for subject in sessions if whole and subject not in whole]:
        raise InputError(
            f"{source / by_session[0]} has files of sessions, {source / whole[0]} files of the whole subject: they are "
            "of different layouts; read files of one release at a time"
        )
    usual = max(sessions.items(), key=lambda item: len(item[1]))
    for subject, there in sessions.items():
        wanted = range(1, max(there) + 1) if max(there) else [0]
        missing = sorted({*wanted, *usual[1]} - {*there})
        if missing:
            raise InputError(
                f"{source / subject} has the sessions {', '.join(map(str, sorted(there)))}, but not "
                f"{', '.join(map(str, missing))} (as {usual[0]} has); copy them, or leave the subject out"
            )
        for session in there:
            for partition in partitions:
                if (subject, session, partition) not in keys:
                    folder = source if source.name == subject else source / subject
                    where = folder / f"ses-{session:02d}" if session else folder
                    raise InputError(
                        f"{where} has no {partition} file; copy it, or read the other one alone (--partitions)"
                    )


def is_zip(path: Path) -> bool:
    return _starts_with(path, b"PK\3\4")


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def open_file(place: Place, unit: Unit) -> File:
    path = place.path
    content = unpickle.load_torch(path, verify=False) if is_zip(path) else unpickle.load(path)
    is_saved = _starts_with(path, np.lib.format.MAGIC_PREFIX)
    if array(content) is not None and is_saved:
        return _open_reshaped(place, content)
    if isinstance(content, dict):
        if "raw_eeg_data" in content:
            return _open_raw(place, content, unit)
        if "preprocessed_eeg_data" in content:
            dialect: Dialect = "preprocessed" if is_saved else "preprocessed-nice"
            return _open_epoched(place, dialect, content, "preprocessed_eeg_data", "whitened")
        if "eeg" in content:
            return _open_epoched(place, "whitened", content, "eeg", "whitened")
    raise InputError(
        f"{path} is none of the layouts of THINGS-EEG2: a dict with raw_eeg_data, preprocessed_eeg_data or eeg, or an "
        "array beside info.json; take the file from its publisher"
    )


def _open_raw(place: Place, content: dict[str, Any], unit: Unit) -> File:
    path = place.path
    eeg = _array_of(path, content, "raw_eeg_data", 2)
    names, types = _texts(path, content, "ch_names"), _texts(path, content, "ch_types")
    if not len(names) == len(types) == eeg.shape[0]:
        raise InputError(f"{path}: {eeg.shape[0]} rows, {len(names)} names, {len(types)} types of channels; {RELEASE}")
    if names.count("stim") != 1 or any(
        (name == "stim") != (kind == "stim") for name, kind in zip(names, types, strict=True)
    ):
        raise InputError(f"{path}: there must be one channel `stim` of that type; types are {sorted(set(types))}")
    sfreq_hz = _number(path, content, "sfreq")
    low_hz, high_hz = (_number(path, content, key) for key in ("highpass", "lowpass"))
    if not 0 <= low_hz < high_hz <= sfreq_hz / 2:
        raise InputError(f"{path}: a band of {low_hz:g} to {high_hz:g} Hz cannot be at {sfreq_hz:g} Hz; {RELEASE}")
    if place.session == 0:
        raise InputError(f"{path} is a raw recording outside a folder ses-XX; sort it into sub-XX/ses-YY")
    return File(
        place=place, dialect="raw", eeg=eeg, channels=_channels(path, [name for name in names if name != "stim"]),
        sfreq_hz=sfreq_hz, t_min_s=0.0, n_times=0, unit=unit,
        content={"names": names, "band_hz": (low_hz, high_hz)},
    )  # fmt: skip


def _open_epoched(place: Place, dialect: Dialect, content: dict[str, Any], key: str, unit: Unit) -> File:
    eeg = _array_of(place.path, content, key, 4)
    channels = _channels(place.path, _texts(place.path, content, "ch_names"))
    return _epoched_file(place, dialect, eeg, channels, content, unit)


def _open_reshaped(place: Place, value: Any) -> File:
    path = place.path
    beside = [folder / "info.json" for folder in (path.parent, path.parent.parent) if (folder / "info.json").is_file()]
    if not beside:
        raise InputError(f"{path} holds a bare array, and there is no info.json beside it or above; copy it too")
    try:
        content = json.loads(beside[0].read_text(encoding="utf-8"))
        times, shape = content["times"], content.get(f"{place.path.stem}_data_shape")
        names, rate, before = content["ch_names"], content["sfreq"], content.get("baseline_duration")
        normalisation, precision = content["normalization"], content.get("precision")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{beside[0]} cannot be used ({type(error).__name__}: {error}); copy it again") from error
    eeg = _array_of(path, {"array": value}, "array", 5)
    unit = _NORMALISED.get(normalisation) if isinstance(normalisation, str) else None
    if unit is None:
        raise InputError(f"{beside[0]}: normalization {normalisation!r} is neither mvnn nor zscore; name the right one")
    if not isinstance(names, list):
        raise InputError(f"{beside[0]}: `ch_names` is no list; copy the file again")
    file = _epoched_file(place, "reshaped", eeg, _channels(beside[0], names), content | {"times": times}, unit)
    said_twice = [
        ("sfreq", rate, file.sfreq_hz, _is_near(rate, file.sfreq_hz, 1e-3)),
        ("precision", precision, str(eeg.dtype), precision is None or _PRECISION.get(str(precision)) == eeg.dtype.name),
        ("shape", shape, eeg.shape, shape is None or (isinstance(shape, list) and shape[-2:] == [*eeg.shape[-2:]])),
        ("baseline_duration", before, times[0], before is None or _is_near(before, -times[0], 0.5 / file.sfreq_hz)),
    ]
    for name, one, other, is_same in said_twice:
        if not is_same:
            raise InputError(f"{beside[0]} says {name} {one!r}, but {path} and `times` {other!r}; {RELEASE}")
    return file


def _is_near(value: Any, expected: float, distance: float) -> bool:
    return isinstance(value, int | float) and abs(value - expected) < distance


def _epoched_file(
    place: Place, dialect: Dialect, eeg: Any, channels: tuple[str, ...], content: dict[str, Any], unit: Unit
) -> File:
    n_times = eeg.shape[-1]
    if eeg.shape[-2] != len(channels):
        raise InputError(f"{place.path} has {eeg.shape[-2]} rows of EEG for {len(channels)} channel names; {RELEASE}")
    times = array(content.get("times"))
    times = np.asarray(content.get("times") if times is None else times)
    if times.ndim != 1 or times.dtype.kind not in "iuf" or len(times) < 2 or not np.isfinite(times).all():
        raise InputError(f"{place.path}: `times` is not a list of times; take the file from its publisher")
    times = times.astype(np.float64)
    sfreq_hz = round(float((len(times) - 1) / (times[-1] - times[0])), 3) if times[-1] > times[0] else 0.0
    if not sfreq_hz or np.abs(times[0] + np.arange(len(times)) / sfreq_hz - times).max() > 1e-5:
        raise InputError(f"{place.path}: `times` does not grow in equal steps; download the file again")
    n_cut = len(times) - n_times
    # NICE cuts the samples before onset off and leaves `times` as it was.
    if n_cut < 0 or (n_cut > 0 and abs(times[n_cut]) > 0.5 / sfreq_hz):
        raise InputError(
            f"{place.path}: `times` has {len(times)} entries from {times[0]:g} s, the data {n_times} samples; only a "
            f"cut that leaves the samples from 0 s on explains more entries; {RELEASE}"
        )
    return File(
        place=place, dialect=dialect, eeg=eeg, channels=channels, sfreq_hz=sfreq_hz,
        t_min_s=round(float(times[n_cut]), 6), n_times=n_times, unit=unit, content=content, n_cut=n_cut,
    )  # fmt: skip


def compare(first: File, file: File) -> None:
    """Refuse two files that cannot be of one data set."""
    for name, one, other in (
        ("layout", first.dialect, file.dialect),
        ("channels", sorted(first.channels), sorted(file.channels)),
        ("sampling rate", first.sfreq_hz, file.sfreq_hz),
        ("first sample at (s)", first.t_min_s, file.t_min_s),
        ("samples per segment", first.n_times, file.n_times),
        ("entries of `times` cut off", first.n_cut, file.n_cut),
        ("unit", first.unit, file.unit),
        ("band (Hz)", first.content.get("band_hz"), file.content.get("band_hz")),
    ):
        if one != other:
            if isinstance(one, list) and isinstance(other, list):
                one, other = sorted({*one} - {*other}), sorted({*other} - {*one})
            raise InputError(
                f"{first.place.path} and {file.place.path} differ in {name}: {one} and {other}; "
                "read files of one release at a time"
            )


# ---- values of a dict that we did not make


def array(value: Any, *, from_list: bool = False) -> Any:
    """Return what has a shape and a dtype: an array, an array stored as text, a tensor (or a list) as an array."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    if from_list and isinstance(value, list):
        try:
            value = np.asarray(value)
        except ValueError:  # rows of different lengths
            return None
    return value if isinstance(value, np.ndarray | unpickle.TextArray) and value.shape else None


def _array_of(path: Path, content: dict[str, Any], key: str, n_axes: int) -> Any:
    eeg = array(content.get(key))
    if eeg is None or eeg.dtype.kind != "f" or len(eeg.shape) != n_axes or 0 in eeg.shape:
        found = f"{list(eeg.shape)} {eeg.dtype}" if eeg is not None else type(content.get(key)).__name__
        raise InputError(f"{path}: `{key}` is {found}, not an array of floats with {n_axes} axes; {RELEASE}")
    if not (eeg.flags.c_contiguous if isinstance(eeg, np.ndarray) else eeg.order == "C"):
        # No publisher does this, and the flag for it is one bit, which nothing else in a file could contradict.
        raise InputError(f"{path}: `{key}` is stored column by column; save it again as numpy.ascontiguousarray(...)")
    return eeg


def _texts(path: Path, content: dict[str, Any], key: str) -> list[str]:
    value = array(content.get(key))
    texts = content.get(key) if value is None else unpickle.array(value).tolist()  # type: ignore[union-attr]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path} has no list of names `{key}`; take the file from its publisher")
    return [str(text) for text in texts]


def _number(path: Path, content: dict[str, Any], key: str) -> float:
    value = content.get(key)
    if not isinstance(value, int | float | np.floating | np.integer) or not 0 <= float(value) < 1e6:
        raise InputError(f"{path}: `{key}` is {value!r}, not a frequency in Hz; take the file from its publisher")
    return float(value)


def _channels(path: Path, names: Sequence[Any]) -> tuple[str, ...]:
    canonical = prepare.canonical_channels([str(name) for name in names])
    for name, found in zip(names, canonical, strict=True):
        if found not in CHANNELS_63 or canonical.count(found) > 1:
            what = "there twice" if found in CHANNELS_63 else "not one of the 63 of THINGS-EEG2"
            raise InputError(f"{path}: channel {name!r} is {what}; download the file again")
    return canonical


def source_steps(files: Sequence[File]) -> Iterator[dict[str, Any]]:
    first = files[0]
    subjects = sorted({file.place.subject for file in files})
    yield {"step": "source", "layout": first.dialect, "files": len(files), "subjects": subjects}
    if first.dialect == "raw":
        low_hz, high_hz = first.content["band_hz"]
        yield {"step": "band of the amplifier", "low_hz": low_hz, "high_hz": high_hz, "basis": "source"}
        yield {"step": "targets", "left_out": f"events {TARGET_CODE}"}
    else:
        step = {"step": "publisher's scale", **_MVNN[first.dialect], "basis": "the publisher's code"}
        if first.dialect == "reshaped":
            step["normalization"] = first.content["normalization"]
        yield step
    if first.n_cut:
        what = f"the last {first.n_times} of {first.n_times + first.n_cut} entries: earlier samples were cut off"
        yield {"step": "times", "taken": what}
    if any(file.channels != first.channels for file in files):
        yield {"step": "channel order", "taken": "by name: files have the channels in different orders"}
