"""Rules that send segments to train, val and test. No picture (by content) is ever on two sides.

A rule looks at ids, labels and content hashes alone, so the same data in another row order split alike.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from eegvision.vocab import SPLIT_NAMES, InputError, SplitName, SplitRule

Sides = dict[str, SplitName]  # image id (or concept) -> its side; absent: on no side


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sorted row numbers of the segments table per side, and what the rule leaves open."""

    rows: dict[SplitName, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Images:
    label: dict[str, int]
    content: dict[str, str]  # image id -> the smallest id of the same content


@dataclass(frozen=True, kw_only=True)
class _Segments:
    """The columns a rule needs, one entry per row; `is_used_N` marks rows of the chosen subjects."""

    image_N: list[str]
    subject_N: np.ndarray
    session_N: np.ndarray
    block_N: np.ndarray
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
) -> Split:
    """Split the segments of a data set by a rule.

    - `by-image`: a share of the images of every class on each side.
    - `published`: the sides in the manifest; images on none are left out.
    - `leave-subject-out`: as `by-image`, but test holds the subject `held_out` alone, which is nowhere else.
    - `leave-block-out`: test is block `held_out`; its images leave the other sides; val is a share of the rest.
    - `concept-disjoint`: a share of the classes on each side.
    - `zero-shot`: test is the published one; val is a share of the classes not tested, train has the others.

    Shares are of the whole data set, whatever `subjects` are used, so one subject's test images are everybody's.
    Where the rule itself fixes the test side, `val_fraction` is of what remains and `test_fraction` has no part.

    Args:
        segments: columns segment_id, subject, session, block, image_id.
        images: columns image_id, label, sha256.
        seed: of the draw; the same ids and seed give the same split in any row order.
        subjects: those to use; none means all.
    Raises:
        InputError: unknown subject or block, a side without segments, a rule the data cannot serve, or one
            picture (equal sha256) on two sides.
    """
    published = published or {}
    assert (held_out is not None) == (rule in ("leave-subject-out", "leave-block-out")), (rule, held_out)
    known = _Images(
        label=dict(zip(images["image_id"].to_pylist(), images["label"].to_pylist(), strict=True)),
        content=_content(images),
    )
    rows = _segments(segments, subjects, held_out if rule == "leave-subject-out" else None)
    notes: list[str] = []
    if rule == "published":
        sides = _published(published, known, notes)
    elif rule == "leave-block-out":
        sides = _leave_block_out(rows, known, _block_number(rows, str(held_out)), val_fraction, seed, notes)
    elif rule == "concept-disjoint":
        sides = _concept_disjoint(known, known.label, val_fraction, test_fraction, seed)
    elif rule == "zero-shot":
        sides = _zero_shot(published, known, val_fraction, seed, notes)
    else:
        assert rule in ("by-image", "leave-subject-out"), f"unknown split rule {rule!r}"
        sides = _by_image(known, known.label, val_fraction, test_fraction, seed)
    _refuse_shared_content(rule, sides, known)

    side_N = np.array([sides.get(image, "") for image in rows.image_N])
    side_N[~rows.is_used_N] = ""
    if rule == "leave-subject-out":
        side_N[(rows.subject_N == held_out) != (side_N == "test")] = ""
    if rule == "leave-block-out":
        # A tested image may have been shown in other blocks as well: those segments are on no side.
        side_N[(side_N == "test") & (rows.block_N != _block_number(rows, str(held_out)))] = ""
    by_side: dict[SplitName, np.ndarray] = {side: np.flatnonzero(side_N == side) for side in SPLIT_NAMES}
    _refuse_empty(rule, by_side, subjects)
    notes += _leaks(rows, side_N, known)
    return Split(rows=by_side, notes=tuple(notes))


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


def _leave_block_out(
    rows: _Segments, known: _Images, block: int, val_share: float, seed: int, notes: list[str]
) -> Sides:
    used = list(zip(rows.image_N, rows.block_N.tolist(), rows.is_used_N.tolist(), strict=True))
    tested = {image for image, number, is_used in used if is_used and number == block}
    elsewhere = sum(is_used and number != block and image in tested for image, number, is_used in used)
    if elsewhere:
        notes.append(f"{elsewhere} segments of other blocks show images of block {block} and are left out")
    sides = _by_image(known, known.label.keys() - tested, val_share, 0.0, seed)
    for image in tested:
        sides[image] = "test"
    return sides


def _block_number(rows: _Segments, held_out: str) -> int:
    if (rows.block_N[rows.is_used_N] < 0).any():
        raise InputError(
            "data.split leave-block-out needs the block of every segment, but some are unknown (-1) in this data "
            "set; choose another rule, or ingest from a source that tells the blocks"
        )
    present = np.unique(rows.block_N[rows.is_used_N]).tolist()
    if held_out not in map(str, present):
        raise InputError(
            f"there is no block {held_out!r} in the data; data.held_out must be one of {', '.join(map(str, present))}"
        )
    return int(held_out)


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


def _leaks(rows: _Segments, side_N: np.ndarray, known: _Images) -> list[str]:
    """Say by what, other than the picture at hand, a model could know the answer."""
    notes = []
    label_N = np.array([known.label[image] for image in rows.image_N])
    trained, tested = (set(label_N[side_N == side].tolist()) - {-1} for side in ("train", "test"))
    if shared := trained & tested:
        notes.append(f"{len(shared)} of {len(tested)} tested concepts are trained on with other images")
    is_on_side_N = side_N != ""
    if (rows.block_N[is_on_side_N] < 0).any():
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
