"""Every dialect the whole way: a lab's files, the reader, shards, the stream, a pass of training; nothing lost between.

Identity is proved by hashes per segment: what the shards hold is what the reader gives, and what the reader gives is
what the generator wrote.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mne_files
import things_files
from eegvision import distributed, stream, train
from eegvision.config import RunConfig
from eegvision.encoders.joint import build_joint
from eegvision.ingest import assemble, mne_epochs, perceivelab, shards, simulate, things_eeg2, things_meg
from eegvision.ingest.prepare import Preparation
from eegvision.ingest.sources import Recording
from eegvision.vocab import Segment, Stimulus
from generators import write_perceivelab
from mne_files import BY_EVENT, IMAGES, Lab

Digest = Callable[[np.ndarray], str]

CONFIG = RunConfig().with_overrides(
    {
        "data.crops": "centre",
        "eeg.encoder": "tsconv",
        "eeg.filters": 4,
        "eeg.embed_dim": 8,
        "image.embed_dim": 8,
        "image.size_px": 16,
        "loss.name": "info_nce",
        "train.batch_size": 4,
        "train.max_passes": 1,
    }
)
# Two classes of three pictures leave one picture of each for validation and for test.
FEW_PICTURES = {"data.split": "by-image", "data.val_fraction": 0.34, "data.test_fraction": 0.33}
ZERO_SHOT = {"data.split": "zero-shot", "data.val_fraction": 0.34}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recording and what its files are known to hold: hash and image id by segment id (empty: nobody but us knows).

    `digest` is the hash in use there; `pictures` are the files of the images; `n_left_out` counts segments.
    """

    recording: Recording
    samples: dict[str, str]
    image_of: dict[str, str]
    pictures: dict[str, Path]
    digest: Digest = things_files.sha256
    n_left_out: int = 0
    settings: dict[str, Any] = dataclasses.field(default_factory=lambda: FEW_PICTURES)


def things(files: things_files.ThingsFiles, preparation: Preparation, n_left_out: int = 0) -> Case:
    recording = things_eeg2.read(files.source, files.images, metadata=files.metadata, preparation=preparation)
    names = set(files.image_of.values())
    return Case(
        recording=recording,
        samples=files.sha256,
        image_of=files.image_of,
        pictures={name: files.images / f"{name.replace('/', '_images/', 1)}.jpg" for name in names},
        n_left_out=n_left_out,
        settings=ZERO_SHOT,
    )


def epoched(layout: things_files.Layout) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        return things(things_files.write_epoched(folder, layout, n_times=80, reps=(2, 4)), Preparation())

    return make


def raw(folder: Path) -> Case:
    files, runs = things_files.write_raw(folder, sessions=2)
    return things(files, Preparation(window_s=(0.0, 0.1)), n_left_out=2 * len(runs))  # targets


def meg(folder: Path) -> Case:
    files = mne_files.write_things_meg(folder, participants=2)
    recording = things_meg.read(files.source, files.images, files.metadata)
    tested = {"thing0", "thing1"}
    shown = {
        f"sub-{person:02d}_epo-{number:05d}": (files.paths[row - 1], files.meg_NCT[person][number][:, 20:220])
        for person, row_N in files.row_N.items()
        for number, row in enumerate(row_N)
        if row != things_meg.CATCH and (row % 4 == 0 or Path(files.paths[row - 1]).parent.name not in tested)
    }
    return Case(
        recording=recording,
        samples={name: mne_files.digest(eeg_CT, 1e-15) for name, (_, eeg_CT) in shown.items()},
        image_of={name: image for name, (image, _) in shown.items()},
        pictures={image: files.images / image for image, _ in shown.values()},
        digest=lambda eeg_CT: mne_files.digest(eeg_CT, 1e-15),
        n_left_out=2 * (3 + 6),  # catch trials, training pictures of test concepts
        settings=ZERO_SHOT,
    )


def lab_case(recording: Recording, labs: list[Lab], names: list[str], first: int = 0, last: int = 100, **more) -> Case:
    shown = {
        name: (IMAGES[lab.image_N[number]], lab.window(number, first, last))
        for name, (lab, number) in zip(names, ((lab, n) for lab in labs for n in range(12)), strict=True)
    }
    return Case(
        recording=recording,
        samples={name: mne_files.digest(eeg_CT) for name, (_, eeg_CT) in shown.items()},
        image_of={name: image for name, (image, _) in shown.items()},
        pictures={image: labs[0].images / image for image in IMAGES},
        digest=mne_files.digest,
        **more,
    )


def continuous(kind: mne_files.Format) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        lab = mne_files.write_raw(folder, kind)
        table = mne_files.write_table(folder / "shown.csv", BY_EVENT)
        preparation = Preparation(window_s=(0.0, 0.4))
        recording = mne_epochs.read([lab.recording], lab.images, table, preparation=preparation)
        return lab_case(recording, [lab], [f"sub-01_ses-02_tr-{n:05d}" for n in range(12)])

    return make


def epochs(folder: Path) -> Case:
    lab = mne_files.write_epochs(folder)
    table = mne_files.write_table(folder / "shown.csv", BY_EVENT)
    recording = mne_epochs.read([lab.recording], lab.images, table, preparation=Preparation())
    return lab_case(recording, [lab], [f"sub-01_ses-00_tr-{n:05d}" for n in range(12)], -25, 101)


def bids(folder: Path) -> Case:
    labs = mne_files.write_bids(folder)
    recording = mne_epochs.read([folder], folder / "images", preparation=Preparation(window_s=(0.0, 0.4)))
    names = [f"sub-{subject:02d}_ses-01_tr-{n:05d}" for subject in (1, 2) for n in range(24)]
    return lab_case(recording, list(labs.values()), names, n_left_out=4)  # answers


def perceivelab_files(folder: Path) -> Case:
    files = write_perceivelab(folder, subjects=2, classes=3, images_per_class=4, n_chans=4)
    channels = ("O1", "Oz", "O2", "Pz")
    recording = perceivelab.read(files.eeg, files.images, split_file=files.split_all, channels=channels)
    stored = torch.load(files.eeg, weights_only=True)
    shown = {
        f"sub-{row['subject']:02d}-row-{number:05d}": (stored["images"][row["image"]], row["eeg"][:, 20:460].numpy())
        for number, row in enumerate(stored["dataset"])
    }
    return Case(
        recording=recording,
        samples={name: things_files.sha256(eeg_CT) for name, (_, eeg_CT) in shown.items()},
        image_of={name: image for name, (image, _) in shown.items()},
        pictures={image: files.images / image.split("_")[0] / f"{image}.JPEG" for image in stored["images"]},
        settings={"data.split": "published"},
    )


def simulated(folder: Path) -> Case:  # noqa: ARG001  (it has no files)
    options = dataclasses.replace(simulate.PRESETS["tiny"], n_classes=3, images_per_class=4, n_chans=8)
    return Case(recording=simulate.simulate(options, "simulated"), samples={}, image_of={}, pictures={})


CASES: dict[str, Callable[[Path], Case]] = {
    "things-eeg2/raw": raw,
    "things-eeg2/preprocessed": epoched("preprocessed"),
    "things-eeg2/preprocessed-nice": epoched("preprocessed-nice"),
    "things-eeg2/whitened": epoched("whitened"),
    "things-eeg2/reshaped": epoched("reshaped"),
    "things-meg": meg,
    "mne/fif": continuous("fif"),
    "mne/fif epochs": epochs,
    "mne/edf": continuous("edf"),
    "mne/brainvision": continuous("brainvision"),
    "mne/eeglab": continuous("eeglab"),
    "mne/bids": bids,
    "perceivelab": perceivelab_files,
    "simulated": simulated,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than such small tensors."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def one_pass(config: RunConfig, store: stream.Store, folder: Path) -> dict[str, float]:
    """Train one pass on the CPU and return its metrics."""
    torch.manual_seed(0)
    manifest = store.manifest
    model = build_joint(config, manifest.n_chans, manifest.n_times, manifest.sfreq_hz)
    training, validation = distributed.batches(config, store)
    result = train.fit(config, model, training, validation, device="cpu", folder=folder, report=lambda _: None)
    return result.history[0]


@pytest.mark.parametrize("dialect", CASES)
def test_what_a_lab_has_arrives_whole_in_the_shards_and_can_be_trained_on(tmp_path, dialect):
    case = CASES[dialect](tmp_path / "files")
    read = {segment.segment_id: segment for part in case.recording.parts for segment in part.read(Counter())}
    if case.samples:
        assert {name: case.digest(segment.eeg_CT) for name, segment in read.items()} == case.samples
        assert {name: segment.image_id for name, segment in read.items()} == case.image_of
    stimuli = {stimulus.image_id: stimulus for stimulus in case.recording.stimuli}

    root = tmp_path / "data"
    recording = dataclasses.replace(case.recording, stimuli=stimuli.values())  # a reader's can be taken once
    manifest = assemble.write(root, recording, rows_per_shard=16)
    shards.verify(root, manifest)
    assert_segments(root, manifest, read)
    assert_pictures(root, manifest, stimuli, case.pictures)
    assert (manifest.n_segments, manifest.n_images) == (len(read), len({one.image_id for one in read.values()}))
    assert manifest.dialect == (dialect if dialect.startswith("things-eeg2") else dialect.split("/")[0])
    assert sum(count for why, count in manifest.dropped.items() if "images" not in why) == case.n_left_out
    assert manifest.grade in ("green", "amber", "red")
    assert manifest.audit["findings"]

    config = CONFIG.with_overrides(case.settings | {"data.dataset": str(root)})
    as_stored = stream.load_store(config.with_overrides({"data.normalise": "none"}).data, config.image.input_px)
    assert as_stored.eeg_NCT is not None
    for name, eeg_CT in zip(as_stored.segment_id_N.tolist(), as_stored.eeg_NCT, strict=True):
        assert things_files.sha256(eeg_CT) == things_files.sha256(read[name].eeg_CT)
    assert {*as_stored.image_id_M[as_stored.image_N].tolist()} <= stimuli.keys()
    metrics = one_pass(config, stream.load_store(config.data, config.image.input_px), tmp_path / "run")
    assert {"train/loss", "train/grad_norm", "val/loss", "val/top1", "val/class_top1"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["train/bad_steps"] == 0


def assert_segments(root: Path, manifest: shards.Manifest, read: dict[str, Segment]) -> None:
    columns = [field.name for field in dataclasses.fields(Segment) if field.name != "eeg_CT"]
    table = shards.read_segments(root, manifest, columns=[*columns, "eeg"])
    eeg_NCT = shards.eeg_array(table["eeg"], manifest.channels)
    names = table["segment_id"].to_pylist()
    stored = {name: things_files.sha256(eeg_CT) for name, eeg_CT in zip(names, eeg_NCT, strict=True)}
    assert stored == {name: things_files.sha256(segment.eeg_CT) for name, segment in read.items()}
    for row, segment in zip(table.select(columns).to_pylist(), read.values(), strict=True):
        assert str(row) == str({name: getattr(segment, name) for name in columns})  # as text, nan is itself


def assert_pictures(
    root: Path, manifest: shards.Manifest, stimuli: dict[str, Stimulus], files: dict[str, Path]
) -> None:
    table = shards.read_images(root, manifest, columns=["image_id", "label", "label_name", "encoded"])
    for row in table.to_pylist():
        known = stimuli[row["image_id"]]
        assert (row["encoded"], row["label"]) == (known.encoded, known.label)
        assert row["label_name"] == known.label_name == manifest.classes[row["label"]]
        if files:
            assert row["encoded"] == files[row["image_id"]].read_bytes()
