"""THINGS-MEG (OpenNeuro ds004212): four people, 271 sensors, pictures of 1854 concepts shown once and 200 twelve times.

`preprocessed_P1-epo.fif` to `..._P4-epo.fif` hold epochs of -0.1 to 1.3 s at 200 Hz whose event is the number of the
picture, from 1, in THINGS' `image_paths.csv`; 999999 are catch trials. `image_concept_index.csv` has the concept of
every picture. Epochs find their picture by that number, never by their place.

The publishers' preprocessing ends with a z-score over each epoch's baseline, while FIF says tesla, so the unit is told
from the samples.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from eegvision.ingest import events as pairing
from eegvision.ingest import mne_epochs, prepare, presentations, sources
from eegvision.ingest.presentations import File
from eegvision.vocab import InputError, Unit

CATCH = 999999
CATCH_TRIALS = "catch trials"
TEST_CONCEPTS = "training pictures of test concepts"
ODD_REPEATS = "pictures shown neither once nor 12 times"
REPEATS = 12
PUBLISHED = {"concepts": 1654, "pictures per concept": 12, "test pictures": 200}
SENSORS = 271
WINDOW_S = (0.0, 1.0)

_ROWS_PER_PART = 2048
_FITTED = {"fitted_on": "training epochs of each person"}
_Z_FROM = 1e-3  # what varies by more is no magnetic field of a head in tesla


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """The rows of THINGS' lists: row n, from 1, is `names[n - 1]` of concept `concepts[n - 1]`."""

    path: Path
    names: tuple[str, ...]
    concepts: tuple[int, ...]


def read(
    source: Path,
    images: Path,
    metadata: Path,
    *,
    subjects: Sequence[str] = (),
    preparation: prepare.Preparation | None = None,
    on_bad: sources.OnBad = "fail",
) -> sources.Recording:
    """Read THINGS-MEG's preprocessed epochs and the THINGS pictures.

    Test pictures are those shown exactly 12 times; what else their concepts have is left out and counted, so that
    training (every picture shown once) and test share no concept. Classes are concepts, named by their folders.

    Args:
        source: the folder with `preprocessed_P*-epo.fif`, or one above it.
        images: the folder that paths of `image_paths.csv` start from (or start from below their first folder).
        metadata: THINGS' metadata, with `image_paths.csv` and `image_concept_index.csv` in it or deeper.
        subjects: as `sub-01` for P1; none means all.
        preparation: by default the window 0 to 1 s and nothing else. Scales are fitted on the training epochs of
            each person, whose file is then read as a whole: sessions are not in it.
        on_bad: `fail` if pictures are missing in a recording or an epoch is faulty, or leave out and count.
    Raises:
        InputError: a file is missing or damaged; counts are not those of the design; events have no picture; pictures
            are of another set.
    """
    preparation = preparation or prepare.Preparation(window_s=WINDOW_S)
    if preparation.window_s is None:
        preparation = dataclasses.replace(preparation, window_s=WINDOW_S)
    pool = _read_pool(Path(metadata))
    dropped: Counter[str] = Counter()
    files: list[File] = []
    pairs: list[pairing.Pairing] = []
    facts: list[str] = []
    for subject, path in _find(Path(source), subjects):
        file, said = mne_epochs.look(path, picks="meg")
        shown, found = _select(file, said, pool, on_bad, dropped)
        facts += found
        files.append(file)
        pairs.append(pairing.Pairing(shown=shown, subject=subject, session=""))
    files, basis = _with_unit(files)
    kept = presentations.of_subjects(files, _disjoint(pairs, dropped), ())
    pictures = _pictures(kept, Path(images), pool)
    header = presentations.header(
        kept, pictures, preparation, {"": 0}, name="things-meg", dialect="things-meg", licence="CC0-1.0"
    )
    pieces = _in_ranges(presentations.plan(kept, preparation, {"": 0}, on_bad, dropped))
    vouched = sources.check_sums([path for file in files for path in file.paths], None)
    doubts = presentations.excerpt(pieces[0], preparation, mne_epochs.samples)
    facts += [basis, *vouched, *doubts]
    return sources.Recording(
        header=dataclasses.replace(
            header,
            steps=tuple(step | _FITTED if "fitted_on" in step else step for step in header.steps),
            facts=(*header.facts, *dict.fromkeys(facts)),
        ),
        parts=presentations.parts(pieces, preparation, header.published["train"], on_bad, mne_epochs.samples),
        stimuli=presentations.stimuli(pictures, header.classes),
        dropped=+dropped,
    )


def _find(source: Path, subjects: Sequence[str]) -> list[tuple[str, Path]]:
    found = {}
    for path in sorted(source.rglob("preprocessed_P*-epo.fif")) if source.is_dir() else [source]:
        if match := re.fullmatch(r"preprocessed_P(\d{1,2})-epo\.fif", path.name):
            subject = f"sub-{int(match[1]):02d}"
            if found.setdefault(subject, path) != path:
                raise InputError(f"{path} and {found[subject]} are both of {subject}; name the folder of one of them")
    if not found or not all(path.is_file() for path in found.values()):
        raise InputError(f"there is no preprocessed_P1-epo.fif (to P4) in {source}; get derivatives of ds004212")
    for subject in subjects:
        if subject not in found:
            raise InputError(f"{source} has no subject {subject!r}; present are {', '.join(found)}")
    return [(subject, path) for subject, path in found.items() if not subjects or subject in subjects]


def _read_pool(metadata: Path) -> _Pool:
    """Read THINGS' two lists, which count the same pictures."""
    lines: dict[str, list[str]] = {}
    paths: dict[str, Path] = {}
    for name in ("image_paths.csv", "image_concept_index.csv"):
        found = sorted(metadata.rglob(name))
        if len(found) != 1:
            raise InputError(
                f"{metadata} has {len(found) or 'no'} {name}; give THINGS' folder Metadata (osf.io/jum2f), once"
            )
        paths[name] = found[0]
        try:
            lines[name] = found[0].read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{found[0]} cannot be read ({error}); download it again") from error
    names, indices = lines["image_paths.csv"], lines["image_concept_index.csv"]
    if len(names) != len(indices) or not names:
        raise InputError(
            f"{paths['image_paths.csv']} has {len(names)} pictures, {paths['image_concept_index.csv']} {len(indices)}; "
            "both must be of one version of THINGS: download them again"
        )
    folder_of: dict[str, str] = {}
    for line, (name, index) in enumerate(zip(names, indices, strict=True), 1):
        if not re.fullmatch(r"[1-9]\d{0,8}", index):
            raise InputError(f"{paths['image_concept_index.csv']}, line {line}: {index!r} is no concept number from 1")
        folder = PurePosixPath(name).parent.name
        if not folder or folder_of.setdefault(index, folder) != folder:
            raise InputError(
                f"{paths['image_paths.csv']}, line {line}: {name!r} is of concept {index}, others of which lie in "
                f"{folder_of.get(index)!r}; the two lists are not of one version: download them again"
            )
    if len(set(names)) < len(names) or len(set(folder_of.values())) < len(folder_of):
        raise InputError(f"{paths['image_paths.csv']} names a picture or a concept twice; download it again")
    return _Pool(path=paths["image_paths.csv"], names=tuple(names), concepts=tuple(map(int, indices)))


def _select(
    file: File, said: pairing.Events, pool: _Pool, on_bad: sources.OnBad, dropped: Counter[str]
) -> tuple[tuple[pairing.Shown, ...], list[str]]:
    """Epochs of training and test, found by the numbers of their pictures; counts are checked first."""
    rows = [int(event.code) for event in said.events]
    count = Counter(row for row in rows if row != CATCH)
    if outside := [row for row in count if not 1 <= row <= len(pool.names)]:
        raise InputError(
            f"{file.path}: event {outside[0]} is no picture of {pool.path}, which has {len(pool.names)}; "
            "the events must be rows of THINGS' list, 1 to 26107, and the file whole"
        )
    tested = {row for row, times in count.items() if times == REPEATS}
    if not tested:
        raise InputError(
            f"{file.path} has no picture that was shown {REPEATS} times, so no test set; is it THINGS-MEG?"
        )
    test_concepts = {pool.concepts[row - 1] for row in tested}
    rest = {row for row in count if row not in tested and pool.concepts[row - 1] not in test_concepts}
    train = {row for row in rest if count[row] == 1}
    facts = _check_design(file, pool, count, tested, rest, on_bad)
    dropped[CATCH_TRIALS] += len(rows) - count.total()
    dropped[TEST_CONCEPTS] += sum(count[row] for row in count.keys() - tested - rest)
    dropped[ODD_REPEATS] += sum(count[row] for row in rest - train)
    shown = tuple(
        pairing.Shown(
            number=number,
            sample=event.sample,
            image=pool.names[row - 1],
            label=PurePosixPath(pool.names[row - 1]).parent.name,
            split="test" if row in tested else "train",
            block=-1,
            where=f"{file.path}, epoch {number}",
        )
        for number, (row, event) in enumerate(zip(rows, said.events, strict=True))
        if row in tested or row in train
    )
    return shown, facts


def _disjoint(pairs: Sequence[pairing.Pairing], dropped: Counter[str]) -> list[pairing.Pairing]:
    """Leave out what trains on a concept that is tested in anybody: one person may lack a test repeat."""
    tested = {one.label for pair in pairs for one in pair.shown if one.split == "test"}
    kept = []
    for pair in pairs:
        shown = tuple(one for one in pair.shown if one.split == "test" or one.label not in tested)
        dropped[TEST_CONCEPTS] += len(pair.shown) - len(shown)
        kept.append(dataclasses.replace(pair, shown=shown))
    return kept


def _check_design(
    file: File, pool: _Pool, count: Counter[int], tested: set[int], rest: set[int], on_bad: sources.OnBad
) -> list[str]:
    """Every training concept has as many pictures, each shown once; every test picture is of a concept of its own.

    A recording that lacks epochs is refused, or noted where such are left out.
    """
    name = file.path.name
    repeated = sorted(row for row in rest if count[row] != 1)
    per_concept = Counter(pool.concepts[row - 1] for row in rest if count[row] == 1)
    usual = max(Counter(per_concept.values()).items(), key=lambda item: (item[1], item[0]))[0] if per_concept else 0
    uneven = sorted(concept for concept, pictures in per_concept.items() if pictures != usual)
    faults = []
    if not per_concept:
        faults.append("no training picture is left")
    if repeated:
        faults.append(f"picture {repeated[0]} was shown {count[repeated[0]]} times, neither once nor {REPEATS} times")
    if uneven:
        faults.append(f"concept {uneven[0]} has {per_concept[uneven[0]]} pictures, others {usual}")
    if len({pool.concepts[row - 1] for row in tested}) != len(tested):
        faults.append("two test pictures are of one concept")
    if (faults and on_bad == "fail") or not per_concept:
        raise InputError(
            f"{file.path}: {'; '.join(faults)}: epochs are missing or too many; download the file again, or take it as "
            "it is (--on-bad drop)"
        )
    has = {"concepts": len(per_concept), "pictures per concept": usual, "test pictures": len(tested)}
    facts = [f"{name}: {fault}" for fault in faults]
    facts += [
        f"{name} has {has[what]} {what}, the published set {PUBLISHED[what]}"
        for what in has
        if has[what] != PUBLISHED[what]
    ]
    if len(file.channels) != SENSORS:
        facts.append(f"{name} has {len(file.channels)} sensors, the published set {SENSORS}")
    return facts


def _pictures(
    kept: Sequence[tuple[str, File, pairing.Pairing]], images: Path, pool: _Pool
) -> dict[str, pairing.Picture]:
    """Find the pictures; that there are hardly any means that the folder is of another set."""
    shown = [one for _, _, pair in kept for one in pair.shown]
    names = list(dict.fromkeys(one.image for one in shown))
    below = [str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names]
    is_below = not sources.child(images, names[0]).is_file() and sources.child(images, below[0]).is_file()
    lies_at = dict(zip(names, below if is_below else names, strict=True))
    missing = [name for name in names if not sources.child(images, lies_at[name]).is_file()]
    if missing:
        raise InputError(
            f"picture {missing[0]!r} of {pool.path} is not in {images}; {len(missing)} of {len(names)} are missing. "
            "THINGS-MEG shows pictures of the whole THINGS set (26,107), which is not the image set of THINGS-EEG2: "
            "get it from osf.io/jum2f and give the folder that these paths start from"
        )
    moved = (dataclasses.replace(one, image=lies_at[one.image]) for one in shown)
    found = pairing.find_pictures(moved, images, has_labels=True)
    return {name: found[pairing.image_id_of(lies_at[name])] for name in names}


def _with_unit(files: Sequence[File]) -> tuple[list[File], str]:
    """Files with the unit that their samples have, tesla or the publishers' z-score of the baseline."""
    units: dict[Path, Unit] = {}
    for file in files:
        values = mne_epochs.samples(file, range(min(16, file.n_epochs)), None)
        units[file.path] = "zscore" if float(np.median(values.std(axis=-1))) > _Z_FROM else "T"
    if len(set(units.values())) > 1:
        said = ", ".join(f"{path.name}: {unit}" for path, unit in units.items())
        raise InputError(f"files are of two units ({said}); take all from one release")
    unit = next(iter(units.values()))
    basis = "the unit is tesla, as the files say, and the samples are that small"
    if unit == "zscore":
        basis = "samples are z-scores of each epoch's baseline, as the publishers left them, though the files say tesla"
    return [dataclasses.replace(file, unit=unit) for file in files], basis


def _in_ranges(pieces: Sequence[presentations.Piece]) -> list[presentations.Piece]:
    """Pieces of at most so many epochs; files do not say which of the twelve sessions an epoch is of."""

    def named(take: presentations.Take) -> presentations.Take:
        order = take.number if take.order >= 0 else -1
        name = f"{take.subject}_epo-{take.number:05d}"
        return dataclasses.replace(take, segment_id=name, session=-1, order=order)

    return [
        dataclasses.replace(piece, takes=tuple(map(named, piece.takes[start : start + _ROWS_PER_PART])))
        for piece in pieces
        for start in range(0, len(piece.takes), _ROWS_PER_PART)
    ]
