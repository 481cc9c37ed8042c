"""Softmax probes on frozen embeddings, of EEG and of pictures (Palazzo et al., Sect. 7.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from eegvision.assess.embedding import Embedded, embed
from eegvision.assess.scores import Evaluation, Question, accuracy_rows, confusion_of, groups_of
from eegvision.encoders.joint import JointModel
from eegvision.evaluate import probes, statistics
from eegvision.stream import Store
from eegvision.vocab import InputError


def probe(model: JointModel, store: Store, asked: Embedded, question: Question) -> Evaluation:
    """Fit a softmax layer on training embeddings, its penalty chosen on validation, and score it on the side asked.

    Raises:
        InputError: fewer than two classes in training.
    """
    train = embed(model, store, "train")
    val = asked if asked.side == "val" else embed(model, store, "val")
    if len(np.unique(train.label_M[train.label_M >= 0])) < 2:
        raise InputError("a probe needs at least two classes in training, and the data set has fewer; use zero-shot")
    rows: list[dict[str, Any]] = []
    predictions: dict[str, list[Any]] = {}
    confusion = None
    for what in ("eeg", "image"):
        if (asked.eeg_ND if what == "eeg" else asked.image_MD) is None:
            continue
        (train_ND, train_label_N, _), (val_ND, val_label_N, _), (own_ND, label_N, kept_N) = (
            _labelled(part, what) for part in (train, val, asked)
        )
        fitted = probes.fit_probe(train_ND, train_label_N, val_ND, val_label_N)
        score = fitted.score(own_ND, label_N)
        column_N = (asked.column_N if what == "eeg" else np.arange(len(asked.image_M)))[kept_N]
        subject_N = asked.subject_N[kept_N] if what == "eeg" else None
        own = accuracy_rows(
            (score.predicted_N == score.label_N).astype(np.float64),
            unit_N=column_N,
            subject_N=subject_N,
            chance=score.chance,
            groups=groups_of(question, store.manifest.classes, label_N, subject_N),
            question=question,
        )
        own[0]["p"] = statistics.label_permutation_p(score.predicted_N, score.label_N, column_N, seed=question.seed)[1]
        rows += [
            row
            | {"metric": "accuracy", "probe_side": what, "penalty": fitted.penalty}
            | {"gallery": None, "normalise": None, "transductive": "none", "n_gallery": None}
            | {"repetitions": asked.n_repetitions if what == "eeg" else None}
            for row in own
        ]
        names = store.manifest.classes
        columns = {
            "probe_side": [what] * len(kept_N),
            "query_id": (asked.segment_id_N if what == "eeg" else asked.image_id_M)[kept_N].tolist(),
            "subject": ["" for _ in kept_N] if subject_N is None else subject_N.tolist(),
            "image_id": asked.image_id_M[column_N].tolist(),
            "label": [names[label] for label in score.label_N],
            "predicted": [names[label] for label in score.predicted_N],
        }
        for name, values in columns.items():
            predictions.setdefault(name, []).extend(values)
        confusion = confusion or confusion_of(score.label_N, score.predicted_N, names, question.categories)
    return Evaluation(protocol="probe", side=asked.side, rows=rows, confusion=confusion, predictions=predictions)


def _labelled(part: Embedded, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings and labels of what has a class, and which these are."""
    vector_ND, label_N = (part.eeg_ND, part.label_N) if what == "eeg" else (part.image_MD, part.label_M)
    assert vector_ND is not None
    kept_N = np.flatnonzero(label_N >= 0)
    return vector_ND[kept_N], label_N[kept_N], kept_N
