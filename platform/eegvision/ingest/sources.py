"""What every reader hands over: a header, parts that can be read in parallel, pictures; and files read with care.

A reader looks at names, sizes and headers when it is called, and at samples only when a part is read: perhaps in
another process, perhaps a second time after an interruption.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eegvision.vocab import SPLIT_NAMES, UNITS, Fixation, InputError, Montage, Segment, Stimulus, Unit

OnBad = Literal["fail", "drop"]
Drops = Counter[str]  # reason -> number of segments left out for it

# What `sha256sum * > SHA256SUMS` and its like leave beside the files.
_SUMS = {"SHA256SUMS": "sha256", "sha256sums.txt": "sha256", "MD5SUMS": "md5", "md5sums.txt": "md5"}
_SUMS_LINE = re.compile(r"([0-9a-fA-F]{32,64}) [ *](.+)")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a reader knows of a data set before it has read the records.

    `t_min_s` is the time of the first sample after stimulus onset. `published` maps a split name to the image
    ids its publishers put there. `truth` is the planted truth of simulated data, JSON-able. `facts` are further
    things a reader of the data should know, a sentence each. `critique` is what is published against the design.
    """

    name: str
    dialect: str
    licence: str
    montage: Montage
    sfreq_hz: float
    t_min_s: float
    n_times: int
    unit: Unit
    steps: tuple[dict[str, Any], ...] = ()
    classes: tuple[str, ...]
    published: dict[str, tuple[str, ...]] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    critique: str = ""

    def __post_init__(self) -> None:
        montage = self.montage
        _require(bool(self.name), "name", self.name, "not empty")
        _require(bool(montage.channels), "channels", montage.channels, "at least one channel")
        _require(len(set(montage.channels)) == len(montage.channels), "channels", montage.channels, "without repeats")
        has_positions = len(montage.positions_m) in (0, len(montage.channels))
        _require(has_positions, "positions", len(montage.positions_m), "one per channel, or none")
        _require(math.isfinite(self.sfreq_hz) and self.sfreq_hz > 0, "sfreq_hz", self.sfreq_hz, "above 0")
        _require(math.isfinite(self.t_min_s), "t_min_s", self.t_min_s, "a finite time in seconds")
        _require(self.n_times >= 1, "n_times", self.n_times, "at least 1")
        _require(self.unit in UNITS, "unit", self.unit, "one of " + ", ".join(UNITS))
        _require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "without repeats")
        _require(set(self.published) <= set(SPLIT_NAMES), "published", tuple(self.published), "train, val and test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some segments of a source that are read by themselves: a session, a subject, a range of rows of a file.

    `read(dropped)` yields the segments and counts in `dropped`, by reason, what it leaves out. It can be pickled (a
    `functools.partial` of a function of a module), and gives the same segments every time. `rows` is about how many
    there are, for the progress bar; `peak_bytes` about how much memory reading them takes, for the scheduler. `key`
    says what the segments depend on (files with sizes and times, options): a part whose key has changed is read again.
    """

    name: str
    rows: int
    read: Callable[[Drops], Iterator[Segment]]
    key: str
    peak_bytes: int = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a reader hands over.

    Parts are read in any order, their segments stored in this one; then stimuli are taken, then fixations. `dropped`
    counts what the reader left out before any part was read.
    """

    header: Header
    parts: Sequence[Part]
    stimuli: Iterable[Stimulus]
    fixations: Iterable[Fixation] = ()
    dropped: Drops = field(default_factory=Counter)


def file_key(*paths: Path) -> str:
    """Return a text that changes when a file is replaced: name, size and time of modification of each."""
    return ";".join(f"{path.name}:{(stat := path.stat()).st_size}:{stat.st_mtime_ns}" for path in paths)


def child(root: Path, name: str) -> Path:
    """Return the path of `name`, which comes from a file we did not make, under `root`.

    Raises:
        InputError: the name is absolute, climbs out with `..` or through a link, or holds a backslash or NUL.
    """
    is_odd = not name or name.startswith(("/", "~")) or "\\" in name or "\0" in name or ".." in name.split("/")
    path = root / name if not is_odd else root
    if is_odd or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"the name {name!r} leads out of {root}; names may only lead to files in that folder")
    return path


def check_sums(paths: Sequence[Path], folder: Path | None = None) -> tuple[str, ...]:
    """Compare files with lists of checksums (SHA256SUMS or MD5SUMS, one "hash  name" per line).

    Args:
        paths: the files.
        folder: where the lists are; by default beside each file.
    Returns:
        what cannot be vouched for, as sentences for `Header.facts`; files of samples carry no checksum themselves.
    Raises:
        InputError: a file is not what a list says, or a list cannot be understood.
    """
    folders = [folder] if folder else dict.fromkeys(path.parent for path in paths)
    listed: dict[Path, tuple[str, str]] = {}
    for path, algorithm in ((own / name, algorithm) for own in folders for name, algorithm in _SUMS.items()):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            match = _SUMS_LINE.fullmatch(line)
            if not match:
                raise InputError(f"{path}, line {number}: {line[:80]!r} is not a checksum and a name; mend it")
            listed[child(path.parent, match[2].removeprefix("./")).resolve()] = (algorithm, match[1].lower())
    unlisted = []
    for path in paths:
        if path.resolve() not in listed:
            unlisted.append(path.name)
            continue
        algorithm, expected = listed[path.resolve()]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            raise InputError(
                f"{path} is damaged or another version: its {algorithm} is {found}, the list beside it says "
                f"{expected}; download it again"
            )
    if not unlisted:
        return ()
    return (
        f"{len(unlisted)} of {len(paths)} source files have no checksum to compare with (put SHA256SUMS beside them): "
        "damage to single samples could not be noticed",
    )


def _require(holds: bool, name: str, value: Any, condition: str) -> None:
    if not holds:
        raise InputError(f"the data set's {name} is {value!r}; it must be {condition}")
