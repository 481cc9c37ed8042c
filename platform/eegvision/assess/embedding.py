"""One side of a split as a trained model sees it.

Axes: N samples of the side, M distinct pictures of the side, D embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from eegvision import distributed, features, stream
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.stream import Batches, Store
from eegvision.vocab import SplitName


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """One side of a split as a model sees it; samples in the order of the store, pictures sorted by their row.

    `eeg_ND` is None for a model without an EEG encoder, `image_MD` for one without an image encoder. `column_N` is the
    place of each sample's picture in `image_M`; `count_N` how many presentations were averaged into it.
    """

    side: SplitName
    row_N: np.ndarray
    eeg_ND: np.ndarray | None
    column_N: np.ndarray
    label_N: np.ndarray
    subject_N: np.ndarray
    segment_id_N: np.ndarray
    count_N: np.ndarray
    image_M: np.ndarray
    image_MD: np.ndarray | None
    image_id_M: np.ndarray
    label_M: np.ndarray

    @property
    def n_repetitions(self) -> int:
        """Presentations averaged into a sample; where they differ, the most."""
        return int(self.count_N.max())


def side_sha256(store: Store, side: SplitName) -> str:
    """Return the hash of which pictures are shown to whom on a side: it stands for the side in the ledger."""
    rows = store.split.rows[side]
    shown = sorted(zip(store.subject_N[rows].tolist(), store.image_id_M[store.image_N[rows]].tolist(), strict=True))
    return hashlib.sha256(repr((store.manifest.name, shown)).encode()).hexdigest()


def open_store(config: RunConfig, *, repetitions: int | None = None, has_pictures: bool = True) -> Store:
    """Return the data of a run, with this many presentations averaged outside training (None: as in the run)."""
    data = config.data if repetitions is None else replace(config.data, val_repetitions=repetitions)
    return stream.load_store(data, distributed.picture_px(config) if has_pictures else None)


@torch.no_grad()
def embed(model: JointModel, store: Store, side: SplitName, *, batch_size: int = 256) -> Embedded:
    """Encode every sample and every distinct picture of a side, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    eegs, rows, images, image_rows = [], [], [], []
    batches = side_batches(model.config, store, side, batch_size=batch_size, device=device)
    if model.config.loss.arm != "image":
        for batch in batches.passes(1):
            rows.append(batch.row_B.cpu().numpy())
            eegs.append(model.encode_eeg(batch.eeg_BCT, batch.subject_B).cpu().numpy())
    if model.config.loss.arm != "eeg":
        for image_BX, image_B in batches.images(batch_size):
            image_rows.append(image_B.cpu().numpy())
            images.append(model.encode_image(image_BX).cpu().numpy())
    row_N = np.concatenate(rows) if rows else store.split.rows[side]
    order = np.argsort(row_N)
    row_N, image_M = row_N[order], np.unique(store.image_N[row_N])
    if image_rows:
        assert (np.concatenate(image_rows) == image_M).all(), "pictures come sorted"
    return Embedded(
        side=side,
        row_N=row_N,
        eeg_ND=np.concatenate(eegs)[order] if eegs else None,
        column_N=np.searchsorted(image_M, store.image_N[row_N]),
        label_N=store.label_N[row_N],
        subject_N=store.subject_N[row_N],
        segment_id_N=store.segment_id_N[row_N],
        count_N=_presentations(store, row_N),
        image_M=image_M,
        image_MD=np.concatenate(images) if images else None,
        image_id_M=store.image_id_M[image_M],
        label_M=store.label_M[image_M],
    )


def side_batches(
    config: RunConfig,
    store: Store,
    side: SplitName,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    has_images: bool = True,
) -> Batches:
    """Return all samples of a side in stored order, pictures (or frozen features) as in validation."""
    return Batches(
        store,
        side,
        config=config.data,
        size_px=distributed.picture_px(config) if has_images else None,
        feature_MF=features.image_features(config) if has_images else None,
        batch_size=batch_size,
        seed=config.seed,
        device=device,
        training=False,
    )


@torch.no_grad()
def embed_pictures(model: JointModel, store: Store, side: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of a side's distinct pictures, and their rows in the store."""
    device = next(model.parameters()).device
    views = side_batches(model.config, store, side, batch_size=256, device=device).images(256)
    parts = [(model.encode_image(image_BX).cpu().numpy(), image_B.cpu().numpy()) for image_BX, image_B in views]
    return np.concatenate([image_BD for image_BD, _ in parts]), np.concatenate([image_B for _, image_B in parts])


def _presentations(store: Store, row_N: np.ndarray) -> np.ndarray:
    kept_N, count_N = store.repeats.keep_N[row_N], store.repeats.count_N[row_N]
    return np.where(kept_N > 0, np.minimum(kept_N, count_N), count_N)
