"""eegvision.inspection.opened: the model of a run, and any part of its data as the model sees it."""

import dataclasses
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from eegvision import ledger
from eegvision.assess.embedding import embed, open_store
from eegvision.assess.selected import Selected
from eegvision.config import RunConfig
from eegvision.inspection.opened import Bench, log_run, open_run, require_both_sides
from eegvision.stream import Batches
from eegvision.tracking import Tracker
from eegvision.vocab import InputError, SplitName


@dataclass(frozen=True, kw_only=True)
class Asked:
    n: int = 3


def opened_run(side: SplitName = "val", **more):
    return open_run("tiny-run", trial=None, side=side, purpose="a test", say=lambda _: None, **more)


@pytest.fixture
def bench(tiny_run):
    assert tiny_run.name == "tiny-run"
    return Bench(opened_run())


@torch.no_grad()
def test_a_bench_gives_what_embedding_the_whole_side_gives(bench):
    whole = embed(bench.model, open_store(bench.model.config), "val")
    assert whole.eeg_ND is not None
    assert whole.image_MD is not None
    assert bench.image_M.tolist() == whole.image_M.tolist()
    rows = np.concatenate([bench.rows_of(image) for image in bench.image_M[::-1]])
    assert sorted(rows.tolist()) == whole.row_N.tolist()
    eeg_BCT, subject_B = bench.eeg(rows)
    found_BD = bench.model.encode_eeg(eeg_BCT, subject_B).cpu().numpy()
    np.testing.assert_allclose(found_BD, whole.eeg_ND[np.searchsorted(whole.row_N, rows)], atol=1e-5)
    np.testing.assert_allclose(bench.image_embeddings(bench.image_M[::-1]).cpu(), whole.image_MD[::-1], atol=1e-5)
    names = np.array(bench.store.trained_subjects)
    assert names[subject_B.cpu()].tolist() == bench.store.subject_N[rows].tolist()


@pytest.mark.parametrize("repetitions", [1, 2])
def test_samples_do_not_depend_on_where_they_are_kept(tiny_dataset, bench, repetitions):
    assert tiny_dataset.name == "tiny"
    rows = bench.store.split.rows["val"][[3, 0, 5]]
    found = []
    for residency in ("host", "stream"):
        data = replace(bench.model.config.data, residency=residency, val_repetitions=repetitions)
        store = open_store(replace(bench.model.config, data=data), has_pictures=False)
        options = {"config": data, "size_px": None, "batch_size": 4, "seed": 0, "training": False}
        batches = Batches(store, "val", **options)
        rows = store.split.rows["val"][[3, 0, 5]]
        found.append(batches.at(rows))
        passed = {int(row): eeg_CT for batch in batches.passes(1) for row, eeg_CT in zip(batch.row_B, batch.eeg_BCT)}  # noqa: B905
        for row, eeg_CT in zip(rows.tolist(), found[-1].eeg_BCT, strict=True):
            np.testing.assert_allclose(eeg_CT, passed[row], atol=1e-6)
    np.testing.assert_allclose(found[0].eeg_BCT, found[1].eeg_BCT, atol=1e-6)
    assert found[0].image_B.tolist() == found[1].image_B.tolist()


def test_pictures_come_in_the_order_asked_for(bench):
    image_B = bench.image_M[[4, 1, 4]]
    pixel_B3HW = bench.pixels(image_B)
    assert pixel_B3HW.shape == (3, 3, 32, 32)
    assert torch.equal(pixel_B3HW[0], pixel_B3HW[2])
    batches = Batches(
        open_store(bench.model.config), "val", config=bench.model.config.data, size_px=32, batch_size=4, seed=0,
        training=False,
    )  # fmt: skip
    of_image = {int(image): view for views, images in batches.images(8) for view, image in zip(views, images)}  # noqa: B905
    for image, view_3HW in zip(image_B.tolist(), pixel_B3HW.cpu(), strict=True):
        assert torch.equal(view_3HW, of_image[image])


def test_the_folder_is_named_by_all_that_decides_the_results(tiny_run):
    assert tiny_run.name == "tiny-run"
    opened = opened_run()
    same, other = opened.folder("maps", Asked()), opened.folder("maps", Asked(n=4))
    assert same == opened_run().folder("maps", Asked())
    assert len({same, other, replace(opened, model_sha256="0").folder("maps", Asked())}) == 3
    assert same.parent == tiny_run / "maps"
    assert opened.identity("maps", Asked())["settings"] == {"n": 3}


def test_the_test_side_is_opened_with_a_line_in_the_ledger(tiny_run):
    before = len(ledger.openings())
    opened = opened_run("test")
    assert opened.opening is not None
    assert len(ledger.openings()) == before + 1
    assert ledger.openings()[-1].purpose == "a test"
    assert not set(Bench(opened).image_M) & set(Bench(opened_run()).image_M)
    assert opened.run == tiny_run


def test_other_data_are_refused(tiny_run, monkeypatch):
    assert tiny_run.name == "tiny-run"
    load = Selected.load

    def elsewhere(self):
        model = load(self)
        model.data["fingerprint"] = "0123"
        return model

    monkeypatch.setattr(Selected, "load", elsewhere)
    with pytest.raises(InputError, match="trained on the data 0123 of 'tiny'"):
        opened_run()


def test_one_sided_models_are_refused(tiny_run):
    assert tiny_run.name == "tiny-run"
    opened = opened_run()
    require_both_sides(opened)
    alone = dataclasses.replace(opened, config=RunConfig().with_overrides({"loss.name": "eeg-classes"}))
    with pytest.raises(InputError, match="knows one side alone"):
        require_both_sides(alone)


def test_an_analysis_is_a_run_that_names_its_model_and_carries_its_files(tiny_run, tmp_path):
    opened = replace(opened_run(), run=tmp_path / "elsewhere")
    folder = opened.folder("maps", Asked())
    for name in ("chunks/a.npz", "figures/map.svg", "maps.csv", "manifest.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    said = []
    log_run(opened, "maps", folder, settings=Asked(), metrics={"maps/r": 0.5}, note="seen", say=said.append)
    assert str(folder) in said[-1]
    with Tracker(opened.run / "spool", experiment="elsewhere") as tracker:
        assert tracker.pending == 0
    log_run(opened, "maps", folder, settings=Asked(n=4), metrics={"maps/r": 0.7}, note="seen", say=said.append)
    events = [json.loads(line) for line in (opened.run / "spool" / "events.jsonl").read_text().splitlines()]
    start, other = (event for event in events if event["do"] == "start")
    assert start["key"].startswith(f"elsewhere/maps/{folder.name}.")
    assert other["key"] != start["key"], "other settings, other scores"
    assert start["tags"]["eegvision.model"] == f"elsewhere/{tiny_run.name}-001"
    files = [event["path"].rpartition("/")[2] for event in events if event["do"] == "artifact"]
    assert files == ["map.svg", "maps.csv"] * 2
