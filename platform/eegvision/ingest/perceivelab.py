"""PerceiveLab's "EEG-CVPR40" files: 128 channels at 1 kHz, six subjects looking at 40 ImageNet classes.

A file is a torch dict: `dataset`, a list of {eeg [128, L], image, label, subject}; `labels`, 40 synsets; `images`,
the ImageNet stems that `image` counts in. The unfiltered file adds `means` and `stddevs`. Pictures are not in it.
Counts differ between the releases (11,952 to 11,965 rows), so nothing here assumes one.
"""

from __future__ import annotations

import operator
import os
import re
import zipfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eegvision.ingest import prepare
from eegvision.ingest.pictures import read_picture
from eegvision.ingest.sources import Drops, Header, OnBad, Part, Recording, check_sums, file_key
from eegvision.vocab import SPLIT_NAMES, InputError, Montage, Segment, Stimulus, Unit

SFREQ_HZ = 1000.0
# Rows the released code keeps; others are recordings that were cut off or ran on.
MIN_SAMPLES, MAX_SAMPLES = 450, 600
_CRITIQUE = (
    "The classes of this recording were shown in blocks, one after the other, and the files do not say when: slow "
    "drifts can name the class (Li et al., TPAMI 2021, arXiv 1812.07697)."
)
_CHECKED_ROWS = 64  # whose samples are held against the unit and the rate
PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")
_REMEDY = "take data and splits from one release, as PerceiveLab published them"

# The files name no channels. This is the maker's order for the 128-channel actiCAP (layout RNP-BA-128) without
# reference and ground (FCz, Fpz). That the rows follow it is an assumption, recorded as such in the manifest.
# fmt: off
ACTICAP_128 = (
    "Fp1", "Fz", "F3", "F7", "F9", "FC5", "FC1", "C3", "T7", "CP5", "CP1", "Pz", "P3", "P7", "P9", "O1",
    "Oz", "O2", "P10", "P8", "P4", "CP2", "CP6", "T8", "C4", "Cz", "FC2", "FC6", "F10", "F8", "F4", "Fp2",
    "AF7", "AF3", "AFz", "F1", "F5", "FT7", "FC3", "C1", "C5", "TP7", "CP3", "P1", "P5", "PO7", "PO3", "Iz",
    "POz", "PO4", "PO8", "P6", "P2", "CPz", "CP4", "TP8", "C6", "C2", "FC4", "FT8", "F6", "F2", "AF4", "AF8",
    "AFF3h", "FFC1h", "FFC5h", "FT9", "FTT7h", "FCC3h", "CCP1h", "CCP5h", "TP9", "TPP7h", "CPP3h", "PPO3h",
    "PPO9h", "POO1", "PO9", "I1", "I2", "PO10", "POO2", "PPO10h", "PPO4h", "CPP4h", "TPP8h", "TP10", "CCP6h",
    "CCP2h", "FCC4h", "FTT8h", "FT10", "FFC6h", "FFC2h", "AFF4h", "AFp1", "AFF1h", "AFF5h", "FFT7h", "FFC3h",
    "FCC1h", "FCC5h", "TTP7h", "CCP3h", "CPP1h", "CPP5h", "TPP9h", "PPO5h", "PPO1h", "POO9h", "OI1h", "OI2h",
    "POO10h", "PPO2h", "PPO6h", "TPP10h", "CPP6h", "CPP2h", "CCP4h", "TTP8h", "FCC6h", "FCC2h", "FFC4h",
    "FFT8h", "AFF6h", "AFF2h", "AFp2",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One entry of `dataset`, its indices resolved; `number` counts in the whole file."""

    number: int
    subject: str
    image: str
    eeg_CL: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    rows: tuple[_Row, ...]
    classes: tuple[str, ...]
    scale: tuple[torch.Tensor, torch.Tensor] | None  # means and stddevs, where the file has them


def read(
    source: Path,
    images: Path,
    *,
    split_file: Path | None = None,
    split_index: int = 0,
    subjects: Sequence[str] = (),
    cut: str = "20:460",
    standardise: bool = True,
    channels: Sequence[str] | None = None,
    on_bad: OnBad = "fail",
) -> Recording:
    """Read one of PerceiveLab's EEG files and the pictures it names.

    As the released code does, rows of 450 to 600 samples are kept and cut to samples 20 to 459; the paper says
    40 to 479. The unfiltered file becomes (eeg - means) / stddevs, like the others. Rows that are left out are
    counted by reason. Image ids are ImageNet stems, classes are synsets.

    Args:
        source: `eeg_5_95_std.pth`, `eeg_14_70_std.pth`, `eeg_55_95_std.pth` or `eeg_signals_raw_with_mean_std.pth`.
        images: folder with the pictures, as STEM.JPEG (.jpg, .png) or SYNSET/STEM.JPEG, or deeper.
        split_file: `block_splits_by_image_all.pth` or `..._single.pth`; becomes the data set's published split.
        split_index: which of the file's splits; only the first is in use.
        subjects: those to keep, as `sub-04`; none means all.
        cut: first sample and the one after the last, `20:460` (released code) or `40:480` (paper).
        standardise: apply `means` and `stddevs` where the file has them; otherwise raw values are kept, which are
            taken for microvolts.
        channels: names in the order of the rows of `eeg`; by default `ACTICAP_128`.
        on_bad: refuse a row with NaN, infinite or throughout constant EEG, or leave it out and count it.
    Raises:
        InputError: a file is missing or holds something else than described; images, labels and rows disagree; the
            split names rows that are not there, or one image on two sides; a picture is missing.
    """
    source = Path(source)
    start, stop = _parse_cut(cut)
    facts = check_sums([path for path in (source, split_file) if path and path.is_file()], source.parent)
    file = _read_file(source)
    names = tuple(ACTICAP_128 if channels is None else channels)
    rows, dropped = _select(file, subjects, len(names), stop)
    published, split_steps = _published(file, split_file, split_index)
    steps = (
        *_source_steps(file, standardise),
        {"step": "rows", "min_samples": MIN_SAMPLES, "max_samples": MAX_SAMPLES, "on_bad": on_bad},
        {"step": "subjects", "kept": sorted({row.subject for row in rows})},
        {"step": "cut", "start_sample": start, "stop_sample": stop},
        {"step": "channel names", "basis": "assumed: actiCAP RNP-BA-128 order" if channels is None else "given"},
        *split_steps,
    )
    unit: Unit = "zscore" if file.scale is None or standardise else "uV"
    window = slice(start, stop)
    facts += _doubts(file, rows[:_CHECKED_ROWS], window, standardise, names, unit)
    header = Header(
        name=file.path.stem,
        dialect="perceivelab",
        licence="unknown: the terms of the data's owner apply",
        montage=Montage(channels=names, positions_m=prepare.positions_m(names)),
        sfreq_hz=SFREQ_HZ,
        t_min_s=start / SFREQ_HZ,
        n_times=stop - start,
        unit=unit,
        steps=steps,
        classes=file.classes,
        published=published,
        facts=facts,
        critique=_CRITIQUE,
    )
    paths = _find_pictures(Path(images), sorted({row.image for row in rows}))
    parts = _parts(source, rows, window, standardise, on_bad)
    return Recording(header=header, parts=parts, stimuli=_stimuli(paths, file.classes), dropped=dropped)


def _parts(source: Path, rows: Sequence[_Row], window: slice, standardise: bool, on_bad: OnBad) -> list[Part]:
    """Make a part of every subject's rows."""
    key = f"{file_key(source)} {window.start}:{window.stop} {standardise} {on_bad}"
    parts = []
    for subject in sorted({row.subject for row in rows}):
        numbers = tuple(row.number for row in rows if row.subject == subject)
        parts.append(
            Part(
                name=subject,
                rows=len(numbers),
                read=partial(_segments, source, numbers, window, standardise, on_bad),
                key=f"{key} {len(numbers)}",
                peak_bytes=source.stat().st_size + (512 << 20),
            )
        )
    return parts


def read_channel_names(path: Path) -> tuple[str, ...]:
    """Return the channel names in a text file, one per line; empty lines are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"channel names {path} cannot be read ({error}); give a text file, one name per line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _parse_cut(cut: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", cut)
    start, stop = map(int, match.groups()) if match else (0, 0)
    if not start < stop <= MAX_SAMPLES:
        raise InputError(f"cut is {cut!r}; it must be START:STOP with START < STOP <= {MAX_SAMPLES}, such as 20:460")
    return start, stop


def _load(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Load a torch file of plain values; code that hides in it is refused, not run."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path")
    try:
        # Only the zip layout of torch >= 1.6 can be mapped; the released files are older.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError...: whatever damage leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a whole torch file of tensors, lists, strings and numbers, or holds code, which is "
            f"never run ({reason}); download it again"
        ) from error
    missing = [key for key in keys if not isinstance(loaded, dict) or key not in loaded]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; it is not one of PerceiveLab's files of this kind")
    return loaded


def _read_file(path: Path) -> _File:
    """Return the file's rows; kept until another file is asked for, because every part reads the same one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file in it, such as {path / 'eeg_5_95_std.pth'}")
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path")
    return _parsed(path, file_key(path))


@lru_cache(maxsize=1)
def _parsed(path: Path, version: str) -> _File:  # noqa: ARG001  (a replaced file is read anew)
    loaded = _load(path, ("dataset", "labels", "images"))
    for key in ("labels", "images"):
        values = loaded[key]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{path}: `{key}` is not a list of names: {_REMEDY}")
    if not isinstance(loaded["dataset"], list):
        raise InputError(f"{path}: `dataset` is a {type(loaded['dataset']).__name__}, not a list of rows")
    labels, stems = loaded["labels"], loaded["images"]
    rows, wrong = [], []
    for number, entry in enumerate(loaded["dataset"]):
        where = f"{path}, row {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("eeg"), torch.Tensor):
            raise InputError(f"{where} is not a dict with a tensor `eeg`: {_REMEDY}")
        image = _index(entry, "image", len(stems), where)
        label = _index(entry, "label", len(labels), where)
        subject = _index(entry, "subject", 100, where)
        if not re.fullmatch(r"\w[\w.-]*", stems[image]):
            raise InputError(f"{path}: image {image} is called {stems[image]!r}, which is not an ImageNet stem")
        if stems[image].split("_")[0] != labels[label]:
            wrong.append(
                f"row {number} shows image {image}, {stems[image]!r}, but has label {label}, {labels[label]!r}"
            )
        rows.append(_Row(number=number, subject=f"sub-{subject:02d}", image=stems[image], eeg_CL=entry["eeg"]))
    if wrong:
        raise InputError(
            f"{path}: {wrong[0]}; {len(wrong)} of {len(rows)} rows disagree like this, so `images` (or `labels`) is in "
            "another order than the rows count in (a list of 2000 names is known that does); use the lists that "
            "came inside the file"
        )
    return _File(path=path, rows=tuple(rows), classes=tuple(labels), scale=_scale(path, loaded))


def _scale(path: Path, loaded: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    means, stddevs = loaded.get("means"), loaded.get("stddevs")
    if means is None and stddevs is None:
        return None
    if not (isinstance(means, torch.Tensor) and isinstance(stddevs, torch.Tensor)):
        raise InputError(f"{path}: `means` and `stddevs` are not two tensors: {_REMEDY}")
    if not (torch.isfinite(means).all() and torch.isfinite(stddevs).all() and (stddevs > 0).all()):
        raise InputError(f"{path}: `means` must be finite and `stddevs` above 0; download the file again")
    return means, stddevs


def _index(entry: dict[str, Any], key: str, count: int, where: str) -> int:
    try:
        value = operator.index(entry[key])
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} has no whole number as {key}: {_REMEDY}") from error
    if not 0 <= value < count:
        raise InputError(
            f"{where}: {key} {value} is not in 0..{count - 1}; the parts do not belong together: {_REMEDY}"
        )
    return value


def _select(file: _File, subjects: Sequence[str], n_chans: int, stop: int) -> tuple[list[_Row], Drops]:
    present = sorted({row.subject for row in file.rows})
    for subject in subjects:
        if subject not in present:
            raise InputError(f"{file.path} has no subject {subject!r}; present are {', '.join(present)}")
    kept: list[_Row] = []
    dropped: Drops = Counter()
    for row in file.rows:
        if subjects and row.subject not in subjects:
            continue
        shape = list(row.eeg_CL.shape)
        if len(shape) != 2 or shape[0] != n_chans:
            raise InputError(
                f"{file.path}, row {row.number} has EEG of shape {shape}, expected [{n_chans}, samples]; "
                "give as many channel names as the file has rows of EEG"
            )
        if not MIN_SAMPLES <= shape[1] <= MAX_SAMPLES:
            dropped[f"length outside {MIN_SAMPLES}..{MAX_SAMPLES} samples"] += 1
        elif shape[1] < stop:
            dropped[f"shorter than the cut at {stop} samples"] += 1
        else:
            kept.append(row)
    if not kept:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "the file is empty"
        raise InputError(f"{file.path} has no usable row ({reasons}); choose an earlier cut or another file")
    return kept, dropped


def _published(
    file: _File, split_file: Path | None, split_index: int
) -> tuple[dict[str, tuple[str, ...]], tuple[dict[str, Any], ...]]:
    """Turn a split's row numbers, which count in the whole file whatever subjects are kept, into image ids."""
    if split_file is None:
        return {}, ()
    path = Path(split_file)
    splits = _load(path, ("splits",))["splits"]
    if not isinstance(splits, list) or not 0 <= split_index < len(splits):
        count = len(splits) if isinstance(splits, list) else 0
        raise InputError(f"{path} has {count} splits, so there is no split {split_index}; choose 0 to {count - 1}")
    side_of: dict[str, str] = {}
    counts: dict[str, int] = {}
    named_subjects: set[str] = set()
    for side in SPLIT_NAMES:
        numbers = splits[split_index].get(side) if isinstance(splits[split_index], dict) else None
        if numbers is None:
            raise InputError(f"{path}: split {split_index} has no {side} rows: {_REMEDY}")
        counts[side] = len(numbers)
        for position in range(len(numbers)):
            where = f"{path}, {side} entry {position}"
            number = _index({"row": numbers[position]}, "row", len(file.rows), where)
            row = file.rows[number]
            named_subjects.add(row.subject)
            if side_of.setdefault(row.image, side) != side:
                raise InputError(
                    f"{path}: image {row.image!r} is in {side_of[row.image]} and (row {number}) in {side}; the split "
                    f"was made for another file than {file.path.name}, or counts rows within one subject: use "
                    "block_splits_by_image_all.pth, or split by-image"
                )
    published: dict[str, tuple[str, ...]] = {
        side: tuple(sorted(image for image, at in side_of.items() if at == side)) for side in SPLIT_NAMES
    }
    step = {
        "step": "published split",
        "file": path.name,
        "index": split_index,
        "rows": counts,
        "rows_in_file": len(file.rows),
        "subjects": sorted(named_subjects),
    }
    return published, (step,)


def _source_steps(file: _File, standardise: bool) -> Iterator[dict[str, Any]]:
    yield {
        "step": "source",
        "file": file.path.name,
        "rows": len(file.rows),
        "images": len({r.image for r in file.rows}),
    }
    band = re.search(r"eeg_(\d+)_(\d+)_std", file.path.stem)
    if band:
        yield {"step": "band-pass", "low_hz": int(band[1]), "high_hz": int(band[2]), "basis": "file name"}
    if file.scale is None:
        yield {"step": "standardise", "basis": "done by the publisher: the file has no means and stddevs"}
    elif standardise:
        yield {"step": "standardise", "basis": "(eeg - means) / stddevs of the file"}
    else:
        yield {"step": "unit", "basis": "assumed: the file's raw values are microvolts"}


def _doubts(
    file: _File, rows: Sequence[_Row], window: slice, standardise: bool, channels: tuple[str, ...], unit: Unit
) -> tuple[str, ...]:
    """Hold unit and rate against the samples of some rows; return what could not be checked."""
    own = [row.eeg_CL.to(torch.float32) for row in rows]
    if file.scale is not None and standardise:
        own = [_standardised(eeg_CL, *file.scale, f"{file.path}, row {rows[0].number}") for eeg_CL in own]
    eeg_NCT = np.stack([eeg_CL[:, window].numpy() for eeg_CL in own])
    finite_NCT = eeg_NCT[np.isfinite(eeg_NCT).all(axis=(1, 2))]
    if not len(finite_NCT):  # every row says so itself when it is read
        return ()
    t_min_s = window.start / SFREQ_HZ
    signal = prepare.Signal(eeg=finite_NCT, channels=channels, sfreq_hz=SFREQ_HZ, t_min_s=t_min_s, unit=unit)
    return prepare.check_samples(signal, str(file.path))


def _segments(
    path: Path, numbers: Sequence[int], window: slice, standardise: bool, on_bad: OnBad, dropped: Drops
) -> Iterator[Segment]:
    file = _read_file(path)
    rows = [file.rows[number] for number in numbers]
    scale = file.scale if standardise else None
    shown: Counter[tuple[str, str]] = Counter()
    for row in rows:
        eeg_CL = row.eeg_CL.to(torch.float32)
        if scale is not None:
            eeg_CL = _standardised(eeg_CL, *scale, f"{path}, row {row.number}")
        eeg_CT = eeg_CL[:, window].numpy()
        fault = None
        if not np.isfinite(eeg_CT).all():
            fault = "NaN or infinite EEG"
        elif (eeg_CT == eeg_CT[:, :1]).all():
            fault = "EEG constant in every channel"
        if fault and on_bad == "fail":
            raise InputError(f"{path}, row {row.number}: {fault}; drop such rows (--on-bad drop), or repair the file")
        if fault:
            dropped[fault] += 1
            continue
        yield Segment(
            segment_id=f"{row.subject}-row-{row.number:05d}",
            subject=row.subject,
            session=0,
            block=-1,
            order=-1,
            onset_s=float("nan"),
            repetition=shown[row.subject, row.image],
            image_id=row.image,
            eeg_CT=eeg_CT,
        )
        shown[row.subject, row.image] += 1


def _standardised(eeg_CL: torch.Tensor, means: torch.Tensor, stddevs: torch.Tensor, where: str) -> torch.Tensor:
    try:
        scaled_CL = (eeg_CL - means.expand_as(eeg_CL)) / stddevs.expand_as(eeg_CL)
    except RuntimeError as error:
        raise InputError(
            f"{where}: means {list(means.shape)} and stddevs {list(stddevs.shape)} do not fit EEG of shape "
            f"{list(eeg_CL.shape)}; leave the values raw (standardise=False), or download the file again"
        ) from error
    return scaled_CL.to(torch.float32)


def _stimuli(paths: dict[str, Path], classes: tuple[str, ...]) -> Iterator[Stimulus]:
    label_of = {name: label for label, name in enumerate(classes)}
    for stem, path in paths.items():
        synset = stem.split("_")[0]
        yield Stimulus(image_id=stem, label=label_of[synset], label_name=synset, encoded=read_picture(path))


def _find_pictures(root: Path, stems: Sequence[str]) -> dict[str, Path]:
    """Find one file per stem: first where ImageNet has it, then, if some are missing, anywhere under `root`."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root} with the pictures; give the folder that holds SYNSET/STEM.JPEG")
    found: dict[str, list[Path]] = {stem: [] for stem in stems}

    def look(folder: Path, names: Iterable[str], wanted: Container[str]) -> None:
        for path in map(folder.joinpath, sorted(names)):
            if path.suffix.lower() in PICTURE_SUFFIXES and path.stem in wanted:
                found[path.stem].append(path)

    for folder in sorted({root} | {root / stem.split("_")[0] for stem in stems}):
        if folder.is_dir():
            look(folder, (path.name for path in folder.iterdir()), found)
    if missing := {stem for stem in stems if not found[stem]}:
        for folder, _, names in os.walk(root):
            look(Path(folder), names, missing)
    if missing := [stem for stem in stems if not found[stem]]:
        raise InputError(
            f"picture {missing[0]} (.JPEG, .jpg or .png) is not under {root}; {len(missing)} of {len(stems)} pictures "
            "are missing: the files name ImageNet pictures, which have to be obtained from ImageNet"
        )
    for stem, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                f"picture {stem} is there twice, {paths[0]} and {paths[1]}; remove one or name a subfolder"
            )
        if not paths[0].resolve().is_relative_to(root.resolve()):
            raise InputError(f"picture {paths[0]} is a link to outside {root}; copy the file to where the link is")
    return {stem: paths[0] for stem, paths in found.items()}
