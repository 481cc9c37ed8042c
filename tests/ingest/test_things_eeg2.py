"""eegvision.ingest.things_eeg2: five layouts read segment by segment, every known trap refused, damage never silent."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import things_files
from eegvision.ingest import things_eeg2, unpickle
from eegvision.ingest.prepare import Preparation
from eegvision.ingest.sources import Drops, Recording
from eegvision.ingest.things_eeg2_files import CHANNELS_63
from eegvision.vocab import InputError, Segment
from things_files import CHANNELS, TEST, TRAINING, ThingsFiles, names_of, write_epoched, write_raw

LAYOUTS = ("preprocessed", "preprocessed-nice", "whitened", "reshaped")
CUT = Preparation(window_s=(0.0, 0.1))


def read(files: ThingsFiles, preparation: Preparation | None = None, **options: Any) -> Recording:
    return things_eeg2.read(files.source, files.images, preparation=preparation or Preparation(), **options)


def segments(recording: Recording) -> tuple[dict[str, Segment], Drops]:
    dropped: Drops = Counter()
    found = [segment for part in recording.parts for segment in part.read(dropped)]
    assert len({segment.segment_id for segment in found}) == len(found)
    return {segment.segment_id: segment for segment in found}, +dropped


def hashes(recording: Recording) -> dict[str, str]:
    return {name: things_files.sha256(segment.eeg_CT) for name, segment in segments(recording)[0].items()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> tuple[ThingsFiles, dict]:
    return write_raw(tmp_path_factory.mktemp("raw"), subjects=2)


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request) -> Any:
    return request.param


@pytest.fixture
def epoched(layout, tmp_path) -> ThingsFiles:
    return write_epoched(tmp_path, layout)


def test_every_segment_of_every_layout_is_the_one_that_was_written(layout, tmp_path):
    files = write_epoched(tmp_path, layout, subjects=2)
    recording = read(files, metadata=files.metadata)
    found, dropped = segments(recording)
    assert {name: things_files.sha256(segment.eeg_CT) for name, segment in found.items()} == files.sha256
    assert {name: segment.image_id for name, segment in found.items()} == files.image_of
    assert not dropped
    header = recording.header
    assert header.dialect == f"things-eeg2/{layout}"
    assert (header.unit, header.montage.channels, header.classes) == ("whitened", CHANNELS, (*TRAINING, *TEST))
    is_gifford = layout == "preprocessed"
    assert (header.sfreq_hz, header.t_min_s, header.n_times) == ((100, -0.2, 25) if is_gifford else (250, 0, 25))
    assert any(step["step"] == "times" for step in header.steps) is not is_gifford
    assert header.published["train"] == tuple(f"training/{name}" for name in names_of("training"))
    assert header.published["test"] == tuple(f"test/{name}" for name in names_of("test"))
    for name, segment in found.items():
        assert segment.repetition == int(name[-2:])
        assert segment.session == (int(name[-2:]) // 2 % 4 + 1 if layout == "whitened" else -1)
        assert segment.eeg_CT.dtype == np.float32
    pictures = {stimulus.image_id: stimulus for stimulus in recording.stimuli}
    assert sorted(pictures) == sorted(set(files.image_of.values()))
    for image_id, stimulus in pictures.items():
        path = image_id.replace("/", "_images/", 1)
        assert stimulus.encoded == (files.images / f"{path}.jpg").read_bytes()
        assert header.classes[stimulus.label] == stimulus.label_name == path.split("/")[1][6:]


def test_a_part_can_be_sent_elsewhere_and_read_twice(epoched, monkeypatch):
    monkeypatch.setattr(things_eeg2, "_SEGMENTS_PER_PART", 16)
    recording = read(epoched)
    assert sum(part.rows for part in recording.parts) == len(epoched.sha256)
    assert all(part.rows <= 16 for part in recording.parts)
    part = pickle.loads(pickle.dumps(recording.parts[1]))
    once, again = (list(part.read(Counter())) for _ in range(2))
    assert [(s.segment_id, s.eeg_CT.tobytes()) for s in once] == [(s.segment_id, s.eeg_CT.tobytes()) for s in again]
    assert hashes(recording) == epoched.sha256
    keys = {part.key for part in recording.parts}
    assert len(keys) == len(recording.parts)
    assert keys.isdisjoint(part.key for part in read(epoched, preparation=Preparation(clamp=3.0)).parts)


def test_one_subject_and_one_partition_can_be_read(layout, tmp_path):
    files = write_epoched(tmp_path, layout, subjects=3)
    wanted = {name for name in files.sha256 if name.startswith("sub-02_te")}
    recording = read(files, subjects=("sub-02",), partitions=("test",))
    assert hashes(recording) == {name: files.sha256[name] for name in wanted}
    assert (recording.header.classes, set(recording.header.published)) == (TEST, {"test"})
    if layout != "reshaped":
        alone = things_eeg2.read(files.source / "sub-02", files.images, preparation=Preparation())
        assert hashes(alone) == {name: value for name, value in files.sha256.items() if name.startswith("sub-02")}
    with pytest.raises(InputError, match="no subject 'sub-04'; present are sub-01, sub-02, sub-03"):
        read(files, subjects=("sub-04",))


def test_segments_are_prepared_as_asked_and_scaled_ones_are_not_scaled_again(epoched):
    plain, _ = segments(read(epoched))
    recording = read(epoched, preparation=Preparation(channels=("Oz", "PZ"), window_s=(0.0, 0.04), clamp=0.5))
    found, _ = segments(recording)
    assert recording.header.montage.channels == ("Oz", "Pz")
    rows = [CHANNELS.index("Oz"), CHANNELS.index("Pz")]
    start = round((0 - read(epoched).header.t_min_s) * recording.header.sfreq_hz)
    for name, segment in found.items():
        expected = plain[name].eeg_CT[rows, start : start + recording.header.n_times]
        np.testing.assert_array_equal(segment.eeg_CT, np.clip(expected, -0.5, 0.5))
    for scale in ("zscore", "robust", "mvnn-epochs", "mvnn-time"):
        with pytest.raises(InputError, match=f"is whitened already.*{scale}.*leave --scale at none"):
            read(epoched, preparation=Preparation(scale=scale))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_reshaped_files_of_every_precision_are_read(tmp_path, dtype):
    files = write_epoched(tmp_path, "reshaped", dtype=dtype)
    assert hashes(read(files)) == files.sha256


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_torch_file_of_an_older_protocol_is_read(tmp_path, protocol):
    files = write_epoched(tmp_path, "whitened", n_times=80)
    for path in files.source.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        torch.save(content, path, pickle_protocol=protocol)
        is_text = isinstance(unpickle.load_torch(path)["eeg"], unpickle.TextArray)
        assert is_text is (protocol == 2)
    assert hashes(read(files)) == files.sha256


def test_a_torch_file_of_tensors_and_lists_is_read(tmp_path):
    files = write_epoched(tmp_path, "whitened")
    for path in files.source.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        lists = {key: content[key].tolist() for key in ("img", "text", "label", "times")}
        tensors = {key: torch.from_numpy(content[key]) for key in ("eeg", "session")}
        torch.save({**content, **lists, **tensors}, path)
    assert hashes(read(files)) == files.sha256


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of a file, keeping its layout."""
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path, pickle_protocol=5)
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        is_saved = path.read_bytes()[:1] == b"\x93"
        content = np.load(path, allow_pickle=True)
        content = content.item() if is_saved else content
        change(content)
        if is_saved:
            np.save(path, content)
        else:
            path.write_bytes(pickle.dumps(content, protocol=4))


def info_of(files: ThingsFiles, layout: str) -> Path:
    """The file in which channel names and times of the first subject's training data are."""
    return files.source / "info.json" if layout == "reshaped" else min(files.source.glob("sub-01/*tr*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("times"), "times"),
        (lambda c: c.pop("ch_names"), "ch_names"),
        (lambda c: c["ch_names"].__setitem__(3, "P9"), "channel 'P9' is not one of the 63"),
        (lambda c: c["ch_names"].__setitem__(3, "Oz"), "channel 'Oz' is there twice"),
        (lambda c: c["ch_names"].pop(), "18 rows of EEG for 17 channel names"),
        (lambda c: c.update(times=list(c["times"])[:20]), "only a cut that leaves the samples from 0 s on explains"),
        (lambda c: c.update(times=[*c["times"], c["times"][-1] + 0.004]), "`times`"),
        (lambda c: c.update(times=[0.0, *list(c["times"])[1:]]), "does not grow in equal steps"),
        (lambda c: c.update(times="0"), "`times` is not a list of times"),
        (lambda c: c.update(times=[t - 0.01 for t in c["times"]]), "differ in first sample|only a cut|baseline_dur"),
    ],
)
def test_names_and_times_that_do_not_fit_the_data_are_refused(epoched, layout, change, message):
    edit(info_of(epoched, layout), change)
    with pytest.raises(InputError, match=message):
        read(epoched)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sfreq": 1000.0}, r"says sfreq 1000\.0, but .* 250\.0"),
        ({"precision": "fp16"}, "says precision 'fp16', but .*float64"),
        ({"normalization": "none"}, "normalization 'none' is neither mvnn nor zscore"),
        ({"train_data_shape": [6, 2, 63, 250]}, "says shape"),
        ({"baseline_duration": 0.1}, r"says baseline_duration 0\.1"),
    ],
)
def test_what_info_json_says_twice_is_compared(tmp_path, change, message):
    files = write_epoched(tmp_path, "reshaped")
    edit(files.source / "info.json", lambda content: content.update(change))
    with pytest.raises(InputError, match=rf"info\.json.*{message}"):
        read(files)
    (files.source / "info.json").unlink()
    with pytest.raises(InputError, match=r"there is no info\.json beside it"):
        read(files)


def test_a_zscored_reshaped_file_says_so(tmp_path):
    files = write_epoched(tmp_path, "reshaped")
    edit(files.source / "info.json", lambda content: content.update(normalization="zscore"))
    assert read(files).header.unit == "zscore"


def test_files_that_changed_names_are_found_out_by_their_counts(epoched):
    training, test = sorted(epoched.source.glob("sub-01/*tr*")) + sorted(epoched.source.glob("sub-01/*test*"))
    training.rename(training.with_name("x"))
    test.rename(training)
    training.with_name("x").rename(test)
    with pytest.raises(
        InputError, match=r"holds (12|6 x 2) conditions, .*test_images 3( x 1)? pictures; is it the file of"
    ):
        read(epoched)


def test_a_missing_picture_or_concept_or_another_order_is_found_out(epoched):
    images = epoched.images / "training_images"
    one = images / f"{names_of('training')[3]}.jpg"
    kept = one.read_bytes()
    one.unlink()
    with pytest.raises(
        InputError, match="00002_abacus holds 1 pictures, the other concepts hold 2: every picture after"
    ):
        read(epoched)
    one.write_bytes(kept)
    np.save(epoched.metadata, reordered(epoched.metadata))
    with pytest.raises(
        InputError, match=r"condition 1 of training is 00001_aardvark/aardvark_02b.jpg in .*metadata.npy"
    ):
        read(epoched, metadata=epoched.metadata)
    shutil.rmtree(images / "00006_alligator")
    with pytest.raises(InputError, match=r"conditions, .* (10|5 x 2) pictures"):
        read(epoched)


def reordered(metadata: Path) -> Any:
    content = np.load(metadata, allow_pickle=True).item()
    content["train_img_files"][:2] = content["train_img_files"][1::-1]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["train_img_files"].pop(), "lists 11 files and 12 concepts for training, .* holds 12"),
        (lambda m: m.pop("test_img_files"), "has no list of names `test_img_files`"),
        (lambda m: m["test_img_concepts"].__setitem__(0, "00001_x"), "condition 1 of test is 00001_x/"),
    ],
)
def test_metadata_that_differs_from_the_pictures_is_refused(tmp_path, change, message):
    files = write_epoched(tmp_path, "preprocessed")
    edit(files.metadata, change)
    with pytest.raises(InputError, match=message):
        read(files, metadata=files.metadata)


def test_picture_folders_that_are_none_are_refused(tmp_path):
    files = write_epoched(tmp_path, "preprocessed")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere with the pictures"):
        read(replace(files, images=tmp_path / "nowhere"))
    (files.images / "test_images" / "stray").mkdir()
    with pytest.raises(InputError, match="stray is not a folder called NNNNN_concept; move it out"):
        read(files)
    (files.images / "test_images" / "stray").rmdir()
    one = files.images / "test_images" / f"{names_of('test')[0]}.jpg"
    one.rename(tmp_path / "outside.jpg")
    one.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(InputError, match="is a link to outside"):
        read(files)
    shutil.rmtree(files.images / "test_images")
    with pytest.raises(InputError, match="one folder test_images is expected under"):
        read(files)


def test_two_layouts_under_one_name_are_both_named(tmp_path):
    files = write_epoched(tmp_path / "a", "preprocessed")
    other = write_epoched(tmp_path / "b", "preprocessed-nice")
    (other.source / "sub-01").rename(files.source / "sub-02")
    with pytest.raises(
        InputError, match=r"sub-01/preprocessed_eeg_.*npy and .*sub-02/.* differ in layout: preprocessed and"
    ):
        read(files)
    shutil.copytree(files.source / "sub-01", tmp_path / "c" / "sub-01")
    for path in (files.source / "sub-02").iterdir():
        shutil.copy(path, tmp_path / "c" / "sub-01" / path.name.replace("preprocessed_eeg_", "eeg_"))
    with pytest.raises(
        InputError, match=r"eeg_test\.npy and .*preprocessed_eeg_test.npy are both the test file of sub-01"
    ):
        read(replace(files, source=tmp_path / "c"))


def test_recordings_of_sessions_beside_files_of_whole_subjects_are_both_named(raw, tmp_path):
    files = write_epoched(tmp_path, "whitened")
    shutil.copytree(raw[0].source / "sub-02", files.source / "sub-02")
    with pytest.raises(
        InputError, match=r"sub-02 has files of sessions, .*sub-01 files of the whole subject.*one release"
    ):
        read(files, preparation=CUT)


def test_a_layout_is_known_by_content_whatever_the_file_is_called(epoched, layout):
    for path in sorted(epoched.source.glob("sub-01/*")):
        short = "train" if "train" in path.name else "test"
        path.rename(path.with_name(f"{short}.{'pt' if path.suffix == '.npy' else 'npy'}"))
    recording = read(epoched)
    assert (recording.header.dialect, hashes(recording)) == (f"things-eeg2/{layout}", epoched.sha256)
    assert not things_eeg2.is_raw(epoched.source)


def test_channels_in_another_order_are_lined_up_by_name_and_others_refused(tmp_path):
    files = write_epoched(tmp_path, "preprocessed-nice", subjects=2)
    back = CHANNELS[::-1]
    for path in (files.source / "sub-02").iterdir():
        edit(
            path,
            lambda c: c.update(ch_names=[*back], preprocessed_eeg_data=c["preprocessed_eeg_data"][:, :, ::-1].copy()),
        )
    recording = read(files)
    assert hashes(recording) == files.sha256
    assert any(step["step"] == "channel order" for step in recording.header.steps)
    edit(path, lambda c: c["ch_names"].__setitem__(0, "C3"))
    with pytest.raises(InputError, match=r"differ in channels: \['O2'\] and \['C3'\]"):
        read(files)


def test_an_array_in_column_order_is_refused(tmp_path):
    files = write_epoched(tmp_path, "preprocessed-nice")
    path = min(files.source.glob("sub-01/*"))
    edit(path, lambda c: c.update(preprocessed_eeg_data=np.asfortranarray(c["preprocessed_eeg_data"])))
    with pytest.raises(InputError, match=r"column by column.*ascontiguousarray"):
        read(files)


def cell(key: str, value: Any, rows: slice | int = 5) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        column = content[key].astype("U80") if isinstance(value, str) else content[key]
        column[rows] = value
        content[key] = column

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell("label", 4), r"condition 6: `label` is \[4\], but picture .*accordion_02b\.jpg' makes it 2"),
        (cell("text", "acorn"), r"condition 6: `text` is \['acorn'\]"),
        (cell("img", "train_images/00009_x/x.jpg"), r"picture 'train_images/00009_x/x\.jpg' is not \(alone\)"),
        (cell("img", "../../etc/00003_accordion/accordion_02b.jpg"), "leads out of"),
        (cell("img", "/etc/passwd"), "leads out of"),
        (cell("img", "a\\b"), "leads out of"),
        (lambda c: cell("img", str(c["img"][4, 0]))(c), "stands for two conditions"),
        (lambda c: c["img"].__setitem__((5, 1), c["img"][6, 0]), r"is not \(alone\)"),
        (lambda c: c.pop("img"), "`img` is None, not one entry per segment"),
        (lambda c: c.update(label=c["label"][:, :2]), r"`label` is \[12, 2\] int64, not one entry"),
        (lambda c: c.update(session=c["session"] + 0.5), "`session` is not one number per segment"),
        (lambda c: c.pop("session"), "`session` is not one number"),
        (lambda c: c.update(eeg=c["eeg"][0]), "not an array of floats with 4 axes"),
        (lambda c: c.update(eeg=c["eeg"].astype(int)), "not an array of floats"),
    ],
)
def test_what_a_whitened_file_says_of_a_segment_is_compared(tmp_path, change, message):
    files = write_epoched(tmp_path, "whitened")
    edit(files.source / "sub-01" / "train.pt", change)
    with pytest.raises(InputError, match=message):
        read(files)


def test_a_whitened_file_in_another_order_is_read_by_its_names(tmp_path):
    files = write_epoched(tmp_path, "whitened")

    def reverse(content: dict[str, Any]) -> None:
        for key in ("eeg", "img", "label", "text", "session"):
            content[key] = content[key][::-1].copy()

    edit(files.source / "sub-01" / "train.pt", reverse)
    found, _ = segments(read(files))
    by_image = {(files.image_of[name], name[-2:]): value for name, value in files.sha256.items()}
    assert {(s.image_id, name[-2:]): things_files.sha256(s.eeg_CT) for name, s in found.items()} == by_image


@pytest.mark.parametrize("fault", ["NaN or infinite EEG", "EEG constant in every channel"])
def test_faulty_segments_are_refused_or_counted(epoched, layout, fault):
    path = min(epoched.source.glob("sub-01/*tr*"))

    def spoil(content: Any) -> None:
        eeg = content if isinstance(content, np.ndarray) else content.get("preprocessed_eeg_data", content.get("eeg"))
        eeg = eeg.reshape(-1, *eeg.shape[-3:])
        eeg[7, 2, 3, 4:] = np.inf
        if fault.startswith("EEG"):
            eeg[7, 2] = 3.0

    if layout == "reshaped":
        array = np.load(path)
        spoil(array)
        np.save(path, array)
    else:
        edit(path, spoil)
    with pytest.raises(InputError, match=rf"condition 8, repetition 3: {fault}; drop such segments \(--on-bad drop\)"):
        segments(read(epoched))
    found, dropped = segments(read(epoched, on_bad="drop"))
    assert dropped == {fault: 1}
    assert set(epoched.sha256) - set(found) == {"sub-01_tr-00008-02"}


def test_checksums_beside_the_files_are_held_against_them(epoched):
    files = sorted(path for path in epoched.source.rglob("*") if path.is_file() and path.suffix != ".json")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(epoched.source)}" for path in files]
    (epoched.source / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    assert hashes(read(epoched)) == epoched.sha256
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[0].write_bytes(damaged)
    with pytest.raises(InputError, match=f"{files[0].name} is damaged or another version"):
        read(epoched)


# ---- raw recordings


def test_every_event_of_a_raw_recording_becomes_the_segment_it_is(raw):
    files, runs = raw
    recording = read(files, preparation=CUT, metadata=files.metadata)
    found, dropped = segments(recording)
    assert {name: things_files.sha256(segment.eeg_CT) for name, segment in found.items()} == files.sha256
    assert {name: segment.image_id for name, segment in found.items()} == files.image_of
    assert dropped == {"target presentations": 16}
    assert (recording.header.unit, recording.header.dialect) == ("V", "things-eeg2/raw")
    assert [part.name for part in recording.parts] == [f"sub-0{s} session {n}" for s in (1, 2) for n in (1, 2)]
    assert sum(part.rows for part in recording.parts) == len(found)
    repetitions: dict[tuple[str, str], list[int]] = {}
    for segment in found.values():
        repetitions.setdefault((segment.subject, segment.image_id), []).append(segment.repetition)
    for (_, image_id), counted in repetitions.items():
        assert counted == list(range(8 if image_id.startswith("test") else 4))
    one = [s for s in found.values() if (s.subject, s.session) == ("sub-01", 1)]
    assert [s.order for s in one] == sorted(s.order for s in one)
    length_s = runs["sub-01", 1, "training"].eeg_CS.shape[1] / 1000
    for name, segment in found.items():
        sample = runs[segment.subject, segment.session, segment.image_id.split("/")[0]].event_M2[int(name[-5:]), 0]
        is_test = "_te-" in name
        assert segment.onset_s == pytest.approx(sample / 1000 + is_test * length_s)
        assert segment.order == int(name[-5:]) + is_test * 26


def test_a_raw_recording_through_our_steps_equals_the_file_of_the_published_steps(raw, tmp_path):
    files, runs = raw
    ours, _ = segments(read(files, preparation=things_eeg2.NICE, subjects=("sub-01",)))
    published = replace(files, source=tmp_path)
    for partition, eeg in things_files.as_nice(runs, "sub-01", CHANNELS[-5:]).items():
        things_files.write_layout(tmp_path, "preprocessed-nice", "sub-01", partition, eeg, CHANNELS[-5:])
    theirs, _ = segments(read(published))
    assert (len(ours), len(theirs)) == (72, 72)
    by_image = {(s.image_id, s.repetition): s.eeg_CT for s in theirs.values()}
    for segment in ours.values():
        expected = by_image[segment.image_id, segment.repetition]
        assert np.abs(segment.eeg_CT - expected).max() < 1e-4 * np.abs(expected).max()
    assert read(files, preparation=things_eeg2.NICE).header.unit == read(published).header.unit == "whitened"
    header = read(files, preparation=things_eeg2.NICE).header
    assert (header.n_times, header.sfreq_hz, header.t_min_s) == (250, 250, 0)
    assert things_eeg2.is_raw(files.source)


def test_the_scale_of_a_session_does_not_depend_on_its_test_recording(raw, tmp_path):
    files, runs = raw
    shutil.copytree(files.source, tmp_path / "raw")
    before, _ = segments(read(files, preparation=things_eeg2.NICE, subjects=("sub-01",)))
    run = runs["sub-01", 1, "test"]
    path = tmp_path / "raw" / run.path.relative_to(files.source)
    things_files.save_raw(replace(run, path=path, eeg_CS=1.5 * run.eeg_CS), CHANNELS[-5:])
    after, _ = segments(
        read(replace(files, source=tmp_path / "raw"), preparation=things_eeg2.NICE, subjects=("sub-01",))
    )
    for name, segment in before.items():
        factor = 1.5 if name.startswith("sub-01_ses-01_te") else 1.0
        np.testing.assert_allclose(after[name].eeg_CT, factor * segment.eeg_CT, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="mvnn-epochs is fitted on the training partition; read it too"):
        read(files, preparation=things_eeg2.NICE, partitions=("test",))
    with pytest.raises(InputError, match="needs a window around its events"):
        read(files)


def changed_raw(raw: tuple[ThingsFiles, dict], folder: Path, **changes: Any) -> ThingsFiles:
    """The raw recordings of one subject, the training run of session 1 saved with changes."""
    files, runs = raw
    shutil.copytree(files.source / "sub-01", folder / "sub-01")
    run = runs["sub-01", 1, "training"]
    path = folder / run.path.relative_to(files.source)
    event_M2, eeg_CS = changes.pop("event_M2", run.event_M2), changes.pop("eeg_CS", run.eeg_CS)
    things_files.save_raw(replace(run, path=path, event_M2=event_M2, eeg_CS=eeg_CS), CHANNELS[-5:], **changes)
    return replace(files, source=folder)


def coded(runs: dict, at: int, code: float, sample: int | None = None) -> np.ndarray:
    event_M2 = runs["sub-01", 1, "training"].event_M2.astype(float)
    event_M2[at, 1] = code
    if sample is not None:
        event_M2[at, 0] = sample
    return event_M2


@pytest.mark.parametrize(
    ("at", "code", "message"),
    [
        (3, 13, "stim channel is 13 at sample 1700, which is no picture of 1 to 12 and not 99999; is it the file of"),
        (3, -1, "stim channel is -1 at sample 1700"),
        (3, 2.5, r"stim channel is 2\.5 at sample 1700"),
        (3, np.nan, "stim channel is nan at sample 1700"),
    ],
)
def test_a_code_that_is_no_picture_is_refused(raw, tmp_path, at, code, message):
    event_M2 = coded(raw[1], at, code)
    files = changed_raw(raw, tmp_path)
    run = raw[1]["sub-01", 1, "training"]
    stim = np.zeros(run.eeg_CS.shape[1])
    stim[event_M2[:, 0].astype(int)] = event_M2[:, 1]
    files = changed_raw(raw, tmp_path / "b", raw_eeg_data=np.vstack([run.eeg_CS, stim]))
    with pytest.raises(InputError, match=rf"raw_eeg_training\.npy: the {message}"):
        read(files, preparation=CUT)


def test_a_stim_channel_that_cannot_be_right_is_refused(raw, tmp_path):
    run = raw[1]["sub-01", 1, "training"]
    for folder, (sample, message) in {
        "a": (run.event_M2[3, 0] + 1, "changes from one code to another at sample 1701"),
        "b": (run.event_M2[3, 0] + 30, "events at samples 1700 and 1730 are 30 samples apart, usually 200"),
    }.items():
        files = changed_raw(raw, tmp_path / folder, event_M2=np.vstack([run.event_M2, [[sample, 7]]]))
        with pytest.raises(InputError, match=message):
            read(files, preparation=CUT)


def test_a_picture_shown_too_rarely_is_refused_or_left_out(raw, tmp_path):
    run = raw[1]["sub-01", 1, "training"]
    at = int(np.flatnonzero(run.event_M2[:, 1] == 5)[1])
    event_M2 = run.event_M2.copy()
    event_M2[at, 1] = 6
    files = changed_raw(raw, tmp_path, event_M2=event_M2)
    with pytest.raises(
        InputError, match=r"picture 5 \(training/00003_accordion/accordion_01b\) is shown 1 times, the others 2"
    ):
        read(files, preparation=CUT)
    recording = read(files, preparation=CUT, on_bad="drop")
    found, dropped = segments(recording)
    assert dropped["presentations of pictures shown less often than the others"] == 1
    assert len(found) == 71 == sum(part.rows for part in recording.parts)


def test_events_at_the_edge_and_bad_segments_are_counted(raw, tmp_path):
    run = raw[1]["sub-01", 1, "training"]
    late = Preparation(window_s=(-1.2, 0.1))
    found, dropped = segments(read(raw[0], preparation=late, subjects=("sub-01",)))
    assert dropped == {"target presentations": 8, "window leaves the recording": 4 - edge_targets(raw)}
    eeg_CS = run.eeg_CS.copy()
    order = int(np.flatnonzero(run.event_M2[:, 1] != 99999)[4])
    eeg_CS[2, run.event_M2[order, 0] + 5] = np.nan
    files = changed_raw(raw, tmp_path, eeg_CS=eeg_CS)
    with pytest.raises(InputError, match=rf"training\.npy, event {order} at sample .*: NaN or infinite EEG; drop such"):
        segments(read(files, preparation=CUT))
    found, dropped = segments(read(files, preparation=replace(CUT, scale="zscore"), on_bad="drop"))
    assert dropped["NaN or infinite EEG"] == 1
    assert (len(found), all(np.isfinite(s.eeg_CT).all() for s in found.values())) == (71, True)


def test_a_sample_no_amplifier_gives_does_not_spoil_the_session(raw, tmp_path):
    run = raw[1]["sub-01", 1, "training"]
    order = int(np.flatnonzero(run.event_M2[:, 1] != 99999)[4])
    eeg_CS = run.eeg_CS.copy()
    eeg_CS[2, run.event_M2[order, 0] + 5] = 3.0
    files = changed_raw(raw, tmp_path, eeg_CS=eeg_CS)
    with pytest.raises(InputError, match=rf"event {order} at sample .*: EEG beyond 1 V, which no amplifier gives"):
        segments(read(files, preparation=CUT))
    _, dropped = segments(read(files, preparation=CUT, on_bad="drop"))
    assert dropped["EEG beyond 1 V, which no amplifier gives"] == 1


def edge_targets(raw: tuple[ThingsFiles, dict]) -> int:
    return sum(run.event_M2[0, 1] == 99999 for key, run in raw[1].items() if key[0] == "sub-01")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sfreq": 500}, r"differ in sampling rate: (500|1000)\.0 and (500|1000)\.0"),
        ({"sfreq": "1000"}, "`sfreq` is '1000', not a frequency in Hz"),
        ({"lowpass": 90.0}, "differ in band"),
        ({"lowpass": 900.0}, "a band of 0.01 to 900 Hz cannot be at 1000 Hz"),
        ({"ch_types": ["eeg"] * 6}, "there must be one channel `stim`"),
        ({"ch_types": ["eeg"] * 5}, "6 rows, 6 names, 5 types"),
        ({"ch_names": ["PO4", "PO8", "O1", "Oz", "Oz", "stim"]}, "channel 'Oz' is there twice"),
        ({"ch_names": ["PO4", "PO8", "O1", "Oz", "EOG", "stim"]}, "channel 'EOG' is not one of the 63"),
        ({"raw_eeg_data": np.zeros((6, 4, 5))}, "not an array of floats with 2 axes"),
        ({"raw_eeg_data": np.zeros((6, 4000))}, "the stim channel shows no picture"),
    ],
)
def test_a_raw_file_that_contradicts_itself_or_the_others_is_refused(raw, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read(changed_raw(raw, tmp_path, **changes), preparation=CUT)


def test_a_recording_in_microvolts_is_found_out_and_read_as_such(raw, tmp_path):
    files, runs = raw
    for key, run in runs.items():
        if key[0] == "sub-01":
            moved = replace(run, path=tmp_path / run.path.relative_to(files.source), eeg_CS=1e6 * run.eeg_CS)
            things_files.save_raw(moved, CHANNELS[-5:])
    with pytest.raises(InputError, match="uV"):
        read(replace(files, source=tmp_path), preparation=CUT)
    assert read(replace(files, source=tmp_path), preparation=CUT, unit="uV").header.unit == "uV"


def test_missing_sessions_and_files_are_named(raw, tmp_path):
    shutil.copytree(raw[0].source, tmp_path / "raw")
    files = replace(raw[0], source=tmp_path / "raw")
    one = files.source / "sub-02" / "ses-01" / "raw_eeg_test.npy"
    one.unlink()
    with pytest.raises(InputError, match="sub-02/ses-01 has no test file"):
        read(files, preparation=CUT)
    shutil.rmtree(one.parent)
    with pytest.raises(InputError, match=r"sub-02 has the sessions 2, but not 1 \(as sub-01 has\)"):
        read(files, preparation=CUT)
    shutil.rmtree(files.source / "sub-02")
    assert len(read(files, preparation=CUT).parts) == 2
    with pytest.raises(
        InputError, match=r"holds no sub-XX with a training or test file.*give the folder that holds sub-01"
    ):
        read(replace(files, source=tmp_path), preparation=CUT)
    with pytest.raises(InputError, match=rf"such as {tmp_path / 'raw'}, or one of these"):
        read(replace(files, source=tmp_path), preparation=CUT)
    (files.source / "sub-01" / "ses-02" / "raw_eeg_training.npy").unlink()
    with pytest.raises(InputError, match=r"raw/sub-01/ses-02 has no training file; .*--partitions"):
        read(replace(files, source=files.source / "sub-01"), preparation=CUT)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        read(replace(files, source=tmp_path / "nowhere"), preparation=CUT)


def test_code_in_a_file_is_not_run(tmp_path):
    files = write_epoched(tmp_path, "preprocessed-nice")
    marker = tmp_path / "harm"
    payload = b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    min(files.source.glob("sub-01/*")).write_bytes(payload)
    with pytest.raises(InputError, match=r"asks for os\.mkdir, which is code"):
        read(files)
    assert not marker.exists()
    min(files.source.glob("sub-01/*")).write_bytes(pickle.dumps(["a list"]))
    with pytest.raises(InputError, match="is none of the layouts of THINGS-EEG2"):
        read(files)


# ---- damage


def facts(recording: Recording) -> tuple[Any, ...]:
    header = recording.header
    return (
        header.dialect,
        header.montage.channels,
        header.sfreq_hz,
        header.t_min_s,
        header.n_times,
        header.unit,
        header.classes,
    )


def content_of(recording: Recording) -> tuple[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
    found, _ = segments(recording)
    return facts(recording), {
        name: (things_files.sha256(s.eeg_CT), s.image_id, s.session, s.repetition, s.order, str(s.onset_s))
        for name, s in found.items()
    }


def mutations(path: Path, whole: bytes, rng: np.random.Generator, start: int, stop: int, rare: int):
    """Yield damaged versions of a file and whether single samples may differ; samples are bytes `start` to `stop`."""
    for number in range(200):
        damaged = bytearray(whole)
        kind = number % 4
        if kind == 0 and path.suffix != ".json":
            damaged = damaged[: int(rng.integers(len(whole)))]
        elif kind == 1 and stop > start:
            damaged[int(rng.integers(start, stop))] ^= 1 << int(rng.integers(8))
        else:
            outside = [*range(start), *range(stop, len(whole))]
            for _ in range(1 + rare * int(rng.integers(2))):
                damaged[outside[int(rng.integers(len(outside)))]] ^= 1 << int(rng.integers(8))
        if bytes(damaged) != whole:
            yield bytes(damaged), kind == 1 and stop > start


def judge(files: ThingsFiles, options: dict[str, Any], whole: Any, may_differ: bool) -> str:
    """Read damaged files; fail if what comes out is silently wrong."""
    try:
        found = content_of(read(files, **options))
    except InputError:
        return "refused"
    assert found[0] == whole[0]
    assert found[1].keys() == whole[1].keys()
    differing = [name for name, value in found[1].items() if value != whole[1][name]]
    assert len(differing) <= may_differ
    for name in differing:
        assert found[1][name][1:] == whole[1][name][1:]
    return "one segment" if differing else "equal"


@pytest.mark.parametrize(
    ("layout", "damaged"), [*((layout, "training") for layout in LAYOUTS), ("reshaped", "info.json")]
)
def test_damaged_files_are_refused_or_change_nothing_but_one_segment(layout, tmp_path, damaged):
    files = write_epoched(tmp_path, layout, reps=(2, 4), n_times=6, channels=CHANNELS_63)
    path = files.source / "info.json" if damaged == "info.json" else min(files.source.glob("sub-01/*tr*"))
    whole, healthy = path.read_bytes(), content_of(read(files))
    start, stop = 0, 0
    if path.suffix != ".json":
        value = unpickle.load_torch(path) if path.suffix == ".pt" else unpickle.load(path)
        value = value if isinstance(value, np.ndarray) else value.get("eeg", value.get("preprocessed_eeg_data"))
        start = whole.index(np.asarray(value).tobytes())
        stop = start + value.nbytes
    outcomes: Counter[str] = Counter()
    for content, may_differ in mutations(path, whole, np.random.default_rng(1), start, stop, rare=1):
        path.write_bytes(content)
        outcomes[judge(files, {}, healthy, may_differ)] += 1
    assert outcomes["refused"] > 50
    path.write_bytes(whole)
    assert content_of(read(files)) == healthy


def test_damaged_raw_recordings_are_refused_or_change_nothing_but_one_segment(tmp_path):
    files, runs = write_raw(tmp_path, sessions=1, channels=CHANNELS_63[-5:], margin=110)
    options = {"preparation": CUT}
    run = runs["sub-01", 1, "training"]
    whole, healthy = run.path.read_bytes(), content_of(read(files, **options))
    start = whole.index(run.eeg_CS.tobytes())
    outcomes: Counter[str] = Counter()
    for content, may_differ in mutations(
        run.path, whole, np.random.default_rng(2), start, start + run.eeg_CS.nbytes, rare=1
    ):
        run.path.write_bytes(content)
        outcomes[judge(files, options, healthy, may_differ)] += 1
    assert outcomes["refused"] > 50


@pytest.mark.parametrize("kind", ["removed", "swapped", "renamed"])
def test_removed_and_swapped_keys_are_refused_or_change_nothing(tmp_path, kind):
    for layout in LAYOUTS:
        files = write_epoched(tmp_path / layout, layout, reps=(2, 4), n_times=6)
        path = info_of(files, layout)
        whole, healthy = path.read_bytes(), content_of(read(files))
        content = json.loads(whole) if layout == "reshaped" else None
        keys = [*(content or (unpickle.load_torch if layout == "whitened" else unpickle.load)(path))]
        for key, other in zip(keys, [*keys[1:], keys[0]], strict=True):

            def change(content: dict[str, Any], key: str = key, other: str = other) -> None:
                value = content.pop(key)
                if kind == "renamed":
                    content[f"{key}_"] = value
                elif kind == "swapped":
                    content[key], content[other] = content[other], value

            path.write_bytes(whole)
            edit(path, change)
            judge(files, {}, healthy, may_differ=False)
