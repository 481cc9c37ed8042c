"""eegvision.ingest.perceivelab: files in PerceiveLab's layout, every known trap handled or refused by name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision.ingest import assemble, perceivelab, shards, splits
from eegvision.ingest.sources import Recording
from eegvision.vocab import SPLIT_NAMES, InputError, Segment
from generators import PerceiveLabFiles, write_perceivelab

CHANNELS = ("Oz", "O1", "O2")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> PerceiveLabFiles:
    """Four subjects, 3 classes of 4 images, 3 channels: rows 0..3 show image 0 to subjects 1..4, and so on."""
    folder = tmp_path_factory.mktemp("perceivelab")
    return write_perceivelab(folder, subjects=4, classes=3, images_per_class=4, n_chans=3, signal=2.0)


def changed(files: PerceiveLabFiles, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the EEG file after `change` of its content."""
    content = torch.load(files.eeg, weights_only=True)
    change(content)
    path = folder / files.eeg.name
    torch.save(content, path)
    return path


def read(files: PerceiveLabFiles, eeg: Path | None = None, **options) -> Recording:
    return perceivelab.read(eeg or files.eeg, files.images, channels=CHANNELS, **options)


def segments_of(recording: Recording) -> list[Segment]:
    return [segment for part in recording.parts for segment in part.read(recording.dropped)]


def by_row(recording: Recording) -> dict[int, Segment]:
    """Segments by their row number in the file."""
    return {int(segment.segment_id.split("-")[-1]): segment for segment in segments_of(recording)}


def content(files: PerceiveLabFiles) -> dict[str, Any]:
    return torch.load(files.eeg, weights_only=True)


def steps(recording: Recording) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in recording.header.steps}


def test_every_row_keeps_its_subject_image_class_and_samples(released):
    recording = read(released)
    header, raw = recording.header, content(released)
    assert (header.dialect, header.sfreq_hz, header.t_min_s, header.n_times) == ("perceivelab", 1000.0, 0.02, 440)
    assert (header.unit, header.classes, header.montage.channels) == ("zscore", tuple(raw["labels"]), CHANNELS)
    segments = by_row(recording)
    assert sorted(segments) == list(range(48))
    for number, row in enumerate(raw["dataset"]):
        segment = segments[number]
        assert segment.segment_id == f"sub-{row['subject']:02d}-row-{number:05d}"
        assert segment.subject == f"sub-{row['subject']:02d}"
        assert segment.image_id == raw["images"][row["image"]]
        assert (segment.block, segment.order, segment.repetition) == (-1, -1, 0)
        assert segment.eeg_CT.dtype == np.float32
        np.testing.assert_array_equal(segment.eeg_CT, row["eeg"].numpy()[:, 20:460])
    pictures = {stimulus.image_id: stimulus for stimulus in recording.stimuli}
    assert sorted(pictures) == sorted(raw["images"])
    for stem, stimulus in pictures.items():
        synset = stem.split("_")[0]
        assert (stimulus.label_name, raw["labels"][stimulus.label]) == (synset, synset)
        assert stimulus.encoded == (released.images / synset / f"{stem}.JPEG").read_bytes()


def test_a_written_data_set_carries_a_signal_that_can_be_learned(released, tmp_path):
    manifest = assemble.write(tmp_path / "d", read(released, split_file=released.split_all))
    table = shards.read_segments(tmp_path / "d", manifest, columns=["eeg", "image_id"])
    assert (manifest.n_segments, manifest.n_images, manifest.dropped) == (48, 12, {})
    assert manifest.grade == "red", "a block design, as is known from the literature"
    eeg_NCT = shards.eeg_array(table["eeg"])
    label_N = np.array([manifest.classes.index(image.split("_")[0]) for image in table["image_id"].to_pylist()])
    result = splits.split(
        "published", shards.read_segments(tmp_path / "d", manifest), shards.read_images(tmp_path / "d", manifest),
        val_fraction=0.1, test_fraction=0.1, seed=0, published=manifest.published,
    )  # fmt: skip
    train, test = result.rows["train"], result.rows["test"]
    assert (len(train), len(test)) == (24, 12)
    mean_KCT = np.stack([eeg_NCT[train][label_N[train] == label].mean(axis=0) for label in range(3)])
    guess = np.einsum("nct,kct->nk", eeg_NCT[test], mean_KCT).argmax(axis=1)
    assert (guess == label_N[test]).mean() > 0.9  # chance 1/3


def test_the_paper_cuts_elsewhere(released):
    recording = read(released, cut="40:480")
    assert (recording.header.t_min_s, recording.header.n_times) == (0.04, 440)
    np.testing.assert_array_equal(
        by_row(recording)[5].eeg_CT, content(released)["dataset"][5]["eeg"].numpy()[:, 40:480]
    )


def test_rows_of_odd_length_are_left_out_and_counted(released, tmp_path):
    def lengths(loaded):
        for number, length in enumerate((449, 450, 479, 480, 600, 601, 1527)):
            loaded["dataset"][number]["eeg"] = torch.randn(3, length)

    eeg = changed(released, tmp_path, lengths)
    as_released, as_paper = read(released, eeg), read(released, eeg, cut="40:480")
    # 450 samples are kept by the rule but do not reach the end of the cut, 460.
    assert {0, 1, 2, 3, 4, 5, 6} - by_row(as_released).keys() == {0, 1, 5, 6}
    assert {0, 1, 2, 3, 4, 5, 6} - by_row(as_paper).keys() == {0, 1, 2, 5, 6}
    for recording, n_short in ((as_released, 1), (as_paper, 2)):
        assert recording.dropped == {
            "length outside 450..600 samples": 3,
            f"shorter than the cut at {460 if n_short == 1 else 480} samples": n_short,
        }


@pytest.mark.parametrize("cut", ["460:20", "20:20", "20", "a:b", "-5:40", "20:460:2", "0:601", ""])
def test_a_cut_that_is_none_is_refused(released, cut):
    with pytest.raises(InputError, match=r"START:STOP.*such as 20:460"):
        read(released, cut=cut)


def test_a_cut_that_suits_no_row_is_refused(released):
    with pytest.raises(InputError, match=r"no usable row \(shorter than the cut at 600 samples: 48\)"):
        read(released, cut="100:600")


@pytest.mark.parametrize("shape", [(3, 1), (1, 1), ()])
def test_the_unfiltered_file_is_standardised_with_its_own_means(released, tmp_path, shape):
    means, stddevs = 3 * torch.ones(shape), 2 * torch.ones(shape)
    eeg = changed(released, tmp_path, lambda loaded: loaded.update(means=means, stddevs=stddevs))
    scaled, raw = read(released, eeg), read(released, eeg, standardise=False)
    value = content(released)["dataset"][7]["eeg"].numpy()[:, 20:460]
    np.testing.assert_allclose(by_row(scaled)[7].eeg_CT, (value - 3) / 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(by_row(raw)[7].eeg_CT, value)
    assert (scaled.header.unit, raw.header.unit) == ("zscore", "uV")
    assert steps(scaled)["standardise"]["basis"] == "(eeg - means) / stddevs of the file"
    assert steps(raw)["unit"]["basis"].startswith("assumed")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"means": torch.zeros(3, 1)}, "are not two tensors"),
        ({"means": [0.0], "stddevs": [1.0]}, "are not two tensors"),
        ({"means": torch.zeros(3, 1), "stddevs": torch.tensor([[1.0], [0.0], [1.0]])}, "`stddevs` above 0"),
        ({"means": torch.full((3, 1), torch.nan), "stddevs": torch.ones(3, 1)}, "`means` must be finite"),
        ({"means": torch.zeros(4, 1), "stddevs": torch.ones(4, 1)}, r"row 0: means \[4, 1\].*do not fit.*\[3, \d+\]"),
        ({"means": torch.zeros(9, 3, 1), "stddevs": torch.ones(3, 1)}, "do not fit"),
        ({"means": torch.zeros(3, 1), "stddevs": torch.ones(9, 3, 1)}, "do not fit"),
    ],
)
def test_means_that_do_not_fit_are_refused(released, tmp_path, scale, message):
    eeg = changed(released, tmp_path, lambda loaded: loaded.update(scale))
    with pytest.raises(InputError, match=message):
        segments_of(read(released, eeg))


def test_steps_say_what_was_done_and_what_is_assumed(released, tmp_path):
    said = steps(perceivelab.read(released.eeg, released.images, channels=CHANNELS, split_file=released.split_single))
    assert said["source"] == {"step": "source", "file": "eeg_5_95_std.pth", "rows": 48, "images": 12}
    assert (said["band-pass"]["low_hz"], said["band-pass"]["high_hz"]) == (5, 95)
    assert said["channel names"]["basis"] == "given"
    assert said["cut"] == {"step": "cut", "start_sample": 20, "stop_sample": 460}
    assert said["published split"]["subjects"] == ["sub-04"]
    assert said["published split"]["rows_in_file"] == 48

    whole_cap = write_perceivelab(tmp_path, subjects=1, classes=1, images_per_class=3)
    recording = perceivelab.read(whole_cap.eeg, whole_cap.images)
    assert recording.header.montage.channels == perceivelab.ACTICAP_128
    assert steps(recording)["channel names"]["basis"].startswith("assumed")


def test_the_assumed_cap_is_the_makers_without_reference_and_ground():
    import mne

    makers = mne.channels.make_standard_montage("brainproducts-RNP-BA-128").ch_names
    assert tuple(name for name in makers if name not in ("FCz", "Fpz")) == perceivelab.ACTICAP_128
    assert len(perceivelab.ACTICAP_128) == 128


def test_a_published_split_is_by_image_over_the_whole_file(released):
    published = read(released, split_file=released.split_all).header.published
    rows, stems = content(released)["dataset"], content(released)["images"]
    numbers = torch.load(released.split_all, weights_only=True)["splits"][0]
    for side in SPLIT_NAMES:
        assert set(published[side]) == {stems[rows[number]["image"]] for number in numbers[side]}
    assert {side: len(ids) for side, ids in published.items()} == {"train": 6, "val": 3, "test": 3}


def test_a_subject_filter_does_not_move_the_split(released, tmp_path):
    # Within one subject, row numbers of the whole file would point to other images, or beyond the end.
    whole = read(released, split_file=released.split_all)
    second = read(released, split_file=released.split_all, subjects=("sub-02",))
    assert second.header.published == whole.header.published
    segments = by_row(second)
    assert sorted(segments) == list(range(1, 48, 4))
    assert {segment.subject for segment in segments.values()} == {"sub-02"}

    manifest = assemble.write(tmp_path / "d", read(released, split_file=released.split_all, subjects=("sub-02",)))
    table = shards.read_segments(tmp_path / "d", manifest)
    images = shards.read_images(tmp_path / "d", manifest)
    result = splits.split(
        "published", table, images, val_fraction=0.1, test_fraction=0.1, seed=0, published=manifest.published
    )
    tested = {table["image_id"][row].as_py() for row in result.rows["test"].tolist()}
    assert tested == set(whole.header.published["test"])


def test_the_single_subject_split_leaves_the_other_images_out(released):
    published = read(released, split_file=released.split_single).header.published
    everybody = read(released, split_file=released.split_all).header.published
    assert {side: len(ids) for side, ids in published.items()} == {"train": 3, "val": 2, "test": 2}
    for side in SPLIT_NAMES:
        assert set(published[side]) <= set(everybody[side])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": [0], "val": [4], "test": [48]}, r"test entry 0: row 48 is not in 0\.\.47.*from one release"),
        ({"train": [0], "val": [-1], "test": [4]}, r"val entry 0: row -1 is not in 0\.\.47"),
        ({"train": [0], "val": [4], "test": [8.5]}, "test entry 0 has no whole number as row"),
        ({"train": [0], "val": [4], "test": [1]}, r"is in train and \(row 1\) in test.*within one subject"),
        ({"train": [0], "val": [4]}, "split 0 has no test rows"),
        ([0, 1], "split 0 has no train rows"),
    ],
)
def test_a_split_that_does_not_belong_to_the_file_is_refused(released, tmp_path, split, message):
    torch.save({"splits": [split]}, tmp_path / "split.pth")
    with pytest.raises(InputError, match=message):
        read(released, split_file=tmp_path / "split.pth")


def test_another_split_of_the_file_can_be_chosen(released, tmp_path):
    first, second = ({"train": torch.tensor([a]), "val": [b], "test": [c]} for a, b, c in ((0, 4, 8), (8, 4, 0)))
    torch.save({"splits": [first, second]}, tmp_path / "split.pth")
    at = [read(released, split_file=tmp_path / "split.pth", split_index=index).header.published for index in (0, 1)]
    assert at[0]["train"] == at[1]["test"] != at[0]["test"]
    with pytest.raises(InputError, match="has 2 splits, so there is no split 2; choose 0 to 1"):
        read(released, split_file=tmp_path / "split.pth", split_index=2)


def test_image_names_in_another_order_are_found_out(released, tmp_path):
    def longer_and_reordered(loaded):  # as the list of 2000 names that goes with no released file
        loaded["images"] = [*sorted(loaded["images"], reverse=True), "n09999999_1"]

    with pytest.raises(InputError, match=r"row \d+ shows image \d+, 'n\d+_\d+', but has label.*of 48 rows disagree"):
        read(released, changed(released, tmp_path, longer_and_reordered))


def edit(number: int, **values) -> Callable[[dict[str, Any]], Any]:
    return lambda loaded: loaded["dataset"][number].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(3, image=12), r"row 3: image 12 is not in 0\.\.11"),
        (edit(3, image=-1), r"row 3: image -1 is not in 0\.\.11"),
        (edit(3, label=3), r"row 3: label 3 is not in 0\.\.2"),
        (edit(3, subject="4"), "row 3 has no whole number as subject"),
        (edit(3, eeg=[[0.0]]), "row 3 is not a dict with a tensor `eeg`"),
        (edit(3, eeg=torch.zeros(2, 500)), r"row 3 has EEG of shape \[2, 500\], expected \[3, samples\]"),
        (edit(3, eeg=torch.zeros(500, 3)), r"row 3 has EEG of shape \[500, 3\]"),
        (edit(3, eeg=torch.zeros(1500)), r"row 3 has EEG of shape \[1500\]"),
        (lambda loaded: loaded["dataset"][3].pop("label"), "row 3 has no whole number as label"),
        (lambda loaded: loaded.pop("images"), "has no images; it is not one of PerceiveLab's files"),
        (lambda loaded: loaded.update(images=torch.arange(12)), "`images` is not a list of names"),
        (lambda loaded: loaded.update(labels=[0, 1, 2]), "`labels` is not a list of names"),
        (lambda loaded: loaded.update(dataset=torch.zeros(2)), "`dataset` is a Tensor, not a list"),
        (lambda loaded: loaded.update(dataset=[]), r"no usable row \(the file is empty\)"),
        (lambda loaded: loaded["images"].__setitem__(0, "../../secret"), "'../../secret', which is not an ImageNet"),
        (lambda loaded: loaded["images"].__setitem__(0, "/etc/secret"), "not an ImageNet stem"),
        (lambda loaded: loaded["images"].__setitem__(0, "a\\b"), "not an ImageNet stem"),
        (lambda loaded: loaded["images"].__setitem__(0, "a\0b"), "not an ImageNet stem"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_row_and_value(released, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read(released, changed(released, tmp_path, change))


def test_other_dtypes_and_the_newer_file_layout_are_read(released, tmp_path):
    eeg = changed(released, tmp_path, lambda d: [row.update(eeg=row["eeg"].double()) for row in d["dataset"]])
    segment = by_row(read(released, eeg))[0]
    assert segment.eeg_CT.dtype == np.float32
    np.testing.assert_array_equal(segment.eeg_CT, by_row(read(released))[0].eeg_CT)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN or infinite EEG"), (np.inf, "NaN or infinite EEG"), (None, "EEG constant")]
)
def test_bad_rows_are_refused_or_left_out_and_counted(released, tmp_path, value, reason):
    def spoil(loaded):
        eeg_CL = loaded["dataset"][9]["eeg"]
        if value is None:
            eeg_CL[:] = torch.tensor([[1.0], [2.0], [3.0]])
        else:
            eeg_CL[1, 459] = value

    eeg = changed(released, tmp_path, spoil)
    with pytest.raises(InputError, match=f"row 9: {reason}.*--on-bad drop"):
        segments_of(read(released, eeg))
    recording = read(released, eeg, on_bad="drop")
    manifest = assemble.write(tmp_path / "d", recording)
    assert manifest.n_segments == 47
    (counted,) = manifest.dropped.items()
    assert counted[0].startswith(reason)
    assert counted[1] == 1


def test_a_nan_outside_the_cut_harms_nobody(released, tmp_path):
    eeg = changed(released, tmp_path, lambda d: d["dataset"][9]["eeg"][:, 460:].fill_(np.nan))
    assert len(by_row(read(released, eeg))) == 48


def test_a_second_showing_is_a_repetition(released, tmp_path):
    eeg = changed(released, tmp_path, lambda d: d["dataset"].append(d["dataset"][0]))
    segments = by_row(read(released, eeg))
    assert (segments[0].repetition, segments[48].repetition) == (0, 1)


def test_an_unknown_subject_is_refused_with_those_there_are(released):
    for name in ("4", "sub-05"):
        with pytest.raises(InputError, match=f"no subject '{name}'; present are sub-01, sub-02, sub-03, sub-04"):
            read(released, subjects=(name,))


def test_code_in_a_file_is_not_run(released, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"dataset": Harmful(), "labels": [], "images": []}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth is not a whole torch file.*or holds code, which is never run"):
        read(released, tmp_path / "evil.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(released, tmp_path, share):
    whole = released.eeg.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut\.pth is not a whole torch file"):
        read(released, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"there is no file .*gone\.pth"):
        read(released, tmp_path / "gone.pth")


@pytest.fixture
def own_pictures(released, tmp_path) -> PerceiveLabFiles:
    """The released files with a picture folder that a test may spoil."""
    shutil.copytree(released.images, tmp_path / "pictures")
    return replace(released, images=tmp_path / "pictures")


def test_pictures_are_found_flat_deep_and_under_other_suffixes(own_pictures):
    expected = {stimulus.image_id: stimulus.encoded for stimulus in read(own_pictures).stimuli}
    files = sorted(own_pictures.images.rglob("*.JPEG"))
    places = ("{}.JPEG", "deep/er/{}.jpg", "val/{}.jpeg", "{}.png")
    for file, place in zip(files, places * 3, strict=True):
        target = own_pictures.images / place.format(file.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    assert {stimulus.image_id: stimulus.encoded for stimulus in read(own_pictures).stimuli} == expected


def test_missing_pictures_are_counted_and_the_first_is_named(own_pictures):
    first, second = sorted(own_pictures.images.rglob("*.JPEG"))[:2]
    first.unlink()
    second.unlink()
    with pytest.raises(
        InputError, match=rf"picture {first.stem} .*is not under .*pictures; 2 of 12 pictures are missing"
    ):
        read(own_pictures)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere with the pictures"):
        read(replace(own_pictures, images=own_pictures.images / "nowhere"))


def test_a_picture_that_is_there_twice_is_refused(own_pictures):
    file = min(own_pictures.images.rglob("*.JPEG"))
    shutil.copy(file, file.with_suffix(".png"))
    with pytest.raises(InputError, match=f"picture {file.stem} is there twice"):
        read(own_pictures)


def test_a_picture_linked_from_outside_is_refused(own_pictures, tmp_path):
    file = min(own_pictures.images.rglob("*.JPEG"))
    file.rename(tmp_path / "outside.JPEG")
    file.symlink_to(tmp_path / "outside.JPEG")
    with pytest.raises(InputError, match=f"{file.stem}.JPEG is a link to outside"):
        read(own_pictures)


def test_a_truncated_picture_is_named_and_nothing_finished_is_lost(own_pictures, tmp_path):
    file = min(own_pictures.images.rglob("*.JPEG"))
    shutil.copy(file, own_pictures.images.parents[0] / "spare.JPEG")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"picture '{file.stem}' cannot be decoded[^$]*4 of 4 parts are finished"):
        assemble.write(tmp_path / "d", read(own_pictures))
    with pytest.raises(InputError, match="not a whole data set"):
        shards.read_manifest(tmp_path / "d")
    shutil.copy(own_pictures.images.parents[0] / "spare.JPEG", file)
    assert assemble.write(tmp_path / "d", read(own_pictures)).n_segments == 48  # goes on with the picture repaired


def test_channel_names_come_from_a_text_file(tmp_path):
    (tmp_path / "names.txt").write_text("Oz\n O1 \n\nO2\n")
    assert perceivelab.read_channel_names(tmp_path / "names.txt") == CHANNELS
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        perceivelab.read_channel_names(tmp_path / "gone.txt")


def test_raw_values_that_are_not_microvolts_are_refused(released, tmp_path):
    def volts(loaded):
        loaded.update(means=torch.zeros(3, 1), stddevs=torch.ones(3, 1))
        for row in loaded["dataset"]:
            row["eeg"] = row["eeg"] * 2e-5

    eeg = changed(released, tmp_path, volts)
    with pytest.raises(InputError, match=r"eeg_5_95_std\.pth.*uV.*\bV\b"):
        read(released, eeg, standardise=False)


def mutated(content: bytes, number: int) -> bytes:
    """A damaged copy: a flipped bit, a missing end, or bytes that changed places."""
    rng = np.random.default_rng(number)
    at = int(rng.integers(len(content)))
    if number % 3 == 0:
        return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
    if number % 3 == 1:
        return content[:at]
    other = int(rng.integers(len(content) - 16))
    swapped = bytearray(content)
    at = min(at, len(content) - 16)
    swapped[at : at + 16], swapped[other : other + 16] = content[other : other + 16], content[at : at + 16]
    return bytes(swapped)


@pytest.mark.filterwarnings("ignore")  # what torch says of damaged files
def test_no_damaged_file_becomes_a_wrong_data_set_in_silence(tmp_path):
    """Of 200 damaged files each is refused, or gives the same rows, or differs in the samples of the rows hit."""
    files = write_perceivelab(tmp_path, subjects=2, classes=2, images_per_class=4, n_chans=3, length_range=(470, 470))
    whole = {segment.segment_id: segment for segment in segments_of(read(files))}
    intact, outcomes = files.eeg.read_bytes(), Counter()
    (tmp_path / "damaged").mkdir()
    for number in range(200):
        path = tmp_path / "damaged" / files.eeg.name
        path.write_bytes(mutated(intact, number))
        try:
            found = segments_of(read(files, path))
        except InputError as error:
            outcomes["refused" if str(path) in str(error) else f"does not name the file: {error}"] += 1
            continue
        assert len(found) == len(whole)
        n_changed = 0
        for segment in found:
            known = whole[segment.segment_id]
            assert (segment.subject, segment.image_id) == (known.subject, known.image_id)
            n_changed += not np.array_equal(segment.eeg_CT, known.eeg_CT)
        assert n_changed <= 4, "damage of 16 bytes in two places"
        outcomes["equal" if n_changed == 0 else "other samples"] += 1
    assert set(outcomes) <= {"refused", "equal", "other samples"}
    assert outcomes["refused"] > 50
    sums = f"{hashlib.sha256(intact).hexdigest()}  {files.eeg.name}\n"
    (tmp_path / "damaged" / "SHA256SUMS").write_text(sums)
    for number in range(0, 30):
        path.write_bytes(mutated(intact, number))
        with pytest.raises(InputError, match=r"eeg_5_95_std\.pth is damaged or another version: its sha256 is"):
            read(files, path)
    path.write_bytes(intact)
    assert not any("checksum" in fact for fact in read(files, path).header.facts)
