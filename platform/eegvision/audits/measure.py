"""From trained models to evidence: what each answers to the validation segments, side by side over seeds.

Axes: Q validation segments, S seeds, M pictures, K classes, D embedding, P passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eegvision import checkpoint
from eegvision.assess.embedding import embed, embed_pictures, open_store
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.evaluate.answers import Answers, Selection, selection
from eegvision.ingest import pieces as reading
from eegvision.ingest import shards
from eegvision.stream import Store
from eegvision.trials import TrialRow

_LIKE = 0.98  # correlation of two pictures' 16 x 16 grey values from which they count as near-duplicates
_MOST_COMPARED = 4000  # pictures that are decoded for that


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A trained model and the data whose validation side it shall answer to."""

    key: str
    checkpoint: Path
    view: RunConfig
    has_images: bool = False


def last_pass(row: TrialRow) -> Path:
    """Return the checkpoint of a training's last pass: chosen by nothing."""
    path = checkpoint.latest(row.folder / "last")
    assert path is not None, f"{row.folder} finished without a checkpoint"
    return path


@torch.no_grad()
def answer(task: Scored) -> tuple[str, dict[str, np.ndarray]]:
    """Return a model's answers to the validation segments of a view of the data.

    `query_Q` segment ids, `image_Q`, `label_Q` what was shown, `image_answer_Q`, `label_answer_Q` what was answered:
    the most similar validation picture and its class, or an arm's class. With `has_images` also, for every
    validation picture `image_M`, its class by the nearest centre of the trained ones (`label_M`, `centre_answer_M`).
    """
    model, store = JointModel.load(task.checkpoint), open_store(task.view)
    asked = embed(model, store, "val")
    assert asked.eeg_ND is not None, "an audit is of models that read EEG"
    found = {"query_Q": asked.segment_id_N, "image_Q": asked.image_M[asked.column_N], "label_Q": asked.label_N}
    if asked.image_MD is None:
        device = next(model.parameters()).device
        logits_QK = model.classify(torch.from_numpy(asked.eeg_ND).to(device))
        found["label_answer_Q"] = logits_QK.argmax(dim=1).cpu().numpy()
        found["image_answer_Q"] = np.full(len(asked.row_N), -1)
        return task.key, found
    best_Q = (asked.eeg_ND @ asked.image_MD.T).argmax(axis=1)
    found |= {"image_answer_Q": asked.image_M[best_Q], "label_answer_Q": asked.label_M[best_Q]}
    if task.has_images:
        trained_MD, image_M = embed_pictures(model, store, "train")
        found |= {"image_M": asked.image_M, "label_M": asked.label_M}
        found["centre_answer_M"] = nearest_centre(trained_MD, store.label_M[image_M], asked.image_MD)
    return task.key, found


def nearest_centre(trained_MD: np.ndarray, label_M: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Return the class whose centre, the mean of its trained pictures' embeddings, is nearest (Euclidean)."""
    classes_K = np.unique(label_M[label_M >= 0])
    centre_KD = np.stack([trained_MD[label_M == label].mean(axis=0) for label in classes_K])
    distance_NK = ((asked_ND[:, None, :] - centre_KD) ** 2).sum(axis=-1)
    return classes_K[distance_NK.argmin(axis=1)]


def joined(found: Sequence[Mapping[str, np.ndarray]], metric: str) -> Answers:
    """Put the answers of several seeds to the same queries side by side; of a class, where pictures have one."""
    by_query = [{name: values[np.argsort(one["query_Q"])] for name, values in _of_queries(one)} for one in found]
    first = by_query[0]
    assert all((one["query_Q"] == first["query_Q"]).all() for one in by_query), "seeds share the split"
    truth, answered = ("label_Q", "label_answer_Q") if metric == "class" else ("image_Q", "image_answer_Q")
    kept = first["label_Q"] >= 0 if metric == "class" else np.full(len(first["query_Q"]), True)
    return Answers(
        predicted_SQ=np.stack([one[answered][kept] for one in by_query]),
        truth_Q=first[truth][kept],
        image_Q=first["image_Q"][kept],
        query_Q=first["query_Q"][kept],
    )


def _of_queries(one: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(name, values) for name, values in one.items() if name.endswith("_Q")]


def image_answers(found: Sequence[Mapping[str, np.ndarray]]) -> Answers:
    """Put the classes of pictures by the nearest centre side by side over seeds; a query is a picture."""
    image_M, label_M = found[0]["image_M"], found[0]["label_M"]
    kept = label_M >= 0
    return Answers(
        predicted_SQ=np.stack([one["centre_answer_M"][kept] for one in found]),
        truth_Q=label_M[kept],
        image_Q=image_M[kept],
        query_Q=image_M[kept],
    )


def passes(rows: Sequence[TrialRow], metric: str) -> Selection:
    """Compare rules for choosing the pass, from the histories of several seeds of one configuration."""
    return selection(np.array([[done[metric] for done in row.history] for row in rows]))


def shared_pictures(config: RunConfig, store: Store) -> tuple[int, str]:
    """Count the validation pictures that are trained on as well, by the hash of their files; and say which are alike.

    Returns:
        the count, and a sentence on near-duplicates: pictures whose 16 x 16 grey values correlate by `_LIKE` or more.
    """
    root = shards.dataset_root(config.data.dataset)
    manifest = shards.read_manifest(root)
    sha256_M = np.array(shards.read_images(root, manifest, columns=["sha256"])["sha256"].to_pylist())
    train_M, val_M = (np.unique(store.image_N[store.split.rows[side]]) for side in ("train", "val"))
    n_shared = int(np.isin(sha256_M[val_M], sha256_M[train_M]).sum())
    said = f"none of {len(val_M)} scored pictures is trained on"
    if len(train_M) + len(val_M) > _MOST_COMPARED:
        return n_shared, f"{said}; near-duplicates were not looked for among more than {_MOST_COMPARED:,} pictures"
    needed = reading.among(reading.all_pieces(root, manifest, "images"), np.union1d(train_M, val_M))
    parts = [reading.read_images(piece, 16) for piece in needed]
    row_M = np.concatenate([part["row"] for part in parts])
    grey_MP = np.concatenate([part["image"] for part in parts]).astype(np.float64).mean(axis=1).reshape(len(row_M), -1)
    grey_MP -= grey_MP.mean(axis=1, keepdims=True)
    grey_MP /= np.maximum(np.linalg.norm(grey_MP, axis=1, keepdims=True), 1e-9)
    alike_VT = grey_MP[np.isin(row_M, val_M)] @ grey_MP[np.isin(row_M, train_M)].T >= _LIKE
    n_alike = int(alike_VT.any(axis=1).sum())
    return (
        n_shared,
        f"{said}, {n_alike} of them look almost like one that is (16 x 16 grey values correlate by {_LIKE})",
    )
