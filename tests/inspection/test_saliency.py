"""eegvision.inspection.saliency: maps and tables as by hand, whatever the chunks; other detectors; what is refused."""

import csv
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from eegvision import cluster, fanout, stream
from eegvision.analyses import interpolated, suppression
from eegvision.analyses.suppression import SCALES_PX, saliency_map
from eegvision.assess.embedding import open_store
from eegvision.assess.selected import Selected
from eegvision.config import EegConfig, LossConfig, RunConfig
from eegvision.evaluate import saliency as scoring
from eegvision.evaluate.probes import Probe
from eegvision.ingest import assemble, shards, simulate
from eegvision.inspection import saliency, saliency_tables
from eegvision.inspection.opened import Bench, Opened, open_run
from eegvision.inspection.saliency import chosen, run_saliency, scales_of, spread_over_classes, why_no_classes
from eegvision.inspection.saliency_settings import SaliencySettings
from eegvision.inspection.saliency_tables import Scene, checked_detectors, detector_map
from eegvision.vocab import InputError, Stimulus

SMALL = SaliencySettings(engine="exact", scales_px=(9,), pictures=4, shown=2, triplets=1)
PX = 32  # side of the pictures that the tiny run's model sees


@pytest.fixture(autouse=True)
def alone(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny run, looked at without Ray and from the beginning."""
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "size", lambda: (1.0, 0.0))
    monkeypatch.setattr(cluster, "is_connected", lambda: False)
    shutil.rmtree(tiny_run / "saliency", ignore_errors=True)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small is not worth more, and threads that wait keep others waiting
    yield tiny_run
    torch.set_num_threads(n_threads)
    shutil.rmtree(tiny_run / "saliency", ignore_errors=True)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take longest."""
    monkeypatch.setattr(saliency_tables, "_draw", lambda *_: None)


def mapped(settings: SaliencySettings = SMALL, said: list[str] | None = None) -> Path:
    say = (lambda _: None) if said is None else said.append
    return run_saliency("tiny-run", trial=None, side="val", settings=settings, say=say)


def opened_run() -> Opened:
    return open_run("tiny-run", trial=None, side="val", purpose="a test", say=lambda _: None)


def scene_of(n: int = 4, dataset: str = "tiny", **data: Any) -> Scene:
    """The scene that `SMALL` makes of a data set."""
    config = RunConfig().with_overrides(
        {"data.dataset": dataset, "data.val_fraction": 0.25, "data.test_fraction": 0.25}
    )
    store = open_store(replace(config, data=replace(config.data, **data)), has_pictures=False)
    image_M = chosen(store, "val", replace(SMALL, pictures=n))
    return Scene(
        store=store, image_M=image_M, triplet_M=image_M[:1], size_px=PX, scales_px=(9,), dataset=dataset
    )  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """What must be the same byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".csv", ".tex", ".txt", ".npy", ".npz") or path.name == "summary.json"
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- maps


@torch.no_grad()
@pytest.mark.usefixtures("undrawn")
def test_maps_are_those_of_the_mean_segment_and_of_the_true_class(alone):
    folder = mapped(replace(SMALL, pictures=2, scales_px=(5, 9)))
    assert folder.parent == alone / "saliency"
    found, bench = fanout.results(folder), Bench(opened_run())
    probe, scene = saliency._fit_probe(opened_run()), scene_of(2)
    assert (folder / "maps" / "pictures.txt").read_text().split() == [scene.name(m) for m in scene.image_M.tolist()]
    image = int(scene.image_M[1])
    arrays, pixel_3HW = found.read(f"map-{image:06d}"), bench.pixels(np.array([image]))[0]
    row_N = bench.rows_of(image)
    phi_ND, subject_N = bench.model.encode_eeg(*bench.eeg(row_N)), bench.store.subject_N[row_N]
    subjects = sorted(set(subject_N))
    assert len(subjects) == 2 < len(row_N)
    mean_UD = torch.stack([phi_ND[torch.from_numpy(subject_N == subject)].mean(0) for subject in subjects])

    # F is linear in the segment: one map of the mean is the mean of the subjects' maps before they are normed.
    each = saliency_map(bench.model, mean_UD, pixel_3HW, scales_px=(5, 9), engine="exact")
    drop_SHW = each.drop_NSHW.mean(axis=0)
    np.testing.assert_allclose(arrays["drop_eeg"], drop_SHW, atol=2e-5 * np.abs(drop_SHW).max())
    total_HW = drop_SHW.astype(np.float64).sum(axis=0)
    expected_HW = (total_HW - total_HW.min()) / np.ptp(total_HW)
    np.testing.assert_allclose(arrays["map_eeg"], expected_HW, atol=2e-4)
    kept_MHW = np.load(folder / "maps" / "neural-driven.npy")
    assert np.array_equal(kept_MHW[1], arrays["map_eeg"])

    def log_likelihood(shown_3HW: torch.Tensor) -> float:
        class_score_K = probe.class_scores(bench.model.encode_image(shown_3HW[None]).numpy())[0]
        number = probe.class_K.tolist().index(int(bench.store.label_M[image]))
        return float(class_score_K[number] - np.log(np.exp(class_score_K).sum()))

    assert float(arrays["score_class"]) == pytest.approx(log_likelihood(pixel_3HW), abs=1e-4)
    without_3HW = pixel_3HW.clone()
    without_3HW[:, 10 - 4 : 10 + 5, 20 - 4 : 20 + 5] = 0
    fall = log_likelihood(pixel_3HW) - log_likelihood(without_3HW)
    assert arrays["drop_class"][1, 10, 20] == pytest.approx(fall, abs=1e-4)
    assert np.array_equal(np.load(folder / "maps" / "classifier-driven.npy")[1], arrays["map_class"])


def test_subjects_count_alike_however_many_segments_they_have(monkeypatch):
    bench = Bench(opened_run())
    image = int(bench.image_M[0])
    row_N = bench.rows_of(image)
    first = bench.store.subject_N[row_N] == bench.store.subject_N[row_N][0]
    fewer_N = np.concatenate([row_N[first][:1], row_N[~first]])
    assert len(fewer_N) < len(row_N)
    monkeypatch.setattr(bench, "rows_of", lambda _: fewer_N)
    arrays = saliency._maps(bench, SMALL.maps, None, image)
    with torch.no_grad():
        phi_ND = bench.model.encode_eeg(*bench.eeg(fewer_N))
        theta_D = bench.image_embeddings(np.array([image]))[0]
    expected = (phi_ND[0] + phi_ND[1:].mean(0)) / 2 @ theta_D
    assert float(arrays["score_eeg"]) == pytest.approx(float(expected), abs=1e-5)
    assert int(arrays["n_segments"]) == len(fewer_N)
    assert set(arrays) == {"n_segments", "n_subjects", "map_eeg", "drop_eeg", "score_eeg", "n_evaluations"}


@pytest.mark.usefixtures("undrawn")
def test_neither_order_nor_interruption_change_any_file(monkeypatch):
    folder = mapped()
    whole = files_of(folder)
    assert sum(name.endswith(".npz") for name in whole) == 5, "four maps, one scalp"
    shutil.rmtree(folder)
    maps, n_maps = saliency._maps, [0]

    def stops(*args: Any) -> Any:
        n_maps[0] += 1
        if n_maps[0] == 3:
            raise KeyboardInterrupt
        return maps(*args)

    chunks_of = saliency._chunks
    monkeypatch.setattr(saliency, "_maps", stops)
    monkeypatch.setattr(saliency, "_chunks", lambda *given: chunks_of(*given)[::-1])
    with pytest.raises(KeyboardInterrupt):
        mapped()
    assert len(fanout.results(folder).keys) == 3, "the scalp and two maps"
    said: list[str] = []
    resumed = files_of(mapped(said=said))
    assert n_maps[0] == 5
    # Fitting classifiers is deterministic on one machine; nothing else could differ.
    assert resumed == whole
    assert any("going on in" in line for line in said)
    monkeypatch.setattr(saliency, "_probe_of", lambda *_: pytest.fail("nothing is left to compute"))
    assert files_of(mapped()) == whole
    assert n_maps[0] == 5


def test_figures_are_drawn_and_every_line_says_something(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(suppression, "_CHEAP_FLOP", 0)  # this network gets every pixel otherwise
    said: list[str] = []
    scene = scene_of()
    write_maps(tmp_path / "GBVS+", scene, lambda image_id: np.random.default_rng(len(image_id)).random((8, 8)))
    settings = replace(SMALL, detectors=tmp_path, engine="fast", fidelity=0.6)
    folder = mapped(settings, said)
    for name in ("figure_3_scales", "figure_5_maps", "figure_8_triplets"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000, name
    shown = {(row["image"], row["map"]) for row in rows_of(folder / "figures" / "figure_5_maps.csv")}
    assert {name for _, name in shown} == {"human gaze", "GBVS+", "classifier-driven", "neural-driven"}
    text = "\n".join(said)
    for expected in (
        "saliency of 4 pictures of the val side, 32 px, engine fast, squares of 9 px",
        "fitting a classifier",
        "neural-driven: maps agree with exact ones, r = ",
        "classifier-driven: maps agree",
        "figure_3_scales: squares that add little to the sum are interpolated",
        "Table IV",
        "centre: a Gaussian about the centre",
        "one viewer: gaze of all viewers but one",
        "with --engine exact every pixel is computed",
        str(folder),
    ):
        assert expected in text, expected
    spooled = "".join(file.read_text() for file in (alone / "spool").glob("*.jsonl"))
    assert '"eegvision.kind": "saliency"' in spooled
    assert "saliency/GBVS_/nss" in spooled, "MLflow takes no +"
    assert not any(f"maps/{name}.npy" in spooled for name in ("neural-driven", "GBVS+"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["n_pictures"] == 4
    assert set(summary["scores"]) == {"neural-driven", "classifier-driven", "GBVS+", "centre", "one viewer", "human"}
    assert 0 < summary["agreement"]["neural-driven/least_r"] <= 1

    # Without the detector nothing of it is left behind.
    monkeypatch.setattr(saliency_tables, "_draw", lambda *_: None)
    mapped(replace(settings, detectors=None), said)
    assert not (folder / "maps" / "GBVS+.npy").exists()
    assert "GBVS+" not in (folder / "table_iv.txt").read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("is_limited", [True, False])
def test_maps_that_are_less_alike_than_asked_are_told(monkeypatch, is_limited):
    monkeypatch.setattr(suppression, "_CHEAP_FLOP", 0)  # this network gets every pixel otherwise
    if is_limited:
        monkeypatch.setattr(interpolated, "_MOST_PLACES", 200)
    said: list[str] = []
    mapped(replace(SMALL, engine="fast", fidelity=0.99 if is_limited else 0.2, scales_px=(5, 9)), said)
    told = re.findall(
        r"(\S+): (\d) of 4 maps did not reach r = 0.99, which was asked for; --engine exact", "\n".join(said)
    )
    assert (len(told) == 2) is is_limited
    assert all(int(n) > 0 for _, n in told)


def test_the_seed_draws_the_pixels_that_fast_maps_are_held_against(monkeypatch):
    monkeypatch.setattr(suppression, "_CHEAP_FLOP", 0)  # this network gets every pixel otherwise
    bench = Bench(opened_run())
    image = int(bench.image_M[0])
    settings = replace(SMALL, engine="fast", fidelity=0.5)
    first, again, other = (
        saliency._maps(bench, replace(settings, seed=seed).maps, None, image) for seed in (0, 0, 1)
    )  # fmt: skip
    assert np.array_equal(first["map_eeg"], other["map_eeg"])
    assert np.array_equal(first["agreement_eeg"], again["agreement_eeg"])
    assert not np.array_equal(first["agreement_eeg"], other["agreement_eeg"])


# ---- which pictures, which scales


def test_scales_are_palazzos_or_the_same_share_of_smaller_pictures():
    assert scales_of(None, 224) == scales_of(None, 299) == SCALES_PX
    assert scales_of(None, 64) == (1, 3, 5, 9, 19)
    assert all(scale_px % 2 for size_px in range(16, 224) for scale_px in scales_of(None, size_px))
    assert scales_of((7,), 32) == (7,)


def test_chosen_pictures_are_balanced_and_the_same_every_time():
    store = scene_of().store
    image_M = np.unique(store.image_N[store.split.rows["val"]])
    n_classes = len(np.unique(store.label_M[image_M]))
    assert n_classes == 5 < len(image_M)
    for n in (3, 5, 7):
        found = spread_over_classes(store, image_M, n, 0)
        assert len(found) == n
        assert np.all(np.diff(found) > 0)
        assert np.isin(found, image_M).all()
        assert np.ptp(np.bincount(store.label_M[found], minlength=n_classes)) <= 1
        assert np.array_equal(found, spread_over_classes(store, image_M, n, 0))
    assert len({tuple(spread_over_classes(store, image_M, 5, seed)) for seed in range(5)}) > 1
    assert np.array_equal(spread_over_classes(store, image_M, 99, 0), image_M)
    assert len(spread_over_classes(store, image_M, 0, 0)) == 0


def test_pictures_can_be_named_and_near_names_are_told():
    store = scene_of().store
    names = store.image_id_M[np.unique(store.image_N[store.split.rows["val"]])].tolist()
    picked = chosen(store, "val", SaliencySettings(images=(names[3], names[0], names[3])))
    assert store.image_id_M[picked].tolist() == [names[0], names[3]]
    assert store.image_id_M[chosen(store, "val", SaliencySettings())].tolist() == names
    wrong = names[2].replace("-0", "-9")
    with pytest.raises(InputError, match=rf"picture '{wrong}' is not shown on the val side of 'tiny', .*{names[2]}"):
        chosen(store, "val", SaliencySettings(images=(wrong,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelity": 1.0}, "fidelity is 1.0"),
        ({"scales_px": (4,)}, r"scales_px is \(4,\); expected odd sides"),
        ({"scales_px": (3, 3)}, "name every scale once"),
        ({"scales_px": ()}, "expected odd sides"),
        ({"seed": -1}, "seed is -1"),
        ({"pictures": 0}, "pictures is 0"),
        ({"shown": 0}, "shown is 0"),
        ({"triplets": -1}, "triplets is -1"),
        ({"gaze_sigma": 0.0}, "gaze_sigma is 0.0"),
        ({"images": ("a",), "pictures": 3}, "both given"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SaliencySettings(**settings)


# ---- the class baseline


@pytest.mark.usefixtures("undrawn")
def test_the_baseline_is_left_out_where_classes_are_unknown(monkeypatch):
    store_of = Selected.store_of

    def unlabelled(self, *args: Any, **more: Any) -> stream.Store:
        store = store_of(self, *args, **more)
        return replace(store, label_M=np.full_like(store.label_M, -1), label_N=np.full_like(store.label_N, -1))

    monkeypatch.setattr(Selected, "store_of", unlabelled)
    said: list[str] = []
    folder = mapped(replace(SMALL, pictures=2), said)
    note = "no maps of the likelihood of the class (classifier-driven): the data set does not say the class"
    assert sum(note in line for line in said) == 2, "before the maps are made, and at the end"
    assert not (folder / "maps" / "classifier-driven.npy").exists()
    assert any(note in own for own in json.loads((folder / "summary.json").read_text())["notes"])


def test_why_there_are_no_classes():
    scene = scene_of()
    store, image_M = scene.store, scene.image_M
    assert why_no_classes(store, image_M) is None
    images = {side: np.unique(store.image_N[store.split.rows[side]]) for side in ("train", "val")}

    def labelled(side: str, label: int, where: int | None = None) -> stream.Store:
        label_M = store.label_M.copy()
        own = images[side] if where is None else images[side][label_M[images[side]] == where]
        label_M[own] = label
        return replace(store, label_M=label_M)

    lost = int(store.label_M[image_M[0]])
    name = store.manifest.classes[lost]
    assert f"no training picture shows {name!r}" in (why_no_classes(labelled("train", -1, lost), image_M) or "")
    one = image_M[store.label_M[image_M] == lost]
    assert "show one class" in (why_no_classes(labelled("train", lost), one) or "")
    assert "no validation picture" in (why_no_classes(labelled("val", -1), images["train"]) or "")


# ---- other detectors


def write_maps(folder: Path, scene: Scene, map_of: Any, suffix: str = ".npy") -> None:
    folder.mkdir()
    for image in scene.image_M.tolist():
        write_map(folder / f"{scene.name(image)}{suffix}", map_of(scene.name(image)))


def write_map(path: Path, map_HW: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, map_HW)
    else:
        Image.fromarray((255 * map_HW).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def wide(session_home: Path) -> tuple[str, dict[str, tuple[tuple[int, int], tuple[int, int]]]]:
    """A data set of pictures of several shapes, black but for a white spot: shape and the spot's centre by id."""
    recording = simulate.simulate(simulate.PRESETS["tiny"], "wide")
    spots: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    stimuli = []
    for n, stimulus in enumerate(recording.stimuli):
        shape = ((60, 60), (60, 97), (83, 60))[n % 3]
        row, column = (side // 2 + (8 + n % 7) * (-1) ** (n + axis) for axis, side in enumerate(shape))
        picture = np.zeros((*shape, 3), dtype=np.uint8)
        picture[row - 2 : row + 3, column - 2 : column + 3] = 255
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        spots[stimulus.image_id] = shape, (row, column)
        stimuli.append(Stimulus(**vars(stimulus) | {"encoded": file.getvalue()}))
    changed = dataclasses.replace(recording, stimuli=stimuli, fixations=())
    assemble.write(session_home / "datasets" / "wide", changed)
    return "wide", spots


@pytest.mark.parametrize(("suffix", "times"), [(".npy", 1), (".png", 1), (".jpg", 2), (".jpeg", 1), (".npy", 3)])
def test_maps_of_detectors_are_cut_as_the_pictures_are(wide, tmp_path, suffix, times):
    dataset, spots = wide
    scene = scene_of(9, dataset)
    folder = tmp_path / "Other"
    folder.mkdir()
    shapes = set()
    for image in scene.image_M.tolist():
        shape, (row, column) = spots[scene.name(image)]
        shapes.add(shape)
        map_HW = np.zeros(shape)
        map_HW[row - 2 : row + 3, column - 2 : column + 3] = 1.0
        write_map(folder / f"{scene.name(image)}{suffix}", np.kron(map_HW, np.ones((times, times))))
    assert len(shapes) == 3
    assert checked_detectors(tmp_path, scene) == {"Other": folder}
    for image in scene.image_M.tolist():
        shape, (row, column) = spots[scene.name(image)]
        (expected,) = scoring.in_crop(np.array([(row + 0.5, column + 0.5)]), shape, PX, stream.RESIZE)
        found_HW = detector_map(folder, scene, image)
        assert (found_HW.dtype, found_HW.shape) == (np.float32, (PX, PX))
        for seen_HW in (found_HW, scene.colours(image).astype(float).sum(axis=2)):
            seen_HW = seen_HW - np.median(seen_HW)
            seen_HW[seen_HW < 0.3 * seen_HW.max()] = 0
            weight_HW = seen_HW / seen_HW.sum()
            centre = [(weight_HW.sum(axis=1 - axis) * (np.arange(PX) + 0.5)).sum() for axis in (0, 1)]
            assert np.abs(np.array(centre) - (expected + 0.5)).max() < 0.75, (shape, suffix)


def test_maps_that_do_not_fit_are_refused_in_one_message_each(tmp_path):
    scene = scene_of(2)
    first = scene.name(int(scene.image_M[0]))
    with pytest.raises(InputError, match="absent holds no folder of maps"):
        checked_detectors(tmp_path / "absent", scene)
    (tmp_path / "file.txt").touch()
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(InputError, match="holds no folder of maps"):
        checked_detectors(tmp_path, scene)
    write_maps(tmp_path / "Other", scene, lambda _: np.ones((16, 16)))
    assert list(checked_detectors(tmp_path, scene)) == ["Other"]
    own = tmp_path / "Other" / f"{first}.npy"
    own.unlink()
    with pytest.raises(InputError, match=rf"Other has no map of picture '{first}' .*--images"):
        checked_detectors(tmp_path, scene)
    tinted = np.stack([np.ones((16, 16)), np.zeros((16, 16)), np.ones((16, 16))], axis=2)
    for map_HW, message in (
        (np.ones((16, 20)), r"has 16 x 20 pixels \(rows x columns\), its picture 32 x 32"),
        (np.full((16, 16), np.nan), "not finite"),
        (np.full((16, 16), 1e300), "not finite"),
        (np.ones((16, 16, 3)), r"float64 of shape \(16, 16, 3\); expected real numbers"),
        (np.ones((16, 16), dtype=complex), "complex128"),
        (np.ones((0, 16)), r"shape \(0, 16\)"),
        (np.array(["a"]), "<U1"),
    ):
        np.save(own, map_HW)
        with pytest.raises(InputError, match=message):
            checked_detectors(tmp_path, scene)
    for content in (b"", b"no array", b"\x93NUMPY\x01\x00"):
        own.write_bytes(content)
        with pytest.raises(InputError, match=f"{first}.npy cannot be read"):
            checked_detectors(tmp_path, scene)
    with own.open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(InputError, match="several arrays"):
        checked_detectors(tmp_path, scene)
    own.unlink()
    write_map(own.with_suffix(".png"), tinted)
    with pytest.raises(InputError, match="is in colour"):
        checked_detectors(tmp_path, scene)
    own.with_suffix(".png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be decoded"):
        checked_detectors(tmp_path, scene)
    for taken in ("centre", "human", "neural-driven", "classifier-driven", "one viewer"):
        (tmp_path / taken).mkdir()
        with pytest.raises(InputError, match=f"detector called '{taken}', which is a row of our own"):
            checked_detectors(tmp_path, scene)
        (tmp_path / taken).rmdir()


def test_nothing_is_computed_when_a_detector_does_not_fit(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(fanout, "compute", lambda *_, **__: pytest.fail("maps were begun"))
    with pytest.raises(InputError, match="holds no folder of maps"):
        mapped(replace(SMALL, detectors=tmp_path))
    assert not (alone / "saliency").exists()


# ---- gaze and the table


def gaze_table(rows: list[tuple[str, str, float, float]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table(dict(zip(("image_id", "viewer", "row_px", "column_px"), map(list, columns), strict=True)))


@pytest.mark.usefixtures("undrawn")
def test_table_iv_holds_the_scores_of_the_maps(tmp_path):
    scene = scene_of()
    write_maps(tmp_path / "SALICON", scene, lambda image_id: np.random.default_rng(len(image_id)).random((32, 32)))
    folder = mapped(replace(SMALL, detectors=tmp_path, gaze_sigma=0.1))
    by_viewer = scene.fixations()
    pooled = {name: np.concatenate([*own.values()]) for name, own in by_viewer.items()}
    assert set(pooled) == {scene.name(image) for image in scene.image_M.tolist()}
    names = (folder / "maps" / "pictures.txt").read_text().split()
    along = np.exp(-0.5 * ((np.arange(PX) - (PX - 1) / 2) / (0.25 * PX)) ** 2)
    centre_HW = np.outer(along, along)  # exactly symmetric: ties count half
    expected = {
        name: scoring.score_maps(dict(zip(names, np.load(folder / "maps" / f"{name}.npy"), strict=True)), pooled, 3.2)
        for name in ("neural-driven", "classifier-driven", "SALICON")
    }
    expected["centre"] = scoring.score_maps(dict.fromkeys(names, centre_HW), pooled, 3.2)
    expected["human"] = scoring.human_ceiling(by_viewer, (PX, PX), 3.2)
    expected["one viewer"] = scoring.human_ceiling(by_viewer, (PX, PX), 3.2, method="one-viewer-out")
    found = {(row["detector"], row["image"]): row for row in rows_of(folder / "scores.csv")}
    assert {name for name, _ in found} == set(expected)
    table = (folder / "table_iv.txt").read_text()
    for name, scores in expected.items():
        assert name in table
        for metric in scoring.METRICS:
            assert float(found[name, ""][metric]) == pytest.approx(scores.of(metric).mean(), abs=1e-5)
            for image_id, value in zip(scores.image_ids, scores.of(metric), strict=True):
                assert float(found[name, image_id][metric]) == pytest.approx(value, abs=1e-5)
    assert (folder / "table_iv.tex").exists()
    assert expected["human"].of("nss").mean() > expected["centre"].of("nss").mean()


def test_a_fixation_outside_its_picture_stops_before_any_map(alone, monkeypatch):
    scene = scene_of()
    image_id = scene.name(int(scene.image_M[0]))
    table = gaze_table([(image_id, "viewer-7", 5.0, 5.0), (image_id, "viewer-7", 5.0, 32.5)])
    monkeypatch.setattr(shards, "read_gaze", lambda *_: table)
    with pytest.raises(InputError, match=rf"gaze of viewer-7 on picture '{image_id}': fixation 1 at \(row 5.0, col"):
        mapped()
    assert not (alone / "saliency").exists()


@pytest.mark.usefixtures("undrawn")
def test_pictures_and_viewers_without_fixations_are_left_out_and_told(monkeypatch):
    names = [scene_of().name(image) for image in scene_of().image_M.tolist()]
    rows = [(name, viewer, 12.0 + 3 * n, 9.0 + 2 * n) for n, name in enumerate(names[:3]) for viewer in ("a", "b")]
    rows += [(names[3], "a", 0.2, 31.0), ("not-mapped", "a", 1.0, 1.0)]  # the crop leaves the picture's rim out
    for left, looked, n_scores in ((6, 3, 3), (5, 3, 2), (2, 1, None), (0, 0, None)):
        table = gaze_table(rows[:left] + rows[6:])
        monkeypatch.setattr(shards, "read_gaze", lambda *_, table=table: table)
        said: list[str] = []
        folder = mapped(replace(SMALL, baseline=False), said)
        text = "\n".join(said)
        if n_scores is None:
            assert not (folder / "table_iv.txt").exists()
            assert ("there is no gaze within the crop" if not looked else "1 of 4 pictures has gaze") in text
        else:
            assert f"{4 - looked} of 4 pictures have no gaze within the crop: they are not scored" in text
            scored = [row["image"] for row in rows_of(folder / "scores.csv") if row["detector"] == "one viewer"]
            assert scored == ["", *names[:n_scores]]
            assert ("one viewer alone looked" in text) is (n_scores == 2)
        for path in folder.glob("*.csv"):
            path.unlink()
        (folder / "table_iv.txt").unlink(missing_ok=True)


def test_without_gaze_there_are_maps_and_figures_but_no_table(monkeypatch):
    monkeypatch.setattr(shards, "read_gaze", lambda *_: None)
    said: list[str] = []
    folder = mapped(replace(SMALL, baseline=False, pictures=2, shown=1), said)
    assert not list(folder.glob("table_iv.*"))
    assert not (folder / "scores.csv").exists()
    assert np.load(folder / "maps" / "neural-driven.npy").shape == (2, PX, PX)
    assert (folder / "figures" / "figure_5_maps.png").exists()
    figure = (folder / "figures" / "figure_5_maps.svg").read_text()
    assert "human gaze" not in figure
    assert "people looked" not in figure
    assert json.loads((folder / "summary.json").read_text())["scores"] == {}
    assert any("so maps are not scored" in line for line in said)


def test_models_that_have_no_maps_are_refused(alone, monkeypatch):
    load = Selected.load

    def one_sided(self):
        model = load(self)
        train = replace(model.config.train, metric="val/accuracy")
        model.config = replace(model.config, eeg=EegConfig(), loss=LossConfig(name="image-classes"), train=train)
        return model

    monkeypatch.setattr(Selected, "load", one_sided)
    with pytest.raises(InputError, match="knows one side alone; look into a joint model"):
        mapped()
    assert not (alone / "saliency").exists()


def test_a_probe_is_fitted_to_training_pictures_alone():
    probe = saliency._probe_of(opened_run(), 1.0, 0.0, lambda _: None)
    assert isinstance(probe, Probe)
    bench = Bench(opened_run())
    image_M = np.unique(bench.store.image_N[bench.store.split.rows["train"]])
    image_MD = bench.image_embeddings(image_M).numpy()
    np.testing.assert_allclose(probe.mean_D, image_MD.mean(axis=0), atol=1e-6)
    assert probe.class_K.tolist() == sorted(set(bench.store.label_M[image_M].tolist()))


def test_the_folder_is_named_by_what_decides_maps(alone):
    opened = opened_run()
    plan = saliency.Plan(maps=SMALL.maps, images=("a",), triplets=())
    folder = opened.folder("saliency", plan)
    assert folder.parent == alone / "saliency"
    assert replace(SMALL, gaze_sigma=0.2, shown=1).maps == SMALL.maps, "neither decides maps"
    for changed in (replace(plan, maps=replace(SMALL, scales_px=(3,)).maps), replace(plan, images=("b",))):
        assert opened.folder("saliency", changed) != folder
