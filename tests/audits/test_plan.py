"""eegvision.audits.plan: what is trained for each control, what is not and why; the test side stays what it was."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from eegvision import stream
from eegvision.audits.plan import Planned, fold_queries, plan
from eegvision.config import RunConfig
from eegvision.ingest import shards

SETTINGS: dict[str, Any] = {"data.val_fraction": 0.3, "data.test_fraction": 0.2, "eeg.encoder": "tsconv"}


def planned(dataset: object, folds: int = 2, audit: dict | None = None, **changes: Any) -> dict[str, Planned]:
    base = RunConfig().with_overrides(SETTINGS | {"data.dataset": str(dataset)} | changes)
    manifest = shards.read_manifest(shards.dataset_root(str(dataset)))
    manifest = dataclasses.replace(manifest, audit=manifest.audit | (audit or {}))
    return plan(base, stream.load_store(base.data, None), manifest, folds=folds)


def pictures(config: RunConfig, side: Any) -> set[int]:
    store = stream.load_store(config.data, None)
    return set(store.image_N[store.split.rows[side]].tolist())


def test_every_control_is_trained_or_says_why_not(tiny_dataset):
    found = planned(tiny_dataset)
    assert {name: one.why_not for name, one in found.items() if not one.parts}.keys() == {
        "pre-stimulus",
        "slow-drift below 1 Hz",
    }
    assert "nothing before it is stored" in found["pre-stimulus"].why_not
    assert "have the frequencies 1.136" in found["slow-drift below 1 Hz"].why_not
    keys = [cell.key for name, one in found.items() for cell in one.cells(name, (1, 2))]
    assert len(set(keys)) == len(keys) == 2 * (6 + 1)
    assert "leave-block-out-1of2-seed1" in keys


def test_folds_score_the_same_validation_pictures_and_no_control_touches_the_test_side(tiny_dataset):
    found = planned(tiny_dataset)
    itself = found["shuffled-pairs"].parts[""].with_overrides({"data.control": None})
    folds = list(found["leave-block-out"].parts.values())
    assert set().union(*(pictures(fold, "val") for fold in folds)) == pictures(itself, "val")
    for one in found.values():
        for config in one.parts.values():
            assert not (pictures(config, "train") | pictures(config, "val")) & pictures(itself, "test")


def test_a_purge_comes_with_as_small_a_training_set_and_the_same_test_pictures(tiny_dataset):
    assert "time-purged" not in planned(tiny_dataset)
    found = planned(tiny_dataset, audit={"purge_s": 0.44})
    assert found["time-purged"].parts[""].data.purge_s == 0.0
    thinned = planned(tiny_dataset, audit={"purge_s": 0.44})["thinned-purge"].parts[""]
    assert thinned.data.val_fraction >= 0.3
    assert "time-purged" not in planned(tiny_dataset, audit={"purge_s": 0.44}, **{"data.purge_s": 0.1})


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"image.encoder": "random-codebook"}, "random-codebook", "the image encoder is frozen"),
        ({"loss.name": "eeg-classes"}, "random-codebook", "no image encoder is trained"),
        ({"data.band_hz": (14.0, 70.0)}, "slow-drift below 5 Hz", "the run itself keeps nothing below 14 Hz"),
        ({"data.repetitions": 0}, "shuffled-in-blocks", "means over several"),
        ({"data.split": "leave-block-out", "data.held_out": "3"}, "leave-block-out", "cannot be divided further"),
    ],
)
def test_what_cannot_be_tested_says_so(tiny_dataset, changes, name, said):
    assert said in planned(tiny_dataset, **changes)[name].why_not


def test_the_subject_held_out_stays_out_of_the_folds(tiny_dataset):
    found = planned(tiny_dataset, **{"data.split": "leave-subject-out", "data.held_out": "sub-02"})
    for config in found["leave-block-out"].parts.values():
        assert config.data.subjects == ("sub-01",)


def test_a_class_that_is_not_trained_on_in_a_fold_is_not_asked_for(tiny_dataset):
    fold = next(iter(planned(tiny_dataset)["leave-block-out"].parts.values()))
    everything, none_lost = fold_queries(fold, of_class=False)
    store = stream.load_store(fold.data, None)
    assert none_lost == 0
    assert len(everything) == len(store.split.rows["val"])
    kept, lost = fold_queries(fold, of_class=True)
    trained = np.unique(store.label_N[store.split.rows["train"]])
    assert lost == int((~np.isin(store.label_N[store.split.rows["val"]], trained)).sum())
    assert len(kept) + lost == len(everything)
