"""eegvision.inspection.association: tables equal the analysis done by hand, whoever computes; what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eegvision import grid, runs
from eegvision.analyses.association import association, find_layers
from eegvision.analyses.channels import Noise, channel_changes
from eegvision.config import RunConfig
from eegvision.ingest import assemble, simulate
from eegvision.inspection import association as analysis
from eegvision.inspection.association import plan_for, run_association
from eegvision.inspection.feature_settings import AssociationSettings
from eegvision.inspection.opened import Bench, open_run
from eegvision.vocab import InputError

pytestmark = pytest.mark.usefixtures("ray_local", "run")

SIMULATION = simulate.Simulation(
    n_subjects=1, n_classes=4, images_per_class=10, repetitions=2, blocks_per_class=2, snr=3.0,
    n_chans=8, n_times=88, sfreq_hz=200.0, image_px=32, viewers=0,
)  # fmt: skip
TRAINING: dict[str, Any] = {
    "data.dataset": "linked", "data.val_fraction": 0.2, "eeg.encoder": "tsconv", "eeg.embed_dim": 16,
    "image.embed_dim": 16, "image.size_px": 32, "loss.name": "info_nce", "train.max_passes": 1,
}  # fmt: skip
LAYERS = ("features.2", "features.8")
SETTINGS = AssociationSettings(layers=LAYERS, intervals_s=((0.0, 0.1), (0.1, 0.4)), draws=2, visuals=2, steps=3)


@pytest.fixture(scope="module")
def run(session_home: Path) -> Path:
    """The run `linked` of one trial, on a data set of 8 validation pictures."""
    assemble.write(session_home / "datasets" / "linked", simulate.simulate(SIMULATION, "linked"))
    return trained("linked")


def trained(name: str, **changes: Any) -> Path:
    folder = runs.named_folder("runs", name)
    config = RunConfig().with_overrides(TRAINING | changes)
    grid.fit_all([grid.Cell(key="model", config=config)], folder, say=lambda _: None)
    (folder / "best.json").write_text(json.dumps({"trial": "model", "number": 1}))
    return folder


def associate(settings: AssociationSettings = SETTINGS, name: str = "linked", side: Any = "val") -> tuple[Path, str]:
    said: list[str] = []
    folder = run_association(name, trial=None, side=side, settings=settings, say=said.append)
    return folder, "\n".join(said)


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@torch.no_grad()
def by_hand(model: Any, bench: Bench) -> tuple[np.ndarray, list[np.ndarray]]:
    """A_c,l of every pair [B, K, C, L], picture after picture, and the mean over all pairs of each map's [C, F]."""
    manifest = bench.store.manifest
    noise = Noise(sfreq_hz=manifest.sfreq_hz, n_draws=2)
    pairs, maps = [], []
    for image in bench.image_M.tolist():
        image_3HW = bench.pixels(np.array([image]))[0]
        layers = find_layers(model, image_3HW, LAYERS)
        for row in bench.rows_of(image).tolist():
            eeg_BCT, subject_B = bench.eeg(np.array([row]))
            ids = [str(bench.store.segment_id_N[row])]
            deltas = [
                channel_changes(
                    model, eeg_BCT, ids, manifest.channels, noise, samples=samples, subject_B=subject_B
                ).change_BRCD.mean(1)
                for samples in (None, (0, 20), (20, 80))
            ]
            found = association(model, image_3HW, torch.stack(deltas, 1), layers)
            pairs.append(found.layer_UKCL[0])
            maps.append([map_KCF[0] for map_KCF in found.map_KCF])
    return np.stack(pairs), [np.mean([one[number] for one in maps], axis=0) for number in range(2)]


def test_tables_hold_what_the_analysis_of_every_pair_by_itself_gives():
    folder, said = associate()
    opened = open_run("linked", trial=None, side="val", purpose="", say=lambda _: None)
    bench = Bench(opened)
    pair_BKCL, map_CF = by_hand(bench.model, bench)
    channels, stretches = list(bench.store.manifest.channels), ["all", "0 to 100 ms", "100 to 400 ms"]
    layers = pd.read_csv(folder / "layers.csv")
    assert len(layers) == 2 * 3 * 8
    scale = np.abs(pair_BKCL).max()
    for _, line in layers.iterrows():
        place = stretches.index(line.stretch), channels.index(line.channel), LAYERS.index(line.layer)
        assert line.association == pytest.approx(pair_BKCL[:, *place].mean(), abs=1e-3 * scale)
        picture_U = pair_BKCL[:, *place].reshape(-1, 2).mean(axis=1)  # two segments of each picture
        error = picture_U.std(ddof=1) / np.sqrt(len(picture_U))
        assert line.standard_error == pytest.approx(error, abs=1e-3 * scale)
    intervals = pd.read_csv(folder / "intervals.csv")
    assert intervals.encoded.tolist() == ["segment", "noise outside", "noise outside"] * 2
    np.testing.assert_allclose(
        np.array(intervals.association).reshape(2, 3), pair_BKCL.mean(axis=(0, 2)).T, rtol=0, atol=1e-3 * scale
    )
    strongest = pd.read_csv(folder / "strongest.csv").query("stretch == 'all'")
    assert len(strongest) == 100
    largest = np.sort(np.concatenate([one.ravel() for one in map_CF]))[::-1]
    np.testing.assert_allclose(np.array(strongest.association), largest[:100], rtol=0, atol=1e-3 * largest[0])
    first = strongest.iloc[0]
    number = LAYERS.index(first.layer)
    assert map_CF[number][channels.index(first.channel), first["map"]] == pytest.approx(first.association, rel=1e-2)
    assert "2 layers x 8 channels x 3 stretches of time, 8 val pictures, 2 draws" in said
    assert "16 pairs of 8 pictures" in said


def test_the_strongest_maps_are_visualised_and_the_figures_are_there():
    folder, _ = associate()
    visuals = pd.read_csv(folder / "visuals.csv")
    assert visuals.layer.tolist() == ["features.2"] * 2 + ["features.8"] * 2
    strongest = pd.read_csv(folder / "strongest.csv").query("stretch == 'all' and layer == 'features.2'")
    assert visuals["map"].tolist()[:2] == list(dict.fromkeys(strongest["map"]))[:2]
    for file in visuals.file:
        with Image.open(folder / file) as picture:
            assert picture.size == (32, 32)
    for figure in ("layers", "strongest"):
        assert {path.suffix for path in (folder / "figures").glob(f"{figure}.*")} == {".svg", ".pdf", ".png", ".csv"}


def test_workers_and_interruptions_change_no_byte_and_the_size_of_parts_rounding_alone(monkeypatch):
    folder, _ = associate()
    first, listed = tables(folder), pd.read_csv(folder / "strongest.csv")
    assert first.keys() == {"layers.csv", "intervals.csv", "strongest.csv", "visuals.csv"}
    for path in list((folder / "chunks").glob("*.npz"))[::2]:  # as after a kill
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(analysis.cluster, "is_connected", lambda: False)  # the rest in this process, not in workers
        again, said = associate()
    assert again == folder
    assert "going on in" in said
    assert tables(folder) == first
    _, said = associate()
    assert "8 pictures were finished before" in said

    for path in folder.glob("chunks/*"):
        path.unlink()
    (folder / "manifest.jsonl").unlink()
    monkeypatch.setattr(analysis, "_FEWEST", 1)
    monkeypatch.setattr(analysis, "_ALL_BYTES", 1)
    associate()
    assert len(list(folder.glob("chunks/*"))) == 1
    other = tables(folder)
    for name in ("layers.csv", "intervals.csv"):
        assert other[name] == first[name]
    relisted = pd.read_csv(folder / "strongest.csv")
    np.testing.assert_allclose(np.array(relisted.association), np.array(listed.association), rtol=1e-12)
    assert (listed.standard_error > 0).all()
    assert relisted.standard_error.isna().all()  # one part of the pictures tells nothing of others


def test_some_pictures_are_drawn_by_the_seed():
    opened = open_run("linked", trial=None, side="val", purpose="", say=lambda _: None)
    bench = Bench(opened)
    drawn = [plan_for(bench, dataclasses.replace(SETTINGS, pictures=3, seed=seed))[0].pictures for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) < set(bench.image_M.tolist())
    every, _ = plan_for(bench, dataclasses.replace(SETTINGS, pictures=100))
    assert every.pictures == tuple(bench.image_M.tolist())
    usual, _ = plan_for(bench, dataclasses.replace(SETTINGS, layers=None, intervals_s=None))
    assert [layer.name for layer in usual.layers] == [f"features.{n}" for n in (2, 5, 8, 11)]
    assert usual.stretches == ("all", "0 to 80 ms", "80 to 160 ms", "160 to 320 ms", "320 to 440 ms")


def test_refuses_what_has_no_such_layers_intervals_or_pixels():
    with pytest.raises(InputError, match=r"'small' has no layer 'feature.2'; give one such as features.2"):
        associate(dataclasses.replace(SETTINGS, layers=("feature.2",)))
    with pytest.raises(InputError, match=r"interval 0.1 to 0.9 s holds no sample .*run from 0 to 0.44 s"):
        associate(dataclasses.replace(SETTINGS, intervals_s=((0.1, 0.9),)))
    trained("linked-codes", **{"image.encoder": "random-codebook", "image.size_px": None})
    with pytest.raises(InputError, match=r"'random-codebook', whose features come from no network.*choose a trial"):
        associate(name="linked-codes")
    no_image = {"image.size_px": None, "image.embed_dim": RunConfig().image.embed_dim}
    trained("linked-eeg", **{"loss.name": "eeg-classes"}, **no_image)
    with pytest.raises(InputError, match=r"'eeg-classes', which knows one side alone; look into a joint model"):
        associate(name="linked-eeg")
    wrong: dict[str, Any] = {"layers": (), "pictures": 0, "visuals": -1, "steps": 0}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"{name} is .*expected at least"):
            AssociationSettings(**{name: value})
