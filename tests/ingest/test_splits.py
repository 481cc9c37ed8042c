"""eegvision.ingest.splits: hand-worked sides, independence of row order, and no picture ever on two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eegvision.ingest.splits import Split, split
from eegvision.vocab import SPLIT_NAMES, InputError

SHARES: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}


def tables(
    classes: int = 4, per_class: int = 5, subjects: int = 2, block: str = "unknown", same: dict[str, str] | None = None
) -> tuple[pa.Table, pa.Table]:
    """Every subject sees every image once; image `c1-i3` is the fourth of class 1; `same` maps an id to its twin."""
    ids = [(label, f"c{label}-i{i}") for label in range(classes) for i in range(per_class)]
    images = pa.table(
        {
            "image_id": [image for _, image in ids],
            "label": pa.array([label for label, _ in ids], pa.int32()),
            "sha256": [(same or {}).get(image, image) for _, image in ids],
        }
    )
    number = {"unknown": lambda *_: -1, "class": lambda label, _: label, "turn": lambda _, i: i}[block]
    rows = [
        {
            "segment_id": f"{subject}-{image}",
            "subject": f"sub-{subject:02d}",
            "session": 0,
            "block": number(label, int(image.split("-i")[1])),
            "image_id": image,
        }
        for subject in range(1, subjects + 1)
        for label, image in ids
    ]
    return pa.Table.from_pylist(rows), images


def shown(result: Split, segments: pa.Table, column: str = "image_id") -> dict[str, set]:
    """What each side holds of a column."""
    return {side: set(segments[column].take(pa.array(result.rows[side])).to_pylist()) for side in SPLIT_NAMES}


def by_class(ids: set[str]) -> dict[str, int]:
    return {name: sum(image.startswith(f"{name}-") for image in ids) for name in sorted({i.split("-")[0] for i in ids})}


def test_by_image_gives_every_class_its_share():
    segments, images = tables(classes=4, per_class=5)
    result = split("by-image", segments, images, **SHARES)
    sides = shown(result, segments)
    assert by_class(sides["test"]) == by_class(sides["val"]) == {"c0": 1, "c1": 1, "c2": 1, "c3": 1}
    assert by_class(sides["train"]) == {"c0": 3, "c1": 3, "c2": 3, "c3": 3}
    assert {side: len(rows) for side, rows in result.rows.items()} == {"train": 24, "val": 8, "test": 8}
    for rows in result.rows.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def test_by_image_keeps_the_total_share_where_classes_are_too_small_for_theirs():
    # 20 classes of 3 at a tenth each: 6 of 60 images, none of a class twice.
    segments, images = tables(classes=20, per_class=3, subjects=1)
    sides = shown(split("by-image", segments, images, val_fraction=0.1, test_fraction=0.1, seed=3), segments)
    for side in ("val", "test"):
        assert len(sides[side]) == 6
        assert set(by_class(sides[side]).values()) == {1}


def test_by_image_works_without_labels():
    segments, images = tables()
    unlabelled = images.set_column(1, "label", pa.array([-1] * 20, pa.int32()))
    sides = shown(split("by-image", segments, unlabelled, **SHARES), segments)
    assert {side: len(ids) for side, ids in sides.items()} == {"train": 12, "val": 4, "test": 4}
    assert not any("concepts" in note for note in split("by-image", segments, unlabelled, **SHARES).notes)


def test_the_seed_draws_other_images():
    segments, images = tables()
    tested = {
        frozenset(shown(split("by-image", segments, images, **SHARES | {"seed": s}), segments)["test"])
        for s in range(5)
    }
    assert len(tested) == 5


def test_one_subject_is_tested_on_everybodys_test_images():
    segments, images = tables(subjects=3)
    everybody = shown(split("by-image", segments, images, **SHARES), segments)
    second = split("by-image", segments, images, subjects=("sub-02",), **SHARES)
    assert shown(second, segments) == everybody
    assert shown(second, segments, "subject") == {side: {"sub-02"} for side in SPLIT_NAMES}


def test_twins_travel_together_whatever_the_seed():
    same = {"c0-i1": "twin", "c0-i2": "twin", "c3-i4": "twin"}
    segments, images = tables(same=same)
    for seed in range(30):
        sides = shown(split("by-image", segments, images, **SHARES | {"seed": seed}), segments)
        assert sum(not ids.isdisjoint(same) for ids in sides.values()) == 1


PUBLISHED = {
    "train": [f"c{c}-i{i}" for c in range(4) for i in (0, 1)],
    "val": [f"c{c}-i2" for c in range(4)],
    "test": [f"c{c}-i3" for c in range(4)] + ["elsewhere"],
}


def test_published_is_as_published_and_says_what_it_leaves_out():
    segments, images = tables()
    result = split("published", segments, images, published=PUBLISHED, **SHARES)
    assert shown(result, segments) == {side: set(ids) - {"elsewhere"} for side, ids in PUBLISHED.items()}
    assert "4 of 20 images are on no side of the published split and are left out" in result.notes
    assert "1 images of the published split are not in the data set" in result.notes


def test_leave_subject_out_shares_neither_subject_nor_image():
    segments, images = tables(subjects=3)
    result = split("leave-subject-out", segments, images, held_out="sub-02", **SHARES)
    assert shown(result, segments, "subject") == {
        "train": {"sub-01", "sub-03"}, "val": {"sub-01", "sub-03"}, "test": {"sub-02"},
    }  # fmt: skip
    sides = shown(result, segments)
    assert sides == shown(split("by-image", segments, images, **SHARES), segments)
    assert {side: len(rows) for side, rows in result.rows.items()} == {"train": 24, "val": 8, "test": 4}
    only_third = split("leave-subject-out", segments, images, held_out="sub-02", subjects=("sub-03",), **SHARES)
    assert shown(only_third, segments, "subject")["train"] == {"sub-03"}


def test_leave_block_out_tests_a_block_whose_images_are_nowhere_else():
    segments, images = tables(block="turn")  # block b shows image b of every class
    result = split("leave-block-out", segments, images, held_out="3", **SHARES)
    sides = shown(result, segments)
    assert sides["test"] == {f"c{c}-i3" for c in range(4)}
    assert shown(result, segments, "block")["test"] == {3}
    for seed in range(10):
        sides = shown(split("leave-block-out", segments, images, held_out="3", **SHARES | {"seed": seed}), segments)
        assert (len(sides["val"]), len(sides["train"])) == (3, 13)  # a fifth of the 16 that remain

    # The same image in another block is on no side.
    again = pa.Table.from_pylist([{**segments.to_pylist()[3], "segment_id": "again", "block": 1}])
    longer = pa.concat_tables([segments, again.cast(segments.schema)])
    result = split("leave-block-out", longer, images, held_out="3", **SHARES)
    assert len(longer) - 1 not in np.concatenate(list(result.rows.values()))
    assert "1 segments of other blocks show images of block 3 and are left out" in result.notes


def test_concept_disjoint_shares_no_class():
    segments, images = tables(classes=10, per_class=3)
    sides = shown(split("concept-disjoint", segments, images, **SHARES), segments)
    classes = {side: set(by_class(ids)) for side, ids in sides.items()}
    assert {side: len(names) for side, names in classes.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(set.union(*classes.values())) == 10
    assert {side: len(ids) for side, ids in sides.items()} == {"train": 18, "val": 6, "test": 6}


def test_zero_shot_tests_published_images_of_concepts_never_trained():
    segments, images = tables(classes=7, per_class=3)
    published = {"test": ["c0-i0", "c1-i0", "c1-i1"]}
    result = split("zero-shot", segments, images, published=published, **SHARES)
    sides = shown(result, segments)
    assert sides["test"] == set(published["test"])
    val, train = set(by_class(sides["val"])), set(by_class(sides["train"]))
    assert len(val) == 1  # a fifth of the five concepts not tested
    assert val | train == {"c2", "c3", "c4", "c5", "c6"}
    assert not val & train
    assert result.notes[0].startswith("3 images show a tested concept but are not published test images")


def every_rule() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("by-image", {}),
        ("published", {"published": PUBLISHED}),
        ("leave-subject-out", {"held_out": "sub-01"}),
        ("leave-block-out", {"held_out": "2"}),
        ("concept-disjoint", {"val_fraction": 0.25, "test_fraction": 0.25}),
        ("zero-shot", {"published": {"test": ["c1-i2"]}, "val_fraction": 0.4}),
    ]


@pytest.mark.parametrize(("rule", "options"), every_rule())
@settings(max_examples=10, deadline=None, database=None)
@given(seed=st.integers(0, 2**31), shuffle=st.randoms())
def test_row_order_is_nothing_and_no_picture_is_on_two_sides(rule, options, seed, shuffle):
    twins = {"c2-i0": "twin", "c2-i1": "twin", "c3-i1": "twin"} if rule in ("by-image", "leave-subject-out") else {}
    segments, images = tables(block="turn", same=twins)
    options = SHARES | options | {"seed": seed}
    before = split(rule, segments, images, **options)
    order = list(range(len(segments)))
    shuffle.shuffle(order)
    image_order = list(range(len(images)))
    shuffle.shuffle(image_order)
    mixed = segments.take(pa.array(order))
    after = split(rule, mixed, images.take(pa.array(image_order)), **options)
    assert shown(after, mixed, "segment_id") == shown(before, segments, "segment_id")
    assert after.notes == before.notes
    sides = shown(before, segments)
    assert not sides["train"] & sides["val"]
    assert not sides["train"] & sides["test"]
    assert not sides["val"] & sides["test"]


@pytest.mark.parametrize(
    ("rule", "options", "same"),
    [
        ("published", {"published": PUBLISHED}, {"c0-i0": "twin", "c1-i3": "twin"}),
        ("leave-block-out", {"held_out": "3"}, {"c0-i0": "twin", "c1-i3": "twin"}),
        ("concept-disjoint", {}, {f"c{c}-i0": "twin" for c in range(4)}),
        ("zero-shot", {"published": {"test": ["c1-i3"]}, "val_fraction": 0.4}, {"c0-i0": "twin", "c1-i3": "twin"}),
    ],
)
def test_a_rule_that_would_part_twins_is_refused(rule, options, same):
    segments, images = tables(block="turn", same=same)
    with pytest.raises(InputError, match=r"images 'c0-i0' and 'c\d-i\d' are the same picture"):
        split(rule, segments, images, **SHARES | {"val_fraction": 0.25, "test_fraction": 0.25} | options)


def test_a_published_split_with_an_image_on_two_sides_is_refused():
    segments, images = tables()
    with pytest.raises(InputError, match="image 'c0-i0' in train and in test"):
        split("published", segments, images, published=PUBLISHED | {"test": ["c0-i0"]}, **SHARES)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("by-image", {"test_fraction": 0.01}, r"by-image leaves no segment for test; raise data\.test_fraction"),
        ("by-image", {"val_fraction": 0.01}, r"no segment for val; raise data\.val_fraction"),
        ("by-image", {"val_fraction": 0.79}, r"no segment for train; lower data\.val_fraction or data\.test_fraction"),
        ("by-image", {"subjects": ("sub-09",)}, "no subject 'sub-09' in the data; present are sub-01, sub-02"),
        ("leave-subject-out", {"held_out": "sub-7"}, "no subject 'sub-7' in the data; present are sub-01, sub-02"),
        ("leave-subject-out", {"held_out": "sub-01", "subjects": ("sub-01",)}, "no segment for train among subjects"),
        ("published", {}, "no published train and no published val and no published test images; choose"),
        ("published", {"published": {"train": ["c0-i0"], "test": ["c0-i1"]}}, "has no published val images"),
        ("leave-block-out", {"held_out": "1"}, r"needs the block of every segment, but some are unknown \(-1\)"),
        ("concept-disjoint", {"test_fraction": 0.1}, "no segment for test; raise data.test_fraction, or use data with"),
        ("zero-shot", {}, "names none; choose data.split concept-disjoint"),
        ("zero-shot", {"published": {"test": ["c0-i0"]}, "val_fraction": 0.1}, "no segment for val"),
    ],
)
def test_what_the_data_cannot_serve_is_refused_with_a_remedy(rule, options, message):
    segments, images = tables()
    with pytest.raises(InputError, match=message):
        split(rule, segments, images, **SHARES | options)


def test_an_unknown_block_is_refused_with_those_there_are():
    segments, images = tables(block="turn")
    for block in ("7", "two", "03"):
        with pytest.raises(InputError, match=f"no block '{block}' in the data.*one of 0, 1, 2, 3, 4"):
            split("leave-block-out", segments, images, held_out=block, **SHARES)


@pytest.mark.parametrize("rule", ["concept-disjoint", "zero-shot"])
def test_a_rule_by_concept_needs_every_label(rule):
    segments, images = tables()
    partly = images.set_column(1, "label", pa.array([-1] + [1] * 19, pa.int32()))
    with pytest.raises(InputError, match=r"1 have none .*'c0-i0'"):
        split(rule, segments, partly, published={"test": ["c0-i1"]}, **SHARES)


def test_notes_tell_what_could_give_the_answer_away():
    def notes(rule, block, **options):
        return " | ".join(split(rule, *tables(block=block), **SHARES | options).notes)

    assert "class and block coincide: slow drifts can identify the class" in notes("by-image", "class")
    assert "coincide" not in notes("by-image", "turn")
    assert "blocks are unknown" in notes("by-image", "unknown")
    assert "4 of 4 tested concepts are trained on" in notes("by-image", "turn")
    held_out = notes("leave-block-out", "class", held_out="2")
    assert "tested concepts" not in held_out
    assert notes("concept-disjoint", "class", val_fraction=0.25, test_fraction=0.25) == ""
