"""A lab's own recordings: whatever MNE reads, epochs or continuous, single files or a BIDS folder.

FIF (`-epo.fif` or raw), EEGLAB `.set`, EDF and BDF, BrainVision `.vhdr` and all else that `mne.io.read_raw` knows.
Which event shows which picture is said by a table (`ingest.events`), by the events.tsv of BIDS, or by the events' own
texts. Channels marked bad are kept unless `preparation.channels` leaves them out (what one subject lacks would be
missing for all) and named in the data set's facts. Epochs that overlap an annotation named BAD or cross a break in the
recording are left out and counted.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eegvision.ingest import events as pairing
from eegvision.ingest import prepare, presentations, sources
from eegvision.ingest.presentations import File
from eegvision.vocab import InputError, Unit

if TYPE_CHECKING:
    import mne

Picks = Literal["eeg", "meg", "mag"]

_BIDS_SUFFIXES = (".vhdr", ".edf", ".bdf", ".set", ".fif", ".ds", ".con", ".sqd")
_BREAKS = ("boundary", "New Segment/", "EDGE")  # EEGLAB, BrainVision, MNE
_HEAD_M = (0.03, 0.25)  # distances from the head's centre at which an electrode or sensor can be


def read(
    source: Sequence[Path],
    images: Path,
    table: Path | None = None,
    *,
    preparation: prepare.Preparation,
    subjects: Sequence[str] = (),
    tasks: Sequence[str] = (),
    picks: Picks = "eeg",
    stim_channel: str | None = None,
    image_column: str | None = None,
    event_column: str | None = None,
    name: str | None = None,
    licence: str = "unknown",
    on_bad: sources.OnBad = "fail",
) -> sources.Recording:
    """Read recordings of a lab and the pictures that were shown.

    Subject and session are those of the names (`sub-01_ses-02_...`, or folders called so), else the table's columns;
    a single file without either is a subject of its own. Image ids are paths in `images`; classes are the table's
    column `label`, else the folders the pictures lie in.

    Args:
        source: recordings, or one BIDS folder.
        images: the folder that paths of pictures start from.
        table: see `ingest.events`; without it pictures are named by the column `stim_file` or `image` of events.tsv or
            of the epochs' metadata, else by the events' texts.
        preparation: needs `window_s` for continuous recordings. Scaling is fitted per subject and session on what
            the table's column `split` calls train.
        subjects: those to keep; none means all.
        tasks: of a BIDS folder, those to keep; none means all.
        picks: `eeg`; `meg`, all sensors, which must be in tesla; `mag`, magnetometers only.
        stim_channel: where events are, if several places have some: a channel's name, or `annotations`.
        image_column: of the table or of events.tsv.
        event_column: of the table (`event`); without a table, of events.tsv (`trial_type`, else `value`).
        name, licence: of the data set; by default it is called as the first file or folder.
        on_bad: `fail`, or leave out and count events without a picture, rows without an event and faulty segments.
    Raises:
        InputError: a file is missing or damaged, files do not fit together, or the table does not fit them.
    """
    said = (image_column, event_column)
    listed = pairing.read_table(Path(table), *said) if table is not None else None
    columns = said if listed is None else (None, None)
    found = [
        look(path, bids_root=bids_root, picks=picks, stim_channel=stim_channel, columns=columns)
        for path, bids_root in _find(source, tasks)
    ]
    files = [file for file, _ in found]
    pairs = [pairing.pair(events, listed, Path(images), on_bad=on_bad, is_only=len(files) == 1) for _, events in found]
    dropped: Counter[str] = Counter()
    if listed is not None and not subjects:
        used = {line for one in pairs for line in one.used}
        dropped += pairing.check_rows(listed, [file.path for file in files], used, on_bad)
    kept = presentations.of_subjects(files, pairs, subjects)
    for _, _, one in kept:
        dropped += one.dropped
    has_labels = listed is not None and "label" in listed.columns
    every = (shown for _, _, one in kept for shown in one.shown)
    pictures = pairing.find_pictures(every, Path(images), has_labels=has_labels)
    session_of = presentations.session_numbers([one.session for one in pairs])
    pieces = presentations.plan(kept, preparation, session_of, on_bad, dropped)
    root = kept[0][1].bids_root
    name = name or (root or files[0].path).stem
    header = presentations.header(kept, pictures, preparation, session_of, name=name, dialect="mne", licence=licence)
    paths = [path for _, file, _ in kept for path in file.paths]
    vouched = sources.check_sums([*paths, *([listed.path] if listed else [])], root)
    doubts = presentations.excerpt(pieces[0], preparation, samples)
    return sources.Recording(
        header=dataclasses.replace(header, facts=(*header.facts, *vouched, *doubts)),
        parts=presentations.parts(pieces, preparation, header.published.get("train", ()), on_bad, samples),
        stimuli=presentations.stimuli(pictures, header.classes),
        dropped=dropped,
    )


def look(
    path: Path,
    *,
    bids_root: Path | None = None,
    picks: Picks = "eeg",
    stim_channel: str | None = None,
    columns: tuple[str | None, str | None] = (None, None),
) -> tuple[File, pairing.Events]:
    """Read what a recording says of itself and its events, without its samples.

    Args:
        path: the recording.
        bids_root: the BIDS folder it lies in; its side files are then read too.
        picks, stim_channel: as for `read`.
        columns: picture and event column of events.tsv or of the epochs' metadata.
    Raises:
        InputError: MNE cannot read it, it has no such channels, its unit is not one of ours, or its events are in
            several places.
    """
    import mne

    entities = _entities(path, bids_root)
    with _reading(path) as notes:
        found = _open(path, bids_root)
        channels, unit = _picked(found.info, picks, path)
        is_epochs = isinstance(found, mne.BaseEpochs)
        bad_spans, breaks = _bad_epochs(found) if is_epochs else _bad_spans(found)
        if is_epochs:
            if stim_channel is not None:
                raise InputError(
                    f"{path} holds epochs, so it has no stimulus channel {stim_channel!r}; leave --stim-channel out"
                )
            events, names_pictures = _epoch_events(found, columns[0], path)
        else:
            events, names_pictures = _raw_events(found, path, bids_root, stim_channel, columns)
        n_samples = 0 if is_epochs else int(found.n_times)
        file = File(
            path=path,
            bids_root=bids_root,
            is_epochs=is_epochs,
            paths=_paths_of(found, path, bids_root),
            channels=channels,
            positions_m=_positions_m(found.info, channels, unit),
            unit=unit,
            sfreq_hz=float(found.info["sfreq"]),
            t_min_s=float(found.tmin) if is_epochs else 0.0,
            n_times=len(found.times) if is_epochs else 0,
            n_samples=n_samples,
            n_epochs=len(found) if is_epochs else 0,
            run=entities["run"],
            bads=tuple(name for name in found.info["bads"] if name in channels),
            bad_spans=bad_spans,
            breaks=breaks,
            notes=(),
        )
        if any(not projector["active"] for projector in found.info["projs"]):
            notes.append("it carries projectors (SSP), which were not applied")
    file = dataclasses.replace(file, notes=tuple(notes))
    said = pairing.Events(
        path=path,
        is_epochs=is_epochs,
        events=events,
        sfreq_hz=file.sfreq_hz,
        n_samples=n_samples,
        subject=entities["sub"],
        session=entities["ses"],
        names_pictures=names_pictures,
        n_before_rejection=len(found.drop_log) if is_epochs else 0,
    )
    return file, said


def samples(file: File, numbers: Sequence[int], n_samples: int | None) -> np.ndarray:
    """Read samples of `file.channels` as float64, in the unit of the file: [C, S], or of epochs [N, C, T].

    `numbers` are the epochs wanted; of a continuous recording only the first `n_samples` are read, or all.

    Raises:
        InputError: the file is damaged, or is no longer what it was when it was looked at.
    """
    with _reading(file.path):
        found = _open(file.path, file.bids_root)
        if file.is_epochs:
            found = found[list(numbers)]
            found.drop_bad(reject=None, flat=None, verbose="error")
            values = found.get_data(picks=list(file.channels), copy=False, verbose="error")
            expected = (len(numbers), len(file.channels), file.n_times)
        else:
            stop = min(n_samples or file.n_samples, file.n_samples)
            values = found.get_data(picks=list(file.channels), stop=stop, verbose="error")
            expected = (len(file.channels), stop)
    if values.shape != expected:
        raise InputError(
            f"{file.path} gives samples of shape {list(values.shape)}, but its header promised {list(expected)}; "
            "it is damaged or was replaced meanwhile: copy it again"
        )
    return values


@contextmanager
def _reading(path: Path) -> Iterator[list[str]]:
    """What MNE raises becomes an `InputError` that names the file; what it warns of is collected."""
    notes: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        notes.append(record.getMessage())
        return False

    logger = logging.getLogger("mne")
    logger.addFilter(collect)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
        notes += [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    except InputError:
        raise
    except Exception as error:  # damaged files make MNE raise whatever its parsers stumble on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path} cannot be read ({reason}); it is damaged, incomplete or of a kind that MNE does not know: "
            "copy it again with all files that belong to it"
        ) from error
    finally:
        logger.removeFilter(collect)
    notes[:] = dict.fromkeys(note.splitlines()[0].replace(str(path), path.name)[:200] for note in notes if note)


def _find(source: Sequence[Path], tasks: Sequence[str]) -> list[tuple[Path, Path | None]]:
    """Recordings and, where they lie in one, their BIDS folder; in the order given, within BIDS by name."""
    paths = [Path(path) for path in source]
    if not paths:
        raise InputError("no recording was given; name files, or a BIDS folder")
    if tasks and not (len(paths) == 1 and (paths[0] / "dataset_description.json").is_file()):
        raise InputError("tasks can only be chosen in a BIDS folder (with dataset_description.json); leave --tasks out")
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no recording {path}; check the path")
        if path.suffix.lower() in (".eeg", ".vmrk", ".fdt"):
            raise InputError(f"{path} is only part of a recording; give the .vhdr or .set file beside it")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a recording was given twice; give each once")
    root = paths[0]
    if not root.is_dir() or root.suffix.lower() in (".ds", ".mff"):
        return [(path, None) for path in paths]
    if len(paths) > 1 or not (root / "dataset_description.json").is_file():
        raise InputError(
            f"{root} is a folder; give one BIDS folder (with dataset_description.json), or the recordings in it"
        )
    found = sorted(
        path
        for kind in ("eeg", "meg")
        for pattern in (f"sub-*/{kind}/*_{kind}.*", f"sub-*/ses-*/{kind}/*_{kind}.*")
        for path in root.glob(pattern)
        if path.suffix.lower() in _BIDS_SUFFIXES and not re.search(r"_split-(?!0*1_)\d+_", path.name)
    )
    present = sorted({match[1] for path in found if (match := re.search(r"_task-([^_]+)", path.name))})
    for task in tasks:
        if task not in present:
            raise InputError(f"{root} has no task {task!r}, only {', '.join(present) or 'recordings without one'}")
    found = [path for path in found if not tasks or any(f"_task-{task}_" in path.name for task in tasks)]
    if not found:
        raise InputError(f"{root} has no recordings sub-*/[ses-*/]eeg/*_eeg.* (or meg); is it the root of a BIDS set?")
    stems = Counter(path.with_suffix("") for path in found)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise InputError(f"{twice[0]} is there in two formats; remove one, or give the recordings themselves")
    return [(path, root) for path in found]


def _entities(path: Path, bids_root: Path | None) -> dict[str, Any]:
    """Subject, session and run as the file's name or the folders it lies in have them (run: -1 without)."""
    folders = path.parent.parts[-3:] if bids_root is None else path.parent.relative_to(bids_root).parts
    values: dict[str, Any] = {}
    for prefix in ("sub", "ses"):
        named = re.findall(rf"(?:^|_)({prefix}-[A-Za-z0-9]+)", path.name)
        said = list(dict.fromkeys(named + [part for part in folders if re.fullmatch(f"{prefix}-[A-Za-z0-9]+", part)]))
        if len(said) > 1:
            raise InputError(f"{path} says both {said[0]} and {said[1]}; rename the file or its folder")
        values[prefix] = said[0] if said else ""
    run = re.search(r"(?:^|_)run-(\d{1,6})", path.name)
    return values | {"run": int(run[1]) if run else -1}


def _open(path: Path, bids_root: Path | None) -> Any:
    """The recording as MNE's Raw or Epochs, samples not loaded where the format allows."""
    import mne

    suffix = path.suffix.lower()
    if suffix == ".vhdr":
        _brainvision_files(path)
    if bids_root is not None:
        import mne_bids

        return mne_bids.read_raw_bids(mne_bids.get_bids_path_from_fname(path, check=False), verbose="warning")
    if suffix == ".fif" and mne.what(path) == "epochs":
        return mne.read_epochs(path, proj=False, preload=False, verbose="warning")
    if suffix == ".set":
        try:
            return mne.io.read_raw_eeglab(path, verbose="warning")
        except TypeError:  # its way to say that these are epochs
            return mne.read_epochs_eeglab(path, verbose="warning")
    return mne.io.read_raw(path, verbose="warning")


def _brainvision_files(path: Path) -> tuple[Path, ...]:
    """The two files a BrainVision header names; names may not lead elsewhere."""
    text = path.read_bytes().decode("latin-1")
    names = re.findall(r"^(?:DataFile|MarkerFile)=(.*?)\s*$", text, flags=re.MULTILINE)
    for name in names:
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise InputError(f"{path} names the file {name!r}, which is not beside it; put it there and mend the name")
    return tuple(path.parent / name.replace("$b", path.stem) for name in names)


def _paths_of(found: Any, path: Path, bids_root: Path | None) -> tuple[Path, ...]:
    """All files of a recording that can be told from it; in BIDS, the side files of the same name too."""
    named = [Path(name) for name in getattr(found, "filenames", ()) if name]
    if path.suffix.lower() == ".vhdr":
        named += _brainvision_files(path)
    if path.suffix.lower() == ".fif":  # epochs of more than 2 GB go on in NAME-1.fif, NAME-2.fif...
        named += sorted(path.parent.glob(f"{path.stem}-[0-9]*.fif"))
    if path.suffix.lower() == ".set":
        named += [path.with_suffix(".fdt")]
    if bids_root is not None:
        named += sorted(path.parent.glob(f"{path.name.rpartition('_')[0]}_*.[tj]s*"))
    for name in named:
        if name.parent.absolute() != path.parent.absolute() and path.is_file():
            raise InputError(f"{path} names the file {name}, which is not beside it; put it there and mend the name")
    unique = {one.absolute(): one for one in [path, *named] if one.is_file()}
    return tuple(unique.values())


def _picked(info: mne.Info, picks: Picks, path: Path) -> tuple[tuple[str, ...], Unit]:
    """Channels of the wanted kind, those marked bad included, and their unit."""
    import mne

    kinds = {"eeg": {"eeg": True}, "meg": {"meg": True}, "mag": {"meg": "mag"}}[picks]
    indices = mne.pick_types(info, **kinds, ref_meg=False, exclude=())
    types = Counter(info.get_channel_types())
    if not len(indices):
        has = ", ".join(f"{count} {kind}" for kind, count in types.items())
        raise InputError(f"{path} has no {picks} channels, only {has}; choose others with --picks")
    if picks == "meg" and types["grad"]:
        raise InputError(
            f"{path} has {types['grad']} planar gradiometers (T/m) besides {types['mag']} magnetometers (T); "
            "one data set has one unit: choose picks=mag"
        )
    return tuple(info["ch_names"][index] for index in indices), "V" if picks == "eeg" else "T"


def _positions_m(info: mne.Info, channels: Sequence[str], unit: Unit) -> tuple[tuple[float, float, float], ...]:
    """Where the file has the sensors, in head coordinates; nothing if it does not say, or not in metres."""
    import mne

    loc_C3 = np.array([info["chs"][info["ch_names"].index(name)]["loc"][:3] for name in channels])
    if unit == "T" and info["dev_head_t"] is not None:
        loc_C3 = mne.transforms.apply_trans(info["dev_head_t"], loc_C3)
    distance_C = np.linalg.norm(loc_C3, axis=1)
    if np.isfinite(loc_C3).all() and ((distance_C > _HEAD_M[0]) & (distance_C < _HEAD_M[1])).all():
        x, y, z = np.round(loc_C3, 6).T.tolist()
        return tuple(zip(x, y, z, strict=True))
    return ()


def _epoch_events(
    found: mne.BaseEpochs, image_column: str | None, path: Path
) -> tuple[tuple[pairing.Event, ...], bool]:
    """One event per epoch; pictures where the epochs' metadata names them."""
    names: dict[int, str] = {}
    for text, code in found.event_id.items():
        if names.setdefault(int(code), text) != text:
            raise InputError(f"{path}: event {code} is called both {names[int(code)]!r} and {text!r}; save it with one")
    images = [""] * len(found)
    metadata = found.metadata
    column = image_column or next(
        (name for name in ("image", "stim_file") if name in (() if metadata is None else metadata)), None
    )
    if image_column and (metadata is None or image_column not in metadata):
        raise InputError(
            f"{path}: the epochs' metadata has no column {image_column!r}; correct --image-column or give a --table"
        )
    if column is not None and metadata is not None:
        images = ["" if value in (None, "n/a") or value != value else str(value) for value in metadata[column]]
    events = tuple(
        pairing.Event(sample=int(sample), text=names.get(int(code), str(code)), code=str(code), image=image)
        for (sample, _, code), image in zip(found.events.tolist(), images, strict=True)
    )
    return events, column is not None


def _is_break(text: str) -> bool:
    return text.startswith(_BREAKS) or text.lower() == "bad boundary"


def _annotations(raw: mne.io.BaseRaw) -> Iterator[tuple[int, float, str]]:
    """First sample, duration in samples and text of every annotation."""
    notes = raw.annotations
    first = raw.time_as_index(notes.onset, use_rounding=True, origin=notes.orig_time)
    for sample, duration_s, text in zip(first.tolist(), notes.duration.tolist(), notes.description, strict=True):
        yield sample, duration_s * raw.info["sfreq"], str(text)


def _bad_spans(raw: mne.io.BaseRaw) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    spans, breaks = [], []
    for sample, length, text in _annotations(raw):
        if _is_break(text):
            breaks.append(sample)
        elif text.lower().startswith("bad"):
            spans.append((float(sample), sample + length))
    return tuple(spans), tuple(breaks)


def _bad_epochs(found: mne.BaseEpochs) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    if found.annotations is None or not any(text.lower().startswith("bad") for text in found.annotations.description):
        return (), ()
    inside = enumerate(found.get_annotations_per_epoch())
    return tuple((n, n) for n, notes in inside if any(note[2].lower().startswith("bad") for note in notes)), ()


def _raw_events(
    raw: mne.io.BaseRaw,
    path: Path,
    bids_root: Path | None,
    stim_channel: str | None,
    columns: tuple[str | None, str | None],
) -> tuple[tuple[pairing.Event, ...], bool]:
    """Events of events.tsv, else of the only place in the recording that has some."""
    if bids_root is not None and stim_channel is None:
        return _bids_events(raw, path, columns)
    if any(columns):
        named = ", ".join(repr(name) for name in columns if name)
        raise InputError(f"{path} has no columns, so none is called {named}; give the --table they are in")
    import mne

    places: dict[str, list[pairing.Event]] = {}
    written = [(sample, text) for sample, _, text in _annotations(raw) if not _is_break(text)]
    if texts := [(sample, text) for sample, text in written if not text.lower().startswith("bad")]:
        places["annotations"] = [pairing.Event(sample=sample, text=text) for sample, text in texts]
    stim = [raw.ch_names[index] for index in mne.pick_types(raw.info, stim=True)]
    if stim_channel not in (None, "annotations", *stim):
        raise InputError(f"{path} has no stimulus channel {stim_channel!r}; there are {', '.join(stim) or 'none'}")
    for name in stim:
        if stim_channel in (None, name) and (steps := _steps(raw, name, path)):
            places[name] = steps
    if stim_channel is not None:
        return tuple(places.get(stim_channel, ())), False
    if len(places) > 1:
        counts = ", ".join(f"{name} ({len(events)})" for name, events in places.items())
        raise InputError(f"{path} has events in several places: {counts}; choose one with --stim-channel")
    return tuple(next(iter(places.values()), ())), False


def _steps(raw: mne.io.BaseRaw, channel: str, path: Path) -> list[pairing.Event]:
    """Events of a stimulus channel; codes that do not return to 0 in between could be read in two ways."""
    import mne

    options: dict[str, Any] = {"stim_channel": channel, "shortest_event": 1, "verbose": "error"}
    rising = mne.find_events(raw, consecutive="increasing", **options)
    every = mne.find_events(raw, consecutive=True, **options)
    if len(rising) != len(every):
        raise InputError(
            f"{path}: codes on channel {channel} change without going back to 0, so it is not clear which are events "
            f"({len(rising)} or {len(every)}); give a table with a column sample or onset_s"
        )
    return [
        pairing.Event(sample=int(sample) - raw.first_samp, text=str(code), code=str(code))
        for sample, _, code in rising.tolist()
    ]


def _bids_events(
    raw: mne.io.BaseRaw, path: Path, columns: tuple[str | None, str | None]
) -> tuple[tuple[pairing.Event, ...], bool]:
    import mne_bids

    bids_path = mne_bids.get_bids_path_from_fname(path, check=False)
    tsv = bids_path.find_matching_sidecar(suffix="events", extension=".tsv", on_error="ignore")
    if tsv is None:
        return (), False
    names, rows = pairing.read_columns(Path(tsv))
    for column in (*(one for one in columns if one), "onset"):
        if column not in names:
            raise InputError(f"{tsv} has no column {column!r}, only {', '.join(names)}; correct the name")
    image = columns[0] or next((name for name in ("stim_file", "image") if name in names), None)
    text = columns[1] or next((name for name in ("trial_type", "value") if any(row.get(name) for _, row in rows)), None)
    events = []
    sfreq_hz = float(raw.info["sfreq"])
    for line, row in rows:
        try:
            sample = round(float(row["onset"]) * sfreq_hz)
            stated = round(float(row.get("sample") or sample))
        except (ValueError, OverflowError) as error:
            raise InputError(f"{tsv}, line {line}: onset {row['onset']!r} or sample is no number; mend it") from error
        if abs(sample - stated) > 1:
            raise InputError(
                f"{tsv}, line {line}: onset {row['onset']} s is sample {sample} at the {sfreq_hz:g} Hz of {path}, but "
                f"its column sample says {stated}; one of the three is wrong: correct it"
            )
        if not 0 <= sample < raw.n_times:
            raise InputError(
                f"{tsv}, line {line}: onset {row['onset']} s lies outside {path}, which lasts "
                f"{raw.n_times / sfreq_hz:g} s; the recording is cut short or the table belongs to another"
            )
        called = row[text] if text else ""
        if not (called.lower().startswith("bad") or _is_break(called)):
            events.append(
                pairing.Event(sample=sample, text=called, code=row.get("value", ""), image=row[image] if image else "")
            )
    return tuple(events), image is not None
