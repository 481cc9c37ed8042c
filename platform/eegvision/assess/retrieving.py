"""Zero-shot retrieval: galleries, scores and the curve over averaged presentations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from eegvision import features, stream
from eegvision.assess.embedding import Embedded, embed_pictures
from eegvision.assess.scores import Evaluation, Question, confusion_of, groups_of, interval
from eegvision.encoders.joint import JointModel
from eegvision.evaluate import curves, retrieval, statistics, zero_shot
from eegvision.evaluate.zero_shot import Gallery, GalleryKind, RetrievalResult
from eegvision.stream import Batches, Store
from eegvision.vocab import InputError

_KWAY = (2, 10, 50)
_CURVE_COUNTS = (1, 2, 4, 10, 20, 40, 80)


def zero_shot_scores(model: JointModel, store: Store, asked: Embedded, question: Question) -> Evaluation:
    """Retrieve, for every sample of the side, its picture or its class among the galleries asked for.

    Raises:
        InputError: the model lacks an encoder, or none of the galleries can be made.
    """
    if asked.eeg_ND is None or asked.image_MD is None:
        raise InputError(f"retrieval needs both encoders, and this model has the {model.config.loss.arm} one only")
    rows: list[dict[str, Any]] = []
    predictions: dict[str, list[Any]] = {}
    confusion = None
    for gallery, target_N, kept_N in _galleries(model, store, asked, question):
        result = zero_shot.retrieve(
            asked.eeg_ND[kept_N],
            target_N,
            gallery,
            query_ids=asked.segment_id_N[kept_N],
            repetitions=asked.n_repetitions,
            normalise=question.normalise,
            transductive=question.transductive,
        )
        rows += _rows(result, gallery, store, asked, kept_N, question)
        columns = result.predictions | {
            "gallery": [gallery.kind] * len(kept_N),
            "subject": asked.subject_N[kept_N].tolist(),
            "image_id": asked.image_id_M[asked.column_N[kept_N]].tolist(),
            "repetitions": asked.count_N[kept_N].tolist(),
        }
        for name, values in columns.items():
            predictions.setdefault(name, []).extend(values)
        if gallery.kind == "exact-image" and (asked.label_M >= 0).all() and len(store.manifest.classes) > 1:
            score_NM = retrieval.similarity(asked.eeg_ND, asked.image_MD, normalise=question.normalise)
            retrieved_N = asked.label_M[score_NM.argmax(axis=1)]
            confusion = confusion_of(asked.label_N, retrieved_N, store.manifest.classes, question.categories)
    return Evaluation(
        protocol="zero-shot",
        side=asked.side,
        rows=rows,
        curves=_curves(model, store, asked, question) if question.curve else [],
        confusion=confusion,
        predictions=predictions,
    )


def _galleries(
    model: JointModel, store: Store, asked: Embedded, question: Question
) -> Iterator[tuple[Gallery, np.ndarray, np.ndarray]]:
    """Yield each gallery that can be made, what is right in it for each query, and which queries it is asked for."""
    assert asked.image_MD is not None
    names = np.array(store.manifest.classes)
    everyone, named = np.arange(len(asked.row_N)), np.flatnonzero(asked.label_N >= 0)
    n_yielded = 0
    for kind in question.galleries:
        if kind == "exact-image":
            yield zero_shot.image_gallery(asked.image_MD, asked.image_id_M), asked.image_id_M[asked.column_N], everyone
        elif kind == "text":
            yield _text_gallery(model, store, asked), names[asked.label_N[named]], named
        elif kind not in get_args(GalleryKind):
            raise InputError(f"gallery {kind!r}; expected one of {', '.join(get_args(GalleryKind))}")
        elif (gallery := _centres(model, store, asked, question, kind)) is None:
            continue
        else:
            yield gallery, names[asked.label_N[named]], named
        n_yielded += 1
    if not n_yielded:
        raise InputError(
            "no gallery could be made: class centres need classes of which the data set has other pictures than those "
            "of the side, or a file of centres (--centres); ask for exact-image"
        )


def _centres(model: JointModel, store: Store, asked: Embedded, question: Question, kind: GalleryKind) -> Gallery | None:
    """Return class centres: from a file, or the mean of the class's pictures, without the side's if so asked."""
    label_K = np.unique(asked.label_M[asked.label_M >= 0])
    names = np.array(store.manifest.classes)
    if len(label_K) < 2:
        return None
    if question.centres is not None:
        return _file_centres(model, question.centres, np.sort(names[label_K]))
    assert asked.image_MD is not None
    if kind == "class-centre":
        kept_M = np.flatnonzero(asked.label_M >= 0)
        return zero_shot.centre_gallery(_unit(asked.image_MD[kept_M]), names[asked.label_M[kept_M]])
    others = [embed_pictures(model, store, side) for side in store.split.rows if side != asked.side]
    image_ID = np.concatenate([image_MD for image_MD, _ in others])
    label_I = store.label_M[np.concatenate([image_M for _, image_M in others])]
    is_other_I = np.isin(label_I, label_K)
    if len(np.unique(label_I[is_other_I])) < len(label_K):
        return None
    made = zero_shot.centre_gallery(_unit(image_ID[is_other_I]), names[label_I[is_other_I]])
    return replace(made, kind="class-centre-without-stimulus")


def _file_centres(model: JointModel, path: Path, names: np.ndarray) -> Gallery:
    """Return the centres in a file, mapped into the joint space as frozen features are."""
    try:
        feature_KF = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--centres {path} cannot be read as .npy: {error}") from error
    if feature_KF.ndim != 2 or len(feature_KF) != len(names):
        raise InputError(
            f"--centres {path} has the shape {feature_KF.shape}; expected one row for each of {len(names)} classes"
        )
    with torch.no_grad():
        device = next(model.parameters()).device
        centre_KD = model.encode_image(torch.from_numpy(feature_KF.astype(np.float32)).to(device)).cpu().numpy()
    return Gallery(kind="class-centre-without-stimulus", feature_ND=centre_KD, ids_N=names, label_N=names)


def _text_gallery(model: JointModel, store: Store, asked: Embedded) -> Gallery:
    text_MF = features.text_features(model.config)
    if text_MF is None:
        raise InputError("a text gallery needs text features; set image.text in the run's configuration")
    label_K, first_K = np.unique(asked.label_M, return_index=True)
    known = label_K >= 0
    names = np.array(store.manifest.classes)[label_K[known]]
    return zero_shot.text_gallery(np.asarray(text_MF[asked.image_M[first_K[known]]]), names)


def _unit(vector_ND: np.ndarray) -> np.ndarray:
    return vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)


def _rows(
    result: RetrievalResult, gallery: Gallery, store: Store, asked: Embedded, kept_N: np.ndarray, question: Question
) -> list[dict[str, Any]]:
    subject_N, unit_N, label_N = asked.subject_N[kept_N], asked.column_N[kept_N], asked.label_N[kept_N]
    groups = groups_of(question, store.manifest.classes, label_N, subject_N)
    values = {f"top-{k}": (result.rank_Q <= k).astype(np.float64) for k in (1, 3, 5)}
    values["mAP"] = result.average_precision_Q
    rows = []
    for group_name, group_N in {"all": np.full(len(kept_N), "all"), **groups}.items():
        for row in result.to_rows(group_N, group_name=group_name):
            is_in_N = group_N == row["group"]
            value_N = values.get(row["metric"])
            n_images = len(np.unique(unit_N[is_in_N]))
            if row["significance_line"] is not None:  # presentations of one picture count once
                row["significance_line"] = statistics.significance_line(n_images, row["chance"])
            low_high = (None, None)
            if value_N is not None:
                low_high = interval(value_N[is_in_N], unit_N[is_in_N], subject_N[is_in_N], question)
            rows.append(row | {"low": low_high[0], "high": low_high[1], "n_images": n_images, "p": None})
    rows += _kway_rows(result, rows[0]) if gallery.kind == "exact-image" else []
    if result.transductive == "none" and gallery.kind == "exact-image":
        assert asked.eeg_ND is not None
        score_NM = retrieval.similarity(asked.eeg_ND[kept_N], gallery.feature_ND, normalise=question.normalise)
        for row in rows:
            k = int(row["metric"][4:]) if row["metric"].startswith("top-") else 0
            if k and k < result.n_gallery and row["group_name"] in ("all", "subject"):
                is_in_N = (
                    groups["subject"] == row["group"] if row["group_name"] == "subject" else np.full(len(kept_N), True)
                )
                row["p"] = statistics.permutation_p(score_NM[is_in_N], unit_N[is_in_N], k, seed=question.seed)[1]
    for row in rows:
        row["probe_side"] = None
        row["repetitions"] = asked.n_repetitions
    return rows


def _kway_rows(result: RetrievalResult, of_all: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        of_all
        | {"metric": f"{k}-way", "value": result.kway(k), "chance": 1 / k}
        | {"significance_line": None, "low": None, "high": None, "p": None}
        for k in _KWAY
        if k <= result.n_gallery
    ]


def _curves(model: JointModel, store: Store, asked: Embedded, question: Question) -> list[dict[str, Any]]:
    """Average 1, 2, 4, ... presentations of each picture and retrieve it, for every subject."""
    config, image_MD = model.config, asked.image_MD
    assert image_MD is not None
    data = replace(config.data, val_repetitions=1, residency="stream", normalise="none", band_hz=None)
    # `repetitions` would draw anew for training, which is not looked at here.
    singles = stream.load_store(replace(data, repetitions=1), None)
    rows = singles.split.rows[asked.side]
    counts_N = np.unique(
        np.stack([_codes(singles.subject_N[rows]), singles.image_N[rows]]), axis=1, return_counts=True
    )[1]
    counts = [count for count in _CURVE_COUNTS if count <= counts_N.min()]
    if len(counts) < 2:
        return []
    batches = Batches(singles, asked.side, config=data, size_px=None, batch_size=512, seed=config.seed, training=False)
    found = [(batch.row_B.numpy(), batch.eeg_BCT.numpy()) for batch in batches.passes(1)]
    row_Q = np.concatenate([row_B for row_B, _ in found])
    eeg_QCT = np.concatenate([eeg_BCT for _, eeg_BCT in found])
    made = []
    for subject in np.unique(singles.subject_N[row_Q]).tolist():
        own = np.flatnonzero(singles.subject_N[row_Q] == subject)
        image_Q = singles.image_N[row_Q[own]]
        curve = curves.repetition_curve(
            eeg_QCT[own],
            image_Q,
            np.searchsorted(asked.image_M, image_Q),
            partial(_scored, model=model, subject=subject, image_MD=image_MD, question=question),
            counts=counts,
            average=partial(_presented, store=store),
            level=question.level,
            seed=question.seed,
        )
        made += [{"subject": subject, **row} for row in curve.to_rows()]
    return made


def _codes(name_N: np.ndarray) -> np.ndarray:
    return np.unique(name_N, return_inverse=True)[1]


def _presented(eeg_IRCT: np.ndarray, *, store: Store) -> np.ndarray:
    """Average presentations, then present the mean as the model was taught: normalised and cut to its band."""
    return store.cut.finish(curves.average_repetitions(eeg_IRCT))


@torch.no_grad()
def _scored(
    eeg_ICT: np.ndarray,
    *,
    model: JointModel,
    subject: str,
    image_MD: np.ndarray,
    question: Question,
) -> np.ndarray:
    device = next(model.parameters()).device
    subject_I = model.subject_rows([subject] * len(eeg_ICT)).to(device)
    eeg_ID = [
        model.encode_eeg(torch.from_numpy(eeg_ICT[n : n + 256]).float().to(device), subject_I[n : n + 256])
        for n in range(0, len(eeg_ICT), 256)
    ]
    return retrieval.similarity(torch.cat(eeg_ID).cpu().numpy(), image_MD, normalise=question.normalise)
