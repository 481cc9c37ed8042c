"""A store whose images can be told from its EEG, and trainings on it: for the tests of the training loop."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import checkpoint
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.ingest.pieces import Cut
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Split
from eegvision.stream import Batches, Store
from eegvision.stream.repeats import singles
from eegvision.train import PassReport, fit
from eegvision.vocab import Montage, SplitName

N_IMAGES, N_SHOWN, SIZE_PX, N_CHANS, N_TIMES = 24, 4, 16, 4, 75
CLASSES = ("cat", "dog", "fish")
# 16 images train, 6 validate, 2 are left for a test; four segments show each.
EEG = {"eeg.encoder": "tsconv", "eeg.embed_dim": 8, "eeg.filters": 8, "eeg.dropout": 0.0}
IMAGE = {"image.embed_dim": 8, "image.size_px": SIZE_PX}
CODEBOOK = {"image.encoder": "random-codebook", "image.size_px": None}  # frozen features, here FEATURES
TRAINING = {"optim.lr": 0.01, "train.batch_size": 16, "train.max_passes": 4, "data.crops": "centre", "seed": 3}
CONFIG = RunConfig().with_overrides({"loss.name": "info_nce"} | EEG | IMAGE | TRAINING)

N_FEATURES = 5
FEATURES = np.random.default_rng(7).normal(size=(N_IMAGES, N_FEATURES)).astype(np.float32)
TEXTS = np.random.default_rng(8).normal(size=(3, 8)).astype(np.float32)[np.arange(N_IMAGES) % 3]  # one per class


def arm(side: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Return CONFIG with one encoder alone, which tells classes apart."""
    own = {"loss.name": f"{side}-classes"} | (EEG if side == "eeg" else IMAGE) | TRAINING
    return RunConfig().with_overrides(own | dict(settings or {}))


def built(config: RunConfig = CONFIG, *, n_times: int = N_TIMES) -> JointModel:
    torch.manual_seed(config.seed)
    n_features = N_FEATURES if config.image.is_frozen else 0
    return build_joint(config, N_CHANS, n_times, 100.0, n_features=n_features, n_classes=len(CLASSES))


def planted(*, signal: float = 1.0, tint: float = 0.0, name: str = "planted", labels: bool = True) -> Store:
    """Every image has a colour, and its EEG three responses (a scalp pattern each) as strong as red, green and blue.

    The colours of the three classes differ as far as `tint` says.
    """
    rng = np.random.default_rng(0)
    colour_M3 = (1 - tint) * rng.uniform(-1, 1, (N_IMAGES, 3)) + tint * np.eye(3)[np.arange(N_IMAGES) % 3]
    pixel_M3HH = colour_M3[:, :, None, None] + 0.1 * rng.normal(size=(N_IMAGES, 3, 18, 18))
    image_N = np.repeat(np.arange(N_IMAGES), N_SHOWN)
    response_3CT = rng.normal(size=(3, N_CHANS, 1)) * np.sin(np.arange(N_TIMES) * np.array([[[0.2]], [[0.4]], [[0.8]]]))
    eeg_NCT = signal * np.tensordot(colour_M3[image_N], response_3CT, 1) + rng.normal(size=(96, N_CHANS, N_TIMES))
    label_M = np.arange(N_IMAGES) % 3 if labels else np.full(N_IMAGES, -1)
    manifest = Manifest(
        name=name,
        dialect="test",
        licence="none",
        montage=Montage(channels=("O1", "O2", "Oz", "Pz")),
        sfreq_hz=100.0,
        t_min_s=0.0,
        n_times=N_TIMES,
        unit="zscore",
        classes=CLASSES if labels else (),
        n_segments=96,
        n_images=N_IMAGES,
        subjects=("s",),
        dropped={},
        audit={"grade": "green"},
        shards=(),
        fingerprint=f"fingerprint of {name}",
    )
    sides: dict[SplitName, np.ndarray] = {"train": np.arange(64), "val": np.arange(64, 88), "test": np.arange(88, 96)}
    return Store(
        manifest=manifest,
        cut=Cut(channels=manifest.channels, first=0, stop=N_TIMES),
        pieces=(),
        repeats=singles(np.arange(96)),
        eeg_NCT=eeg_NCT.astype(np.float32),
        image_N=image_N,
        label_N=label_M[image_N],
        subject_N=np.full(96, "s"),
        segment_id_N=np.array([f"seg-{n}" for n in range(96)]),
        split=Split(rows=sides, notes=("subjects are on all sides",)),
        images_M3HH=np.clip(127.5 + 100 * pixel_M3HH, 0, 255).astype(np.uint8),
        image_id_M=np.array([f"img-{m}" for m in range(N_IMAGES)]),
        label_M=label_M,
    )


def partly_labelled() -> Store:
    """Return `planted` where every fifth segment has no class."""
    store = planted()
    store.label_N[::5] = -1
    return store


def batches(config: RunConfig, store: Store, rank=0, world=1, device="cpu") -> tuple[Batches, Batches]:
    def side(name: SplitName) -> Batches:
        return Batches(
            store,
            name,
            config=config.data,
            size_px=None if config.loss.arm == "eeg" else SIZE_PX,
            feature_MF=FEATURES if config.image.is_frozen else None,
            text_MF=TEXTS if config.image.text else None,
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=rank,
            world=world,
            device=device,
            training=name == "train",
        )

    return side("train"), side("val")


def run(
    folder: Path,
    config: RunConfig = CONFIG,
    *,
    model=None,
    store=None,
    report=lambda _: None,
    device="cpu",
    should_stop=lambda: False,
):
    train, val = batches(config, store or planted(), device=device)
    return fit(
        config,
        model or built(config),
        train,
        val,
        device=device,
        folder=folder,
        report=report,
        should_stop=should_stop,
    )


class Interrupted(Exception):  # noqa: N818
    """Raised by a report, as when a process is stopped between two passes."""


def stop_after(number: int):
    def report(done: PassReport) -> None:
        if done.number == number:
            raise Interrupted

    return report


def timeless(history) -> list[dict[str, float]]:
    """Drop what the clock decides."""
    return [{k: v for k, v in metrics.items() if k not in ("seconds", "segments_per_s")} for metrics in history]


def stored(folder: Path, side: str = "last") -> dict[str, dict[str, torch.Tensor]]:
    path = checkpoint.latest(folder / side)
    assert path is not None
    return checkpoint.load(path)[0]


def assert_same_tensors(left, right) -> None:
    assert left.keys() == right.keys()
    for group in left:
        assert left[group].keys() == right[group].keys()
        for name in left[group]:
            assert torch.equal(left[group][name], right[group][name]), (group, name)


def assert_same_curves(here, there) -> None:
    """Tolerance 1e-4, gradients 1e-3: sums in another order differ by 1e-7, which Adam magnifies near zero."""
    for ours, theirs in zip(timeless(here), timeless(there), strict=True):
        assert theirs.pop("train/grad_norm") == pytest.approx(ours.pop("train/grad_norm"), rel=1e-3)
        assert theirs == pytest.approx(ours, rel=1e-4)


def with_eeg(store: Store, rows, value: float) -> Store:
    assert store.eeg_NCT is not None
    eeg_NCT = store.eeg_NCT.copy()
    eeg_NCT[rows] = value
    return dataclasses.replace(store, eeg_NCT=eeg_NCT)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
