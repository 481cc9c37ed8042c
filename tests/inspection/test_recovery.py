"""eegvision.inspection.recovery: a whole small study, its scores as by hand, and what stands for planted."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import cluster, fanout, grid
from eegvision.analyses.channels import Noise, channel_changes, samples_of
from eegvision.analyses.suppression import Fast
from eegvision.config import RunConfig
from eegvision.evaluate import planted
from eegvision.evaluate import saliency as scoring
from eegvision.evaluate.planted import Found
from eegvision.ingest import pieces, responses, simulate, stimuli
from eegvision.inspection import recovery, recovery_page
from eegvision.inspection.opened import Bench, Opened, open_run
from eegvision.inspection.recovery import run_recovery, scores_of
from eegvision.inspection.recovery_settings import RecoverySettings
from eegvision.inspection.recovery_truth import ARMS, EARLY_S, QUANTITIES, low_level, masks_of, projections, sized
from eegvision.stream import RESIZE
from eegvision.vocab import InputError, RunInUseError

NAME = "planted"
SMALL = RecoverySettings(seeds=1, channels=16, subjects=2, classes=5, images_per_class=10, draws=1)
BASE = RunConfig().with_overrides(
    {
        "data.val_fraction": 0.2, "data.test_fraction": 0.1, "eeg.encoder": "tsconv", "eeg.embed_dim": 16,
        "image.embed_dim": 16, "image.size_px": 32, "loss.name": "info_nce", "train.max_passes": 2,
        "train.patience": None, "train.batch_size": 32,
    }
)  # fmt: skip


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
    """`fanout.spread` without Ray."""
    yield from map(work, items)


@pytest.fixture(scope="module", autouse=True)
def alone(session_home: Path) -> Iterator[Path]:
    """Nothing of Ray, and maps that are good enough for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", lambda: None)
        patch.setattr(cluster, "size", lambda: (1.0, 0.0))
        patch.setattr(cluster, "is_connected", lambda: False)
        patch.setattr(grid, "spread", one_by_one)
        patch.setattr(recovery, "Fast", lambda: Fast(fidelity=0.5))
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # models this small are not worth more, and threads that wait keep others waiting
        yield session_home
        torch.set_num_threads(n_threads)


def studied(settings: RecoverySettings = SMALL, base: RunConfig = BASE, said: list[str] | None = None) -> Path:
    return run_recovery(NAME, base, settings=settings, say=(lambda _: None) if said is None else said.append)


@pytest.fixture(scope="module")
def study(alone: Path) -> tuple[Path, str]:
    """A whole study of one recording, and what it said."""
    said: list[str] = []
    folder = studied(said=said)
    assert folder == alone / "runs" / NAME / "recovery"
    return folder, "\n".join(said)


def found_in(folder: Path) -> fanout.Results:
    (own,) = folder.glob("seed-0.*")
    return fanout.results(own)


def opened_arm(arm: str) -> Opened:
    number = ARMS.index(arm) + 1  # type: ignore[arg-type]
    return open_run(NAME, trial=number, side="val", purpose="a test", say=lambda _: None)


# ---- the whole study


def test_a_study_leaves_a_page_with_table_and_figures(study):
    folder, said = study
    page = (folder / "report.html").read_text()
    table = (folder / "table.txt").read_text()
    assert table in said
    assert str(folder / "report.html") in said
    for expected in ("planted: 3 trainings, 1 recordings", "9 parts in"):
        assert expected in said
    assert table.startswith("What was planted, and what the analyses find: 1 recording, means over them")
    for quantity in QUANTITIES:
        assert quantity.title in table
        assert quantity.says.replace("'", "&#x27;") in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "1 simulated recording, 2 subjects, 16 channels, 50 pictures of 5 classes" in page
    for name in ("scores", "scalps", "maps"):
        assert {path.suffix for path in (folder / "figures").glob(f"{name}.*")} == {".svg", ".pdf", ".png", ".csv"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0]
    assert set(summary["quantities"]) == {quantity.key for quantity in QUANTITIES}
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(QUANTITIES) * len(ARMS)
    for row in rows:
        known = summary["quantities"][row["quantity"]][row["arm"]]
        assert float(row["value"]) == pytest.approx(known["value"], abs=1e-5)
        assert [float(row["low"]), float(row["high"])] == pytest.approx(known["interval"], abs=1e-5)
    spooled = "".join(file.read_text() for file in (folder.parent / "spool").glob("*.jsonl"))
    assert "report.html" in spooled
    assert ".lock" not in spooled
    assert ".npz" not in spooled


def test_the_same_command_shows_what_is_there(study, monkeypatch):
    folder, _ = study
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".csv", ".txt", ".npz")}
    monkeypatch.setattr(grid, "_fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(recovery, "_prepare", lambda *_: pytest.fail("looked into again"))
    monkeypatch.setattr(recovery_page, "_draw", lambda *_: dict.fromkeys(("scores", "scalps", "maps"), Path(__file__)))
    said: list[str] = []
    assert studied(said=said) == folder
    assert (folder / "table.txt").read_text() in "\n".join(said)
    assert {path: path.read_bytes() for path in before} == before


def test_another_study_of_the_same_name_is_refused(study):
    assert study[0].exists()
    for settings, base, message in (
        (dataclasses.replace(SMALL, draws=2), BASE, "draws was 1, now 2"),
        (dataclasses.replace(SMALL, first_seed=4), BASE, "first_seed was 0, now 4"),
        (SMALL, BASE.with_overrides({"train.max_passes": 3}), "base was"),
    ):
        with pytest.raises(RunInUseError, match=message):
            studied(settings, base)
    with pytest.raises(InputError, match="'planted-0' is another recording; give this study another --name"):
        recovery._simulate("planted-0", dataclasses.replace(recovery._recording(SMALL, 0), snr=0.1), lambda _: None)


def test_more_recordings_join_and_leave_the_others_as_they_are(study, monkeypatch):
    folder, _ = study
    asked: list[grid.Cell] = []

    def noted(cells: Sequence[grid.Cell], *_: Any, **__: Any) -> None:
        asked.extend(cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "_simulate", lambda *_: None)
    monkeypatch.setattr(grid, "fit_all", noted)
    with pytest.raises(KeyboardInterrupt):
        studied(dataclasses.replace(SMALL, seeds=2))
    assert [cell.key for cell in asked] == [f"{arm}-{seed}" for seed in (0, 1) for arm in ARMS]
    trial = json.loads((folder.parent / "trials" / "shuffled-0" / "trial.json").read_text())
    assert (trial["number"], trial["fingerprint"]) == (3, asked[2].config.fingerprint())


@pytest.mark.parametrize(
    ("settings", "base", "message"),
    [
        ({"channels": 4}, {}, "n_chans is 4; expected 8 to 128"),
        ({"classes": 1}, {}, "n_classes is 1"),
        ({}, {"loss.name": "eeg-classes", "train.metric": None}, "loss.name is 'eeg-classes', which knows one side"),
        ({}, {"image.encoder": "random-codebook", "image.size_px": None}, "which runs no network from pixels"),
        ({}, {"data.control": "shuffled-pairs"}, "data.control is 'shuffled-pairs'; leave it out"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_the_name_is_taken(alone, settings, base, message):
    config = RunConfig() if "loss.name" in base else BASE
    with pytest.raises(InputError, match=message):
        run_recovery(
            "refused", config.with_overrides(base), settings=dataclasses.replace(SMALL, **settings), say=print
        )  # fmt: skip
    assert not (alone / "runs" / "refused").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("seeds", 0), ("first_seed", -1), ("snr", 0.0), ("images_per_class", 9), ("draws", 0)]
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        RecoverySettings(**{name: value})


# ---- models and controls


def test_arms_differ_in_what_they_learn_alone():
    trained, untrained, shuffled = (recovery._cell(NAME, BASE, arm, 3).config for arm in ARMS)
    for config in (trained, untrained, shuffled):
        assert (config.data.dataset, config.seed) == ("planted-3", 3)
    assert trained.with_overrides({"optim.lr": 1e-12, "train.max_passes": 2}) == untrained
    assert trained.with_overrides({"data.control": "shuffled-pairs"}) == shuffled


def test_trained_models_move_and_shuffled_ones_are_looked_at_with_true_pictures(study):
    assert study[0].exists()
    models = {arm: opened_arm(arm).load() for arm in ARMS}
    drawn = dict(models["untrained"].named_parameters())
    moved = {
        arm: max(float((own - drawn[name]).detach().abs().max()) for name, own in model.named_parameters())
        for arm, model in models.items()
    }
    # The same seed drew the weights of all three.
    assert moved["trained"] > 1e-3
    assert moved["shuffled"] > 1e-3
    benches = {arm: Bench(opened_arm(arm)) for arm in ARMS}
    assert models["shuffled"].config.data.control == "shuffled-pairs"
    for image in benches["trained"].image_M.tolist():
        rows = [bench.rows_of(image).tolist() for bench in benches.values()]
        assert rows[0] == rows[1] == rows[2]


# ---- what is computed of a model


@torch.no_grad()
def test_changes_are_means_of_each_pictures_segments_whatever_the_chunks(study, monkeypatch):
    found = found_in(study[0]).read("channels.trained")
    bench = Bench(opened_arm("trained"))
    manifest = bench.store.manifest
    assert found["change_MKCD"].shape == (len(bench.image_M), 4, 16, 16)
    image = int(bench.image_M[3])
    row_N = bench.rows_of(image)
    eeg_BCT, subject_B = bench.eeg(row_N)
    ids = bench.store.segment_id_N[row_N].tolist()
    place = {"t_min_s": manifest.t_min_s, "sfreq_hz": manifest.sfreq_hz, "n_times": manifest.n_times}
    noise = Noise(sfreq_hz=manifest.sfreq_hz, n_draws=1)
    for stretch, samples in ((0, None), (2, samples_of(EARLY_S, **place))):
        change = channel_changes(
            bench.model, eeg_BCT, ids, manifest.channels, noise, samples=samples, subject_B=subject_B
        )  # fmt: skip
        expected_CD = change.change_BRCD.double().mean((0, 1)).numpy()
        scale = np.abs(expected_CD).max()
        np.testing.assert_allclose(found["change_MKCD"][3, stretch], expected_CD, atol=1e-4 * scale)
    image_MD = bench.image_embeddings(bench.image_M).double().numpy()
    expected_MKC = found["change_MKCD"] @ (image_MD - image_MD.mean(0))[:, None, :, None]
    np.testing.assert_allclose(found["importance_MKC"], expected_MKC[..., 0], atol=1e-9)
    monkeypatch.setattr(recovery, "_SEGMENTS", 7)
    again_MKCD = recovery._changes(bench, SMALL).numpy()
    np.testing.assert_allclose(again_MKCD, found["change_MKCD"], atol=1e-4 * np.abs(again_MKCD).max())


@torch.no_grad()
def test_responses_are_those_of_every_picture_in_the_order_of_the_store(study, monkeypatch):
    found = found_in(study[0]).read("association.trained")
    bench = Bench(opened_arm("trained"))
    number = len(found["layers"]) - 1
    name = str(found["layers"][number])
    assert found[f"response_{number}"].shape[0] == len(bench.store.image_id_M) == 50
    monkeypatch.setattr(recovery, "_SEGMENTS", 7)
    np.testing.assert_allclose(recovery._responses(bench, name, 1), found[f"response_{number}"], rtol=1e-4, atol=1e-6)
    assert found["effect_0"].shape[::2] == (len(bench.image_M), 16)


def test_scores_are_those_of_the_arrays_against_the_truth(study):
    found, opened = found_in(study[0]), opened_arm("shuffled")
    scores = scores_of(found, opened, 0)
    assert list(scores) == [quantity.key for quantity in QUANTITIES]
    bench = Bench(opened)
    truth = bench.store.manifest.truth
    projection = projections(truth, bench.store.manifest.channels)
    importance_MKC = found.read("channels.shuffled")["importance_MKC"]
    mean_KC = importance_MKC.mean(axis=0)
    for key, stretch, group in (
        ("channels/all", 0, "all"),
        ("channels/early", 2, "occipital"),
        ("channels/late", 3, "temporal"),
    ):
        expected = planted.rank_correlation(mean_KC[stretch], projection[group])
        assert scores[key].value == pytest.approx(expected), key
    before_M, late_M = importance_MKC[:, 1].sum(axis=1), importance_MKC[:, 3].sum(axis=1)
    assert scores["intervals/late"].value == pytest.approx((late_M[:, None] > before_M).mean())
    maps = found.read("saliency.shuffled")
    ids = maps["image_id_M"].tolist()
    assert ids == bench.store.image_id_M[bench.image_M].tolist()
    masks = masks_of(truth, ids, 32)
    expected = [
        scoring.nss(map_HW, np.argwhere(masks[image_id])).mean()
        for image_id, map_HW in zip(ids, maps["map_MHW"], strict=True)
    ]
    assert scores["saliency/nss"].value == pytest.approx(np.mean(expected))
    assert all(-1 <= scores[f"association/{kind}"].value <= 1 for kind in ("time", "scalp"))
    # The same pictures are drawn for every model, so that differences are paired.
    itself = scores_of(found, opened, 0)
    assert all(np.array_equal(scores[key].drawn_R, itself[key].drawn_R) for key in scores)


# ---- the truth


def test_projections_are_those_of_the_groups_and_together_weighed_by_their_shares():
    names = [group.name for group in responses.GROUPS]
    value = {names[0]: [1.0, 0.5, 0.1], names[1]: [0.2, 1.0, 0.4], names[2]: [0.3, 0.3, 1.0]}
    truth = {
        "groups": {
            name: {"projection": dict(zip(("a", "b", "c"), own, strict=True))} for name, own in value.items()
        }
    }  # fmt: skip
    found = projections(truth, ("c", "a"))
    assert found[names[0]].tolist() == [0.1, 1.0]
    expected = [
        sum(
            (group.share * value[group.name][row]) ** 2
            / np.mean([value[group.name][other] ** 2 for other in (2, 0)])
            for group in responses.GROUPS
        )
        ** 0.5
        for row in (2, 0)
    ]  # fmt: skip
    assert found["all"] == pytest.approx(expected)
    assert np.sqrt((sized(np.array([3.0, 4.0])) ** 2).mean()) == pytest.approx(1.0)


@pytest.mark.parametrize(("image_px", "size_px"), [(32, 32), (80, 64), (80, 224)])
def test_masks_are_where_the_object_is_in_the_crop(image_px, size_px):
    scenes = {f"p{n}": stimuli.make_scene(0, label, n) for n, label in enumerate((0, 1, 2, 3))}
    truth = {"images": {name: scene.truth() for name, scene in scenes.items()}, "options": {"image_px": image_px}}
    masks = masks_of(truth, list(scenes), size_px)
    side_px = round(RESIZE * size_px)
    margin = round((side_px - size_px) / 2)
    for name, scene in scenes.items():
        # The mask as if it were the picture, on the way that pictures take to the model.
        shown_HH3 = (
            np.repeat(stimuli.object_mask(scene.truth(), image_px)[:, :, None], 3, axis=2).astype(np.uint8) * 255
        )
        seen_HH = pieces.square(shown_HH3, side_px)[0]
        seen_HW = seen_HH[margin : margin + size_px, margin : margin + size_px] > 127
        assert masks[name].shape == (size_px, size_px)
        assert np.mean(masks[name] == seen_HW) > 0.99, "but for edges that lie half way"
        assert 0.01 < masks[name].mean() < 0.4
        centre = masks[name].nonzero()
        place = np.array([(scene.row * image_px, scene.column * image_px)])
        (expected,) = scoring.in_crop(place, (image_px, image_px), size_px, RESIZE)
        assert np.abs([axis.mean() for axis in centre] - expected).max() < 0.12 * size_px


def test_low_level_properties_are_features_places_and_their_products():
    truth = simulate.simulate(simulate.PRESETS["tiny"], "tiny").header.truth
    ids = list(truth["images"])[:3]
    found_QL = low_level(truth, ids)
    own = truth["images"][ids[2]]
    feature = np.array(list(own["features"].values()))
    assert found_QL.shape == (3, 3 * len(feature) + 2)
    expected = [*feature, own["row"], own["column"], *(feature * own["row"]), *(feature * own["column"])]
    assert found_QL[2] == pytest.approx(expected)


# ---- table and verdict


def made(value: float, spread: float = 0.0) -> Found:
    return Found(value=value, drawn_R=value + spread * np.linspace(-1, 1, 101))


def scores_with(key: str, *seeds: tuple[Found, Found, Found]) -> recovery_page.Scores:
    """Scores in which everything but one quantity is at chance."""
    return {
        seed: {
            arm: {quantity.key: made(quantity.chance) for quantity in QUANTITIES} | {key: own}
            for arm, own in zip(ARMS, arms, strict=True)
        }
        for seed, arms in enumerate(seeds)
    }


@pytest.mark.parametrize(
    ("seeds", "is_recovered"),
    [
        ([(0.5, 0.0, 0.1)], True),
        ([(0.5, 0.0, 0.1), (0.4, -0.1, 0.0)], True),
        ([(0.5, 0.0, 0.1), (0.4, 0.4, 0.0)], False),
        ([(0.5, 0.0, 0.6)], False),
        ([(-0.1, -0.5, -0.6)], False),  # above both controls, and still below chance
    ],
)
def test_recovered_is_what_beats_both_controls_and_chance_in_every_seed(seeds, is_recovered):
    scores = scores_with("channels/all", *((made(one), made(two), made(three)) for one, two, three in seeds))
    assert recovery_page.is_recovered(scores, "channels/all") is is_recovered
    assert recovery_page.is_recovered(scores, "channels/late") is False


def test_a_difference_within_its_interval_is_not_recovered():
    sure = scores_with("saliency/nss", (made(0.5, 0.3), made(0.3), made(0.0)))
    assert recovery_page.is_recovered(sure, "saliency/nss") is False
    # What all models share of the draws is no doubt about their difference.
    paired = scores_with("saliency/nss", (made(0.5, 0.3), made(0.3, 0.3), made(0.0, 0.3)))
    assert recovery_page.is_recovered(paired, "saliency/nss") is True


def test_the_table_tells_means_the_nearer_control_and_seeds_that_won():
    scores = scores_with(
        "saliency/nss", (made(1.0), made(0.2), made(0.4)), (made(0.8), made(0.2), made(0.9))
    )  # fmt: skip
    lines = recovery_page.table(scores).splitlines()
    assert "2 recordings" in lines[0]
    (row,) = (line for line in lines if line.startswith("Saliency on objects, NSS"))
    said = "0 0.90 [0.90, 0.90] 0.20 [0.20, 0.20] 0.65 [0.65, 0.65] +0.25 [0.25, 0.25] 1 of 2"
    assert " ".join(row.split()).endswith(f"NSS {said}")
    (row,) = (line for line in lines if line.startswith("Channels: all sources"))
    assert " ".join(row.split()).endswith("+0.00 [0.00, 0.00] 0 of 2")
