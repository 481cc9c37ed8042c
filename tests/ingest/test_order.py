"""eegvision.ingest.order: hand-worked values, designs that must be red or green, what cannot be checked."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from eegvision.ingest import order, simulate
from eegvision.vocab import InputError


def segments_of(image, *, subject="a", session=0, block=-1, position=None, onset=None):
    n = len(image)
    return pa.table(
        {
            "subject": np.broadcast_to(subject, n).tolist(),
            "session": np.broadcast_to(session, n).astype(np.int32),
            "block": np.broadcast_to(block, n).astype(np.int32),
            "order": np.asarray(np.arange(n) if position is None else np.broadcast_to(position, n), dtype=np.int32),
            "onset_s": np.asarray(np.arange(n) if onset is None else np.broadcast_to(onset, n), dtype=np.float64),
            "image_id": [f"image-{i}" for i in image],
        }
    )


def images_of(label, sha256=None):
    ids = [f"image-{i}" for i in range(len(label))]
    return pa.table({"image_id": ids, "label": np.asarray(label, dtype=np.int32), "sha256": sha256 or ids})


def audit(segments, images, *, window_s=0.5, rounds=199, **options):
    return order.audit(
        segments, images, n_times=round(window_s * 100), sfreq_hz=100.0, n_permutations=rounds, **options
    )


def finding(found, check):
    (one,) = [finding for finding in found.findings if finding.check == check]
    return one


def simulated(options):
    """The tables of a simulated recording without its EEG."""
    label = np.repeat(np.arange(options.n_classes), options.images_per_class)
    tables = []
    for number in range(1, options.n_subjects + 1):
        plan = simulate._make_schedule(options, number)
        where = {"session": plan.session, "block": plan.block, "onset": plan.onset_s}
        tables.append(segments_of(plan.image.tolist(), subject=f"sub-{number}", **where))
    return pa.concat_tables(tables), images_of(label)


@pytest.mark.parametrize("seed", range(30))
def test_a_random_design_is_green_however_small(seed):
    tables = simulated(dataclasses.replace(simulate.PRESETS["tiny"], seed=seed))
    found = audit(*tables, rounds=99, seed=seed)
    assert found.grade == "green", found.findings
    assert found.purge_s == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_block_design_is_red_and_says_why_and_what_to_do(seed):
    tables = simulated(dataclasses.replace(simulate.PRESETS["tiny"], seed=seed, design="block"))
    found = audit(*tables)
    assert found.grade == "red"
    guess = finding(found, "class from time")
    assert guess.grade == "red"
    assert guess.value == 1.0
    assert guess.expected == pytest.approx(7 / 39, abs=0.02)  # 7 of the other 39 pictures are of the class
    assert guess.p < 0.01
    assert "100 % of cases" in guess.sentence
    assert "leave-block-out" in guess.remedy
    assert finding(found, "class and block").value == pytest.approx(1.0)
    assert finding(found, "same class again").value == 1.0


def test_the_demo_is_green_as_it_is_and_red_in_blocks():
    demo = simulate.PRESETS["demo"]
    assert audit(*simulated(demo)).grade == "green"
    assert audit(*simulated(dataclasses.replace(demo, design="block"))).grade == "red"


def test_guess_and_lag_by_hand():
    # Classes 0 0 1 0 1 1: the picture before (for the first: after) is of the same class in 1, 2 and 6.
    found = audit(segments_of(range(6)), images_of([0, 0, 1, 0, 1, 1]))
    assert finding(found, "class from time").value == pytest.approx(3 / 6)
    # To the next of its class: 0 -> 1, 1 -> 3, 2 -> 4, 4 -> 5, that is 1, 2, 2, 1.
    assert finding(found, "same class again").value == 1.5


def test_the_nearest_in_time_is_taken_where_onsets_are_known():
    # 0 0 | 1 0 1: without onsets the fourth is guessed from the third, with them from the fifth.
    label = [0, 0, 1, 0, 0]
    by_time = audit(segments_of(range(5), onset=[0, 1, 10, 12, 13]), images_of(label))
    by_order = audit(segments_of(range(5), onset=np.nan), images_of(label))
    assert finding(by_time, "class from time").value == pytest.approx(4 / 5)
    assert finding(by_order, "class from time").value == pytest.approx(3 / 5)


def test_another_presentation_of_the_same_picture_is_no_guess():
    found = audit(segments_of([0, 0, 1, 1, 2, 2, 3, 3]), images_of([0, 1, 0, 1]))
    assert finding(found, "class from time").value == 0.0


def test_one_order_shared_by_all_subjects_is_one_witness():
    reds = 0
    for seed in range(15):
        sequence = np.random.default_rng(seed).permutation(40).tolist()
        tables = [segments_of(sequence, subject=f"sub-{number}") for number in range(12)]
        found = audit(pa.concat_tables(tables), images_of(np.repeat(np.arange(4), 10)), rounds=99, seed=seed)
        reds += found.grade != "green"
    assert reds == 0


def things(seed=0, concepts=40, per_concept=5, subjects=2):
    """As THINGS-EEG2: sessions 1 and 2 show a random half of the concepts each, 3 and 4 another; tests are in all."""
    rng = np.random.default_rng(seed)
    tables = []
    for subject in range(subjects):
        halves = [rng.permutation(concepts) < concepts // 2 for _ in range(2)]
        for session, concept in enumerate((halves[0], ~halves[0], halves[1], ~halves[1]), start=1):
            train = (np.flatnonzero(concept)[:, None] * per_concept + np.arange(per_concept)).ravel()
            test = concepts * per_concept + np.arange(10)
            shown = rng.permutation(np.concatenate([np.repeat(train, 2), np.repeat(test, 8)]))
            onset = 0.2 * np.arange(len(shown))
            tables.append(segments_of(shown.tolist(), subject=f"sub-{subject}", session=session, onset=onset))
    label = np.concatenate([np.repeat(np.arange(concepts), per_concept), concepts + np.arange(10)])
    n_train = concepts * per_concept
    sides = {"train": range(n_train), "test": range(n_train, n_train + 10)}
    published = {side: [f"image-{i}" for i in ids] for side, ids in sides.items()}
    return pa.concat_tables(tables), images_of(label), published


def test_rapid_mixed_presentation_in_halves_of_concepts_is_amber_for_overlap_and_session_code():
    segments, images, published = things()
    found = audit(segments, images, window_s=1.0, published=published)
    assert found.grade == "amber"
    amber = {one.check for one in found.findings if one.grade == "amber"}
    assert amber == {"overlap", "session code", "class and session"}
    assert found.purge_s == 1.0
    assert finding(found, "overlap").value == 1.0
    assert "data.purge_s 0" in finding(found, "overlap").remedy
    code = finding(found, "session code")
    assert code.value == pytest.approx(2.0, abs=0.1)  # one of 2 x 2 pairs of sessions
    assert "test pictures 0.00 bit" in code.sentence


def test_overlap_by_hand():
    found = audit(segments_of(range(4), onset=[0, 1.0, 1.4, 9]), images_of([0, 1, 0, 1]), window_s=0.5)
    assert finding(found, "overlap").value == 2 / 4
    assert found.purge_s == 0.5
    assert audit(segments_of(range(3), onset=[0, 0.5, 1]), images_of([0, 1, 0]), window_s=0.5).purge_s == 0.0


def test_overlap_is_within_a_recording_only():
    tables = [segments_of([0, 1], subject=name, onset=[0, 5]) for name in ("a", "b")]
    assert finding(audit(pa.concat_tables(tables), images_of([0, 1])), "overlap").value == 0.0


def test_a_clock_that_starts_again_with_each_block_is_no_contradiction():
    onset, block = [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]
    found = audit(segments_of(range(6), onset=onset, block=block), images_of([0, 1] * 3))
    assert "clock" not in {one.check for one in found.findings}
    assert finding(found, "overlap").grade == "green"


def test_order_and_onset_that_contradict_each_other_are_said():
    found = audit(segments_of(range(4), onset=[0, 2, 1, 3]), images_of([0, 1] * 2))
    assert finding(found, "clock").grade == "amber"
    assert finding(found, "clock").value == 1
    assert "contradict" in finding(found, "clock").sentence


@pytest.mark.parametrize("position", [-1, 7])
def test_unknown_or_ambiguous_order_is_amber_because_nobody_can_check(position):
    found = audit(segments_of(range(20), position=position, onset=np.nan), images_of([0, 1] * 10))
    assert found.grade == "amber"
    known = finding(found, "order known")
    assert known.grade == "amber"
    assert known.value == 0.0
    assert "nobody can tell whether classes came in blocks" in known.sentence
    assert finding(found, "overlap").grade == "amber"
    assert "class from time" not in {one.check for one in found.findings}


def test_onsets_serve_where_the_order_is_unknown():
    # Stored class by class, recorded mixed: the order in the file has no say.
    rng = np.random.default_rng(3)
    found = audit(segments_of(range(60), position=-1, onset=rng.permutation(60)), images_of(np.repeat([0, 1, 2], 20)))
    assert finding(found, "order known").grade == "green"
    assert found.grade == "green"


def test_unknown_sessions_are_amber():
    found = audit(segments_of(range(60), session=-1), images_of([0, 1, 2] * 20))
    assert finding(found, "session code").grade == "amber"
    assert "Sessions are not numbered" in finding(found, "session code").sentence


def test_classes_in_sessions_of_their_own_are_red():
    tables = [segments_of(range(k * 12, k * 12 + 12), session=k) for k in range(4)]
    found = audit(pa.concat_tables(tables), images_of(np.repeat(np.arange(4), 12)))
    assert finding(found, "class and session").grade == "red"
    assert finding(found, "class and session").value == pytest.approx(1.0)


def test_too_few_pictures_to_tell_are_amber():
    found = audit(segments_of(range(4)), images_of([0, 1, 1, 0]))
    assert finding(found, "class from time").grade == "amber"
    assert "too few pictures" in finding(found, "class from time").sentence


def test_a_picture_shown_many_times_in_a_row_is_amber_and_no_block_of_a_class():
    image = np.repeat(np.random.default_rng(0).permutation(30), 8)
    found = audit(segments_of(image.tolist()), images_of(np.arange(30) % 3))
    assert finding(found, "same picture again").grade == "amber"
    assert finding(found, "same picture again").value == 1.0
    assert finding(found, "class from time").grade == "green"
    assert found.grade == "amber"


def test_classes_of_one_picture_each_cannot_be_told_by_other_pictures():
    found = audit(segments_of(range(30)), images_of(range(30)))
    assert "only pictures could be told" in finding(found, "class from time").sentence
    assert found.grade == "green"


def test_pictures_without_a_class_take_no_part():
    label = [0, 0, 1, 1, -1, -1] * 10
    found = audit(segments_of(range(60)), images_of(label))
    # The second of each pair is guessed from the first; the very first has only the one after it.
    assert finding(found, "class from time").value == pytest.approx(21 / 40)


def test_a_subject_who_saw_no_labelled_picture_takes_no_part():
    tables = [segments_of(range(20), session=np.arange(20) % 2), segments_of([20, 21], subject="b", session=[0, 1])]
    found = audit(pa.concat_tables(tables), images_of([0, 1] * 10 + [-1, -1]))
    assert finding(found, "class and session").grade == "red"  # even pictures in one session, odd in the other


def test_copies_of_a_picture_are_counted_across_classes_and_sides():
    published = {"train": ["image-0", "image-1"], "test": ["image-2", "image-3"]}
    images = images_of([0, 0, 1, 1], sha256=["x", "y", "x", "z"])
    repeated = finding(audit(segments_of(range(4)), images, published=published), "repeated pictures")
    assert repeated.grade == "amber"
    assert repeated.value == 1
    assert "1 of them across classes, 1 of them across published sides" in repeated.sentence
    assert "'image-0' and 'image-2'" in repeated.sentence


def test_an_audit_survives_json():
    found = audit(*things()[:2], window_s=1.0)
    assert order.Audit.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_rows_in_another_order_give_the_same_values():
    segments, images = simulated(simulate.PRESETS["tiny"])
    shuffled = segments.take(np.random.default_rng(1).permutation(segments.num_rows))
    values = [
        {one.check: one.value for one in audit(table, images, rounds=19).findings if one.p is None}
        | {"guess": finding(audit(table, images, rounds=19), "class from time").value}
        for table in (segments, shuffled)
    ]
    assert values[0] == values[1]


def test_a_segment_of_an_unknown_picture_is_refused():
    with pytest.raises(InputError, match=r"'image-5', which is not among the images; ingest the data again"):
        audit(segments_of([0, 5]), images_of([0, 1]))
