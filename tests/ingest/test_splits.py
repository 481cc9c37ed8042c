"""eegvision.ingest.splits: hand-worked sides, independence of row order, and no picture ever on two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eegvision.ingest.splits import Clock, Split, recordings, split
from eegvision.vocab import SPLIT_NAMES, InputError, SplitName

SHARES: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}


def tables(
    classes: int = 4, per_class: int = 5, subjects: int = 2, block: str = "unknown", same: dict[str, str] | None = None
) -> tuple[pa.Table, pa.Table]:
    """Every subject sees every image once, one a second; `c1-i3` is the fourth of class 1; `same` maps ids to twins."""
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
            "onset_s": float(place),
            "image_id": image,
        }
        for subject in range(1, subjects + 1)
        for place, (label, image) in enumerate(ids)
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
    assert "1 segments of other blocks show images of the tested block and are left out" in result.notes


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
    segments, images = tables()
    assert "blocks are unknown" not in notes("by-image", "unknown"), "the order audit has looked at the times"
    untimed = segments.set_column(4, "onset_s", pa.array([float("nan")] * len(segments)))
    assert any("blocks are unknown" in note for note in split("by-image", untimed, images, **SHARES).notes)
    assert "4 of 4 tested concepts are trained on" in notes("by-image", "turn")
    held_out = notes("leave-block-out", "class", held_out="2")
    assert "tested concepts" not in held_out
    assert notes("concept-disjoint", "class", val_fraction=0.25, test_fraction=0.25) == ""


def mixed(n_images: int = 200, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Two subjects see every image twice in two sessions, in random order, one every 0.2 s."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in ("sub-01", "sub-02"):
        for session in (1, 2):
            for place, image in enumerate(rng.permutation(np.repeat(np.arange(n_images), 2)).tolist()):
                name = f"{subject}-{session}-{place}"
                rows.append({"segment_id": name, "subject": subject, "session": session, "block": 0,
                             "onset_s": 0.2 * place, "image_id": f"i{image}"})  # fmt: skip
    ids = [f"i{image}" for image in range(n_images)]
    labels = pa.array([image % 20 for image in range(n_images)], pa.int32())
    return pa.Table.from_pylist(rows), pa.table({"image_id": ids, "label": labels, "sha256": ids})


def nearest_s(result: Split, segments: pa.Table, side: SplitName) -> float:
    """The shortest time between a training onset and one of `side`, by comparing all pairs."""
    columns = {name: np.array(segments[name].to_pylist()) for name in ("subject", "session", "onset_s")}
    train, held = result.rows["train"], result.rows[side]
    apart = np.abs(columns["onset_s"][train][:, None] - columns["onset_s"][held])
    for name in ("subject", "session"):
        apart[columns[name][train][:, None] != columns[name][held]] = np.inf
    return float(apart.min())


@pytest.mark.parametrize("purge_s", [0.0, 0.3])
def test_no_training_window_is_nearer_than_the_purge(purge_s):
    segments, images = mixed()
    shares = {"val_fraction": 0.02, "test_fraction": 0.02, "seed": 0}
    clock = Clock(duration_s=1.0, purge_s=purge_s)
    whole = split("by-image", segments, images, clock=Clock(duration_s=1.0), **shares)
    result = split("time-purged", segments, images, clock=clock, **shares)
    sides: tuple[SplitName, ...] = ("val", "test")
    for side in sides:
        assert nearest_s(whole, segments, side) == pytest.approx(0.2)
        assert nearest_s(result, segments, side) >= 1.0 + purge_s - 1e-6
        np.testing.assert_array_equal(result.rows[side], whole.rows[side])
    kept = set(result.rows["train"].tolist())
    assert kept < set(whole.rows["train"].tolist())
    assert f"{len(whole.rows['train']) - len(kept)} of {len(whole.rows['train'])} training segments are purged" in str(
        result.notes
    )
    # Nothing more than needed is lost: what was purged is too near.
    lost = np.array(sorted(set(whole.rows["train"].tolist()) - kept))
    for row in lost[:: len(lost) // 50]:
        alone = Split(rows=whole.rows | {"train": np.array([row])}, notes=())
        assert min(nearest_s(alone, segments, side) for side in sides) < 1.0 + purge_s


def test_a_purge_goes_with_any_rule_and_needs_onsets():
    segments, images = mixed()
    result = split(
        "concept-disjoint", segments, images, val_fraction=0.05, test_fraction=0.05, seed=0,
        clock=Clock(duration_s=0.2, purge_s=0.0),
    )  # fmt: skip
    assert nearest_s(result, segments, "val") >= 0.2 - 1e-6
    unknown = segments.set_column(4, "onset_s", pa.array([float("nan")] * len(segments)))
    with pytest.raises(InputError, match=r"data\.purge_s needs the onset of every segment, but 1600 are unknown"):
        split("by-image", unknown, images, clock=Clock(duration_s=1.0, purge_s=0.0), **SHARES)


def test_overlap_with_training_is_named():
    segments, images = mixed()
    notes = split("by-image", segments, images, clock=Clock(duration_s=1.0), **SHARES).notes
    assert any("training segments share samples with a validation or test segment" in note for note in notes)
    unknown = segments.set_column(4, "onset_s", pa.array([float("nan")] * len(segments)))
    assert any("onsets are unknown" in note for note in split("by-image", unknown, images, **SHARES).notes)


def test_clocks_that_start_anew_in_every_block_are_told_apart():
    def of(onset_s):
        subjects, sessions = np.array(["a"] * 4), np.zeros(4, dtype=int)
        return recordings(subjects, sessions, np.array([0, 0, 1, 1]), np.array(onset_s)).tolist()

    assert of([0.0, 1.0, 2.0, 3.0]) == [0, 0, 0, 0]
    assert len(set(of([0.0, 1.0, 0.5, 1.5]))) == 2
    assert of([0.0, 1.0, np.nan, 3.0])[2] == -1


def test_leave_session_out_tests_a_session_whose_images_are_nowhere_else():
    segments, images = mixed(40)
    second = pa.Table.from_pylist(
        [row for row in segments.to_pylist() if (row["session"] == 2) == (row["image_id"] < "i2")]
    )
    result = split("leave-session-out", second, images, held_out="2", **SHARES)
    assert shown(result, second, "session")["test"] == {2}
    sides = shown(result, second)
    assert sides["test"] == {f"i{n}" for n in range(40) if f"i{n}" < "i2"}
    assert not sides["test"] & (sides["train"] | sides["val"])
    with pytest.raises(InputError, match=r"no session '3' in the data; data\.held_out must be one of 1, 2"):
        split("leave-session-out", second, images, held_out="3", **SHARES)


def test_zero_shot_can_hold_out_a_subject_as_well():
    segments, images = mixed(100)
    published = {"test": [f"i{n}" for n in range(100) if n % 20 < 4]}
    result = split("zero-shot", segments, images, published=published, held_out="sub-02", **SHARES)
    assert shown(result, segments, "subject") == {"train": {"sub-01"}, "val": {"sub-01"}, "test": {"sub-02"}}
    assert shown(result, segments)["test"] == set(published["test"])


# ---- folds over blocks


def folds_of(segments: pa.Table, images: pa.Table, count: int, rule: str = "", **options: Any) -> list[Split]:
    held = [f"{number}/{count}{rule}" for number in range(1, count + 1)]
    return [split("leave-block-out", segments, images, held_out=one, **(SHARES | options)) for one in held]


def test_folds_keep_the_pictures_of_every_side_and_share_no_block_with_training():
    segments, images = tables(classes=8, per_class=10, block="turn")
    whole = split("by-image", segments, images, **SHARES)
    folds = folds_of(segments, images, 5)
    for side in ("val", "test"):
        rows = np.concatenate([fold.rows[side] for fold in folds])
        np.testing.assert_array_equal(np.sort(rows), whole.rows[side])  # each in one fold
    block_N = segments["block"].to_numpy()
    for fold in folds:
        assert set(fold.rows["train"].tolist()) < set(whole.rows["train"].tolist())
        trained = set(block_N[fold.rows["train"]].tolist())
        assert len(trained) == 8
        assert not trained & set(block_N[np.concatenate([fold.rows["val"], fold.rows["test"]])].tolist())


def test_blocks_of_one_class_go_to_different_folds():
    segments, images = tables(classes=4, per_class=10)
    label_N = [int(image[1]) for image in segments["image_id"].to_pylist()]
    half_N = [int(image.split("-i")[1]) // 5 for image in segments["image_id"].to_pylist()]
    block = pa.array([2 * label + half for label, half in zip(label_N, half_N, strict=True)])
    segments = segments.set_column(segments.schema.get_field_index("block"), "block", block)
    for fold in folds_of(segments, images, 2, val_fraction=0.3, test_fraction=0.3):
        assert by_class(shown(fold, segments)["train"]).keys() == {"c0", "c1", "c2", "c3"}


def test_folds_go_with_published_sides_too():
    segments, images = tables(classes=4, per_class=4, block="class")
    ids = images["image_id"].to_pylist()
    published = {"train": ids[:12], "val": ids[12:14], "test": ids[14:]}
    with pytest.raises(InputError, match="leaves no segment for val"):
        split("leave-block-out", segments, images, held_out="1/4 of published", published=published, **SHARES)
    last = split("leave-block-out", segments, images, held_out="4/4 of published", published=published, **SHARES)
    assert shown(last, segments)["val"] == set(ids[12:14])
    assert shown(last, segments)["test"] == set(ids[14:])
    assert by_class(shown(last, segments)["train"]) == {"c0": 4, "c1": 4, "c2": 4}


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("0/5", r"held_out '0/5' of data.split leave-block-out must be a part such as 1/5 to 5/5"),
        ("6/5", "must be a part"),
        ("1/1", "must be a part"),
        ("1/5 of leave-block-out", "or 1/5 of by-image, published"),
        ("1/9", "with 9 folds needs as many blocks, but the data have 5"),
        ("2/", "there is no block '2/'"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(held_out, message):
    segments, images = tables(block="turn")
    with pytest.raises(InputError, match=message):
        split("leave-block-out", segments, images, held_out=held_out, **SHARES)
