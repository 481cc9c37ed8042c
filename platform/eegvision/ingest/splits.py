"""Rules that send segments to train, val and test. No picture (by content) is ever on two sides.

A rule looks at ids, labels and content hashes alone, so the same data in another row order split alike.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from eegvision.vocab import SPLIT_NAMES, InputError, SplitName, SplitRule

_UNITS: dict[str, str] = {"leave-block-out": "block", "leave-session-out": "session"}
_FOLD = re.compile(r"(\d+)/(\d+)(?: of ([a-z-]+))?")  # 2/5, 2/5 of published
_BASES = ("by-image", "published", "concept-disjoint", "zero-shot")  # rules that folds can go with

Sides = dict[str, SplitName]  # image id (or concept) -> its side; absent: on no side


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sorted row numbers of the segments table per side, and what the rule leaves open."""

    rows: dict[SplitName, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How long a segment's window is, and how far training windows stay from others (None: no matter how far)."""

    duration_s: float
    purge_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Images:
    label: dict[str, int]
    content: dict[str, str]  # image id -> the smallest id of the same content


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """Part `number` (from 1) of `count` of all blocks or sessions; `rule` puts pictures on sides."""

    number: int
    count: int
    rule: SplitRule


@dataclass(frozen=True, kw_only=True)
class _Segments:
    """The columns a rule needs, one entry per row; `is_used_N` marks rows of the chosen subjects."""

    image_N: list[str]
    subject_N: np.ndarray
    session_N: np.ndarray
    block_N: np.ndarray
    onset_N: np.ndarray
    is_used_N: np.ndarray


def split(
    rule: SplitRule,
    segments: pa.Table,
    images: pa.Table,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    held_out: str | None = None,
    subjects: Sequence[str] = (),
    published: Mapping[str, Sequence[str]] | None = None,
    clock: Clock | None = None,
) -> Split:
    """Split the segments of a data set by a rule.

    - `by-image`: a share of the images of every class on each side.
    - `published`: the sides in the manifest; images on none are left out.
    - `leave-subject-out`: as `by-image`, but test holds the subject `held_out` alone, which is nowhere else.
    - `leave-block-out`, `leave-session-out`: test is the block or session of number `held_out`; its images leave the
      other sides; val is a share of the rest.
      Where `held_out` is `2/5`, or `2/5 of RULE`, it is cross-validation instead: pictures are on the sides of
      `by-image` (or RULE), but validation and test are only in the second fifth of the blocks and training only in the
      others, so that no side shares a block with training. A class's blocks go to different folds as far as they can.
    - `concept-disjoint`: a share of the classes on each side. With `held_out`, test holds that subject alone, which is
      nowhere else.
    - `time-purged`: as `by-image`, with a purge.
    - `zero-shot`: test is the published one; val is a share of the classes not tested, train has the others. With
      `held_out`, test holds that subject alone, which is nowhere else.

    A purge (`clock.purge_s`, with any rule) leaves out training segments whose window is nearer in time than that to
    a window of val or test in the same recording. Shares are of the whole data set, whatever `subjects` are used, so
    one subject's test images are everybody's. Where the rule itself fixes the test side, `val_fraction` is of what
    remains and `test_fraction` has no part.

    Args:
        segments: columns segment_id, subject, session, block, onset_s, image_id.
        images: columns image_id, label, sha256.
        seed: of the draw; the same ids and seed give the same split in any row order.
        subjects: those to use; none means all.
    Raises:
        InputError: unknown subject or block, a side without segments, a rule the data cannot serve, or one
            picture (equal sha256) on two sides.
    """
    published, clock = published or {}, clock or Clock(duration_s=0.0)
    needs_held_out = rule in ("leave-subject-out", "leave-block-out", "leave-session-out")
    may_hold_out = rule in ("zero-shot", "concept-disjoint")
    assert (held_out is not None) == needs_held_out or may_hold_out, (rule, held_out)
    held_subject = held_out if rule == "leave-subject-out" or may_hold_out else None
    known = _Images(
        label=dict(zip(images["image_id"].to_pylist(), images["label"].to_pylist(), strict=True)),
        content=_content(images),
    )
    rows = _segments(segments, subjects, held_subject)
    fold = _fold(rule, str(held_out)) if rule in _UNITS else None
    held_N = np.zeros(len(rows.image_N), dtype=bool)
    if rule in _UNITS:
        held_N = _fold_rows(rule, rows, known, fold, seed) if fold else _held_rows(rule, rows, str(held_out))
    notes: list[str] = []
    if rule in _UNITS and fold is None:
        sides = _leave_out(rule, rows, known, held_N, val_fraction, seed, notes)
    else:
        sides = _pictures(fold.rule if fold else rule, known, published, val_fraction, test_fraction, seed, notes)
    _refuse_shared_content(rule, sides, known)

    side_N = np.array([sides.get(image, "") for image in rows.image_N])
    side_N[~rows.is_used_N] = ""
    if held_subject is not None:
        side_N[(rows.subject_N == held_subject) != (side_N == "test")] = ""
    if fold:
        side_N[(side_N == "train") == held_N] = ""
    elif rule in _UNITS:
        # A tested image may have been shown in other blocks as well: those segments are on no side.
        side_N[(side_N == "test") & ~held_N] = ""
    if clock.purge_s is not None:
        _purge(rows, side_N, clock.duration_s + clock.purge_s, notes)
    by_side: dict[SplitName, np.ndarray] = {side: np.flatnonzero(side_N == side) for side in SPLIT_NAMES}
    # Of few tested pictures none may have been shown in a fold; that keeps nobody from training on the others.
    _refuse_empty(rule, {side: own for side, own in by_side.items() if fold is None or side != "test"}, subjects)
    notes += _leaks(rows, side_N, known, clock)
    return Split(rows=by_side, notes=tuple(notes))


def _pictures(
    rule: SplitRule,
    known: _Images,
    published: Mapping[str, Sequence[str]],
    val_share: float,
    test_share: float,
    seed: int,
    notes: list[str],
) -> Sides:
    """Return the sides of rules that look at pictures alone."""
    if rule == "published":
        return _published(published, known, notes)
    if rule == "concept-disjoint":
        return _concept_disjoint(known, known.label, val_share, test_share, seed)
    if rule == "zero-shot":
        return _zero_shot(published, known, val_share, seed, notes)
    assert rule in ("by-image", "leave-subject-out", "time-purged"), f"unknown split rule {rule!r}"
    return _by_image(known, known.label, val_share, test_share, seed)


def _content(images: pa.Table) -> dict[str, str]:
    ids, hashes = images["image_id"].to_pylist(), images["sha256"].to_pylist()
    first: dict[str, str] = {}
    for image, sha256 in zip(ids, hashes, strict=True):
        first[sha256] = min(image, first.get(sha256, image))
    return {image: first[sha256] for image, sha256 in zip(ids, hashes, strict=True)}


def _segments(segments: pa.Table, subjects: Sequence[str], held_out: str | None) -> _Segments:
    subject_N = np.array(segments["subject"].to_pylist(), dtype=str)
    present = sorted(set(subject_N.tolist()))
    for name in (*subjects, *([held_out] if held_out is not None else [])):
        if name not in present:
            raise InputError(f"there is no subject {name!r} in the data; present are {', '.join(present)}")
    chosen = {*subjects, held_out} if subjects else set(present)
    return _Segments(
        image_N=segments["image_id"].to_pylist(),
        subject_N=subject_N,
        session_N=segments["session"].to_numpy(),
        block_N=segments["block"].to_numpy(),
        onset_N=segments["onset_s"].to_numpy(),
        is_used_N=np.array([name in chosen for name in subject_N.tolist()], dtype=bool),
    )


def _published(published: Mapping[str, Sequence[str]], known: _Images, notes: list[str]) -> Sides:
    missing = [side for side in SPLIT_NAMES if not published.get(side)]
    if missing:
        raise InputError(
            f"the data set has no published {' and no published '.join(missing)} images; "
            "choose data.split by-image, or ingest it with its split file"
        )
    sides: Sides = {}
    for side in SPLIT_NAMES:
        for image in published[side]:
            if sides.setdefault(image, side) != side:
                raise InputError(
                    f"the published split has image {image!r} in {sides[image]} and in {side}; "
                    "mend the split file and ingest again, or choose data.split by-image"
                )
    absent = len(sides.keys() - known.label.keys())
    unused = len(known.label.keys() - sides.keys())
    if absent:
        notes.append(f"{absent} images of the published split are not in the data set")
    if unused:
        notes.append(f"{unused} of {len(known.label)} images are on no side of the published split and are left out")
    return {image: side for image, side in sides.items() if image in known.label}


def _leave_out(
    rule: SplitRule, rows: _Segments, known: _Images, held_N: np.ndarray, val_share: float, seed: int, notes: list[str]
) -> Sides:
    used = list(zip(rows.image_N, held_N.tolist(), rows.is_used_N.tolist(), strict=True))
    tested = {image for image, is_held, is_used in used if is_used and is_held}
    elsewhere = sum(is_used and not is_held and image in tested for image, is_held, is_used in used)
    if elsewhere:
        unit = _UNITS[rule]
        notes.append(f"{elsewhere} segments of other {unit}s show images of the tested {unit} and are left out")
    sides = _by_image(known, known.label.keys() - tested, val_share, 0.0, seed)
    for image in tested:
        sides[image] = "test"
    return sides


def _unit_numbers(rule: SplitRule, rows: _Segments) -> np.ndarray:
    unit = _UNITS[rule]
    number_N = rows.block_N if unit == "block" else rows.session_N
    if (number_N[rows.is_used_N] < 0).any():
        raise InputError(
            f"data.split {rule} needs the {unit} of every segment, but some are unknown (-1) in this data "
            f"set; choose another rule, or ingest from a source that tells the {unit}s"
        )
    return number_N


def _fold(rule: SplitRule, held_out: str) -> _Fold | None:
    """Return the fold that `held_out` names, or None where it names a block or session."""
    found = _FOLD.fullmatch(held_out)
    if found is None:
        return None
    number, count, base = int(found[1]), int(found[2]), found[3] or "by-image"
    if not 1 <= number <= count or count < 2 or base not in _BASES:
        raise InputError(
            f"data.held_out {held_out!r} of data.split {rule} must be a part such as 1/5 to 5/5, "
            f"or 1/5 of {', '.join(_BASES)}"
        )
    return _Fold(number=number, count=count, rule=base)  # type: ignore[arg-type]


def _fold_rows(rule: SplitRule, rows: _Segments, known: _Images, fold: _Fold, seed: int) -> np.ndarray:
    """Return which rows belong to the fold's blocks or sessions, those of equal number whoever's they are."""
    number_N = _unit_numbers(rule, rows)
    shown: dict[int, Counter[int]] = defaultdict(Counter)
    for number, image, is_used in zip(number_N.tolist(), rows.image_N, rows.is_used_N.tolist(), strict=True):
        if is_used:
            shown[number][known.label[image]] += 1
    if len(shown) < fold.count:
        raise InputError(
            f"data.split {rule} with {fold.count} folds needs as many {_UNITS[rule]}s, but the data have {len(shown)}"
        )

    def rank(number: int) -> tuple[int, bytes]:
        main_class = max(shown[number], key=lambda label: (shown[number][label], label))
        return main_class, hashlib.sha256(f"fold:{seed}:{number}".encode()).digest()

    # Dealt out class by class, so that blocks of one class do not all fall into one fold.
    return np.isin(number_N, sorted(shown, key=rank)[fold.number - 1 :: fold.count])


def _held_rows(rule: SplitRule, rows: _Segments, held_out: str) -> np.ndarray:
    """Return which rows belong to the block or session held out."""
    unit, number_N = _UNITS[rule], _unit_numbers(rule, rows)
    present = np.unique(number_N[rows.is_used_N]).tolist()
    if held_out not in map(str, present):
        raise InputError(
            f"there is no {unit} {held_out!r} in the data; data.held_out must be one of {', '.join(map(str, present))}"
        )
    return number_N == int(held_out)


def recordings(subject_N: np.ndarray, session_N: np.ndarray, block_N: np.ndarray, onset_N: np.ndarray) -> np.ndarray:
    """Number the stretches of time that share a clock: sessions, or their blocks where onsets start anew in each.

    Returns:
        int64 [N]; -1 where the onset is unknown.
    """
    key_N = np.unique(np.stack([np.unique(subject_N, return_inverse=True)[1], session_N]), axis=1, return_inverse=True)[
        1
    ]
    key_N = key_N.reshape(-1).astype(np.int64)
    for key in np.unique(key_N):
        own = np.flatnonzero((key_N == key) & np.isfinite(onset_N))
        spans = [(onset_N[own[block_N[own] == block]]) for block in np.unique(block_N[own])]
        edges = sorted((span.min(), span.max()) for span in spans)
        if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(edges)):  # blocks lie upon each other
            key_N[own] = key_N.max() + 1 + np.unique(block_N[own], return_inverse=True)[1]
    key_N[~np.isfinite(onset_N)] = -1
    return key_N


def _near(rows: _Segments, side_N: np.ndarray, within_s: float) -> np.ndarray:
    """Return which training rows begin less than `within_s` from a row of val or test in the same recording."""
    key_N = recordings(rows.subject_N, rows.session_N, rows.block_N, rows.onset_N)
    is_near_N = np.zeros(len(side_N), dtype=bool)
    for key in np.unique(key_N[key_N >= 0]):
        of_key_N = key_N == key
        train = np.flatnonzero(of_key_N & (side_N == "train"))
        held_s = np.sort(rows.onset_N[of_key_N & ((side_N == "val") | (side_N == "test"))])
        if len(held_s) and len(train):
            after = np.searchsorted(held_s, rows.onset_N[train])
            next_s = held_s[np.minimum(after, len(held_s) - 1)]
            last_s = held_s[np.maximum(after - 1, 0)]
            gap_s = np.minimum(np.abs(next_s - rows.onset_N[train]), np.abs(rows.onset_N[train] - last_s))
            is_near_N[train] = gap_s < within_s - 1e-6  # onsets are sums of rounded numbers
    return is_near_N


def _purge(rows: _Segments, side_N: np.ndarray, within_s: float, notes: list[str]) -> None:
    """Take training segments that are too near in time to a val or test segment off their side."""
    n_unknown = int((~np.isfinite(rows.onset_N[side_N != ""])).sum())
    if n_unknown:
        raise InputError(
            f"data.purge_s needs the onset of every segment, but {n_unknown} are unknown in this data set; leave it "
            "out (and expect the leak to be named), or ingest from a source that tells the onsets"
        )
    is_near_N = _near(rows, side_N, within_s)
    notes.append(
        f"{int(is_near_N.sum())} of {int((side_N == 'train').sum())} training segments are purged: too near in time to "
        "validation or test"
    )
    side_N[is_near_N] = ""


def _concept_disjoint(
    known: _Images, candidates: Iterable[str], val_share: float, test_share: float, seed: int
) -> Sides:
    candidates = list(candidates)
    unlabelled = sorted(image for image, label in known.label.items() if label < 0)
    if unlabelled:
        raise InputError(
            f"a split by concept needs the class of every image, but {len(unlabelled)} have none (-1), the first "
            f"is {unlabelled[0]!r}; choose data.split by-image, or ingest with labels"
        )
    concepts = sorted({str(known.label[image]) for image in candidates})
    side_of_concept = _assign([concepts], val_share, test_share, seed)
    return {image: side_of_concept[str(known.label[image])] for image in candidates}


def _zero_shot(
    published: Mapping[str, Sequence[str]], known: _Images, val_share: float, seed: int, notes: list[str]
) -> Sides:
    tested = set(published.get("test", ())) & known.label.keys()
    if not tested:
        raise InputError(
            "data.split zero-shot tests the published test images, but the data set names none; "
            "choose data.split concept-disjoint"
        )
    concepts = {known.label[image] for image in tested}
    rest = [image for image in known.label if image not in tested and known.label[image] not in concepts]
    left_out = len(known.label) - len(tested) - len(rest)
    if left_out:
        notes.append(f"{left_out} images show a tested concept but are not published test images; they are left out")
    sides = _concept_disjoint(known, rest, val_share, 0.0, seed)
    for image in tested:
        sides[image] = "test"
    return sides


def _by_image(known: _Images, candidates: Iterable[str], val_share: float, test_share: float, seed: int) -> Sides:
    """Give every class its share on every side; images of equal content go together."""
    candidates = list(candidates)
    classes: dict[int, list[str]] = defaultdict(list)
    for content in {known.content[image] for image in candidates}:
        classes[known.label[content]].append(content)
    side_of_content = _assign([classes[label] for label in sorted(classes)], val_share, test_share, seed)
    return {image: side_of_content[known.content[image]] for image in candidates}


def _assign(classes: Sequence[Sequence[str]], val_share: float, test_share: float, seed: int) -> Sides:
    test = _draw(classes, test_share, seed, "test")
    rest = [[name for name in members if name not in test] for members in classes]
    val = _draw(rest, val_share / (1 - test_share), seed, "val")
    return {
        name: "test" if name in test else "val" if name in val else "train" for members in classes for name in members
    }


def _draw(classes: Sequence[Sequence[str]], share: float, seed: int, purpose: str) -> set[str]:
    """Draw a share of every class so that the total is right as well.

    Class k gets round(share * N_k) - round(share * N_(k-1)) of its members, with N_k the number of members of
    classes 0..k: within one of its own share, and rounding errors do not add up over classes.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest()

    drawn: set[str] = set()
    n_seen = 0
    for members in classes:
        before = round(share * n_seen)
        n_seen += len(members)
        drawn.update(sorted(members, key=rank)[: round(share * n_seen) - before])
    return drawn


def _refuse_shared_content(rule: SplitRule, sides: Sides, known: _Images) -> None:
    seen: dict[str, str] = {}
    for image in sorted(sides):
        other = seen.setdefault(known.content[image], image)
        if sides[other] != sides[image]:
            raise InputError(
                f"images {other!r} and {image!r} are the same picture, but data.split {rule} puts one in "
                f"{sides[other]} and the other in {sides[image]}; remove one of them, or choose data.split by-image"
            )


def _refuse_empty(rule: SplitRule, rows: Mapping[SplitName, np.ndarray], subjects: Sequence[str]) -> None:
    remedies = {
        "by-image": "raise data.{side}_fraction, or use more images",
        "published": "use all subjects, or choose data.split by-image",
        "leave-subject-out": "use more subjects or images, or other fractions",
        "leave-block-out": "raise data.val_fraction, or hold out another block",
        "leave-session-out": "raise data.val_fraction, or hold out another session",
        "time-purged": "lower data.purge_s, or data.val_fraction and data.test_fraction",
        "concept-disjoint": "raise data.{side}_fraction, or use data with more classes",
        "zero-shot": "raise data.val_fraction, or use data with more classes",
    }
    for side, numbers in rows.items():
        if len(numbers) == 0:
            remedy = remedies[rule].format(side=side)
            if side == "train":
                remedy = remedy.replace("raise data.train_fraction", "lower data.val_fraction or data.test_fraction")
            among = f" among subjects {', '.join(subjects)}" if subjects else ""
            raise InputError(f"data.split {rule} leaves no segment for {side}{among}; {remedy}")


def _leaks(rows: _Segments, side_N: np.ndarray, known: _Images, clock: Clock) -> list[str]:
    """Say by what, other than the picture at hand, a model could know the answer."""
    notes = []
    label_N = np.array([known.label[image] for image in rows.image_N])
    trained, tested = (set(label_N[side_N == side].tolist()) - {-1} for side in ("train", "test"))
    if shared := trained & tested:
        notes.append(f"{len(shared)} of {len(tested)} tested concepts are trained on with other images")
    is_on_side_N = side_N != ""
    n_overlapping = int(_near(rows, side_N, clock.duration_s).sum())
    if n_overlapping:
        notes.append(
            f"{n_overlapping} training segments share samples with a validation or test segment; data.purge_s 0 leaves "
            "them out"
        )
    elif not np.isfinite(rows.onset_N[is_on_side_N]).all():
        notes.append("onsets are unknown: training segments may share samples with validation or test segments")
    if (rows.block_N[is_on_side_N] < 0).any():
        if np.isfinite(rows.onset_N[is_on_side_N]).all():
            return notes  # the order audit has looked at the times themselves
        notes.append("blocks are unknown: if classes were shown in blocks, slow drifts can identify the class")
        return notes
    labels_of_block: dict[tuple, set[int]] = defaultdict(set)
    sides_of_block: dict[tuple, set[str]] = defaultdict(set)
    blocks = zip(rows.subject_N.tolist(), rows.session_N.tolist(), rows.block_N.tolist(), strict=True)
    for block, label, side in zip(blocks, label_N.tolist(), side_N.tolist(), strict=True):
        if side:
            labels_of_block[block].add(label)
            sides_of_block[block].add(side)
    has_one_class = all(len(labels) == 1 for labels in labels_of_block.values())
    if has_one_class and len(trained | tested) > 1 and any(len(sides) > 1 for sides in sides_of_block.values()):
        notes.append("class and block coincide: slow drifts can identify the class")
    return notes
