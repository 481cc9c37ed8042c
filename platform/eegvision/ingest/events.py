"""Which event of a recording shows which picture: a lab's table, held against the events and the picture folder.

The table is a CSV or TSV file with a column `image` (a path in the folder of pictures; empty: this event shows none)
and one that says when it was shown:

    event       the event's code or text: every time it occurs
    onset_s     seconds after the first sample of the file, one row per presentation
    sample      the same in samples, from 0
    epoch       number of the epoch in the file, from 0; a row for every epoch

`event` beside one of the others is compared with the events of the recording, and `onset_s` beside `sample` with it,
which finds a wrong rate. Further columns: `label`; `split` (train, val,
test); `block`; and, to say for which recordings a row holds, `file` (name of the file), `subject`, `session`.
Nothing here knows how recordings are stored.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from eegvision.ingest import sources
from eegvision.vocab import SPLIT_NAMES, InputError

Key = Literal["event", "onset_s", "sample", "epoch"]

_IMAGE_COLUMNS = ("image", "stim_file")
_KEYS: tuple[Key, ...] = ("onset_s", "sample", "epoch")
_NOTHING = ("", "n/a", "N/A")  # `n/a` is how BIDS tables say that there is no value
_MAX_TABLE_BYTES = 256 << 20
WITHOUT_PICTURE = "events without a picture"
MARKED_EMPTY = "events marked as showing no picture"
NEVER_OCCURS = "table rows whose event never occurs"
OUTSIDE = "presentations outside the recording"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table. `at` is the value of its key column; empty texts and -1 mean that nothing is said."""

    line: int
    image: str
    event: str = ""
    at: float = math.nan
    onset_s: float = math.nan
    label: str = ""
    split: str = ""
    file: str = ""
    subject: str = ""
    session: str = ""
    block: int = -1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that was read and is consistent in itself."""

    path: Path
    key: Key
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a recording says happened at `sample` (from 0).

    `code` is a number that goes with the text, `image` the picture where the recording names it itself; empty: none.
    """

    sample: int
    text: str
    code: str = ""
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class Events:
    """The events of one recording; for epochs, one per epoch in the order of the file (`n_samples` is then 0).

    `subject` and `session` as `sub-01` and `ses-02`, or empty where neither name nor header tells.
    `names_pictures` says that the recording's own event list has a column with pictures.
    """

    path: Path
    is_epochs: bool
    events: tuple[Event, ...]
    sfreq_hz: float
    n_samples: int
    subject: str = ""
    session: str = ""
    names_pictures: bool = False
    n_before_rejection: int = 0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A presentation: event `number` of the recording, at `sample`, showed `image`."""

    number: int
    sample: int
    image: str
    label: str
    split: str
    block: int
    where: str


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What `pair` found out about one recording; `used` are the lines of the table that found an event."""

    shown: tuple[Shown, ...]
    subject: str
    session: str
    used: frozenset[int] = frozenset()
    dropped: sources.Drops = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the folder, its label's name (empty: none) and its published split (empty: none)."""

    path: Path
    label: str
    split: str


def read_table(path: Path, image_column: str | None = None, event_column: str | None = None) -> Table:
    """Read a table and check what can be checked without the recordings.

    Args:
        path: UTF-8 text; `.tsv` with tabs, otherwise commas, semicolons or tabs as the first line has them.
        image_column: by default `image`, or `stim_file` where there is no `image`.
        event_column: by default `event`.
    Raises:
        InputError: no such file, not text, a column missing or twice, a line of another length, a value that is none of
            its column, two key columns.
    """
    columns, lines = read_columns(path)
    image = image_column or next((name for name in _IMAGE_COLUMNS if name in columns), _IMAGE_COLUMNS[0])
    event = event_column or "event"
    if image not in columns:
        raise InputError(
            f"{path} has no column {image!r} with the pictures, only {', '.join(columns)}; "
            "name the column, or say which it is (--image-column)"
        )
    if event_column and event not in columns:
        raise InputError(f"{path} has no column {event!r}, only {', '.join(columns)}; correct --event-column")
    keys = [key for key in _KEYS if key in columns]
    if keys == ["onset_s", "sample"]:
        keys = ["sample"]
    if len(keys) > 1 or not (keys or event in columns):
        raise InputError(
            f"{path} has {'the columns ' + ' and '.join(keys) if keys else 'none of the columns'} that say when a "
            f"picture was shown; it needs exactly one of {event}, {', '.join(_KEYS)}"
        )
    key: Key = cast(Key, keys[0]) if keys else "event"
    rows = tuple(_row(path, line, values, image, event, key) for line, values in lines)
    if not rows:
        raise InputError(f"{path} has no rows below its header; give one per event or presentation")
    splits = {row.split for row in rows if row.image}
    if "" in splits and len(splits) > 1:
        line = next(row.line for row in rows if row.image and not row.split)
        raise InputError(f"{path}, line {line}: column split is empty, but others are filled; fill all of them or none")
    return Table(path=path, key=key, columns=columns, rows=rows)


def read_columns(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Read the columns of a CSV or TSV file, and of each row its line number and values; `n/a` becomes empty.

    Raises:
        InputError: as for `read_table`.
    """
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise InputError(f"{path} is larger than {_MAX_TABLE_BYTES:,} bytes; it is no table of events")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"table {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as CSV UTF-8") from error
    if "\0" in text or "\ufffd" in text:
        raise InputError(f"{path} holds characters that are no text; save it again as CSV UTF-8")
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in first else max(",;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, dict[str, str]]] = []
    try:
        columns = tuple(name.strip() for name in next(reader, ()))
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(columns):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(cells)} values, the header {len(columns)} columns; "
                    "mend the line (text with a comma needs quotes)"
                )
            values = ("" if cell.strip() in _NOTHING else cell.strip() for cell in cells)
            lines.append((reader.line_num, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; mend the quotes") from error
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"{path} has the column {repeated[0]!r} twice; remove or rename one")
    return columns, lines


def pair(recorded: Events, table: Table | None, images: Path, *, on_bad: sources.OnBad, is_only: bool) -> Pairing:
    """Say which events of a recording show which picture.

    Without a table, pictures are those the recording itself names, or else the events' texts are paths of pictures.

    Args:
        recorded: what the recording says.
        table: what the lab says.
        images: the folder of pictures.
        on_bad: what to do about an event without a picture and about a presentation outside the recording.
        is_only: there is no other recording, so that rows without `file` can only mean this one.
    Raises:
        InputError: recording and table do not fit together; named are the line and what it says, or the event.
    """
    if not recorded.events and (table is None or table.key in ("event", "epoch")):
        raise InputError(
            f"{recorded.path} has no events (no annotations, nothing on a stimulus channel); "
            "give a table with a column onset_s or sample, or another --stim-channel"
        )
    if table is None:
        return _pair_by_name(recorded, images, on_bad)
    rows, subject, session = _rows_for(recorded, table, is_only)
    if (table.key == "epoch") != recorded.is_epochs and table.key != "event":
        kind, keys = ("epochs", "epoch or event") if recorded.is_epochs else ("one recording", "event, onset_s, sample")
        raise InputError(
            f"{table.path} says by {table.key} when a picture was shown, but {recorded.path} holds {kind}; use {keys}"
        )
    seen: dict[object, int] = {}
    for row in rows:
        what = row.event if table.key == "event" else row.at
        if seen.setdefault(what, row.line) != row.line:
            raise InputError(
                f"{table.path}: lines {seen[what]} and {row.line} both say what {table.key} {what} shows in "
                f"{recorded.path.name}; remove one, or add a column file, subject or session"
            )
    dropped: Counter[str] = Counter()
    if table.key == "event":
        found = _by_event(recorded, table, rows, on_bad, dropped)
    elif table.key == "epoch":
        found = _by_epoch(recorded, table, rows)
    else:
        found = _by_time(recorded, table, rows, on_bad, dropped)
    dropped[MARKED_EMPTY] += sum(not row.image for _, _, row in found)
    shown = tuple(
        _shown(number, sample, row, f"{table.path}, line {row.line}")
        for number, sample, row in sorted(found, key=lambda item: item[:2] if recorded.is_epochs else item[1::-1])
        if row.image
    )
    used = frozenset(row.line for _, _, row in found)
    return Pairing(shown=shown, subject=subject, session=session, used=used, dropped=+dropped)


def _shown(number: int, sample: int, row: Row, where: str) -> Shown:
    said = {"image": row.image, "label": row.label, "split": row.split}
    return Shown(number=number, sample=sample, block=row.block, where=where, **said)


def check_rows(table: Table, recordings: Sequence[Path], used: set[int], on_bad: sources.OnBad) -> sources.Drops:
    """Check that the whole table was of use: every `file` is a recording, every event occurs somewhere.

    Raises:
        InputError: a row names a file that is not there, or (unless dropped) an event that never occurs.
    """
    names = {path.name for path in recordings}
    for row in table.rows:
        if row.file and PurePosixPath(row.file).name not in names:
            raise InputError(
                f"{table.path}, line {row.line}: file {row.file!r} is not among the recordings "
                f"({', '.join(sorted(names)[:5])}); correct the name or give that file too"
            )
    unused = [row for row in table.rows if table.key == "event" and row.line not in used]
    if unused and on_bad == "fail":
        raise InputError(
            f"{table.path}, line {unused[0].line}: event {unused[0].event!r} never occurs ({len(unused)} rows like "
            f"this) in {len(names)} recordings; correct the code, or leave such rows out (--on-bad drop)"
        )
    return Counter({NEVER_OCCURS: len(unused)} if unused else {})


def find_pictures(shown: Iterable[Shown], images: Path, *, has_labels: bool) -> dict[str, Picture]:
    """Find the file of every picture, once; what different rows say about one picture must agree.

    Args:
        shown: presentations; `image` is a path in `images`.
        images: the folder.
        has_labels: labels are those of the presentations; otherwise the name of the folder a picture lies in.
    Returns:
        by image id, which is the path in `images` in its shortest form.
    Raises:
        InputError: a picture is missing or leads out of the folder; one has two labels or is in two splits.
    """
    if not images.is_dir():
        raise InputError(f"there is no folder {images} with the pictures; give the one that image paths start from")
    found: dict[str, Picture] = {}
    first: dict[str, str] = {}
    for one in shown:
        image_id = image_id_of(one.image)
        label = one.label if has_labels else PurePosixPath(image_id).parent.name
        if image_id not in found:
            found[image_id] = Picture(path=_picture_file(one, images), label=label, split=one.split)
            first[image_id] = one.where
            continue
        known = found[image_id]
        for what, before, now in (("labels", known.label, label), ("splits", known.split, one.split)):
            if before != now:
                raise InputError(
                    f"image {image_id!r} has two {what}: {before!r} ({first[image_id]}) and {now!r} ({one.where}); "
                    "make them one"
                )
    return found


def image_id_of(image: str) -> str:
    """Return the shortest form of a picture's path: `./a//b.jpg` becomes `a/b.jpg`."""
    return str(PurePosixPath(image))


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of label names: numbers in their order, others by the alphabet; empty is no class."""
    names = set(labels) - {""}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def entity(prefix: Literal["sub", "ses"], value: str) -> str:
    """Return a subject or session as `sub-01` or `ses-02`, whether or not the prefix was there; empty stays empty."""
    return f"{prefix}-{value.removeprefix(f'{prefix}-')}" if value else ""


def _row(path: Path, line: int, values: dict[str, str], image: str, event: str, key: Key) -> Row:
    where = f"{path}, line {line}"
    at = math.nan
    if key != "event":
        try:
            at = float(values[key])
            is_right = math.isfinite(at) and (key == "onset_s" or at == int(at) >= 0)
        except ValueError:
            is_right = False
        if not is_right:
            kind = "seconds" if key == "onset_s" else "a whole number from 0"
            raise InputError(f"{where}: column {key} is {values[key]!r}; it must be {kind}")
    elif not values[event]:
        raise InputError(f"{where}: column {event} is empty; write the event's code or remove the line")
    onset_s = math.nan
    if key == "sample" and values.get("onset_s"):
        try:
            onset_s = float(values["onset_s"])
        except ValueError as error:
            raise InputError(f"{where}: column onset_s is {values['onset_s']!r}; it must be seconds") from error
    split, block = values.get("split", ""), values.get("block", "")
    if split and split not in SPLIT_NAMES:
        raise InputError(f"{where}: column split is {split!r}; it must be one of {', '.join(SPLIT_NAMES)}")
    if block and not re.fullmatch(r"\d{1,9}", block):
        raise InputError(f"{where}: column block is {block!r}; it must be a whole number from 0")
    for name in ("subject", "session"):
        if (value := values.get(name, "")) and not re.fullmatch(r"\w[\w.-]{0,63}", value):
            raise InputError(f"{where}: column {name} is {value!r}; use letters, digits, - and _ only")
    return Row(
        line=line,
        image=values[image],
        event=values.get(event, ""),
        at=at,
        onset_s=onset_s,
        label=values.get("label", ""),
        split=split,
        file=values.get("file", ""),
        subject=entity("sub", values.get("subject", "")),
        session=entity("ses", values.get("session", "")),
        block=int(block) if block else -1,
    )


def _rows_for(recorded: Events, table: Table, is_only: bool) -> tuple[list[Row], str, str]:
    """Rows that hold for a recording, and its subject and session, which they may tell."""
    posix = recorded.path.as_posix()
    rows = [row for row in table.rows if not row.file or f"/{posix}".endswith(f"/{image_id_of(row.file)}")]
    told = []
    for column, known in (("subject", recorded.subject), ("session", recorded.session)):
        said = {getattr(row, column) for row in rows} - {""}
        by_file = bool(rows) and all(row.file for row in rows)
        if known and by_file and said - {known}:
            line = next(row.line for row in rows if getattr(row, column) not in ("", known))
            raise InputError(
                f"{table.path}, line {line}: {column} is {min(said - {known})!r}, but {recorded.path} is of {known!r} "
                "by its name or header; correct one of the two"
            )
        if known:
            rows = [row for row in rows if getattr(row, column) in ("", known)]
        elif len(said) > 1 or (said and not by_file and not is_only):
            raise InputError(
                f"{table.path} has {column} {', '.join(sorted(said))}, but {recorded.path} does not tell its "
                f"{column}; name files like sub-01_ses-02_eeg.fif, or add a column file"
            )
        told.append(known or next(iter(said), ""))
    needs_scope = table.key != "event" and not is_only
    if needs_scope and not any(row.file or row.subject or row.session for row in rows):
        raise InputError(
            f"{table.path} says by {table.key} when a picture was shown, but there are several recordings; "
            "add a column file (or subject, session) that says in which"
        )
    if not rows:
        raise InputError(
            f"{table.path} has no row for {recorded.path}; add rows, or correct the columns file, subject and session"
        )
    return rows, told[0], told[1]


def _forms(event: Event) -> set[str]:
    """What a table may call an event: `face/3` is also `3`, BrainVision's `Stimulus/S  1` also `S 1`, `S1` and `1`."""
    text = event.text
    forms = {text, event.code or text, " ".join(text.split()), text.split("/")[-1]}
    if match := re.fullmatch(r"(?:[^/]*/)?([A-Za-z]) *(\d+)", text):
        forms |= {f"{match[1]} {match[2]}", f"{match[1]}{match[2]}", match[2]}
    return forms


def _by_event(
    recorded: Events, table: Table, rows: list[Row], on_bad: sources.OnBad, dropped: Counter[str]
) -> list[tuple[int, int, Row]]:
    called_by: dict[str, set[str]] = {}  # what a row may say -> the texts it may mean
    exactly: dict[str, set[str]] = {}
    for event in {event.text: event for event in recorded.events}.values():
        for name in {event.text, event.code} - {""}:
            exactly.setdefault(name, set()).add(event.text)
        for name in _forms(event):
            called_by.setdefault(name, set()).add(event.text)
    row_of: dict[str, Row] = {}
    for row in rows:
        called = sorted(exactly.get(row.event) or called_by.get(row.event, ()))
        if len(called) > 1:
            raise InputError(
                f"{table.path}, line {row.line}: event {row.event!r} may mean {' or '.join(map(repr, called))} in "
                f"{recorded.path}; write it in full"
            )
        if called and row_of.setdefault(called[0], row) is not row:
            raise InputError(
                f"{table.path}: lines {row_of[called[0]].line} and {row.line} both mean the event {called[0]!r} of "
                f"{recorded.path}; remove one"
            )
    unknown = Counter(event.text for event in recorded.events if event.text not in row_of)
    if unknown:
        _without_picture(unknown, f"in {table.path}", recorded, on_bad, dropped)
    return [
        (number, event.sample, row_of[event.text])
        for number, event in enumerate(recorded.events)
        if event.text in row_of
    ]


def _by_epoch(recorded: Events, table: Table, rows: list[Row]) -> list[tuple[int, int, Row]]:
    count = len(recorded.events)
    if {row.at for row in rows} != set(range(count)):
        rejected = ""
        if len(rows) == recorded.n_before_rejection != count:
            rejected = f"; there were {len(rows)} before epochs were rejected, so number those that were kept"
        raise InputError(
            f"{table.path} has {len(rows)} rows with epoch {min(row.at for row in rows):.0f} to "
            f"{max(row.at for row in rows):.0f} for {recorded.path}, which has {count} epochs; "
            f"give one row for each of 0 to {count - 1}{rejected}"
        )
    found = []
    for row in rows:
        event = recorded.events[int(row.at)]
        if row.event and row.event not in _forms(event):
            raise InputError(
                f"{table.path}, line {row.line}: epoch {row.at:.0f} is event {row.event!r}, but {recorded.path} has "
                f"{event.text!r} there; table and recording do not belong together, or rows are shifted"
            )
        found.append((int(row.at), event.sample, row))
    return found


def _by_time(
    recorded: Events, table: Table, rows: list[Row], on_bad: sources.OnBad, dropped: Counter[str]
) -> list[tuple[int, int, Row]]:
    found = []
    matched: set[int] = set()
    numbers_at: dict[int, list[int]] = {}
    for number, event in enumerate(recorded.events):
        numbers_at.setdefault(event.sample, []).append(number)
    for number, row in enumerate(sorted(rows, key=lambda row: row.at)):
        sample = round(row.at * recorded.sfreq_hz) if table.key == "onset_s" else int(row.at)
        where = f"{table.path}, line {row.line}: {table.key} {row.at:g}"
        if not 0 <= sample < recorded.n_samples:
            if on_bad == "fail":
                raise InputError(
                    f"{where} lies outside {recorded.path}, which has {recorded.n_samples} samples "
                    f"({recorded.n_samples / recorded.sfreq_hz:g} s); count from the first sample of the file, or "
                    "leave such rows out (--on-bad drop)"
                )
            dropped[OUTSIDE] += 1
            continue
        if row.event:
            near = [at for close in (sample - 1, sample, sample + 1) for at in numbers_at.get(close, ())]
            same = [at for at in near if row.event in _forms(recorded.events[at])]
            if not same:
                there = ", ".join(repr(recorded.events[at].text) for at in near) or "none"
                raise InputError(
                    f"{where} is event {row.event!r}, but {recorded.path} has {there} there; times are shifted, or of "
                    "another recording"
                )
            matched.update(same)
        if abs(row.onset_s * recorded.sfreq_hz - sample) > 1:  # never true where there is no onset_s
            raise InputError(
                f"{where} and onset_s {row.onset_s:g} disagree at the {recorded.sfreq_hz:g} Hz of {recorded.path}; "
                "one of the three is wrong: correct it"
            )
        found.append((number, sample, row))
    unknown = Counter(event.text for at, event in enumerate(recorded.events) if at not in matched)
    if matched and unknown:
        _without_picture(unknown, f"in {table.path}", recorded, on_bad, dropped)
    return found


def _pair_by_name(recorded: Events, images: Path, on_bad: sources.OnBad) -> Pairing:
    shown = []
    dropped: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for number, event in enumerate(recorded.events):
        image = event.image if recorded.names_pictures else event.text
        where = f"{recorded.path}, event {number}"
        if not image:
            dropped[MARKED_EMPTY] += 1
        elif recorded.names_pictures or _is_picture(image, images):
            shown.append(_shown(number, event.sample, Row(line=0, image=image), where))
        else:
            unknown[event.text] += 1
    if unknown:
        where = f"pictures of {images}, and there is no --table that says what they show"
        _without_picture(unknown, where, recorded, on_bad, dropped)
    return Pairing(shown=tuple(shown), subject=recorded.subject, session=recorded.session, dropped=dropped)


def _without_picture(
    unknown: Counter[str], where: str, recorded: Events, on_bad: sources.OnBad, dropped: Counter[str]
) -> None:
    if on_bad == "fail":
        most = ", ".join(f"{text!r} ({count} times)" for text, count in unknown.most_common(5))
        raise InputError(
            f"{recorded.path} has events that are not {where}: {most}{' and more' if len(unknown) > 5 else ''}; "
            "list them with their picture (columns event, image), or with an empty image if they show none, or leave "
            "them out (--on-bad drop)"
        )
    dropped[WITHOUT_PICTURE] += sum(unknown.values())


def _is_picture(name: str, images: Path) -> bool:
    try:
        return sources.child(images, name).is_file()
    except (InputError, OSError):
        return False


def _picture_file(one: Shown, images: Path) -> Path:
    if "\\" in one.image:
        raise InputError(f"{one.where}: image {one.image!r} has backslashes; write {one.image.replace(chr(92), '/')!r}")
    try:
        path = sources.child(images, one.image)
        if path.is_file():
            return path
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except InputError as error:
        raise InputError(f"{one.where}: {error}") from error
    except OSError as error:
        raise InputError(f"{one.where}: image {one.image[:80]!r} is no path ({error.strerror})") from error
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" (there is {near[0]!r})" if near else ""
    raise InputError(
        f"{one.where}: there is no picture {one.image!r} in {images}{hint}; "
        "copy it there, or correct its path, which starts from that folder and has the ending"
    )


def split_ids(pictures: dict[str, Picture]) -> dict[str, tuple[str, ...]]:
    """Return the published splits: image ids by the split their rows name."""
    named = sorted(
        {picture.split for picture in pictures.values()} - {""}, key=list(cast(Sequence[str], SPLIT_NAMES)).index
    )
    return {split: tuple(sorted(one for one, at in pictures.items() if at.split == split)) for split in named}
