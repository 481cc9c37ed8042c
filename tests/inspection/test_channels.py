"""eegvision.inspection.channels: numbers as by hand, whatever the chunks and interruptions; what is refused."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eegvision import cluster, fanout, runs
from eegvision.analyses.channels import Noise, channel_importance
from eegvision.assess.selected import Selected
from eegvision.config import EegConfig, LossConfig
from eegvision.ingest import shards
from eegvision.inspection import channel_tables, channels
from eegvision.inspection.channel_settings import ChannelSettings
from eegvision.inspection.channels import plan_of, read_regions, run_channels
from eegvision.inspection.opened import Bench, open_run
from eegvision.vocab import InputError, Montage

SMALL = ChannelSettings(draws=2, window_step_s=0.2, window_width_s=0.2)


def looked(said: list[str] | None = None, settings: ChannelSettings = SMALL, **more: Any) -> Path:
    say = (lambda _: None) if said is None else said.append
    return run_channels("tiny-run", trial=None, side="val", settings=settings, gpus=0.0, say=say, **more)


@pytest.fixture
def alone(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny run, looked at without Ray and from the beginning."""
    import shutil

    monkeypatch.setattr(cluster, "connect", lambda: None)
    shutil.rmtree(tiny_run / "channels", ignore_errors=True)
    yield tiny_run
    shutil.rmtree(tiny_run / "channels", ignore_errors=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    """What must be the same byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".csv", ".npz", ".txt") or path.name == "summary.json"
    }


def test_tables_hold_what_the_pure_function_gives(alone):
    said: list[str] = []
    folder = looked(said)
    assert folder.parent == alone / "channels"
    bench = Bench(open_run("tiny-run", trial=None, side="val", purpose="a test", say=lambda _: None))
    row_N, manifest = bench.store.split.rows["val"], bench.store.manifest
    eeg_NCT, subject_N = bench.eeg(row_N)
    gallery_MD = bench.image_embeddings(bench.image_M)
    image_N = np.searchsorted(bench.image_M, bench.store.image_N[row_N])
    noise = Noise(sfreq_hz=manifest.sfreq_hz, n_draws=2)
    assert not noise.is_filtered, "200 Hz"
    rows = rows_of(folder / "importance.csv")
    for interval, samples, encoded in (
        ("whole segment", None, "segment"),
        ("0.08 to 0.16 s", (16, 32), "noise outside"),
    ):
        for column, target_MD in (("importance", gallery_MD), ("specific", gallery_MD - gallery_MD.mean(0))):
            found = channel_importance(
                bench.model, eeg_NCT, target_MD[image_N], bench.store.segment_id_N[row_N].tolist(), manifest.channels,
                noise, samples=samples, subject_B=subject_N,
            )  # fmt: skip
            for kind, group, is_in_N in (
                ("all", "all", np.full(len(row_N), True)),
                ("subject", "sub-02", bench.store.subject_N[row_N] == "sub-02"),
                ("class", manifest.classes[3], bench.store.label_N[row_N] == 3),
            ):
                own = [
                    row for row in rows if (row["group_kind"], row["group"], row["interval"]) == (kind, group, interval)
                ]
                assert [row["channel"] for row in own] == list(manifest.channels)
                assert {(row["encoded"], row["n_segments"]) for row in own} == {(encoded, str(is_in_N.sum()))}
                expected_C = found.importance_NC[is_in_N].mean(axis=0)
                scale = np.abs(expected_C).max()
                np.testing.assert_allclose([float(row[column]) for row in own], expected_C, atol=1e-4 * scale)
    views = {(row["kind"], row["view"], row["top_k"]): row for row in rows_of(folder / "views.csv")}
    assert {kind for kind, _, _ in views} == {"all", "spatial", "spectral", "growing", "shrinking", "sliding"}
    score_NM = (bench.model.encode_eeg(eeg_NCT, subject_N) @ gallery_MD.T).detach().cpu().numpy()
    is_hit_N = (score_NM >= score_NM[np.arange(len(row_N)), image_N][:, None]).sum(axis=1) == 1
    assert float(views["all", "all", "1"]["accuracy"]) == pytest.approx(is_hit_N.mean())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["noise"]["is_filtered"] is False
    assert summary["units"]["kind"] == "picture"
    assert [each["encoded"] for each in summary["stretches"]] == ["segment", *["noise outside"] * 4]
    for name in ("classes", "subjects", "intervals", "intervals_specific", "regions", "bands", "windows"):
        assert (folder / "figures" / f"{name}.svg").exists(), name
    text = "\n".join(said)
    for expected in (
        "the noise is white",
        "units: 10 pictures",
        "top-1 %",
        "chosen on these very pictures",
        str(folder),
    ):
        assert expected in text, expected


def test_neither_chunks_nor_an_interruption_change_the_tables(alone, monkeypatch):
    monkeypatch.setattr(channel_tables, "_draw", lambda *_: None)  # what takes longest is tested above
    whole = files_of(looked())
    monkeypatch.setattr(channels, "_CHUNK", 7)
    folder = looked_again(alone)
    small = files_of(folder)
    assert sum(name.endswith(".npz") for name in small) == 6
    for name in ("importance.csv", "views.csv"):
        rows, others = rows_of(folder / name), table_of(whole[name])
        for column in rows[0]:
            values, wanted = [row[column] for row in rows], [row[column] for row in others]
            try:
                numbers, wanted_numbers = ([float(value or "nan") for value in each] for each in (values, wanted))
            except ValueError:
                assert values == wanted
                continue
            tolerance = min(2e-5, 1e-3 * float(np.nanmax(np.abs(wanted_numbers))))
            if column == "p_cluster":
                # Rounding can decide whether one flip of the pictures' signs, of 2^9, makes a cluster as heavy.
                same = np.isclose(numbers, wanted_numbers, rtol=0, atol=tolerance, equal_nan=True)
                assert same.mean() > 0.9
                tolerance = 1.01 / 2**9
            np.testing.assert_allclose(numbers, wanted_numbers, rtol=0, atol=tolerance, err_msg=column)

    measure, n_calls = channels._measure, [0]

    def stops(*args: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == 4:
            raise KeyboardInterrupt
        return measure(*args)

    folder = looked_again(alone, compute=False)
    monkeypatch.setattr(channels, "_measure", stops)
    with pytest.raises(KeyboardInterrupt):
        looked()
    assert len(fanout.results(folder).keys) == 3
    resumed = files_of(looked())
    assert n_calls[0] == 7, "three of six were there"
    assert resumed == small
    said: list[str] = []
    assert files_of(looked(said)) == small
    assert n_calls[0] == 7
    assert "importance" in "\n".join(said)


def table_of(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(text.decode().splitlines()))


def looked_again(run: Path, *, compute: bool = True) -> Path:
    """Look from the beginning; return the folder."""
    import shutil

    opened = open_run("tiny-run", trial=None, side="val", purpose="a test", say=lambda _: None)
    plan, _ = plan_of(SMALL, opened.store_of(opened.load(), has_pictures=False).manifest)
    folder = opened.folder("channels", plan)
    assert folder.is_relative_to(run)
    shutil.rmtree(folder, ignore_errors=True)
    return looked() if compute else folder


# ---- units and tests


def test_units_are_subjects_then_classes_then_pictures():
    def kind(n_subjects: int, n_classes: int, *, known: bool = True) -> str:
        image_N = np.arange(120)
        label_N = image_N % n_classes if known else np.full(120, -1)
        return channel_tables.units_of(image_N % n_subjects, label_N, image_N).kind

    assert kind(6, 40) == "subject"
    assert kind(5, 40) == "class"
    assert kind(1, 8) == "class"
    assert kind(5, 7) == "picture"
    assert kind(3, 40, known=False) == "picture"
    few = channel_tables.units_of(np.arange(10) % 5, np.arange(10) % 7, np.arange(10))
    assert few.number == 10
    assert "p may come out too small" in few.why


def test_only_intervals_that_touch_are_neighbours():
    found = channel_tables._successive([(0.0, 0.1), (0.1, 0.2), (0.3, 0.4), (0.15, 0.3)])
    assert found.tolist() == [[0, 1], [1, 3], [2, 3]]
    assert channel_tables._successive([(0.0, 0.1)]).shape == (0, 2)


# ---- what does not fit


@pytest.fixture
def manifest(tiny_dataset: Path) -> shards.Manifest:
    return shards.read_manifest(tiny_dataset)


def test_default_intervals_beyond_the_segments_are_left_out_and_named(manifest):
    plan, notes = plan_of(ChannelSettings(), replace(manifest, n_times=70))
    assert plan.intervals_s == ((0.0, 0.08), (0.08, 0.16), (0.16, 0.32))
    assert any("left out, since segments run from 0 to 0.35 s: 0.32 to 0.44 s" in note for note in notes)
    with pytest.raises(InputError, match=r"interval 0.3 to 0.5 s .* run from 0 to 0.44 s"):
        plan_of(ChannelSettings(intervals_s=((0.3, 0.5),)), manifest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"cutoff_hz": -1.0}, "cutoff_hz is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"window_step_s": 0.0}, "window_step_s is 0"),
        ({"intervals_s": ((0.0, 0.1), (0.0, 0.1))}, "0 to 0.1 s is given twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ChannelSettings(**settings)


def test_regions_come_from_names_or_a_file(manifest, tmp_path):
    other = replace(manifest, montage=Montage(channels=tuple(f"MEG{n}" for n in range(16))))
    plan, notes = plan_of(ChannelSettings(), other)
    assert not any(kind == "spatial" for kind, _ in plan.views)
    assert any("'MEG0' is no 10-05 name" in note and "--regions FILE.csv" in note for note in notes)
    path = tmp_path / "regions.csv"
    path.write_text("region,channel\nleft,MEG0\nleft,MEG3\nright,MEG1\n")
    plan, _ = plan_of(ChannelSettings(regions=path), other)
    shown = {view.name: view.channels for kind, view in plan.views if kind == "spatial"}
    assert shown["only left"] == ("MEG0", "MEG3")
    assert shown["without right"] == ("MEG0", *(f"MEG{n}" for n in range(2, 16)))
    path.write_text("region,channel\nleft,Oz\nleft,Nowhere\n")
    with pytest.raises(InputError, match=r"region 'left' has \['Oz', 'Nowhere'\]; the segments have MEG0"):
        plan_of(ChannelSettings(regions=path), other)
    for text, message in (
        ("area,channel\nleft,Oz\n", "line 2: expected the columns region and channel"),
        ("region,channel\n", "names no region"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_regions(path)
    with pytest.raises(InputError, match="cannot read the regions"):
        read_regions(tmp_path / "absent.csv")


def test_without_positions_there_are_numbers_but_no_maps(alone, monkeypatch):
    store_of = Selected.store_of

    def unplaced(self, *args, **more):
        store = store_of(self, *args, **more)
        montage = replace(store.manifest.montage, positions_m=())
        return replace(store, manifest=replace(store.manifest, montage=montage))

    monkeypatch.setattr(Selected, "store_of", unplaced)
    said: list[str] = []
    folder = looked(said, replace(SMALL, views=False, intervals_s=()))
    assert folder.is_relative_to(alone)
    assert not (folder / "figures").exists()
    assert not (folder / "views.csv").exists()
    notes = json.loads((folder / "summary.json").read_text())["notes"]
    assert [note.partition(":")[0] for note in notes[1:]] == [
        "every channel is tested by itself, corrected for all",
        "no maps of the head",
    ]
    assert all(0 < float(row["p_cluster"]) <= 1 for row in rows_of(folder / "importance.csv") if row["group"] == "all")


def test_what_cannot_be_looked_at_is_refused_in_one_message(alone, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"interval 0.4 to 0.6 s"):
        looked(settings=ChannelSettings(intervals_s=((0.4, 0.6),)))
    path = tmp_path / "categories.csv"
    path.write_text("label_name,category\nnothing,thing\n")
    with pytest.raises(InputError, match="has no category for the class"):
        looked(settings=ChannelSettings(categories=path))
    with pytest.raises(InputError, match=r"window of 0.5 s fits"):
        looked(settings=ChannelSettings(window_width_s=0.5))
    assert not (alone / "channels").exists(), "nothing was begun"
    load = Selected.load

    def one_sided(self):
        model = load(self)
        train = replace(model.config.train, metric="val/accuracy")
        model.config = replace(model.config, eeg=EegConfig(), loss=LossConfig(name="image-classes"), train=train)
        return model

    monkeypatch.setattr(Selected, "load", one_sided)
    with pytest.raises(InputError, match="knows one side alone; look into a joint model"):
        looked()


def test_categories_and_the_run_in_mlflow(alone, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "_CHUNK", 40)
    path = tmp_path / "categories.csv"
    kinds = ["a" if n < 2 else "b" for n in range(len(manifest.classes))]
    path.write_text("label_name,category\n" + "\n".join(map(",".join, zip(manifest.classes, kinds, strict=True))))
    folder = looked(settings=replace(SMALL, categories=path, views=False, intervals_s=()))
    rows = rows_of(folder / "importance.csv")
    assert {row["group"] for row in rows if row["group_kind"] == "category"} == {"a", "b"}
    assert (folder / "figures" / "categories.png").exists()
    spooled = "".join(file.read_text() for file in runs.named_folder("runs", "tiny-run").glob("spool/*.jsonl"))
    assert folder.is_relative_to(alone)
    assert '"eegvision.kind": "channels"' in spooled
