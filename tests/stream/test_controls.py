"""eegvision.stream.controls: what each control breaks and what it leaves; refusals; the same in every process."""

import dataclasses

import numpy as np
import pytest

from eegvision import stream
from eegvision.config import DataConfig
from eegvision.stream import controls
from eegvision.stream.controls import SEVERAL, UNKNOWN, applied, class_codes
from eegvision.vocab import InputError

LABEL_M = np.repeat(np.arange(4), 6)  # 24 pictures of 4 classes
N_SHOWN = 96  # each picture in two sessions to two subjects, in an order without regard to class


@pytest.fixture
def shown() -> dict:
    rng = np.random.default_rng(0)
    image_N = np.concatenate([rng.permutation(24) for _ in range(4)])
    return {
        "image_N": image_N,
        "side_N": np.where(image_N % 3 == 0, "val", "train"),
        "subject_N": np.repeat(["a", "b"], 48),
        "session_N": np.tile(np.repeat([0, 1], 24), 2),
        "block_N": np.tile(np.repeat([0, 1, 2], 8), 4),
        "time_N": np.tile(np.arange(24.0), 4),
        "label_M": LABEL_M,
        "seed": 3,
    }


def strata(shown: dict, *names: str) -> list[np.ndarray]:
    keys = list(zip(*(shown[name].tolist() for name in ("side_N", "subject_N", *names)), strict=True))
    return [np.array([row for row, own in enumerate(keys) if own == key]) for key in sorted(set(keys))]


@pytest.mark.parametrize(
    ("control", "names"), [("shuffled-pairs", ()), ("shuffled-in-blocks", ("session_N", "block_N"))]
)
def test_pictures_trade_within_their_stratum_and_none_stays(shown, control, names):
    given_N = applied(control, **shown)
    for own in strata(shown, *names):
        assert sorted(given_N[own]) == sorted(shown["image_N"][own])
        assert len(own) == 1 or (given_N[own] != shown["image_N"][own]).all()


def test_all_presentations_of_a_picture_to_a_subject_get_the_same_other_one(shown):
    given_N = applied("shuffled-pairs", **shown)
    pairs = set(zip(shown["subject_N"].tolist(), shown["image_N"].tolist(), given_N.tolist(), strict=True))
    assert len(pairs) == 48


def test_labels_of_a_block_design_follow_one_another_in_time_alike_on_every_side(shown):
    given_N = applied("block-labels", **shown)
    for own in strata(shown, "session_N"):
        assert sorted(given_N[own]) == sorted(shown["image_N"][own])
    order_of = []
    for subject in ("a", "b"):
        for session in (0, 1):
            runs = {}
            for side in ("train", "val"):
                is_own_N = (shown["subject_N"] == subject) & (shown["session_N"] == session)
                own = np.flatnonzero(is_own_N & (shown["side_N"] == side))
                label_n = LABEL_M[given_N[own[np.argsort(shown["time_N"][own])]]]
                runs[side] = label_n[np.flatnonzero(np.diff(label_n, prepend=-1))].tolist()
            assert sorted(runs["train"]) == [0, 1, 2, 3], "each class is one run"
            assert runs["val"] == runs["train"]
            order_of.append(tuple(runs["train"]))
    assert len(set(order_of)) > 1, "recordings have orders of their own"


def test_without_a_control_and_with_codes_pictures_stay(shown):
    assert applied(None, **shown) is shown["image_N"]
    assert applied("class-codes", **shown) is shown["image_N"]


def test_draws_depend_on_the_seed_alone(shown):
    first, again = applied("shuffled-pairs", **shown), applied("shuffled-pairs", **shown)
    np.testing.assert_array_equal(first, again)
    assert (applied("shuffled-pairs", **(shown | {"seed": 4})) != first).any()


@pytest.mark.parametrize(
    ("control", "name", "value", "said"),
    [
        ("shuffled-in-blocks", "block_N", UNKNOWN, r"those of 1 of 96 samples are unknown.*shuffled-pairs"),
        ("shuffled-in-blocks", "session_N", SEVERAL, r"1 of 96 samples are means over several.*data.repetitions 1"),
        ("block-labels", "session_N", SEVERAL, r"means over several"),
        ("block-labels", "time_N", np.nan, r"when 1 of 96 samples were recorded is not known"),
    ],
)
def test_what_a_control_needs_is_asked_for(shown, control, name, value, said):
    shown[name] = np.where(np.arange(N_SHOWN) == 7, value, shown[name])
    with pytest.raises(InputError, match=said):
        applied(control, **shown)


def test_a_code_is_the_class_and_nothing_else():
    code_NCT = class_codes(np.array([2, 0, 2]), (3, 50), seed=0)
    assert code_NCT.shape == (3, 3, 50)
    assert code_NCT.dtype == np.float32
    np.testing.assert_array_equal(code_NCT[0], code_NCT[2])
    np.testing.assert_allclose(code_NCT.std(axis=-1), 1, rtol=1e-5)
    assert abs(np.corrcoef(code_NCT[0].ravel(), code_NCT[1].ravel())[0, 1]) < 0.4
    with pytest.raises(InputError, match="1 of 2 samples show a picture without a class"):
        class_codes(np.array([0, -1]), (3, 50), seed=0)


def test_means_over_blocks_are_told_from_means_within_one():
    samples = stream.Repeats(np.array([0, 1, 2, 3]), np.array([0, 2, 4]), np.zeros(2, dtype=int))
    np.testing.assert_array_equal(controls.common(np.array([5, 5, 6, 7]), samples), [5, SEVERAL])


# ---- in a store


@pytest.mark.parametrize("control", ["shuffled-pairs", "shuffled-in-blocks", "block-labels"])
def test_a_store_is_broken_as_asked_and_its_eeg_is_not(tiny_dataset, control):
    config = DataConfig(dataset=str(tiny_dataset))
    whole, broken = (stream.load_store(dataclasses.replace(config, control=one), None) for one in (None, control))
    assert whole.eeg_NCT is not None
    np.testing.assert_array_equal(whole.eeg_NCT, broken.eeg_NCT)
    assert (whole.image_N != broken.image_N).mean() > 0.5
    np.testing.assert_array_equal(broken.label_N, broken.label_M[broken.image_N])
    for side, rows in whole.split.rows.items():
        np.testing.assert_array_equal(rows, broken.split.rows[side])
        assert set(whole.image_N[rows].tolist()) == set(broken.image_N[rows].tolist())


@pytest.mark.parametrize("repetitions", [1, 0])
def test_codes_take_the_place_of_eeg_in_memory_only(tiny_dataset, repetitions):
    config = DataConfig(dataset=str(tiny_dataset), control="class-codes", repetitions=repetitions)
    store = stream.load_store(config, None)
    assert store.eeg_NCT is not None
    for label in range(5):
        own = store.eeg_NCT[store.label_N == label]
        assert len(own) > 1
        np.testing.assert_array_equal(own, np.broadcast_to(own[0], own.shape))
    with pytest.raises(InputError, match=r"class-codes.*residency 'stream'"):
        stream.load_store(dataclasses.replace(config, residency="stream"), None)


def test_means_over_sessions_do_not_trade_within_blocks(tiny_dataset):
    with pytest.raises(InputError, match=r"means over several; set data\.repetitions 1"):
        stream.load_store(DataConfig(dataset=str(tiny_dataset), control="shuffled-in-blocks", repetitions=0), None)
